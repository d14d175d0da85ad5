"""Brings an endpoint up for one run, while other runs may do the same."""

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
from pytest_hfbudget.endpoints.reaper_messages import BeginLease
from pytest_hfbudget.endpoints.retry import waiting
from pytest_hfbudget.endpoints.supervisor import Supervisor
from pytest_hfbudget.endpoints.uptime import UseInterval
from pytest_hfbudget.endpoints.uptime_meter import UptimeMeter
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import Clock

# How often a resume is sent. It is repeated only if the state shows that it had no effect.
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
        """``stopping`` returns why to stop waiting; empty if the wait may go on."""
        self._plane, self._settings, self._clock = plane, settings, clock
        self._progress, self._stopping = progress, stopping

    def limit_scaling(self, endpoint: Endpoint, most_replicas: int | None = None) -> str | None:
        """Have the server scale an idle endpoint to zero, and tag the endpoint with the run.

        This backstop works even if this machine is gone. Returns a warning if the server refuses.

        Args:
            most_replicas: the most replicas that the server may start; None for no limit.
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
        """The latest end of this run, for a tag that is set now, in unix seconds."""
        return self._clock.time() + self._settings.waits.max_run_s

    def tags(self, endpoint: Endpoint) -> list[str]:
        """The tags of an endpoint, with those of this run."""
        return with_run_tags(endpoint.tags, self._settings.run, self.until)

    def resume(self, name: str) -> bool:
        """Send a resume; returns whether the server answered it.

        If the answer is lost, the state of the endpoint tells. The request is repeated only if the
        state shows that it had no effect.

        Raises:
            EndpointError: the server refused it, or it was not sent because the run is ending.
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
            EndpointError: it failed, was paused meanwhile, or took longer than `wait_timeout_s`.
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
        # Count the sleeps as well: with a frozen clock the wait would never end.
        most = self._settings.waits.wait_timeout_s
        return self._clock.monotonic() - began < most and slept <= most

    def _refuse_end(self, endpoint: Endpoint, seconds: float) -> None:
        name, state = endpoint.full_name, endpoint.state
        if state in BROKEN:
            raise EndpointError(f'{name} is "{state}" instead of running: {endpoint.reason}.')
        # Right after a resume the server may still show the old state.
        if state in ASLEEP and seconds >= self._settings.timings.late_resume_s:
            raise EndpointError(
                f'{name} is "{state}" {seconds:.0f} s after it was resumed: another process, or '
                "the server, has paused it. Run again."
            )

    def _took_effect(self, name: str) -> bool:
        """Whether the state changes within the time that a resume without an answer may take.

        True as well if no state could be read: then nothing shows that it had no effect.
        """
        ends, asleep = self._clock.monotonic() + self._settings.timings.late_resume_s, False
        while self._clock.monotonic() < ends:
            if self._stopping():
                return True  # don't repeat it; the reaper knows that it may still take effect
            self._clock.sleep(
                min(self._settings.waits.poll_s, self._settings.timings.late_resume_s / 4)
            )
            try:
                asleep = self._plane.get(name).state in ASLEEP
            except ControlPlaneError:
                continue
            if not asleep:
                return True
        return not asleep

    def refuse_late(self, name: str) -> None:
        """Raise EndpointError if nothing may be resumed or waited for any more."""
        why = self._stopping()
        if why:
            raise EndpointError(f"{name} is not waited for: {why}")


