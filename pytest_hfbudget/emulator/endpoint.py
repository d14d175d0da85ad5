"""One dedicated endpoint: its states, and the transitions between them.

States and the rules for pause, resume and scale to zero follow Inference Endpoints OpenAPI v2.0.0;
what that leaves open is a switch.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pytest_hfbudget.emulator.behaviour import Behaviour, Scaling
from pytest_hfbudget.emulator.clock import Clock, Timer, at_one_time
from pytest_hfbudget.emulator.hardware import Hardware
from pytest_hfbudget.emulator.log import Log
from pytest_hfbudget.emulator.refusal import refused
from pytest_hfbudget.emulator.replica import Replica
from pytest_hfbudget.emulator.switches import Switches

State = Literal[
    "pending", "initializing", "updating", "updateFailed", "running", "paused", "failed",
    "scaledToZero",
]  # fmt: skip
STATES: tuple[str, ...] = get_args(State)
_STARTING = ("pending", "initializing", "updating")
_ASLEEP = ("paused", "scaledToZero")


@dataclass
class Endpoint:
    """A dedicated endpoint. Every method runs on the event loop and does not block."""

    namespace: str
    name: str
    hardware: Hardware
    clock: Clock
    log: Log
    switches: Callable[[], Switches]
    behaviour: Behaviour = field(default_factory=Behaviour)
    scaling: Scaling = field(default_factory=Scaling)
    model: dict[str, Any] = field(default_factory=dict)
    type: str = "authenticated"
    tags: list[str] = field(default_factory=list)
    state: str = "paused"
    replicas: list[Replica] = field(default_factory=list)
    deleting: bool = False

    def __post_init__(self) -> None:
        now = self.clock.now()
        self.created = self.updated = self.last_used = self.ready_at = now
        self.changed = asyncio.Event()
        self.pausing = False
        self._history = [(now, self.state)]
        self._numbers = itertools.count(1)
        self._timers: list[Timer] = []
        self._load_check: Timer | None = None

    @property
    def full_name(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"

    @property
    def present(self) -> list[Replica]:
        """The replicas that are not yet stopped."""
        return [replica for replica in self.replicas if not replica.gone]

    @property
    def target(self) -> int:
        """How many replicas it is heading for."""
        if self.pausing or self.deleting or self.state in _ASLEEP:
            return 0
        return len(self.present)

    @property
    def shown_state(self) -> str:
        """The state that the API tells."""
        seen = self.clock.now() - round(self.behaviour.view_lag_s * 1_000_000)
        return next((state for at, state in reversed(self._history) if at <= seen), "paused")

    @property
    def ready(self) -> bool:
        """Whether its model answers."""
        return self.state == "running" and not self.pausing and self.clock.now() >= self.ready_at

    # -- what the control plane asks

    @at_one_time
    def resume(self) -> None:
        """Start a sleeping endpoint. Raises Refusal (400) from any state that cannot."""
        self._refuse_if_deleting()
        if self.state in _STARTING and self.switches().resume_while_starting == "ok":
            return
        if self.state == "running" or self.state in _STARTING:
            raise refused(400, "Endpoint is already running")
        if self.state == "updateFailed" or (self.state, self.behaviour.failure) == (
            "failed",
            "config",
        ):
            raise refused(400, "Endpoint has a configuration error, update it instead")
        if not self.behaviour.quota_ok:
            raise refused(self.switches().quota_status, "Quota exceeded for this hardware")
        if self.switches().resume_rewrites_scaling:
            self.scaling = replace(self.scaling, minimum=1, maximum=1)
        self._start()

    @at_one_time
    def pause(self) -> None:
        """Scale down to no replicas, from any state; a paused endpoint stays as it is."""
        self._refuse_if_deleting()
        if self.pausing or self.state == "paused":
            return
        self._cancel_timers()
        self.pausing = True
        if self.switches().resume_rewrites_scaling:
            self.scaling = replace(self.scaling, minimum=0, maximum=0)
        self._stage_all("terminating")
        if self.behaviour.pause_lag_s:
            self._later(self.behaviour.pause_lag_s, self._finish_pause)
        else:
            self._finish_pause()

    @at_one_time
    def scale_to_zero(self) -> None:
        """Put it to sleep until the next request. Raises Refusal (400) when it may not sleep."""
        self._refuse_if_deleting()
        if self.scaling.idle_minutes is None or self.state == "paused":
            raise refused(400, "workload cannot be scaled to zero")
        self._cancel_timers()
        self._stage_all("stopped")
        self._enter("scaledToZero")

    @at_one_time
    def apply_update(self, moved_to: Hardware | None) -> None:
        """Let an update of the configuration take effect, on other hardware if that is given."""
        self.updated = self.clock.now()
        moved = moved_to is not None and moved_to != self.hardware
        self.hardware = moved_to or self.hardware
        if self.state in _ASLEEP:
            if self.switches().update_resumes:
                self._start()
            return
        if self.pausing or self.state not in ("running", "updateFailed", "failed"):
            return
        if moved or not any(replica.live for replica in self.replicas):
            self._replace_replicas()
        if self.behaviour.updating_s:
            self._stage_all("updating")
            self._enter("updating")
            self._later(self.behaviour.updating_s, self._finish_update)
        else:
            self._finish_update()

    @at_one_time
    def delete(self) -> None:
        """End all replicas; the endpoint can be read for as long as the world keeps it."""
        self._cancel_timers()
        self.deleting = True
        self._stage_all("stopped")
        self.log.add("state", endpoint=self.full_name, state="deleted", previous=self.state)

    # -- what requests and tests do to it

    def use(self) -> None:
        """A request came in: the idle time starts anew."""
        self.last_used = self.clock.now()

    @at_one_time
    def wake(self) -> None:
        """A request came to an endpoint that is scaled to zero: start it."""
        if self.state == "scaledToZero":
            self._start()

    @at_one_time
    def scale(self, count: int) -> None:
        """Grow or shrink to `count` replicas. Raises Refusal (400) unless it is running."""
        if self.state not in ("running", "updating") or count < 1:
            raise refused(400, f"cannot scale to {count} replicas while {self.state}")
        now = self.clock.now()
        for replica in self.present[count:]:
            replica.enter("stopped", now)
        added = [self._new_replica("initializing") for _ in range(count - len(self.present))]

        def arrive() -> None:
            for replica in added:
                replica.enter("running", self.clock.now())

        self._later(self.behaviour.initializing_s, arrive)

    def follow_load(self) -> None:
        """Autoscale from now on: a look at the load, and again after every `load_check_s`."""
        if self._load_check is not None:
            self._load_check.cancel()
        if self.behaviour.load:
            self._load_check = self.clock.after(self.behaviour.load_check_s, self._autoscale)

    @at_one_time
    def force(self, state: str) -> None:
        """Put it into `state` at once, with the replicas that go with it."""
        self._cancel_timers()
        self.pausing = False
        if state in _ASLEEP:
            self._stage_all("stopped")
        else:
            stage = "failed" if state in ("failed", "updateFailed") else state
            if not self.present:
                self._add_replicas("running" if stage in ("failed", "updating") else stage)
            self._stage_all(stage)
        self._enter(state)
        if state == "running":
            self._arrived()

    def flip_back(self, seconds: float) -> None:
        """Run again in `seconds`, as if another process had resumed it, or the pause had failed."""
        self.clock.after(seconds, lambda: self.force("running"))

    # -- the steps

    def _start(self) -> None:
        self._cancel_timers()
        self._stage_all("stopped")
        self._add_replicas("pending")
        self._enter("pending")
        self._later(self.behaviour.pending_s, self._initialize)

    def _initialize(self) -> None:
        self._stage_all("initializing")
        self._enter("initializing")
        if self.behaviour.resume_to != "stuck":
            self._later(self.behaviour.initializing_s, self._arrive)

    def _arrive(self) -> None:
        outcome = self.behaviour.resume_to
        self._stage_all("running" if outcome == "running" else "failed")
        self._enter(outcome)
        if outcome == "running":
            self._arrived()

    def _arrived(self) -> None:
        self.last_used = self.clock.now()
        self.ready_at = self.clock.now() + round(self.behaviour.health_delay_s * 1_000_000)
        self._watch_idleness()
        self.follow_load()

    def _autoscale(self) -> None:
        if self.state != "running" or self.pausing:
            return  # begins anew once it runs again
        least, most = max(1, self.scaling.minimum), max(1, self.scaling.maximum)
        count = min(max(self.behaviour.load, least), most)
        if count != len(self.present):
            self.scale(count)
        self.follow_load()

    def _finish_pause(self) -> None:
        self._stage_all("stopped")
        self.pausing = False
        self._enter("paused")

    def _finish_update(self) -> None:
        outcome = self.behaviour.update_to
        self._stage_all("running" if outcome == "running" else "failed")
        if self.state != outcome:
            self._enter(outcome)
        if outcome == "running":
            least, most = max(1, self.scaling.minimum), max(1, self.scaling.maximum)
            self.scale(min(max(len(self.present), least), most))
            self._watch_idleness()
            self.follow_load()

    def _watch_idleness(self) -> None:
        minutes = self.scaling.idle_minutes
        if minutes is None or self.scaling.minimum > 0:
            return
        limit = minutes * self.switches().idle_minute_s + self.switches().scale_to_zero_late_s
        idle = (self.clock.now() - self.last_used) / 1_000_000

        def look() -> None:
            if self.state != "running" or self.scaling.minimum > 0:
                return
            if self.clock.now() - self.last_used >= round(limit * 1_000_000):
                self.scale_to_zero()
            else:
                self._watch_idleness()

        self._later(max(0.0, limit - idle), look)

    # -- replicas, timers, state

    def _replace_replicas(self) -> None:
        self._stage_all("stopped")
        self._add_replicas("running")

    def _add_replicas(self, stage: str) -> None:
        for _ in range(max(1, self.scaling.minimum)):
            self._new_replica(stage)

    def _new_replica(self, stage: str) -> Replica:
        number = next(self._numbers)
        replica = Replica(f"{self.name}-{number:05d}", "1", self.hardware.price_per_hour)
        replica.enter(stage, self.clock.now())
        self.replicas.append(replica)
        return replica

    def _stage_all(self, stage: str) -> None:
        for replica in self.present:
            replica.enter(stage, self.clock.now())

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append(self.clock.after(seconds, action))

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _refuse_if_deleting(self) -> None:
        if self.deleting:
            raise refused(400, "Endpoint is being deleted")

    def _enter(self, state: str) -> None:
        previous, self.state = self.state, state
        self.updated = self.clock.now()
        self._history.append((self.updated, state))
        entry = {"endpoint": self.full_name, "state": state, "previous": previous}
        self.log.add("state", at=self.updated, replicas=len(self.present), **entry)
        self.changed.set()
        self.changed = asyncio.Event()
