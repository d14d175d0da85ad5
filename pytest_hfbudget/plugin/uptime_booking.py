"""Books the uptime of a run's endpoints: to its session by the minute, to tests by their share."""

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
from pytest_hfbudget.endpoints.lifecycle_types import EndpointReceipt
from pytest_hfbudget.endpoints.uptime import HORIZON_S, RunningEndpoint, TakenOver, seconds_left
from pytest_hfbudget.endpoints.uptime_meter import EndpointUse, Shares, share_out
from pytest_hfbudget.errors import (
    BudgetExceededError,
    EndpointError,
    HFBudgetError,
    LedgerUnreachableError,
    UnaffordableEndpointError,
)
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.locks import SYSTEM_CLOCK
from pytest_hfbudget.money import beside
from pytest_hfbudget.plugin import run_ledger
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
        self._booked = self._shared = 0  # to the session, and to what jobs share
        # Nano-USD of spans that are over: a revived endpoint has begun another.
        self._ended: Counter[str] = Counter()
        # Endpoints that another job pays for, with what this one has paid for earlier spans.
        self._of_others: dict[str, int] = {}
        self._taken: dict[str, TakenOver] = {}  # those that another job has paid for before
        self._closed = False

    def settle_who_pays(self, name: str, pays: bool, paid_until: float | None) -> None:
        """Have this run pay for an endpoint, or leave that to the other job that does.

        A job that takes over pays for what begins after the minutes that are paid for. A job that
        leaves it to another one has its minutes back: the other has held the endpoint for longer.

        Args:
            paid_until: on the steady clock, what the job before has paid for; None if it is not
                known, and then the minute that runs is paid for once more.
        """
        if pays == (name not in self._of_others):
            return
        ended, taken = self._ended[name], self._taken.get(name)
        if pays:
            now, minute_s = SYSTEM_CLOCK.monotonic(), self._settings.billing_minute
            until = now if paid_until is None else paid_until
            earlier = self._of_others.pop(name)
            self._taken[name] = TakenOver(now, until - minute_s, ended - earlier)
        else:
            self._of_others[name] = ended - taken.ended if taken else ended
        self._add(0, self._shared_part(self._dues()) - self._shared)

    @property
    def accrues(self) -> bool:
        """Whether minutes may have started that are not booked."""
        return not self._closed and bool(self._running or self._booked)

    @property
    def has_deadline(self) -> bool:
        """Whether a cap or --hf-max-uptime ends what runs."""
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
                ours = 0 if name in self._of_others else nano_per_minute
                self._add(nano_per_minute, ours, name)
                self._ended[name] += self._cost(name, SYSTEM_CLOCK.monotonic())
                self._running[name] = (RunningEndpoint(SYSTEM_CLOCK.monotonic(), nano_per_minute),)
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
                ours = 0 if name in self._of_others else nano_per_minute
                self._add(nano_per_minute, ours, name if ahead else "")
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
            added = RunningEndpoint(SYSTEM_CLOCK.monotonic(), nano_per_minute)
            self._running[name] = (*self._running.get(name, ()), added)

    def end(self, name: str, paused_mono: float | None) -> None:
        """An endpoint starts no more minutes after its pause; None: by now."""
        until, taken = paused_mono or SYSTEM_CLOCK.monotonic(), self._taken.get(name)
        since_taken = self._since_taken(name, until) if taken else 0
        self._ended[name] += self._cost(name, until)
        self._running.pop(name, None)
        if taken:
            self._taken[name] = taken._replace(ended=self._ended[name] - since_taken)

    def forget(self, name: str) -> None:
        """An endpoint whose resume was refused, or never sent, has no first minute."""
        with self.lock:
            self._running.pop(name, None)

    def accrue(self) -> None:
        """Book every minute that has started by now; the next one, too, where runs share a cap."""
        dues = self._dues()
        if not self._reserve(dues):
            over_runs = self._settings.capped_over_runs
            started, shared = sum(dues.values()), self._shared_part(dues)
            least = (self._booked, self._shared) if over_runs else (0, 0)
            self._book(max(started, least[0]), max(shared, least[1]))

    def close(self, costs: Mapping[str, int]) -> None:
        """Book what each endpoint has cost in all; nothing accrues after this."""
        with self.lock:
            self._closed = True
            self._book(sum(costs.values()), self._shared_part(costs))

    def seconds_left(self) -> float:
        """Seconds until the next minute would break a cap, or --hf-max-uptime is over."""
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
        """Book the next minute ahead where another run could take it; returns whether it is."""
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
        """Have the budgets charged with the uptime so far; at its end that may be less again."""
        with self.lock:
            if (session, shared) != (self._booked, self._shared):
                self._add(session - self._booked, shared - self._shared)

    def _add(self, session: int, shared: int, what: str = "") -> None:
        self._ledger.book_uptime(session, shared, what=what)
        self._booked += session
        self._shared += shared

    def _dues(self) -> dict[str, int]:
        """Nano-USD of all the minutes of each endpoint that have started by now."""
        names, now = {*self._ended, *self._running}, SYSTEM_CLOCK.monotonic()
        return {name: self._ended[name] + self._cost(name, now) for name in names}

    def _cost(self, name: str, until: float) -> int:
        """Nano-USD of the minutes that it has begun by then, on the steady clock."""
        minute_s = self._settings.billing_minute
        return sum(running.cost(until, minute_s) for running in self._running.get(name, ()))

    def _shared_part(self, dues: Mapping[str, int]) -> int:
        """What the budgets that jobs share have to pay of it: no job pays what another has paid."""
        now = SYSTEM_CLOCK.monotonic()
        ours = {name: self._since_taken(name, now) for name in self._taken}
        return sum({**dues, **ours, **self._of_others}.values())

    def _since_taken(self, name: str, until: float) -> int:
        """Nano-USD of the minutes of an endpoint that began after another job had paid for it."""
        minute_s = self._settings.billing_minute
        paid = sum(
            one.cost(until, minute_s) - (0 if one is own else one.nano_per_minute)
            for own, one in zip(self._running.get(name, ()), self._as_shared(name), strict=True)
        )
        return self._ended[name] - self._taken[name].ended + paid

    @property
    def _ours(self) -> list[RunningEndpoint]:
        """What this job pays for, of all that runs."""
        names = self._running.keys() - self._of_others.keys()
        return [running for name in names for running in self._as_shared(name)]

    def _as_shared(self, name: str) -> list[RunningEndpoint]:
        """What runs of an endpoint, in the minutes of the job that has resumed it."""
        running, taken = self._running.get(name, ()), self._taken.get(name)
        return [taken.aligned(one) if taken else one for one in running]

    @property
    def _all_running(self) -> list[RunningEndpoint]:
        return [running for of_one in self._running.values() for running in of_one]


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


class Ticker:
    """Looks at running endpoints every few seconds, whatever the tests do meanwhile.

    Without it, a run would not notice that others take what its next minutes were to be paid from,
    that someone lets an endpoint have more replicas, nor, in a controller of workers, that its
    reaper was killed.

    Args:
        every_s: seconds between two looks.
        tick: what to do each time.
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
            # What fails here fails again at the next call, where the caller can be told.
            with suppress(HFBudgetError, OSError):
                self._tick()
