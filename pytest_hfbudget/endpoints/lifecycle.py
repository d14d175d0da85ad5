"""The endpoints of one run, from the first resume to the last verified pause."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.control import ControlPlane
from pytest_hfbudget.endpoints.guard import Guard
from pytest_hfbudget.endpoints.journal import INTENT, RESUMED, Journal, Record, leases_dir, prune
from pytest_hfbudget.endpoints.meter import Meter
from pytest_hfbudget.endpoints.pace import SYSTEM_CLOCK, Clock
from pytest_hfbudget.endpoints.protocol import Receipt, Watch
from pytest_hfbudget.endpoints.slot import Slot
from pytest_hfbudget.endpoints.spawn import Spawn, spawn_keeper
from pytest_hfbudget.endpoints.state import ASLEEP, BROKEN, Endpoint, split_name
from pytest_hfbudget.endpoints.terms import Afford, EndpointReceipt, EndpointSettings, Progress
from pytest_hfbudget.endpoints.waking import Waker
from pytest_hfbudget.errors import EndpointError

# Long enough to look up what a run did; then a finished run's journal is only clutter.
_KEEP_JOURNALS_S = 30 * 86400.0


def _no_progress(name: str, state: str, seconds: float) -> None:
    """Nobody wants to know."""


def _any_price(endpoint: Endpoint, nano_per_minute: int | None) -> None:
    """Nothing caps what endpoints may cost."""


class Lifecycle:
    """Resumes each endpoint at most once, and has all of them paused however the run ends.

    Safe to share between threads. A process that was forked off has no say: there, every
    method does nothing, or raises `EndpointError` where it would have to return an endpoint.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        progress: Progress = _no_progress,
        afford: Afford = _any_price,
        clock: Clock = SYSTEM_CLOCK,
        spawn: Spawn = spawn_keeper,
    ) -> None:
        self._settings, self._afford, self._clock, self._spawn = settings, afford, clock, spawn
        self._owner = os.getpid()
        self._plane = ControlPlane(settings.api, settings.token, pace=settings.pace, clock=clock)
        self._waker = Waker(
            self._plane, settings, clock=clock, progress=progress, stopping=lambda: self._closing
        )
        self._meter = Meter(self._plane, settings, clock)
        self._lock, self._finishing = threading.Lock(), threading.Lock()
        self._closing = False
        self._slots: dict[str, Slot] = {}
        self._journal: Journal | None = None
        self._guard: Guard | None = None
        self._finished: tuple[EndpointReceipt, ...] | None = None

    @property
    def keeper_pid(self) -> int | None:
        """The keeper's process id; None before the first endpoint is needed."""
        return self._guard.keeper_pid if self._guard else None

    def check(self, names: Iterable[str]) -> None:
        """Look at each endpoint once, before anything is resumed.

        Raises:
            EndpointError: there is none of that name, or the token is missing or refused.
            ConfigError: not ``namespace/name``.
        """
        for name in names:
            split_name(name)
            self._need_token(name)
            self._plane.get(name)

    def ensure(self, name: str, *, keep_running: bool = False) -> Endpoint:
        """The endpoint, serving. The first caller brings it up, all others wait for that.

        Args:
            keep_running: should it be up already, don't pause it at the end.

        Raises:
            EndpointError: it can't be brought up; the same again for each later call, since an
                endpoint is resumed once per run. It is paused at the end all the same.
        """
        split_name(name)
        if os.getpid() != self._owner:
            raise EndpointError(f"{name}: a forked process can't bring endpoints up.")
        with self._lock:
            slot = self._slots.get(name)
            first = slot is None
            if slot is None:
                slot = self._slots[name] = Slot(name)
        if first:
            with slot.opening():
                slot.endpoint = self._bring_up(slot, keep_running)
        return slot.wait()

    def tend(self) -> None:
        """Look after the keeper: cheap, to be called between tests.

        What was found and done is in the warnings of the receipts.
        """
        if self._guard and not self._closing and os.getpid() == self._owner:
            self._guard.tend()

    def pause_after(self, seconds: float | None) -> None:
        """Have the keeper pause all by itself some time from now, whatever this process does.

        For a cap: each call sets the time anew, None takes it away.
        """
        if self._guard and not self._closing and os.getpid() == self._owner:
            self._guard.limit(seconds)

    def ask_pause(self) -> None:
        """Have all paused now, without waiting; for the moment of a Ctrl-C."""
        if os.getpid() != self._owner:
            return
        self._closing = True
        if self._guard:
            self._guard.ask()

    def finish(self) -> tuple[EndpointReceipt, ...]:
        """Pause all and wait, within ``verify_deadline_s``, until it is verified.

        May be called again, also after it was interrupted.
        """
        if os.getpid() != self._owner:
            return ()
        self._closing = True
        with self._finishing:
            if self._finished is None:
                guard = self._guard
                known = guard.pause(self._settings.verify_deadline_s) if guard else {}
                self._finished = self._receipts(known, final=True)
                if guard:
                    guard.close()
        return self._finished

    def live(self) -> tuple[EndpointReceipt, ...]:
        """What is known now; costs are upper bounds, and nothing is asked of the server."""
        if self._finished is not None or os.getpid() != self._owner:
            return self._finished or ()
        return self._receipts(self._guard.receipts() if self._guard else {}, final=False)

    def _bring_up(self, slot: Slot, keep_running: bool) -> Endpoint:
        name = slot.name
        self._need_token(name)
        found = slot.found = self._plane.get(name)
        asleep = found.state in ASLEEP | BROKEN
        if keep_running and not asleep:
            slot.kept = True
            return self._waker.wait(name)
        self._afford(found, self._meter.price(slot, found))
        self._meter.zero(slot)
        self._refuse_when_closing(name)
        guard = self._arm()
        self._write(INTENT, slot, found)
        slot.leased, slot.resumed_at = True, self._clock.time()
        slot.resumed_mono = self._clock.monotonic()
        # Only what sleeps gets other settings: a change makes a running one deploy anew.
        net = Watch(name, found.raw_scaling, self._settings.tag) if asleep else Watch(name)
        guard.watch(net)
        if asleep:
            self._resume(slot, found, guard)
        else:
            guard.settled(name)
        endpoint = self._waker.wait(name)
        guard.settled(name)
        return endpoint

    def _resume(self, slot: Slot, found: Endpoint, guard: Guard) -> None:
        slot.warn(self._waker.spread_net(found))
        slot.resumed_at, slot.resumed_mono = self._clock.time(), self._clock.monotonic()
        slot.resumed = True
        try:
            answered = self._waker.resume(slot.name)
        except EndpointError:
            slot.resumed = False
            guard.settled(slot.name)
            raise
        # Without an answer it is as good as resumed: waited for, paid for and paused. But it may
        # still take effect after a pause, which the keeper has to watch out for.
        if answered:
            guard.settled(slot.name)
        self._write(RESUMED, slot, found)

    def _arm(self) -> Guard:
        with self._lock:
            if self._guard is None:
                directory = leases_dir(self._settings.state_dir)
                prune(directory, before=self._clock.time() - _KEEP_JOURNALS_S)
                self._journal = Journal.of(self._settings.run, directory)
                self._guard = Guard(
                    self._settings,
                    self._plane,
                    self._journal,
                    clock=self._clock,
                    spawn=self._spawn,
                )
            return self._guard

    def _write(self, kind: str, slot: Slot, found: Endpoint) -> None:
        if self._journal is None:
            raise EndpointError(f"{slot.name}: there is no journal to write to.")
        self._journal.write(
            Record(
                kind=kind,
                run=self._settings.run,
                endpoint=slot.name,
                api=self._settings.api,
                at=self._clock.time(),
                owner_pid=self._owner,
                owner_start=process.start_time(self._owner),
                state=found.state,
                scaling=found.raw_scaling,
            )
        )

    def _receipts(
        self, known: Mapping[str, Receipt], *, final: bool
    ) -> tuple[EndpointReceipt, ...]:
        slots = [slot for slot in list(self._slots.values()) if slot.leased or slot.kept]
        lost = self._guard.warnings if self._guard else ()
        return tuple(
            slot.receipt(
                known.get(slot.name),
                self._meter.uptime(slot, known.get(slot.name), final=final),
                late=self._late(slot.name) if final else None,
                warnings=lost,
            )
            for slot in slots
        )

    def _late(self, name: str) -> str:
        return (
            f"{name}: its pause was not verified within {self._settings.verify_deadline_s:g} s. "
            f"Process {self.keeper_pid} goes on trying; look with "
            f"`hfbudget status {name.partition('/')[0]}`, or pause it: `hfbudget pause {name}`"
        )

    def _need_token(self, name: str) -> None:
        if not self._settings.token:
            raise EndpointError(
                f'{name} needs a token with the permission "Manage Inference Endpoints"; '
                "set HF_TOKEN."
            )

    def _refuse_when_closing(self, name: str) -> None:
        if self._closing:
            raise EndpointError(f"{name} is not resumed: the run is ending.")
