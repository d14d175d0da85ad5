"""Books the uptime of endpoints: to the session by the minute, to each test its share."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from pytest_hfbudget.endpoints import Endpoint
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSummary
from pytest_hfbudget.endpoints.uptime import HORIZON_S, PayerChange, RunningEndpoint, seconds_left
from pytest_hfbudget.endpoints.uptime_meter import EndpointUse, Shares, share_out
from pytest_hfbudget.errors import (
    BudgetExceededError,
    EndpointError,
    HFBudgetError,
    LedgerUnreachableError,
    UnaffordableEndpointError,
)
from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.locks import SYSTEM_CLOCK
from pytest_hfbudget.money import beside
from pytest_hfbudget.plugin import run_ledger
from pytest_hfbudget.reporting import counted
from pytest_hfbudget.settings import Settings


class UptimeBooking:
    """Books what the endpoints of a run have cost so far, and knows how long the caps last.

    Attributes:
        lock: taken by callers that read and book in one step.
    """

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger, self._settings = ledger, settings
        self.lock = threading.RLock()
        self._running: dict[str, tuple[RunningEndpoint, ...]] = {}
        self._booked = self._shared = 0  # nano-USD, to the session and to budgets of many jobs
        # Nano-USD of each endpoint's spans that are over; a revived endpoint begins another span.
        self._ended: Counter[str] = Counter()
        # Endpoints that another job pays for, with nano-USD that this job paid for earlier spans.
        self._paid_by_others: dict[str, int] = {}
        # Endpoints that another job paid for before this one.
        self._payer_changes: dict[str, PayerChange] = {}
        self._closed = False

    def decide_who_pays(self, name: str, pays: bool, paid_until: float | None) -> None:
        """Have this job pay for an endpoint, or another job.

        A job begins to pay at the end of the last minute that the job before has paid for. A job
        that stops gets its minutes back: the other job has had the endpoint longer, and pays them.

        Args:
            pays: whether this job pays from now on.
            paid_until: until when the job before has paid, on the steady clock. None if unknown;
                then this job pays for the current minute, perhaps a second time.
        """
        if pays == (name not in self._paid_by_others):
            return
        ended, change = self._ended[name], self._payer_changes.get(name)
        if pays:
            now, minute_s = SYSTEM_CLOCK.monotonic(), self._settings.billing_minute
            until = now if paid_until is None else paid_until
            earlier = self._paid_by_others.pop(name)
            self._payer_changes[name] = PayerChange(now, until - minute_s, ended - earlier)
        else:
            self._paid_by_others[name] = ended - change.ended if change else ended
        self._add(0, self._shared_part(self._dues()) - self._shared)

    @property
    def accrues(self) -> bool:
        """Whether there may be started minutes that are not yet booked."""
        return not self._closed and bool(self._running or self._booked)

    @property
    def has_deadline(self) -> bool:
        """Whether endpoints run that a cap or --hf-max-uptime will pause."""
        limited = run_ledger.caps(self._settings) or self._settings.max_uptime is not None
        return not self._closed and bool(self._running and limited)

    def begin(self, name: str, nano_per_minute: int) -> None:
        """Book the first minute of an endpoint, before it is resumed.

        Raises:
            UnaffordableEndpointError: a cap has less left than that minute costs.
            EndpointError: the ledger can't be reached.
        """
        try:
            with self.lock:
                ours = 0 if name in self._paid_by_others else nano_per_minute
                self._add(nano_per_minute, ours, name)
                self._ended[name] += self._cost(name, SYSTEM_CLOCK.monotonic())
                self._running[name] = (RunningEndpoint(SYSTEM_CLOCK.monotonic(), nano_per_minute),)
        except LedgerUnreachableError as error:
            raise EndpointError(str(error)) from None
        except BudgetExceededError as error:
            minute, left, cap = beside(error.figures.cap, nano_per_minute, error.figures.left)
            raise UnaffordableEndpointError(
                f"{error.scope}: {name}: its first minute costs {minute}, but only {left} of {cap} "
                f"is left. The endpoint was not resumed. Raise {_option(error.scope)}."
            ) from None

    def grow(self, endpoint: Endpoint, more: int, nano_per_minute: int, *, ahead: bool) -> None:
        """Book the first minute of additional replicas; they count as running from now on.

        Args:
            nano_per_minute: nano-USD for a minute of all the ``more`` replicas.
            ahead: the replicas may start later, so they have to fit into the caps. Replicas that
                run already are booked in any case; then the deadline pauses the endpoint.

        Raises:
            UnaffordableEndpointError: a cap has less left than that minute costs.
            EndpointError: the ledger can't be reached.
        """
        name = endpoint.full_name
        with self.lock:
            if self._closed:
                return
            try:
                ours = 0 if name in self._paid_by_others else nano_per_minute
                self._add(nano_per_minute, ours, name if ahead else "")
            except LedgerUnreachableError as error:
                raise EndpointError(str(error)) from None
            except BudgetExceededError as error:
                most, figures = endpoint.most_replicas, error.figures
                minute, left, cap = beside(figures.cap, nano_per_minute, figures.left)
                raise UnaffordableEndpointError(
                    f"{error.scope}: {name} may scale to {most} replicas. A minute of "
                    f"{counted(more, 'more replica')} costs {minute}, but only {left} of {cap} is "
                    f"left. Lower its maxReplica, or raise {_option(error.scope)}."
                ) from None
            added = RunningEndpoint(SYSTEM_CLOCK.monotonic(), nano_per_minute)
            self._running[name] = (*self._running.get(name, ()), added)

    def end(self, name: str, paused_mono: float | None) -> None:
        """Stop counting an endpoint's minutes at its pause, on the steady clock; None: now."""
        until, change = paused_mono or SYSTEM_CLOCK.monotonic(), self._payer_changes.get(name)
        since_change = self._since_payer_change(name, until) if change else 0
        self._ended[name] += self._cost(name, until)
        self._running.pop(name, None)
        if change:
            self._payer_changes[name] = change._replace(ended=self._ended[name] - since_change)

    def forget(self, name: str) -> None:
        """Drop the first minute of an endpoint whose resume was refused, or never sent."""
        with self.lock:
            self._running.pop(name, None)

    def accrue(self) -> None:
        """Book every minute that has started; if runs share a cap, the next minute as well."""
        dues = self._dues()
        if not self._reserve(dues):
            over_runs = self._settings.capped_over_runs
            started, shared = sum(dues.values()), self._shared_part(dues)
            least = (self._booked, self._shared) if over_runs else (0, 0)
            self._book(max(started, least[0]), max(shared, least[1]))

    def close(self, costs: Mapping[str, int]) -> None:
        """Book the final costs, in nano-USD by endpoint. Nothing is booked after this."""
        with self.lock:
            self._closed = True
            self._book(sum(costs.values()), self._shared_part(costs))

    def seconds_left(self) -> float:
        """Seconds until a further minute would break a cap, or --hf-max-uptime is over."""
        now, settings = SYSTEM_CLOCK.monotonic(), self._settings
        left = HORIZON_S
        if settings.max_uptime is not None:
            first = min(running.since for running in self._all_running)
            left = max(first + settings.max_uptime - now, 0.0)
        ours = self._ours
        room = run_ledger.room(self._ledger, settings) if ours else None
        if room is not None:
            minute_s = settings.billing_minute
            due = sum(one.cost(now, minute_s) for one in ours)
            budget = room + self._shared - self._shared_part(self._dues()) + due
            left = min(left, seconds_left(budget, ours, now, minute_s))
        return left

    def _reserve(self, dues: Mapping[str, int]) -> bool:
        """Book the next minute ahead if runs share a budget; returns whether it is booked."""
        if not self._settings.capped_over_runs:
            return False
        ahead = sum(running.nano_per_minute for running in self._ours)
        totals = sum(dues.values()) + ahead, self._shared_part(dues) + ahead
        try:
            if totals[1] > self._shared:
                self._add(totals[0] - self._booked, totals[1] - self._shared, "the next minute")
            else:
                self._book(*totals)
        except BudgetExceededError:
            return False
        return True

    def _book(self, session: int, shared: int) -> None:
        """Set the totals booked, in nano-USD. They may fall: the final cost may be lower."""
        with self.lock:
            if (session, shared) != (self._booked, self._shared):
                self._add(session - self._booked, shared - self._shared)

    def _add(self, session: int, shared: int, what: str = "") -> None:
        self._ledger.book_uptime(session, shared, what=what)
        self._booked += session
        self._shared += shared

    def _dues(self) -> dict[str, int]:
        """Nano-USD of all minutes that each endpoint has started, spans that are over included."""
        names, now = {*self._ended, *self._running}, SYSTEM_CLOCK.monotonic()
        return {name: self._ended[name] + self._cost(name, now) for name in names}

    def _cost(self, name: str, until: float) -> int:
        """Nano-USD of the minutes that an endpoint's current span has started by ``until``."""
        minute_s = self._settings.billing_minute
        return sum(running.cost(until, minute_s) for running in self._running.get(name, ()))

    def _shared_part(self, dues: Mapping[str, int]) -> int:
        """The part of the dues that this job pays, and no other job, for the shared budgets."""
        now = SYSTEM_CLOCK.monotonic()
        ours = {name: self._since_payer_change(name, now) for name in self._payer_changes}
        return sum({**dues, **ours, **self._paid_by_others}.values())

    def _since_payer_change(self, name: str, until: float) -> int:
        """Nano-USD of an endpoint's minutes since this job pays for it instead of another."""
        minute_s = self._settings.billing_minute
        paid = sum(
            one.cost(until, minute_s) - (0 if one is own else one.nano_per_minute)
            for own, one in zip(self._running.get(name, ()), self._as_shared(name), strict=True)
        )
        return self._ended[name] - self._payer_changes[name].ended + paid

    @property
    def _ours(self) -> list[RunningEndpoint]:
        """The running endpoints that this job pays for."""
        names = self._running.keys() - self._paid_by_others.keys()
        return [running for name in names for running in self._as_shared(name)]

    def _as_shared(self, name: str) -> list[RunningEndpoint]:
        """An endpoint's running replicas, with minutes counted as the first job counts them."""
        running, change = self._running.get(name, ()), self._payer_changes.get(name)
        return [change.aligned(one) if change else one for one in running]

    @property
    def _all_running(self) -> list[RunningEndpoint]:
        return [running for of_one in self._running.values() for running in of_one]


