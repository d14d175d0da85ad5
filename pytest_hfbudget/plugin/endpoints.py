"""The endpoints of a run, as pytest sees them: a line while one starts, lines for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.endpoints import Endpoint
from pytest_hfbudget.endpoints.api import ControlPlaneError
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSummary
from pytest_hfbudget.endpoints.sweep import SweepOutcome
from pytest_hfbudget.endpoints.take_over import RunLifecycle
from pytest_hfbudget.errors import (
    BudgetExceededError,
    EndpointError,
    Figures,
    HFBudgetError,
    UnaffordableEndpointError,
)
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.locks import SYSTEM_CLOCK, at_work, off_loop
from pytest_hfbudget.plugin.console import announced, on_a_terminal, say
from pytest_hfbudget.plugin.endpoint_log import LATE, EndpointLog, end_line, endpoint_line
from pytest_hfbudget.plugin.run_ledger import caps, endpoint_settings, reached
from pytest_hfbudget.plugin.uptime_booking import Key, Ticker, UptimeBooking, UptimeSharing
from pytest_hfbudget.reporting import EndpointLine
from pytest_hfbudget.reporting.timeline import Paid
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.rehearsal import Rehearsal

SAY_EVERY_S = 15.0
TEND_S = 1.0
# A deadline that moved by less is not worth a message to the reaper.
MOVED_S = 0.05


class RunEndpoints:
    """Wraps a `RunLifecycle`; its uptime is booked to the session as it accrues."""

    def __init__(
        self,
        config: pytest.Config,
        settings: Settings,
        run_id: str,
        ledger: Ledger,
        rehearsal: Rehearsal | None,
    ) -> None:
        self._config, self._settings, self._ledger = config, settings, ledger
        self._rehearsal = rehearsal
        self.log = EndpointLog()
        self._receipts: tuple[EndpointSummary, ...] | None = None
        self._uptime = UptimeBooking(ledger, settings)
        self.sharing = UptimeSharing(ledger, settings.billing_minute)
        self._armed_until, self._ticks = 0.0, False
        self._tickers: list[Ticker] = []
        self._said: dict[str, tuple[str, float]] = {}
        self._ending: dict[str, str] = {}
        self._looks: dict[str, float] = {}
        self._lifecycle = RunLifecycle(
            endpoint_settings(settings, run_id),
            progress=self._progress,
            afford=self._afford,
            grow=self._grow,
        )
        ledger.share_with(self)

    @at_work
    def check(self, names: tuple[str, ...]) -> None:
        """Check that every endpoint exists, before anything is resumed.

        Raises:
            EndpointError: one does not exist, or the token is refused.
        """
        if self._rehearsal is not None:
            self._rehearsal.provide(names)
        with announced(self._config, f"hfbudget: looking up {', '.join(names)} …"):
            self._lifecycle.check(names)
        for swept in self._lifecycle.sweep(but=names):
            self._tell(swept)

    @at_work
    def ensure(self, name: str, *, keep_running: bool = False) -> Endpoint:
        """Return an endpoint that serves; the first caller resumes it.

        Raises:
            EndpointError: it can't be brought up, or its first minute breaks a cap of the run.
        """
        try:
            endpoint = self._lifecycle.ensure(name, keep_running=keep_running)
        except EndpointError as error:
            paused = self.paused(name)  # asked first: after `end_lease` it is never "paused early"
            self._failed(name, error)
            if isinstance(paused, BudgetExceededError) and self._settings.max_uptime is None:
                raise UnaffordableEndpointError(str(paused)) from None
            raise
        self.log.started(name, self._lifecycle.live())
        self._decide_who_pays(name)
        self.rearm()
        return endpoint

    def _failed(self, name: str, error: HFBudgetError) -> None:
        """Pause an endpoint that did not come up: no later test can use it."""
        self.log.started(name, self._lifecycle.live(), failure=str(error))
        self._give_up(name, "it did not come up")

    @at_work
    def warm(self, name: str, *, keep_running: bool = False) -> None:
        """Resume an endpoint that a test will need soon, without waiting. Errors: see `ensure`."""
        try:
            self._lifecycle.warm(name, keep_running=keep_running)
        except UnaffordableEndpointError:
            self._lifecycle.forget(name)  # another one may be paused before it is needed
        except HFBudgetError as error:
            self._failed(name, error)
        self.rearm()

    @at_work
    def opened(self, name: str) -> bool:
        """Whether a warmed endpoint serves, or has failed for good. Asks the server once."""
        opened, now = self._lifecycle.opened(name), SYSTEM_CLOCK.monotonic()
        if opened:
            # It came up at some time since the last look; the middle is the best guess.
            ago = (now - self._looks.pop(name, now)) / 2
            with suppress(HFBudgetError):
                self._lifecycle.ensure(name)
                self.log.started(name, self._lifecycle.live(), ago=ago)
                self.ensure(name)
        else:
            self._looks[name] = now
        return opened

    def minute_left(self, name: str) -> float:
        """Seconds until the next minute begins; see `Lifecycle.minute_left`."""
        return self._lifecycle.minute_left(name)

    def idle_s(self, name: str) -> float | None:
        """Seconds since a test last used an endpoint; None if none has so far, or one does now."""
        stops = [use.stop or math.inf for use in self.sharing.uses(name)]
        return SYSTEM_CLOCK.monotonic() - max(stops) if stops and max(stops) < math.inf else None

    def every(self, seconds: float, tick: Callable[[], None]) -> None:
        """Call ``tick`` every so many seconds, in a thread, until the end of the run."""
        self._tickers.append(Ticker(seconds, tick))

    @at_work
    def take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        """See `RunLifecycle.take_over`."""
        try:
            ours = self._lifecycle.take_over(name, form)
        except EndpointError:
            if self._lifecycle.is_taken_over(name):
                self._give_up(name, "it can't be taken over")
            self._lifecycle.forget(name)
            raise
        if ours and self._lifecycle.is_taken_over(name):
            self.log.taken_over(name)
            self.rearm()
        return ours

    @at_work
    def answered(self, name: str, status: int, *, stops: bool) -> None:
        """End the lease on an endpoint that the code under test has paused, or not started."""
        if self._lifecycle.answered(name, status, stops=stops):
            self._give_up(name, "by the code under test" if stops else "it was not started")

    @at_work
    def addresses(self, known: Mapping[str, str]) -> dict[str, str]:
        """See `RunLifecycle.addresses`."""
        return self._lifecycle.addresses(known)

    def _give_up(self, name: str, why: str) -> None:
        self._forget_unless_billed(name)
        self.end_lease(name, why)

    def since(self, name: str) -> float | None:
        """When an endpoint was resumed; see `Lifecycle.since`."""
        return self._lifecycle.since(name)

    @at_work
    def end_lease(self, name: str, why: str = "no more tests need it") -> None:
        """Have an endpoint paused in the background."""
        if self._lifecycle.end_lease(name):
            self._ending[name] = why

    def _notice_paused(self) -> None:
        """Announce newly verified pauses, and stop booking the uptime of these endpoints."""
        for receipt in self._lifecycle.live() if self._ending else ():
            if receipt.name in self._ending and (receipt.verified or receipt.left_to):
                why = self._ending.pop(receipt.name)
                with self._uptime.lock:
                    self._uptime.end(receipt.name, receipt.paused_mono)
                self.log.ended((receipt,))
                say(self._config, end_line(receipt, why))

    @at_work
    def tend(self) -> None:
        """Look after the reaper, and book the minutes that have started since."""
        self._lifecycle.tend()
        self._notice_paused()
        self.accrue()
        self.rearm()

    def tend_alone(self) -> None:
        """Call `tend` every second in a thread; not where tests run, since they may fork."""
        self.every(TEND_S, self.tend)

    @at_work
    @off_loop()
    def accrue(self) -> None:
        """Book every minute that running endpoints have started."""
        self._notice_paused()  # after `end_lease` it is paused in the background
        with self._uptime.lock:
            if self._uptime.accrues:
                self._end_what_was_paused()
                self._uptime.accrue()
                self.sharing.accrue(SYSTEM_CLOCK.monotonic())

    def _end_what_was_paused(self) -> None:
        """Stop booking the uptime of endpoints that the reaper has paused by itself."""
        early = self._lifecycle.paused_early()
        for receipt in self._lifecycle.live() if early else ():
            if receipt.name in early and receipt.paused_at is not None:
                self._uptime.end(receipt.name, receipt.paused_mono)

    def _forget_unless_billed(self, name: str) -> None:
        if not any(one.name == name and one.cost.minutes for one in self._lifecycle.live()):
            self._uptime.forget(name)
            self.accrue()

    def _decide_who_pays(self, *names: str) -> None:
        """Find out which of the jobs that share an endpoint pays for it: exactly one does."""
        for name in names if self._settings.shared is not None else ():
            payer = self._lifecycle.pays(name)
            with self._uptime.lock:
                self._uptime.decide_who_pays(name, *payer)

    def _tick(self) -> None:
        self._decide_who_pays(*(one.name for one in self._lifecycle.live()))
        self.accrue()
        self.rearm()
        self._lifecycle.check_replicas()

    @at_work
    def begin_use(self, test: str, name: str, scopes: Sequence[Scope], worker: str) -> None:
        """Charge a test its share of an endpoint's uptime from now on."""
        self.sharing.begin(Key(name, test), scopes, SYSTEM_CLOCK.monotonic(), worker)

    @at_work
    def end_use(self, test: str, worker: str | None = None) -> None:
        """Note that a test no longer uses endpoints; without ``worker``, in no worker at all."""
        self.sharing.end(test, SYSTEM_CLOCK.monotonic(), worker)

    @at_work
    def share(self, test: str) -> int:
        """Nano-USD of endpoint uptime that were charged to a test's budgets so far."""
        self.accrue()
        return self.sharing.owed_by(test)

    @at_work
    @off_loop()
    def rearm(self) -> None:
        """Tell the reaper by when it has to pause: before a cap or --hf-max-uptime is exceeded."""
        with self._uptime.lock:
            if not self._uptime.has_deadline:
                if self._armed_until:
                    self._armed_until = 0.0
                    self._lifecycle.pause_after(None)
                return
            seconds = self._uptime.seconds_left()
            if abs(seconds + SYSTEM_CLOCK.monotonic() - self._armed_until) > MOVED_S:
                self._armed_until = seconds + SYSTEM_CLOCK.monotonic()
                self._lifecycle.pause_after(seconds)

    @at_work
    def revive(self, name: str) -> bool:
        """Resume an endpoint again that another process has paused; returns whether it serves.

        Raises:
            BudgetExceededError: this run has paused it itself, to keep its cap.
        """
        paused = self.paused(name)
        if isinstance(paused, BudgetExceededError):
            raise paused
        if paused or self._lifecycle.is_taken_over(name):
            return False
        if self._settings.endpoint_gaps == "pause" and self.since(name) is None:
            self.ensure(name)
            return True
        try:
            self._lifecycle.revive(name)
        except ControlPlaneError:
            return False  # the error of the call itself says more than this one
        finally:
            self.rearm()
        if back := any(r.name == name and r.revived for r in self._lifecycle.live()):
            self.log.revived(name)
        return back

    @at_work
    def paused(self, name: str) -> HFBudgetError | None:
        """Why an endpoint was paused early: a cap, or a lost reaper; None if it was not."""
        if (said := self._lifecycle.paused_early().get(name)) is None:
            return None
        if not self._lifecycle.used_up:
            return EndpointError(said)
        cap = self._settings.session_cap
        return BudgetExceededError(
            f"{name} was paused while it was needed: {reached(self._settings)}",
            scope="session budget",
            scope_key=SESSION,
            model=name,
            figures=Figures(cap=cap or 0, spent=self._ledger.total(SESSION).spent),
        )

    def paid(self) -> tuple[Paid, ...]:
        """What each endpoint has cost, when, and which tests were on it."""
        uses, costs = self.sharing.uses, ((one.name, one.cost) for one in self._lifecycle.live())
        return tuple(
            Paid(name, cost.window, uses(name), cost.minutes, cost.nano_usd) for name, cost in costs
        )

    @at_work
    def request_pause(self) -> None:
        """Ask the reaper to pause all endpoints, without waiting."""
        self._lifecycle.request_pause()

    @at_work
    def finish(self) -> bool:
        """Wait for the pauses and book the uptime; returns whether every pause is verified."""
        for ticker in self._tickers:
            ticker.stop()
        if self._receipts is None:
            self._decide_who_pays(*(one.name for one in self._lifecycle.live()))
            receipts = self._lifecycle.finish()
            with self._uptime.lock:  # a tick may be booking what is only an upper bound
                self._receipts = receipts
                self._uptime.close({one.name: one.cost.nano_usd for one in receipts})
            self.log.ended(self._receipts)
            self.sharing.settle(self._receipts)
        return not self._lifecycle.reaper_lost and all(one.in_order for one in self._receipts)

    @at_work
    def finish_late(self) -> bool:
        """Wait for the pauses of what was started since; returns whether every one is verified."""
        receipts = self._lifecycle.finish_late()
        for receipt in receipts:
            say(self._config, end_line(receipt, LATE), red=not receipt.in_order)
        return all(receipt.in_order for receipt in receipts)

    @at_work
    def lines(self) -> tuple[EndpointLine, ...]:
        """One line of the report for each endpoint."""
        receipts = self._receipts if self._receipts is not None else self._lifecycle.live()
        shares = self.sharing.settle(receipts)
        return tuple(endpoint_line(receipt, shares[receipt.name]) for receipt in receipts)

    def _afford(self, endpoint: Endpoint, nano_per_minute: int | None) -> None:
        name, named = endpoint.full_name, caps(self._settings)
        self._notice_paused()
        if nano_per_minute is None:
            if named:
                raise EndpointError(
                    f"{name}: a minute of it has no known price, so {named} can't hold it. "
                    "It was not resumed."
                )
            return
        self._decide_who_pays(name)
        with self._uptime.lock:
            self._uptime.begin(name, nano_per_minute)
            self.log.resumed_again(name)
            self.sharing.price(name, nano_per_minute)
            if named and not self._ticks:
                self._ticks = True
                self.every(self._settings.billing_minute / Ticker.TICKS, self._tick)

    def _grow(self, endpoint: Endpoint, more: int, nano_per_minute: int, ahead: bool) -> None:
        self._uptime.grow(endpoint, more, nano_per_minute, ahead=ahead)
        self.rearm()

    def _tell(self, swept: SweepOutcome) -> None:
        if end := "paused" if swept.verified else swept.error:
            about = f"endpoint {swept.name}, left by run {swept.run}"
            say(self._config, f"{about}: {end}", red=not swept.verified)

    def _progress(self, name: str, state: str, seconds: float) -> None:
        self.rearm()  # an endpoint is billed while it starts, too
        said, at = self._said.get(name, ("", 0.0))
        if state == said and seconds - at < SAY_EVERY_S and not on_a_terminal(self._config):
            return
        self._said[name] = (state, seconds)
        text = f"endpoint {name}: {state}, {seconds:.0f} s"
        say(self._config, text, transient=state != "running")
