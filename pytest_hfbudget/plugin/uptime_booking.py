"""Books the uptime of a run's endpoints: to its session by the minute, to tests by their share."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from pytest_hfbudget.endpoints import Endpoint
from pytest_hfbudget.endpoints.lifecycle_types import EndpointReceipt
from pytest_hfbudget.endpoints.uptime_meter import EndpointUse, Shares, share_out
from pytest_hfbudget.errors import (
    BudgetExceededError,
    EndpointError,
    LedgerUnreachableError,
    UnaffordableEndpointError,
)
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.money import beside
from pytest_hfbudget.plugin import run_history
from pytest_hfbudget.settings import Settings


class UptimeBooking:
    """What the endpoints of a run have cost by now, and until when the caps pay for them.

    Attributes:
        lock: held by a caller that reads and books in one step.
    """

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger, self._settings = ledger, settings
        self.lock = threading.RLock()
        self._running: dict[str, tuple[RunningEndpoint, ...]] = {}
        self._booked = 0
        self._ended = 0  # nano-USD of spans that are over: a revived endpoint has begun another
        self._closed = False

    @property
    def pays(self) -> bool:
        """Whether it is this run that pays for the endpoints: others may share them."""
        return bool(getattr(self._ledger, "pays_uptime", True))

    def settle_who_pays(self, pays: bool) -> None:
        """Have this run pay, or leave that to the other job that does."""
        from pytest_hfbudget.history.shared_ledger import SharedLedger

        if not isinstance(self._ledger, SharedLedger) or pays == self.pays:
            return
        # Who takes over pays for the minute that runs; who has paid for nothing yet that another
        # pays for gets it back.
        running = sum(one.nano_per_minute for one in self._all_running)
        self._ledger.pay_uptime(pays, running if pays else -self._booked)

    @property
    def accrues(self) -> bool:
        """Whether minutes may have started that are not booked."""
        return not self._closed and bool(self._running or self._booked)

    @property
    def has_deadline(self) -> bool:
        """Whether a cap or --hf-max-uptime ends what runs."""
        limited = run_history.caps(self._settings) or self._settings.max_uptime is not None
        return not self._closed and bool(self._running and limited)

    def begin(self, name: str, nano_per_minute: int) -> None:
        """Book the first minute of an endpoint, before it is resumed.

        Raises:
            UnaffordableEndpointError: a cap has less left than that minute costs.
            EndpointError: the ledger can't be reached.
        """
        try:
            with self.lock:
                self._ledger.book(SESSION, nano_per_minute, what=name)
                self._booked += nano_per_minute
                self._ended += self._cost(name)
                self._running[name] = (RunningEndpoint(time.monotonic(), nano_per_minute),)
        except LedgerUnreachableError as error:
            raise EndpointError(str(error)) from None
        except BudgetExceededError as error:
            own = error.scope_key == SESSION
            minute, left, cap = beside(error.figures.cap, nano_per_minute, error.figures.left)
            raise UnaffordableEndpointError(
                f"{error.scope}: {name}: its first minute costs {minute}, but only "
                f"{left} of the {error.scope} of {cap} is left. It was not "
                f"resumed. Raise {'--hf-session-budget' if own else 'that cap'}."
            ) from None

    def grow(self, endpoint: Endpoint, more: int, nano_per_minute: int, *, ahead: bool) -> None:
        """Book a minute of replicas that are added, and hold that from now on.

        Replicas that may be added (``ahead``) have to fit; those that run already are booked
        whatever the cap says, and the deadline pauses the endpoint.

        Raises:
            UnaffordableEndpointError: a cap has less left.
            EndpointError: the ledger can't be reached.
        """
        name = endpoint.full_name
        with self.lock:
            if self._closed:
                return
            try:
                self._ledger.book(SESSION, nano_per_minute, what=name if ahead else "")
            except LedgerUnreachableError as error:
                raise EndpointError(str(error)) from None
            except BudgetExceededError as error:
                most, (minute, cap) = (
                    endpoint.most_replicas,
                    beside(error.figures.cap, nano_per_minute),
                )
                raise UnaffordableEndpointError(
                    f"{error.scope}: {name} may scale to {most} replicas. A minute of the "
                    f"{more} added costs {minute}, but the {error.scope} of {cap} has less left. "
                    "Lower its maxReplica, or raise that cap."
                ) from None
            self._booked += nano_per_minute
            added = RunningEndpoint(time.monotonic(), nano_per_minute)
            self._running[name] = (*self._running.get(name, ()), added)

    def end(self, name: str, seconds_ago: float) -> None:
        """An endpoint that was paused so long ago starts no more minutes."""
        self._ended += self._cost(name, time.monotonic() - seconds_ago)
        self._running.pop(name, None)

    def forget(self, name: str) -> None:
        """An endpoint whose resume was refused, or never sent, has no first minute."""
        with self.lock:
            self._running.pop(name, None)

    def accrue(self) -> None:
        """Book every minute that has started by now; the next one, too, where runs share a cap."""
        started = self._ended + sum(map(self._cost, self._running))
        if not self._reserve(started):
            over_runs = self._settings.capped_over_runs
            self._book(max(started, self._booked) if over_runs else started)

    def close(self, nano_usd: int) -> None:
        """Book what it has cost in all; nothing accrues after this."""
        self._closed = True
        self._book(nano_usd)

    def seconds_left(self) -> float:
        """Seconds until the next minute would break a cap, or --hf-max-uptime is over."""
        now, settings = time.monotonic(), self._settings
        left = HORIZON_S
        if settings.max_uptime is not None:
            first = min(running.since for running in self._all_running)
            left = max(first + settings.max_uptime - now, 0.0)
        room = run_history.room(self._ledger, settings) if self.pays else None
        if room is not None:
            budget = room + self._booked - self._ended
            running, minute_s = self._all_running, settings.billing_minute
            left = min(left, seconds_left(budget, running, now, minute_s))
        return left

    def _reserve(self, started: int) -> bool:
        """Book the next minute ahead where another run could take it; returns whether it is."""
        if not self._settings.capped_over_runs:
            return False
        ahead = sum(running.nano_per_minute for running in self._all_running)
        more = started + ahead - self._booked
        try:
            if more > 0:
                self._ledger.book(SESSION, more, what="the next minute")
                self._booked += more
            else:
                self._book(started + ahead)
        except BudgetExceededError:
            return False
        return True

    def _book(self, total: int) -> None:
        """Have the session charged with the uptime so far; at its end that may be less again."""
        with self.lock:
            if total != self._booked:
                self._ledger.book(SESSION, total - self._booked)
                self._booked = total

    def _cost(self, name: str, until: float | None = None) -> int:
        """Nano-USD of the minutes that it has begun by now, or by then on the steady clock."""
        at, minute_s = time.monotonic() if until is None else until, self._settings.billing_minute
        return sum(running.cost(at, minute_s) for running in self._running.get(name, ()))

    @property
    def _all_running(self) -> list[RunningEndpoint]:
        return [running for of_one in self._running.values() for running in of_one]


HORIZON_S = 86_400.0

# A pause takes its time on the way; this share of a minute is left for it.
MARGIN = 0.03


class RunningEndpoint(NamedTuple):
    """An endpoint since its resume, or its further replicas since they may run.

    Every started minute costs as much as the first.

    Attributes:
        since: seconds on the caller's clock.
        nano_per_minute: nano-USD of a billing minute of these replicas.
    """

    since: float
    nano_per_minute: int

    def cost(self, until: float, minute_s: float) -> int:
        """Nano-USD of the minutes that have started by then."""
        return (int(max(until - self.since, 0.0) / minute_s) + 1) * self.nano_per_minute


def seconds_left(
    budget: int, running: Iterable[RunningEndpoint], now: float, minute_s: float
) -> float:
    """Seconds until the first minute starts that ``budget`` nano-USD does not pay any more.

    0 where it is over already; never more than a day, after which it is to be asked again.
    """
    starts = []
    for endpoint in running:
        started = int(max(now - endpoint.since, 0.0) / minute_s) + 1
        budget -= started * endpoint.nano_per_minute
        starts.append((endpoint.since + started * minute_s, endpoint.nano_per_minute))
    heapq.heapify(starts)
    while budget >= 0 and starts:
        at, cost = starts[0]
        if cost == 0 or at - now > HORIZON_S:
            heapq.heappop(starts)
            continue
        budget -= cost
        if budget < 0:
            return max(at - now - MARGIN * minute_s, 0.0)
        heapq.heapreplace(starts, (at + minute_s, cost))
    return 0.0 if budget < 0 else HORIZON_S


_NANOS = 10**9


class Key(NamedTuple):
    """One test on one endpoint."""

    endpoint: str
    test: str


@dataclass
class EndpointStay:
    """One test that is on an endpoint now, in one of the run's processes."""

    key: Key
    worker: str
    start: float


