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
        waker: Resumer,
        meter: UptimeMeter,
        *,
        clock: Clock,
        afford: Afford,
        grow: Grow,
        arm: Callable[[], Supervisor],
        refusal: Callable[[], str],
    ) -> None:
        """``arm`` has a reaper on watch; ``refusal`` says why nothing may be resumed, if so."""
        self._settings, self._plane, self._waker, self._meter = settings, plane, waker, meter
        self._clock, self._arm, self._refusal = clock, arm, refusal
        self._afford, self._grow = afford, grow

    def bring_up(self, slot: EndpointState, *, keep_running: bool) -> Endpoint:
        """The endpoint, serving.

        Raises:
            EndpointError: it can't be resumed, does not come up, or may not.
        """
        found = slot.found = self._plane.get(slot.name)
        # What runs only because of another run of ours will be paused by the last of them.
        if keep_running and not _rests(found) and self._claims(slot).heir() is None:
            slot.kept = True
            return self._waker.wait(slot.name)
        self._afford(found, self._meter.price(slot, found))
        if not _rests(found):
            self._count(slot, found, found.most_replicas)
        self._go_on(slot.name)
        guard = self._arm()
        slot.leased, slot.resumed_at = True, self._clock.time()
        slot.resumed_mono = self._clock.monotonic()
        # Claimed before it is looked at again: who leaves now sees us, or we wait for its pause.
        self._watch(guard, Watch(slot.name))
        with self._turn(slot):
            self._begin(slot, guard)
        up = slot.found.state == RUNNING
        return self._serving(slot, guard, None if up else slot.resumed_mono)

    def revive(self, slot: EndpointState) -> Endpoint:
        """The endpoint, serving again after someone else had it paused or scaled to zero.

        Raises:
            EndpointError: it had been revived before, or does not come up.
        """
        guard, since = self._arm(), None
        with self._turn(slot):
            found = self._plane.get(slot.name)
            if found.state in ASLEEP:
                since = self._clock.monotonic()
                self._wake_again(slot, found, guard)
        return self._serving(slot, guard, since)

    def _serving(self, slot: EndpointState, guard: Supervisor, since: float | None) -> Endpoint:
        """Wait for it; if it is not up yet, it has been coming up ``since`` then."""
        try:
            endpoint = self._waker.wait(slot.name)
        finally:
            if since is not None:
                slot.cold = (*slot.cold, UseStretch(since, self._clock.monotonic()))
        guard.settled(slot.name)
        return endpoint

    def renew(self, slot: EndpointState) -> None:
        """Tag a later end when the one that is told comes near."""
        now = self._clock.time()
        near = now + self._settings.max_run_s / 10
        if slot.until is None or slot.until > near or now < slot.renew_at:
            return
        warning = self._waker.renew(slot.name)
        if warning:
            slot.renew_at = (
                now + self._settings.max_run_s / 100
            )  # a few more times before it is over
        else:
            slot.until = self._waker.until
        slot.warn(warning)

    def _begin(self, slot: EndpointState, guard: Supervisor) -> None:
        """No run pauses it now, and no other run begins to."""
        found = slot.found = self._plane.get(slot.name)
        self._meter.zero(slot)
        claims = self._claims(slot)
        rests, heir = _rests(found), claims.heir()
        slot.scaling = inherited(found, ((each.run, each.scaling) for each in claims.others()))
        if slot.scaling is None and rests:
            slot.scaling = found.raw_scaling
        guard.write(INTENT, found, scaling=slot.scaling)
        # Only what rests gets other settings: a change makes a running one deploy anew.
        untag = rests or tags.run_of(found.tags) is not None
        self._watch(guard, Watch(slot.name, slot.scaling, untag=untag))
        if rests:
            self._spread_net(slot, found)
            self._resume(slot, found, guard)
        else:
            self._count(slot, found, found.most_replicas)
            slot.joined = heir.run if heir else None
            slot.until = tags.until(found.tags)

    def _spread_net(self, slot: EndpointState, found: Endpoint) -> None:
        """Under a cap the endpoint may not scale beyond the replicas that are paid for ahead."""
        most = slot.replicas if self._settings.capped else None
        warning = self._waker.spread_net(found, most)
        slot.warn(warning)
        slot.until = self._waker.until
        if warning or most is None:
            self._count(slot, found, found.most_replicas)
        elif most < found.scaling.max_replica:
            slot.warn(
                f"its maxReplica was lowered from {found.scaling.max_replica} to {most} for this "
                "run, because the budget pays for no more"
            )

    def look(self, slot: EndpointState) -> None:
        """See whether more replicas may run than are paid for: someone may have changed that."""
        if slot.leased and (slot.resumed or not slot.found_asleep):
            found = self._meter.look(slot)
            if found is not None and found.state not in ASLEEP:
                self._count(slot, found, found.most_replicas, resumed=True)

    def _count(
        self, slot: EndpointState, found: Endpoint, replicas: int, *, resumed: bool = False
    ) -> None:
        """Have the caps pay for a minute of each replica that may run from now on."""
        with slot.counting:
            more = replicas - slot.replicas
            if more <= 0:
                return
            if self._settings.capped and slot.price_atto is not None:
                self._grow(found, more, cost(slot.price_atto, more), not resumed)
            slot.count(replicas)

    def _wake_again(self, slot: EndpointState, found: Endpoint, guard: Supervisor) -> None:
        if slot.revived >= _MOST_REVIVALS:
            raise EndpointError(
                f'{slot.name} is "{found.state}" again: someone else, or the server, has put it '
                "to rest more than once during this run. It is not resumed any more."
            )
        self._afford(found, self._meter.price(slot, found))
        bare = tags.run_of(found.tags) is None
        if bare and slot.scaling is None:
            slot.scaling = found.raw_scaling
        self._watch(guard, Watch(slot.name, slot.scaling, untag=True))
        guard.write(REVIVED, found, scaling=slot.scaling)
        slot.revived += 1
        if bare:
            self._spread_net(slot, found)
        else:
            self._count(slot, found, found.most_replicas)
        self._resume(slot, found, guard)

    def _resume(self, slot: EndpointState, found: Endpoint, guard: Supervisor) -> None:
        if not slot.resumed:
            slot.resumed_at = self._clock.time()
        if not slot.revived:
            slot.resumed_mono = self._clock.monotonic()
        guard.waking(slot.name)
        before, slot.resumed = slot.resumed, True
        try:
            answered = self._waker.resume(slot.name)
        except EndpointError:
            slot.resumed = before
            guard.settled(slot.name)
            raise
        # Without an answer it is as good as resumed: waited for, paid for and paused. But it may
        # still take effect after a pause, which the reaper has to watch out for.
        if answered:
            guard.settled(slot.name)
        guard.write(RESUMED, found)

    def _watch(self, guard: Supervisor, watch: Watch) -> None:
        try:
            guard.watch(watch)
        except EndpointError:
            self._go_on(watch.endpoint)  # a reaper that has done its work is no mishap
            raise

    def _turn(self, slot: EndpointState) -> AbstractContextManager[None]:
        """Alone among the runs of this machine, and with no pause under way."""
        claims = self._claims(slot)

        def ready() -> bool:
            for claim in claims.others():
                claim.end_stopped_reaper()
            return claims.pauser() is None

        return file_lock(claims.lock_path, wait=self._patience(slot), ready=ready)

    def _patience(self, slot: EndpointState) -> Callable[[float], None]:
        ends = self._clock.monotonic() + self._settings.wait_timeout_s
        looks = 0

        def wait(seconds: float) -> None:
            nonlocal looks
            looks += 1  # counted too, should a suite freeze its clock
            self._go_on(slot.name)
            most = self._settings.wait_timeout_s
            if self._clock.monotonic() >= ends or looks * seconds > most:
                raise EndpointError(
                    f"{slot.name}: another run of this machine has been pausing or resuming it "
                    f"for {most:g} s."
                )
            self._clock.sleep(seconds)

        return wait

    def _claims(self, slot: EndpointState) -> LeaseStore:
        settings = self._settings
        return LeaseStore(settings.claims, api=settings.api, endpoint=slot.name, run=settings.run)

    def _go_on(self, name: str) -> None:
        why = self._refusal()
        if why:
            raise EndpointError(f"{name} is not resumed: {why}")


def _rests(endpoint: Endpoint) -> bool:
    return endpoint.state in ASLEEP | BROKEN