# How often a run resumes an endpoint again that another process has paused. If that process pauses
# it once more, the run fails, because each further resume costs a minute and a cold start.
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
        """``supervisor`` returns the supervisor; its first call starts the reaper."""
        self._settings, self._plane, self._resumer, self._meter = settings, plane, resumer, meter
        self._clock, self._caps, self._supervisor = clock, caps, supervisor

    def begin(
        self, state: EndpointState, *, keep_running: bool, new: Endpoint | None = None
    ) -> Callable[[], Endpoint]:
        """Resume the endpoint. Returns a function that waits until it serves, and returns it.

        One that is taken over is only leased here; the code under test resumes or creates it.

        Args:
            new: the endpoint that the code under test is about to create; None for a resume.

        Raises:
            EndpointError: it can't be resumed, or a cap refuses it. The returned function raises
                it if the endpoint does not come up.
        """
        found = state.found = new or self._plane.get(state.name)
        # If it runs only because another run has resumed it, the last of these runs pauses it.
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
        # Lease it before the next look: a run that ends now sees this lease, or we await its pause.
        self._begin_lease(supervisor, BeginLease(state.name, created=new is not None))
        with self._alone(state):
            self._begin(state, supervisor, new)
        since = None if state.found.state == RUNNING else state.use.began_mono
        return lambda: self._serving(state, supervisor, since)

    def revive(self, state: EndpointState) -> Endpoint:
        """Return the endpoint once it serves; resume it if it was paused or scaled to zero.

        Raises:
            EndpointError: it was revived before, or does not come up.
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
        """Wait until it serves. ``since``: when it was resumed; None if it ran already."""
        try:
            endpoint = self._resumer.wait(state.name)
        finally:
            if since is not None:
                state.use.cold = (*state.use.cold, UseInterval(since, self._clock.monotonic()))
        supervisor.resume_over(state.name)
        return endpoint

    def renew(self, state: EndpointState) -> None:
        """Renew the tag with the latest end of the run before that time comes."""
        now, most_s = self._clock.time(), self._settings.waits.max_run_s
        near = now + most_s / 10
        if state.tag.until is None or state.tag.until > near or now < state.tag.renew_at:
            return
        plane = self._plane.with_retry(replace(self._settings.retry, total_s=0.0))
        try:
            tags = self._resumer.tags(plane.get(state.name))
            plane.update(state.name, {"tags": tags})
        except ControlPlaneError as error:
            state.tag.renew_at = now + most_s / 100  # so it is tried some more times
            state.warn(
                f"{state.name}: its tags are old, so a sweep from elsewhere may pause it: {error}"
            )
        else:
            state.tag.until = self._resumer.until

    def _begin(self, state: EndpointState, supervisor: Supervisor, new: Endpoint | None) -> None:
        """Write the lease and the journal, then resume. Called with the lock of `_alone`."""
        found = state.found = new or self._plane.get(state.name)
        if new is not None:  # a new endpoint has no earlier replicas
            state.use.earlier = None if state.use.gaps else {}
        elif not state.use.gaps:
            self._meter.note_earlier_replicas(state)
        lease_store = self._settings.lease_store(state.name)
        successor, others = lease_store.successor(), lease_store.others()
        state.scaling = inherited(found, ((each.run, each.scaling) for each in others))
        if state.scaling is None and found.at_rest and new is None:
            state.scaling = found.raw_scaling
        supervisor.write(INTENT, found, scaling=state.scaling)
        # Change settings only of an endpoint at rest: a running one would deploy anew.
        untag = (found.at_rest and new is None) or tagged_run(found.tags) is not None
        terms = BeginLease(state.name, state.scaling, untag=untag, created=new is not None)
        self._begin_lease(supervisor, terms)
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
        """Limit the scaling; under a cap, to the replicas that it has paid for in advance."""
        most = state.use.replicas if self._settings.capped else None
        warning = self._resumer.limit_scaling(found, most)
        state.warn(warning)
        state.tag.until = self._resumer.until
        if warning or most is None:
            self._count(state, found, found.most_replicas)
        elif most < found.scaling.max_replica:
            lowered = f"its maxReplica was lowered from {found.scaling.max_replica} to {most}"
            state.warn(f"{lowered} for this run, because the budget pays for no more")

    def check_replicas(self, state: EndpointState) -> None:
        """Check if more replicas may run than the caps pay for: someone may have raised them."""
        if state.leased and (state.resumed or not state.found_asleep):
            found = self._meter.read(state)
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
        self._begin_lease(supervisor, BeginLease(state.name, state.scaling, untag=True))
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
            return  # the code under test sends the resume
        try:
            answered = self._resumer.resume(state.name)
        except EndpointError:
            state.resumed = before
            supervisor.resume_over(state.name)
            raise
        # Without an answer the endpoint counts as resumed. The resume may take effect even after
        # the pause, so the reaper is not told that it is over.
        if answered:
            supervisor.resume_over(state.name)
        supervisor.write(RESUMED, found)

    def _begin_lease(self, supervisor: Supervisor, terms: BeginLease) -> None:
        try:
            supervisor.begin_lease(terms)
        except EndpointError:
            # If the reaper has already paused all, this raises the clearer error.
            self._resumer.refuse_late(terms.endpoint)
            raise

    def _alone(self, state: EndpointState) -> AbstractContextManager[None]:
        """Keep other runs from resuming or pausing it meanwhile."""
        return self._settings.lease_store(state.name).locked(self._waiter(state))

    def _waiter(self, state: EndpointState) -> Callable[[float], None]:
        most_s = self._settings.waits.wait_timeout_s
        late = f"{state.name}: another run has been pausing or resuming it for {most_s:g} s."
        return waiting(self._clock, most_s, partial(self._resumer.refuse_late, state.name), late)
