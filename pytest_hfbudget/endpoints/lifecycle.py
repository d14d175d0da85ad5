"""The endpoints of one run, from the first resume to the last verified pause."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from pytest_hfbudget.endpoints import BROKEN, RUNNING, Endpoint, split_name
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import Journal, leases_dir, prune
from pytest_hfbudget.endpoints.lease_store import prune_leases
from pytest_hfbudget.endpoints.lifecycle_types import (
    Afford,
    Caps,
    EndpointSettings,
    EndpointState,
    EndpointSummary,
    Grow,
    Progress,
)
from pytest_hfbudget.endpoints.reaper_messages import DEADLINE, PauseReceipt
from pytest_hfbudget.endpoints.reaper_processes import SpawnedProcess, spawn_reaper
from pytest_hfbudget.endpoints.resume import Resumer, Startup
from pytest_hfbudget.endpoints.retry import KEEP_JOURNALS_S, SWEEP_BEFORE_RUN_S
from pytest_hfbudget.endpoints.supervisor import EARLY, Supervisor
from pytest_hfbudget.endpoints.sweep import SweepOutcome, close_dead_leases, find_local, sweep
from pytest_hfbudget.endpoints.uptime_meter import UptimeMeter
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock


def _nothing(*_: object) -> None:
    """Default of the callbacks: shows no progress and refuses nothing."""


class Lifecycle:
    """Resumes each endpoint at most once, and has all of them paused however the run ends.

    Safe to share between threads. In a forked process a method does nothing, or raises
    `EndpointError` if it would have to return an endpoint.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        progress: Progress = _nothing,
        afford: Afford = _nothing,
        grow: Grow = _nothing,
        clock: Clock = SYSTEM_CLOCK,
        spawn: SpawnedProcess = spawn_reaper,
    ) -> None:
        self._settings, self._clock, self._spawn = settings, clock, spawn
        self._pid = os.getpid()
        self._plane = ControlPlane(settings.api, settings.token, retry=settings.retry, clock=clock)
        self._meter = UptimeMeter(self._plane, settings, clock)
        looked, stop = partial(self._looked, progress), self._refusal
        resumer = Resumer(self._plane, settings, clock=clock, progress=looked, stopping=stop)
        self._startup = Startup(
            settings,
            self._plane,
            resumer,
            self._meter,
            clock=clock,
            caps=Caps(afford, grow),
            supervisor=self._arm,
        )
        self._lock, self._finishing = threading.Lock(), threading.Lock()
        self._closing = False
        self._states: dict[str, EndpointState] = {}
        self._spared: set[str] = set()
        self._supervisor: Supervisor | None = None
        self._until: float | None = None
        self._finished: tuple[EndpointSummary, ...] | None = None

    @property
    def reaper_pid(self) -> int | None:
        """The reaper's process id; None before the first endpoint is needed."""
        return self._supervisor.reaper_pid if self._supervisor else None

    @property
    def reaper_lost(self) -> bool:
        """Whether the reaper was killed during the run, even if a standby took over."""
        return self._supervisor is not None and bool(self._supervisor.warnings)

    def check(self, names: Iterable[str]) -> None:
        """Check that each endpoint exists, before anything is resumed.

        Raises:
            EndpointError: an endpoint does not exist, or the token is missing or refused.
            ConfigError: a name has not the form ``namespace/name``.
        """
        for name in names:
            split_name(name)
            self._settings.need_token(name)
            self._plane.get(name)

    def pays(self, name: str) -> tuple[bool, float | None]:
        """See `LeaseStore.pays`."""
        return self._settings.lease_store(name).pays(self._settings.billing_minute_s)

    def sweep(self, *, but: Iterable[str]) -> tuple[SweepOutcome, ...]:
        """Pause endpoints that dead runs have left running, by the journals of this machine.

        Args:
            but: endpoints that this run will use, and pause itself.
        """
        settings = self._settings
        left = find_local(settings.state_dir, api=settings.api, elsewhere=True)
        self._spared |= set(but)
        others = [stray for stray in left if stray.name not in self._spared]
        timings = replace(self._settings.timings, deadline_s=SWEEP_BEFORE_RUN_S)
        if not others:
            return ()
        folder, shared = settings.state_dir, settings.shared
        return sweep(self._plane, others, state_dir=folder, shared=shared, timings=timings)

    def ensure(self, name: str, *, keep_running: bool = False) -> Endpoint:
        """Return the endpoint once it serves. The first caller resumes it; all others wait.

        If another run has the endpoint up, both use it, and the last one pauses it.

        Args:
            keep_running: don't pause an endpoint that ran before this run.

        Raises:
            EndpointError: it can't be brought up, or was paused early (see `paused_early`). Later
                calls raise the same error, since a run resumes an endpoint only once.
        """
        self.warm(name, keep_running=keep_running)
        state = self._states[name]
        endpoint = state.wait()
        state.refuse_if_ended()
        return endpoint

    def warm(self, name: str, *, keep_running: bool = False) -> None:
        """Resume an endpoint without waiting until it serves; `ensure` waits for that.

        Does nothing if the endpoint was asked for before.

        Raises:
            EndpointError: it can't be resumed; `ensure` raises the same error again.
        """
        split_name(name)
        if os.getpid() != self._pid:
            raise EndpointError(f"{name}: a forked process can't bring endpoints up.")
        self._refuse_early(name)
        with self._lock:
            known = self._states.get(name)
            state = self._states.setdefault(name, EndpointState(name))
        first = known is None
        if known is not None and known.use.pause_asked_at is not None and self._reopens(known):
            state, first = self._reopen(known)
        if first:
            with state.opening():
                self._settings.need_token(name)
                keep = keep_running and not state.leased
                state.up.remaining = self._startup.begin(state, keep_running=keep)
                self._close_dead_leases(state)

    def opened(self, name: str) -> bool:
        """Whether a warmed endpoint serves, or has failed for good. Asks the server once."""
        state = self._states.get(name)
        if state is None or os.getpid() != self._pid:
            return False
        if state.warming:
            found, over = self._meter.read(state), True
            with suppress(ControlPlaneError):  # `wait` raises the error
                over = found is not None and (
                    found.state in BROKEN or (found.state == RUNNING and self._plane.healthy(found))
                )
            if over:
                with suppress(EndpointError):
                    state.wait()
        return state.is_open

    def since(self, name: str) -> float | None:
        """When an endpoint was resumed, on the steady clock.

        `-inf` once it serves, or has failed; None before its resume and after `end_lease`.
        """
        state = self._states.get(name)
        if state is None or state.use.pause_asked_at or not (state.leased or state.is_open):
            return None
        return -math.inf if state.is_open else state.use.began_mono

    def minute_left(self, name: str) -> float:
        """Seconds until the next billed minute of a running endpoint begins."""
        minute_s = self._settings.billing_minute_s
        return minute_s - (self._clock.monotonic() - self._states[name].use.began_mono) % minute_s

    def forget(self, name: str) -> None:
        """Forget an endpoint that was refused before its resume, so that a caller may retry."""
        with self._lock:
            state = self._states.get(name)
            if state is not None and state.error is not None and not state.leased:
                del self._states[name]

    def end_lease(self, name: str) -> bool:
        """Have an endpoint paused in the background, because the run no longer needs it.

        `live` has its receipt once the pause is verified, and `finish` waits for that. From now on
        `ensure` raises. Returns False if there is nothing to pause, or the pause has begun already.
        """
        state = self._states.get(name)
        if os.getpid() != self._pid or self._closing or self._supervisor is None or state is None:
            return False
        with self._lock:
            if not state.leased or state.use.pause_asked_at is not None:
                return False
            state.use.pause_asked_at = self._clock.time()
        self._supervisor.end_lease(name)
        return True

    def revive(self, name: str) -> Endpoint:
        """Return the endpoint once it serves again. For calls to it that failed.

        If another process has paused the endpoint, or the server has scaled it to zero, it is
        resumed again, once in a run. The first of several threads resumes it, and the others wait.
        If the endpoint serves, it is returned at once.

        Raises:
            EndpointError: this run has not brought the endpoint up, has paused it, or has revived
                it before; or it can't be brought up. Also whatever ``afford`` raises.
        """
        state = self._states.get(name)
        if state is None or os.getpid() != self._pid:
            raise EndpointError(f"{name} was not brought up by this run.")
        state.wait()
        with state.up.lock:
            self._refuse_early(name)
            state.refuse_if_ended()
            own = "it ran before this run, which does not manage it." if state.kept else ""
            if why := self._refusal() or own:
                raise EndpointError(f"{name} is not resumed: {why}")
            state.endpoint = self._startup.revive(state)
            return state.endpoint

    def paused_early(self) -> Mapping[str, str]:
        """The endpoints that were paused, or are being paused, without a request of this process.

        By name, with a sentence that says why: `pause_after`, or a killed reaper. Sends no request.
        """
        ours = self._supervisor if os.getpid() == self._pid else None
        early = ours.early_reason() if ours else None
        if early is None:
            return {}
        leased = [state.name for state in self._in_use()]
        return {name: f"{name} can't be used any more: {EARLY[early]}" for name in leased}

    @property
    def used_up(self) -> bool:
        """Whether endpoints were paused early because the time of `pause_after` has come."""
        return self._supervisor is not None and self._supervisor.early_reason() == DEADLINE

    def tend(self) -> None:
        """Replace a lost reaper, renew tags that expire soon, and warn in the receipts. Cheap."""
        if self._supervisor and not self._closing and os.getpid() == self._pid:
            self._supervisor.tend()
            if self._supervisor.early_reason() is None:
                for state in self._in_use():
                    self._startup.renew(state)

    def check_replicas(self) -> None:
        """Read how many replicas run. Call it several times a minute under a cap."""
        if os.getpid() == self._pid and not self._refusal():
            for state in self._in_use():
                self._startup.check_replicas(state)

    def pause_after(self, seconds: float | None) -> None:
        """Set the seconds after which the reaper pauses all, whatever this process does then.

        Each call replaces the time of the one before; None removes it. Before the reaper starts,
        the time is kept for it.
        """
        if self._closing or os.getpid() != self._pid:
            return
        with self._lock:
            self._until = None if seconds is None else self._clock.monotonic() + seconds
            if self._supervisor:
                self._supervisor.set_deadline(self._until)

    def request_pause(self) -> None:
        """Have all endpoints paused now, without waiting, as at a Ctrl-C."""
        if os.getpid() != self._pid:
            return
        self._closing = True
        if self._supervisor:
            self._supervisor.request_pause()

    def finish(self) -> tuple[EndpointSummary, ...]:
        """Pause all endpoints and wait for verified pauses, for at most ``verify_deadline_s``.

        May be called again, also after an interrupt.
        """
        if os.getpid() != self._pid:
            return ()
        self._closing = True
        with self._finishing:
            if self._finished is None:
                supervisor = self._supervisor
                known = (
                    supervisor.pause(self._settings.waits.verify_deadline_s) if supervisor else {}
                )
                self._finished = self._receipts(known, final=True)
                if supervisor:
                    supervisor.close()
        return self._finished

    def live(self) -> tuple[EndpointSummary, ...]:
        """The receipts as of now. Costs are upper bounds. Sends no request."""
        if self._finished is not None or os.getpid() != self._pid:
            return self._finished or ()
        return self._receipts(self._supervisor.receipts() if self._supervisor else {}, final=False)

    def _reopens(self, ended: EndpointState) -> bool:
        return self._settings.reopens

    def _reopen(self, ended: EndpointState) -> tuple[EndpointState, bool]:
        """Wait for the pause after `end_lease`; the new state, and whether to resume it here.

        Raises:
            EndpointError: the pause is not verified in time.
        """
        paused_mono = self._arm().wait_until_paused(ended.name, self._refusal).paused_mono
        with self._lock:
            first = self._states[ended.name] is ended
            if first:
                at = self._clock.monotonic() if paused_mono is None else paused_mono
                self._states[ended.name] = ended.again(at)
            return self._states[ended.name], first

    def _in_use(self) -> list[EndpointState]:
        every = list(self._states.values())
        return [state for state in every if state.leased and state.use.pause_asked_at is None]

    def _close_dead_leases(self, state: EndpointState) -> None:
        """Close dead runs' leases on an endpoint, because this run will pause it."""
        if state.kept:
            return
        settings = self._settings
        for stray in find_local(settings.state_dir, api=settings.api):
            if stray.name == state.name:
                close_dead_leases(stray, settings.run, settings.state_dir, at=self._clock.time())

    def _arm(self) -> Supervisor:
        with self._lock:
            if self._supervisor is None:
                directory = leases_dir(self._settings.state_dir)
                before = self._clock.time() - KEEP_JOURNALS_S
                prune(directory, before=before)
                prune_leases(self._settings.lease_dir, before=before)
                self._supervisor = Supervisor(
                    self._settings,
                    self._plane,
                    Journal.of(self._settings.run, directory),
                    clock=self._clock,
                    spawn=self._spawn,
                )
                self._supervisor.set_deadline(self._until)
            return self._supervisor

    def _looked(self, progress: Progress, name: str, state: str, seconds: float) -> None:
        """Report progress while an endpoint comes up, and look after the reaper meanwhile."""
        if self._supervisor:
            self._supervisor.tend()
        progress(name, state, seconds)

    def _refusal(self) -> str:
        """Why nothing may be resumed or waited for any more; empty if it may."""
        early = self._supervisor.early_reason() if self._supervisor else None
        if early:
            return EARLY[early]
        return "the run is ending, and pauses it." if self._closing else ""

    def _receipts(
        self, known: Mapping[str, PauseReceipt], *, final: bool
    ) -> tuple[EndpointSummary, ...]:
        states = [state for state in list(self._states.values()) if state.leased or state.kept]
        supervisor = self._supervisor
        lost = supervisor.warnings if supervisor else ()
        return tuple(
            state.receipt(
                known.get(state.name),
                self._meter.uptime(state, known.get(state.name), final=final),
                self._meter.window(state, known.get(state.name)),
                late=supervisor.late_error(state.name) if final and supervisor else None,
                warnings=lost,
            )
            for state in states
        )

    def _refuse_early(self, name: str) -> None:
        if known := self.paused_early():
            raise EndpointError(known.get(name) or f"{name} is not resumed: {self._refusal()}")