class UptimeSharing:
    """Books to each test's budgets what its time on an endpoint costs. Safe between threads.

    While a test runs it owes its part of every second, at the price of a minute of what was
    resumed; tests that are on an endpoint at one time split the second. When the endpoint is
    paused, what it really cost is shared out by the same times, and the budgets are corrected.

    Args:
        minute_s: seconds in a billing minute.
    """

    def __init__(self, ledger: Ledger, minute_s: float) -> None:
        self._ledger, self._minute = ledger, round(minute_s * _NANOS)
        self._lock = threading.RLock()
        self._prices: dict[str, int] = {}
        self._stays: list[EndpointStay] = []
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
        """From now on a test is on an endpoint, and its budgets pay for it."""
        with self._lock:
            self.accrue(now)
            for scope in scopes:
                self._ledger.open(scope)
            self._scopes[key.test] = tuple(scope.key for scope in scopes)
            self._stays.append(EndpointStay(key, worker, now))

    def end(self, test: str, now: float, worker: str | None = None) -> None:
        """A test is on no endpoint any more; without ``worker``, wherever it ran."""
        with self._lock:
            self.accrue(now)
            ended = [s for s in self._stays if s.key.test == test and worker in (None, s.worker)]
            for stay in ended:
                self._stays.remove(stay)
                use = EndpointUse(test, stay.start, now)
                self._uses.setdefault(stay.key.endpoint, []).append(use)

    def uses(self, endpoint: str) -> tuple[EndpointUse, ...]:
        """When tests were on an endpoint, on the steady clock."""
        with self._lock:
            here = (stay for stay in self._stays if stay.key.endpoint == endpoint)
            open_uses = (EndpointUse(stay.key.test, stay.start) for stay in here)
            return (*self._uses.get(endpoint, ()), *open_uses)

    def of(self, test: str) -> int:
        """Nano-USD that a test owes as far as is known."""
        with self._lock:
            return self._of_test[test]

    def accrue(self, now: float) -> None:
        """Book what the tests that are on an endpoint owe by now."""
        with self._lock:
            passed = round(max(now - self._accrued_at, 0.0) * _NANOS)
            self._accrued_at = max(now, self._accrued_at)
            there: dict[str, set[Key]] = {}
            for stay in self._stays:
                there.setdefault(stay.key.endpoint, set()).add(stay.key)
            for endpoint, keys in there.items():
                price = self._prices.get(endpoint, 0)
                for key in keys:
                    owed = Fraction(price * passed, self._minute * len(keys))
                    self._owed[key] = self._owed.get(key, Fraction(0)) + owed
                    self._book(key, math.ceil(self._owed[key]))

    def settle(self, receipts: Iterable[EndpointReceipt]) -> dict[str, Shares]:
        """Share out what each endpoint has cost, and have the budgets agree with that."""
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

    def _share_out(self, receipt: EndpointReceipt) -> Shares:
        uses = self.uses(receipt.name)
        return share_out(receipt.cost.nano_usd, receipt.cost.window, uses)

    def _book(self, key: Key, nano_usd: int) -> None:
        difference = nano_usd - self._booked.get(key, 0)
        self._booked[key] = nano_usd
        self._of_test[key.test] += difference
        if difference:
            for scope in self._scopes[key.test]:
                self._ledger.book(scope, difference)