def _option(budget: str) -> str:
    """The option of a budget, whose name begins with the same word."""
    return f"--hf-{budget.partition(' ')[0]}-budget"


_NANOS = 10**9


class Key(NamedTuple):
    """Identifies one test's use of one endpoint."""

    endpoint: str
    test: str


@dataclass
class OpenUse:
    """A test that now uses an endpoint, in one worker; ``start`` is on the steady clock."""

    key: Key
    worker: str
    start: float


class UptimeSharing:
    """Charges each test's budgets its share of the uptime it uses. Safe between threads.

    A test owes the price of each second that it uses an endpoint; tests that use it at the same
    time split the price. Once the endpoint is paused, its actual cost is shared out by the same
    times, and the charges are corrected. ``minute_s``: seconds in a billing minute.
    """

    def __init__(self, ledger: Ledger, minute_s: float) -> None:
        self._ledger, self._minute = ledger, round(minute_s * _NANOS)
        self._lock = threading.RLock()
        self._prices: dict[str, int] = {}
        self._open_uses: list[OpenUse] = []
        self._uses: dict[str, list[EndpointUse]] = {}
        self._scopes: dict[str, tuple[str, ...]] = {}
        self._owed: dict[Key, Fraction] = {}
        self._booked: dict[Key, int] = {}
        self._of_test: Counter[str] = Counter()
        self._accrued_at = 0.0

    def price(self, endpoint: str, nano_per_minute: int) -> None:
        """Note what a minute of an endpoint costs from now on."""
        with self._lock:
            self._prices[endpoint] = nano_per_minute

    def begin(self, key: Key, scopes: Sequence[Scope], now: float, worker: str = "") -> None:
        """Begin to charge a test's use of an endpoint to these budgets of the test."""
        with self._lock:
            self.accrue(now)
            for scope in scopes:
                self._ledger.open(scope)
            self._scopes[key.test] = tuple(scope.key for scope in scopes)
            self._open_uses.append(OpenUse(key, worker, now))

    def end(self, test: str, now: float, worker: str | None = None) -> None:
        """End a test's use of all endpoints; without ``worker``, in all workers."""
        with self._lock:
            self.accrue(now)
            ended = [
                s for s in self._open_uses if s.key.test == test and worker in (None, s.worker)
            ]
            for stay in ended:
                self._open_uses.remove(stay)
                use = EndpointUse(test, stay.start, now)
                self._uses.setdefault(stay.key.endpoint, []).append(use)

    def uses(self, endpoint: str) -> tuple[EndpointUse, ...]:
        """When tests used an endpoint, on the steady clock; the current uses included."""
        with self._lock:
            here = (stay for stay in self._open_uses if stay.key.endpoint == endpoint)
            open_uses = (EndpointUse(stay.key.test, stay.start) for stay in here)
            return (*self._uses.get(endpoint, ()), *open_uses)

    def owed_by(self, test: str) -> int:
        """Nano-USD that a test owes so far."""
        with self._lock:
            return self._of_test[test]

    def accrue(self, now: float) -> None:
        """Charge the tests that use endpoints for the time since the last call."""
        with self._lock:
            passed = round(max(now - self._accrued_at, 0.0) * _NANOS)
            self._accrued_at = max(now, self._accrued_at)
            there: dict[str, set[Key]] = {}
            for stay in self._open_uses:
                there.setdefault(stay.key.endpoint, set()).add(stay.key)
            for endpoint, keys in there.items():
                price = self._prices.get(endpoint, 0)
                for key in keys:
                    owed = Fraction(price * passed, self._minute * len(keys))
                    self._owed[key] = self._owed.get(key, Fraction(0)) + owed
                    self._book(key, math.ceil(self._owed[key]))

    def settle(self, receipts: Iterable[EndpointSummary]) -> dict[str, Shares]:
        """Share out the actual cost of each endpoint, and correct the charges to budgets."""
        with self._lock:
            shared = {receipt.name: self._share_out(receipt) for receipt in receipts}
            final = {
                Key(endpoint, test): nano
                for endpoint, shares in shared.items()
                for test, nano in shares.tests.items()
            }
            for key in {*self._booked, *final}:
                self._book(key, final.get(key, 0))
            return shared

    def _share_out(self, receipt: EndpointSummary) -> Shares:
        uses = self.uses(receipt.name)
        return share_out(receipt.cost.nano_usd, receipt.cost.window, uses)

    def _book(self, key: Key, nano_usd: int) -> None:
        difference = nano_usd - self._booked.get(key, 0)
        self._booked[key] = nano_usd
        self._of_test[key.test] += difference
        if difference:
            for scope in self._scopes[key.test]:
                self._ledger.book(scope, difference)


class Ticker:
    """Calls a function every few seconds in a thread, whatever the tests do meanwhile.

    Without it, a run would not notice in time that other runs use up a shared budget, that someone
    gives an endpoint more replicas, or, in the controller of workers, that its reaper was killed.
    """

    TICKS = 4  # in a billed minute

    def __init__(self, every_s: float, tick: Callable[[], None]) -> None:
        self._every_s, self._tick = every_s, tick
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hfbudget-minutes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No tick begins after this."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            # An error here comes again at the next call of a test, where it can be raised.
            with suppress(HFBudgetError, OSError):
                self._tick()
