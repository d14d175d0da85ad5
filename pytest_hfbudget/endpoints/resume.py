"""Bringing an endpoint up for one run, beside other runs that may do the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from pytest_hfbudget.endpoints import (
    ASLEEP,
    BROKEN,
    RUNNING,
    Endpoint,
    tagged_run,
    tagged_until,
    with_run_tags,
)
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import INTENT, RESUMED, REVIVED
from pytest_hfbudget.endpoints.lease_store import inherited
from pytest_hfbudget.endpoints.lifecycle_types import (
    Caps,
    EndpointSettings,
    EndpointState,
    Progress,
)
from pytest_hfbudget.endpoints.reaper_messages import Watch
from pytest_hfbudget.endpoints.retry import waiting
from pytest_hfbudget.endpoints.supervisor import Supervisor
from pytest_hfbudget.endpoints.uptime import UseStretch
from pytest_hfbudget.endpoints.uptime_meter import UptimeMeter
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import Clock

# Only sent again when the state has shown that the one before had no effect.
_MOST_RESUMES = 3


class Resumer:
    """Resumes endpoints and waits for them. Safe to share between threads."""

    def __init__(
        self,
        plane: ControlPlane,
        settings: EndpointSettings,
        *,
        clock: Clock,
        progress: Progress,
        stopping: Callable[[], str],
    ) -> None:
        """``stopping`` returns why to wait no longer; empty while there is time."""
        self._plane, self._settings, self._clock = plane, settings, clock
        self._progress, self._stopping = progress, stopping

    def limit_scaling(self, endpoint: Endpoint, most_replicas: int | None = None) -> str | None:
        """Have the server itself scale the endpoint to zero when it idles, and tag the run.

        The last layer: it works when this machine is gone. A warning if it could not be had.

        Args:
            most_replicas: have the server start no more than these.
        """
        scaling = endpoint.raw_scaling
        idle = endpoint.scaling.scale_to_zero_min
        longest = self._settings.idle_timeout_min
        replicas = max(endpoint.scaling.max_replica, 1)
        scaling.update(
            minReplica=0,
            maxReplica=replicas if most_replicas is None else min(replicas, most_replicas),
            scaleToZeroTimeout=min(idle, longest) if idle else longest,
        )
        payload = {"compute": {"scaling": scaling}, "tags": self.tags(endpoint)}
        try:
            self._plane.update(endpoint.full_name, payload)
        except ControlPlaneError as error:
            return (
                f"{endpoint.full_name}: the server was not told to scale it to zero when idle, "
                f"so it keeps running if this machine fails: {error}"
            )
        return None

    @property
    def until(self) -> float:
        """Unix seconds: the latest end of a run that tags an endpoint now."""
        return self._clock.time() + self._settings.waits.max_run_s

    def tags(self, endpoint: Endpoint) -> list[str]:
        """The tags of an endpoint that this run uses."""
        return with_run_tags(endpoint.tags, self._settings.run, self.until)

    def resume(self, name: str) -> bool:
        """Resume once; whether that was answered.

        An answer that got lost is not waited for again, but looked for in the state. Only if
        the state shows that the request had no effect, it is repeated.

        Raises:
            EndpointError: it was refused, or not sent because the run is ending.
        """
        self.refuse_late(name)
        for _ in range(_MOST_RESUMES):
            try:
                self._plane.resume(name)
            except ControlPlaneError as error:
                if not error.maybe_done:
                    raise
                if self._took_effect(name):
                    return False
            else:
                return True
        return False

    def wait(self, name: str) -> Endpoint:
        """Wait until the endpoint runs and its health route answers.

        Raises:
            EndpointError: it failed, was paused meanwhile, or took longer than it may.
        """
        began = self._clock.monotonic()
        trouble, slept = "", 0.0
        while self._may_wait(began, slept):
            self.refuse_late(name)
            seconds = self._clock.monotonic() - began
            try:
                endpoint = self._plane.get(name)
                self._progress(name, endpoint.state, seconds)
                trouble = f'its state is "{endpoint.state}"'
                if endpoint.state == RUNNING:
                    if self._plane.healthy(endpoint):
                        return endpoint
                    trouble = f"its health route {endpoint.health_route} does not answer 200"
                self._refuse_end(endpoint, seconds)
            except ControlPlaneError as error:
                if error.gone or error.denied:
                    raise
                trouble = str(error)
            pause = self._settings.waits.pause_after(seconds)
            self._clock.sleep(pause)
            slept += pause
        raise EndpointError(
            f"{name} did not serve within {self._settings.waits.wait_timeout_s:g} s: {trouble}. "
            "It is paused again. Raise hf_endpoint_wait, or look at its logs."
        )

    def _may_wait(self, began: float, slept: float) -> bool:
        # The pauses count too: a suite that freezes its clock must not wait for ever.
        most = self._settings.waits.wait_timeout_s
        return self._clock.monotonic() - began < most and slept <= most

    def _refuse_end(self, endpoint: Endpoint, seconds: float) -> None:
        name, state = endpoint.full_name, endpoint.state
        if state in BROKEN:
            raise EndpointError(f'{name} is "{state}" instead of running: {endpoint.reason}.')
        # Right after a resume the old state may still be what is read.
        if state in ASLEEP and seconds >= self._settings.timings.settle_s:
            raise EndpointError(
                f'{name} is "{state}" {seconds:.0f} s after it was resumed: another process, or '
                "the server, has paused it. Run again."
            )

    def _took_effect(self, name: str) -> bool:
        """Whether the state changes within the time that a lost resume may take.

        True also where no state could be read: then nothing shows that it had no effect.
        """
        ends, asleep = self._clock.monotonic() + self._settings.timings.settle_s, False
        while self._clock.monotonic() < ends:
            if self._stopping():
                return True  # not to be repeated; the reaper knows that it may come yet
            self._clock.sleep(min(self._settings.waits.poll_s, self._settings.timings.settle_s / 4))
            try:
                asleep = self._plane.get(name).state in ASLEEP
            except ControlPlaneError:
                continue
            if not asleep:
                return True
        return not asleep

    def refuse_late(self, name: str) -> None:
        """Raises EndpointError once nothing is to be resumed, or waited for, any more."""
        why = self._stopping()
        if why:
            raise EndpointError(f"{name} is not waited for: {why}")


# A run that someone works against is better off failing than paying for a tug-of-war.
_MOST_REVIVALS = 1


class Startup:
    """Resumes an endpoint, or joins another run's resume. Safe to share between threads."""

    def __init__(
        self,
        settings: EndpointSettings,
        plane: ControlPlane,
        resumer: Resumer,
        meter: UptimeMeter,
        *,
        clock: Clock,
        caps: Caps,
        supervisor: Callable[[], Supervisor],
    ) -> None:
        """``supervisor`` starts the reaper if there is none."""
        self._settings, self._plane, self._resumer, self._meter = settings, plane, resumer, meter
        self._clock, self._caps, self._supervisor = clock, caps, supervisor

    def begin(
        self, state: EndpointState, *, keep_running: bool, new: Endpoint | None = None
    ) -> Callable[[], Endpoint]:
        """Resume the endpoint; what comes back waits until it serves, and returns it.

        One that is taken over is not resumed, but leased before the code under test resumes it;
        or creates it, as ``new`` says.

        Raises:
            EndpointError: it can't be resumed, or may not; later, that it does not come up.
        """
        found = state.found = new or self._plane.get(state.name)
        # What runs only because of another run of ours will be paused by the last of them.
        if (
            keep_running
            and not found.at_rest
            and self._settings.lease_store(state.name).successor() is None
        ):
            state.kept = True
            return lambda: self._resumer.wait(state.name)
        self._caps.afford(found, self._meter.price(state, found))
        if not found.at_rest:
            self._count(state, found, found.most_replicas)
        self._resumer.refuse_late(state.name)
        supervisor = self._supervisor()
        state.leased = True
        state.use.begin(self._clock.time(), self._clock.monotonic())
        # Leased before the next look: a run that ends now sees this lease, or this run waits for
        # its pause.
        self._watch(supervisor, Watch(state.name, created=new is not None))
        with self._alone(state):
            self._begin(state, supervisor, new)
        since = None if state.found.state == RUNNING else state.use.began_mono
        return lambda: self._serving(state, supervisor, since)

    def revive(self, state: EndpointState) -> Endpoint:
        """The endpoint, serving again after someone else had it paused or scaled to zero.

        Raises:
            EndpointError: it had been revived before, or does not come up.
        """
        supervisor, since = self._supervisor(), None
        with self._alone(state):
            found = self._plane.get(state.name)
            if found.state in ASLEEP:
                since = self._clock.monotonic()
                self._resume_again(state, found, supervisor)
        return self._serving(state, supervisor, since)

    def _serving(
        self, state: EndpointState, supervisor: Supervisor, since: float | None
    ) -> Endpoint:
        """Wait for it; if it is not up yet, it has been coming up ``since`` then."""
        try:
            endpoint = self._resumer.wait(state.name)
        finally:
            if since is not None:
                state.use.cold = (*state.use.cold, UseStretch(since, self._clock.monotonic()))
        supervisor.settled(state.name)
        return endpoint

    def renew(self, state: EndpointState) -> None:
        """Tag a later end when the one in the tags comes near."""
        now, most_s = self._clock.time(), self._settings.waits.max_run_s
        near = now + most_s / 10
        if state.tag.until is None or state.tag.until > near or now < state.tag.renew_at:
            return
        plane = self._plane.with_retry(replace(self._settings.retry, total_s=0.0))
        try:
            tags = self._resumer.tags(plane.get(state.name))
            plane.update(state.name, {"tags": tags})
        except ControlPlaneError as error:
            state.tag.renew_at = now + most_s / 100  # a few more times before it is over
            state.warn(
                f"{state.name}: its tags are old, so a sweep from elsewhere may pause it: {error}"
            )
        else:
            state.tag.until = self._resumer.until

    def _begin(self, state: EndpointState, supervisor: Supervisor, new: Endpoint | None) -> None:
        """No run pauses it now, and no other run begins to."""
        found = state.found = new or self._plane.get(state.name)
        if new is not None:  # a server forgets the replicas of an endpoint that was deleted before
            state.use.earlier = None if state.use.gaps else {}
        elif not state.use.gaps:
            self._meter.zero(state)
        lease_store = self._settings.lease_store(state.name)
        successor, others = lease_store.successor(), lease_store.others()
        state.scaling = inherited(found, ((each.run, each.scaling) for each in others))
        if state.scaling is None and found.at_rest and new is None:
            state.scaling = found.raw_scaling
        supervisor.write(INTENT, found, scaling=state.scaling)
        # Only an endpoint at rest gets other settings: a change makes a running one deploy anew.
        untag = (found.at_rest and new is None) or tagged_run(found.tags) is not None
        watch = Watch(state.name, state.scaling, untag=untag, created=new is not None)
        self._watch(supervisor, watch)
        if found.at_rest and not lease_store.coming_up():
            if new is None:
                self._limit_scaling(state, found)
            else:
                self._count(state, found, found.most_replicas)
            self._resume(state, found, supervisor)
            lease_store.resumed(state.scaling)
        else:
            self._count(state, found, found.most_replicas)
            state.joined = successor.run if successor else None
            state.tag.until = tagged_until(found.tags)

    def _limit_scaling(self, state: EndpointState, found: Endpoint) -> None:
        """Under a cap the endpoint may not scale beyond the replicas that are paid for ahead."""
        most = state.use.replicas if self._settings.capped else None
        warning = self._resumer.limit_scaling(found, most)
        state.warn(warning)
        state.tag.until = self._resumer.until
        if warning or most is None:
            self._count(state, found, found.most_replicas)
        elif most < found.scaling.max_replica:
            lowered = f"its maxReplica was lowered from {found.scaling.max_replica} to {most}"
            state.warn(f"{lowered} for this run, because the budget pays for no more")

    def look(self, state: EndpointState) -> None:
        """See whether more replicas may run than are paid for: someone may have changed that."""
        if state.leased and (state.resumed or not state.found_asleep):
            found = self._meter.look(state)
            if found and found.state not in ASLEEP:
                self._count(state, found, found.most_replicas, resumed=True)

    def _count(
        self, state: EndpointState, found: Endpoint, replicas: int, *, resumed: bool = False
    ) -> None:
        """Have the caps pay for a minute of each replica that may run from now on."""
        self._meter.count(state, found, replicas, self._caps.grow, ahead=not resumed)

    def _resume_again(self, state: EndpointState, found: Endpoint, supervisor: Supervisor) -> None:
        if state.revived >= _MOST_REVIVALS:
            raise EndpointError(
                f'{state.name} is "{found.state}" again: someone else, or the server, has paused '
                "it more than once during this run. It is not resumed any more."
            )
        self._caps.afford(found, self._meter.price(state, found))
        bare = tagged_run(found.tags) is None
        if bare and state.scaling is None:
            state.scaling = found.raw_scaling
        self._watch(supervisor, Watch(state.name, state.scaling, untag=True))
        supervisor.write(REVIVED, found, scaling=state.scaling)
        state.revived += 1
        if bare:
            self._limit_scaling(state, found)
        else:
            self._count(state, found, found.most_replicas)
        self._resume(state, found, supervisor)

    def _resume(self, state: EndpointState, found: Endpoint, supervisor: Supervisor) -> None:
        if not state.revived:
            state.use.begin(self._clock.time(), self._clock.monotonic())
        supervisor.resuming(state.name)
        before, state.resumed = state.resumed, True
        if state.taken_over:
            return  # the code under test sends it
        try:
            answered = self._resumer.resume(state.name)
        except EndpointError:
            state.resumed = before
            supervisor.settled(state.name)
            raise
        # Without an answer it is as good as resumed: waited for, paid for and paused. But it may
        # still take effect after a pause, which the reaper has to watch out for.
        if answered:
            supervisor.settled(state.name)
        supervisor.write(RESUMED, found)

    def _watch(self, supervisor: Supervisor, watch: Watch) -> None:
        try:
            supervisor.watch(watch)
        except EndpointError:
            # The reaper may have done its work.
            self._resumer.refuse_late(watch.endpoint)
            raise

    def _alone(self, state: EndpointState) -> AbstractContextManager[None]:
        """Keeps other runs of this machine from resuming or pausing it."""
        return self._settings.lease_store(state.name).locked(self._waiter(state))

    def _waiter(self, state: EndpointState) -> Callable[[float], None]:
        most_s = self._settings.waits.wait_timeout_s
        late = f"{state.name}: another run has been pausing or resuming it for {most_s:g} s."
        return waiting(self._clock, most_s, partial(self._resumer.refuse_late, state.name), late)
