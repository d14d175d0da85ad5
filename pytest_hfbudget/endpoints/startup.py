"""Bringing one endpoint up for one run, beside other runs that may do the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from pytest_hfbudget.endpoints import tags
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.endpoint_state import EndpointState
from pytest_hfbudget.endpoints.journal import INTENT, RESUMED, REVIVED
from pytest_hfbudget.endpoints.lease_store import LeaseStore, file_lock, inherited
from pytest_hfbudget.endpoints.lifecycle_types import Afford, EndpointSettings, Grow
from pytest_hfbudget.endpoints.reaper_messages import Watch
from pytest_hfbudget.endpoints.resume import Resumer
from pytest_hfbudget.endpoints.retry import Clock
from pytest_hfbudget.endpoints.supervisor import Supervisor
from pytest_hfbudget.endpoints.types import ASLEEP, BROKEN, RUNNING, Endpoint
from pytest_hfbudget.endpoints.uptime import UseStretch, cost
from pytest_hfbudget.endpoints.uptime_meter import UptimeMeter
from pytest_hfbudget.errors import EndpointError

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
        afford: Afford,
        grow: Grow,
        arm: Callable[[], Supervisor],
        refusal: Callable[[], str],
    ) -> None:
        """``arm`` has a reaper on watch; ``refusal`` says why nothing may be resumed, if so."""
        self._settings, self._plane, self._resumer, self._meter = settings, plane, resumer, meter
        self._clock, self._arm, self._refusal = clock, arm, refusal
        self._afford, self._grow = afford, grow

    def bring_up(self, state: EndpointState, *, keep_running: bool) -> Endpoint:
        """The endpoint, serving.

        Raises:
            EndpointError: it can't be resumed, does not come up, or may not.
        """
        found = state.found = self._plane.get(state.name)
        # What runs only because of another run of ours will be paused by the last of them.
        if keep_running and not _rests(found) and self._lease_store(state).successor() is None:
            state.kept = True
            return self._resumer.wait(state.name)
        self._afford(found, self._meter.price(state, found))
        if not _rests(found):
            self._count(state, found, found.most_replicas)
        self._go_on(state.name)
        supervisor = self._arm()
        state.leased, state.resumed_at = True, self._clock.time()
        state.resumed_mono = self._clock.monotonic()
        # Claimed before it is looked at again: who leaves now sees us, or we wait for its pause.
        self._watch(supervisor, Watch(state.name))
        with self._locked_endpoint(state):
            self._begin(state, supervisor)
        up = state.found.state == RUNNING
        return self._serving(state, supervisor, None if up else state.resumed_mono)

    def revive(self, state: EndpointState) -> Endpoint:
        """The endpoint, serving again after someone else had it paused or scaled to zero.

        Raises:
            EndpointError: it had been revived before, or does not come up.
        """
        supervisor, since = self._arm(), None
        with self._locked_endpoint(state):
            found = self._plane.get(state.name)
            if found.state in ASLEEP:
                since = self._clock.monotonic()
                self._wake_again(state, found, supervisor)
        return self._serving(state, supervisor, since)

    def _serving(
        self, state: EndpointState, supervisor: Supervisor, since: float | None
    ) -> Endpoint:
        """Wait for it; if it is not up yet, it has been coming up ``since`` then."""
        try:
            endpoint = self._resumer.wait(state.name)
        finally:
            if since is not None:
                state.cold = (*state.cold, UseStretch(since, self._clock.monotonic()))
        supervisor.settled(state.name)
        return endpoint

    def renew(self, state: EndpointState) -> None:
        """Tag a later end when the one that is told comes near."""
        now = self._clock.time()
        near = now + self._settings.waits.max_run_s / 10
        if state.until is None or state.until > near or now < state.renew_at:
            return
        warning = self._resumer.renew(state.name)
        if warning:
            state.renew_at = (
                now + self._settings.waits.max_run_s / 100
            )  # a few more times before it is over
        else:
            state.until = self._resumer.until
        state.warn(warning)

    def _begin(self, state: EndpointState, supervisor: Supervisor) -> None:
        """No run pauses it now, and no other run begins to."""
        found = state.found = self._plane.get(state.name)
        self._meter.zero(state)
        lease_store = self._lease_store(state)
        rests, successor = _rests(found), lease_store.successor()
        state.scaling = inherited(
            found, ((each.run, each.scaling) for each in lease_store.others())
        )
        if state.scaling is None and rests:
            state.scaling = found.raw_scaling
        supervisor.write(INTENT, found, scaling=state.scaling)
        # Only what rests gets other settings: a change makes a running one deploy anew.
        untag = rests or tags.run_of(found.tags) is not None
        self._watch(supervisor, Watch(state.name, state.scaling, untag=untag))
        if rests:
            self._spread_net(state, found)
            self._resume(state, found, supervisor)
        else:
            self._count(state, found, found.most_replicas)
            state.joined = successor.run if successor else None
            state.until = tags.until(found.tags)

    def _spread_net(self, state: EndpointState, found: Endpoint) -> None:
        """Under a cap the endpoint may not scale beyond the replicas that are paid for ahead."""
        most = state.replicas if self._settings.capped else None
        warning = self._resumer.spread_net(found, most)
        state.warn(warning)
        state.until = self._resumer.until
        if warning or most is None:
            self._count(state, found, found.most_replicas)
        elif most < found.scaling.max_replica:
            state.warn(
                f"its maxReplica was lowered from {found.scaling.max_replica} to {most} for this "
                "run, because the budget pays for no more"
            )

    def look(self, state: EndpointState) -> None:
        """See whether more replicas may run than are paid for: someone may have changed that."""
        if state.leased and (state.resumed or not state.found_asleep):
            found = self._meter.look(state)
            if found is not None and found.state not in ASLEEP:
                self._count(state, found, found.most_replicas, resumed=True)

    def _count(
        self, state: EndpointState, found: Endpoint, replicas: int, *, resumed: bool = False
    ) -> None:
        """Have the caps pay for a minute of each replica that may run from now on."""
        with state.counting:
            more = replicas - state.replicas
            if more <= 0:
                return
            if self._settings.capped and state.price_atto is not None:
                self._grow(found, more, cost(state.price_atto, more), not resumed)
            state.count(replicas)

    def _wake_again(self, state: EndpointState, found: Endpoint, supervisor: Supervisor) -> None:
        if state.revived >= _MOST_REVIVALS:
            raise EndpointError(
                f'{state.name} is "{found.state}" again: someone else, or the server, has put it '
                "to rest more than once during this run. It is not resumed any more."
            )
        self._afford(found, self._meter.price(state, found))
        bare = tags.run_of(found.tags) is None
        if bare and state.scaling is None:
            state.scaling = found.raw_scaling
        self._watch(supervisor, Watch(state.name, state.scaling, untag=True))
        supervisor.write(REVIVED, found, scaling=state.scaling)
        state.revived += 1
        if bare:
            self._spread_net(state, found)
        else:
            self._count(state, found, found.most_replicas)
        self._resume(state, found, supervisor)

    def _resume(self, state: EndpointState, found: Endpoint, supervisor: Supervisor) -> None:
        if not state.resumed:
            state.resumed_at = self._clock.time()
        if not state.revived:
            state.resumed_mono = self._clock.monotonic()
        supervisor.resuming(state.name)
        before, state.resumed = state.resumed, True
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
            self._go_on(watch.endpoint)  # a reaper that has done its work is no mishap
            raise

    def _locked_endpoint(self, state: EndpointState) -> AbstractContextManager[None]:
        """Alone among the runs of this machine, and with no pause under way."""
        lease_store = self._lease_store(state)

        def ready() -> bool:
            for lease in lease_store.others():
                lease.end_stopped_reaper()
            return lease_store.pauser() is None

        return file_lock(lease_store.lock_path, wait=self._patience(state), ready=ready)

    def _patience(self, state: EndpointState) -> Callable[[float], None]:
        ends = self._clock.monotonic() + self._settings.waits.wait_timeout_s
        looks = 0

        def wait(seconds: float) -> None:
            nonlocal looks
            looks += 1  # counted too, should a suite freeze its clock
            self._go_on(state.name)
            most = self._settings.waits.wait_timeout_s
            if self._clock.monotonic() >= ends or looks * seconds > most:
                raise EndpointError(
                    f"{state.name}: another run of this machine has been pausing or resuming it "
                    f"for {most:g} s."
                )
            self._clock.sleep(seconds)

        return wait

    def _lease_store(self, state: EndpointState) -> LeaseStore:
        settings = self._settings
        return LeaseStore(
            settings.lease_dir, api=settings.api, endpoint=state.name, run=settings.run
        )

    def _go_on(self, name: str) -> None:
        why = self._refusal()
        if why:
            raise EndpointError(f"{name} is not resumed: {why}")


def _rests(endpoint: Endpoint) -> bool:
    return endpoint.state in ASLEEP | BROKEN
