"""What the tests owe of the uptime, and until when the cap pays for it."""

from __future__ import annotations

import heapq
import math
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from pytest_hfbudget.endpoints.lifecycle_types import EndpointReceipt
from pytest_hfbudget.endpoints.uptime import EndpointUse, Shares, share_out
from pytest_hfbudget.ledger import Ledger, Scope

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
        here = (stay for stay in self._stays if stay.key.endpoint == receipt.name)
        open_uses = [EndpointUse(stay.key.test, stay.start) for stay in here]
        uses = [*self._uses.get(receipt.name, ()), *open_uses]
        return share_out(receipt.cost.nano_usd, receipt.cost.window, uses)

    def _book(self, key: Key, nano_usd: int) -> None:
        difference = nano_usd - self._booked.get(key, 0)
        self._booked[key] = nano_usd
        self._of_test[key.test] += difference
        if difference:
            for scope in self._scopes[key.test]:
                self._ledger.book(scope, difference)
