"""The ledger: hold before a call is sent, settle or release after it; in one process.

The invariant is ``held + spent <= cap`` of every scope whenever a call is let through. It is
what makes a cap hold under concurrency: nothing is sent on the strength of a check that
another call can overtake.
"""

from __future__ import annotations

import json
import marshal
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_hfbudget.errors import SMALLER, LedgerUnreachableError, interrupted, too_late
from pytest_hfbudget.ledger import (
    SESSION,
    Caller,
    Charge,
    Hold,
    Refusal,
    Scope,
    Totals,
    UptimeSource,
    WaitingHold,
    unanswered,
)
from pytest_hfbudget.ledger.queue import (
    NO_QUEUE,
    Account,
    HoldRequest,
    Waiter,
    decide,
    grant,
    refusal_of,
)
from pytest_hfbudget.locks import Lock, non_reentrant, own_lock

# Charges that are packed at a time. Most runs make fewer, and pack nothing.
PACK = 1024


class Charges:
    """Charges in the order of their settlement. The caller has to hold the ledger's lock.

    The latest are plain tuples; earlier ones are compressed. As objects they would take twenty
    times the memory, and the garbage collector would visit all of them again and again.
    """

    def __init__(self) -> None:
        self._packs: list[bytes] = []
        self._recent: list[tuple[Any, ...]] = []

    def append(self, charge: Charge) -> None:
        """Keep one more."""
        self._recent.append(tuple(charge))
        if len(self._recent) >= PACK:
            self._packs.append(zlib.compress(_dumped(self._recent), 1))
            self._recent = []

    def __iter__(self) -> Iterator[Charge]:
        for pack in self._packs:
            yield from map(Charge._make, marshal.loads(zlib.decompress(pack)))  # noqa: S302 - own
        yield from map(Charge._make, self._recent)


def _dumped(rows: list[tuple[Any, ...]]) -> bytes:
    """Rows in the quickest format: only the process that writes them reads them."""
    try:
        return marshal.dumps(rows)
    except ValueError:  # a name that is an enum's member; as JSON it is plain text
        return marshal.dumps([tuple(Charge.read(row)) for row in json.loads(json.dumps(rows))])


class Ledger:
    """The one ledger of a run. Every method is atomic, and waits for nothing but the lock.

    A signal handler may interrupt a method. Then it may read the ledger, but not change it: each
    method that changes something raises `LedgerBusyError`.
    """

    def __init__(self) -> None:
        self._lock: Lock = own_lock()
        self._accounts: dict[str, Account] = {}
        self._holds: dict[int, HoldRequest] = {}
        self._queue: list[Waiter] = []
        self._next = 0
        self._uptime: UptimeSource | None = None
        self._charges = Charges()
        self._refusals: list[Refusal] = []
        self._unmetered: Counter[str] = Counter()

    def open(self, scope: Scope) -> None:
        with non_reentrant(self._lock):
            self._accounts.setdefault(scope.key, Account(scope))

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        """Set aside from ``least`` to ``most`` nano-USD in every scope at once, or in none.

        Args:
            draft: what is known of the call so far.

        Raises:
            BudgetExceededError: a scope has less than ``least`` left, or no call left.
        """
        if self._uptime is not None:
            self._uptime.accrue()
        with non_reentrant(self._lock):
            answer = self._hold_or_queue(keys, least, most, draft, None)
            if isinstance(answer, Waiter):
                refusal = refusal_of(answer, self._queue, SMALLER)
                self._queue.remove(answer)
                raise refusal
        if self._uptime is not None:
            self._uptime.rearm()
        return answer

    def hold_or_queue(
        self,
        keys: Sequence[str],
        least: int,
        most: int | None,
        draft: Charge,
        caller: Caller | None = None,
    ) -> Hold | WaitingHold:
        """As `hold`; but if only calls in flight are in the way, the call joins the queue.

        Raises:
            BudgetExceededError: a scope has spent too much, or has no call left; or waiting is in
                vain: ``caller`` itself holds what is in the way, or callers that wait for it do.
        """
        if self._uptime is not None:
            self._uptime.accrue()
        if self._lock._is_owned():  # as `non_reentrant`, without its call
            raise interrupted("the ledger")
        with self._lock:
            answer = self._hold_or_queue(keys, least, most, draft, caller)
        if self._uptime is not None:
            self._uptime.rearm()
        return (
            WaitingHold(answer.request.id, answer.answer) if isinstance(answer, Waiter) else answer
        )

    def give_up(self, request: int, seconds: float) -> Hold | None:
        """Take a request out of the queue that has waited for so many seconds.

        Args:
            request: its id.

        Returns:
            Its hold, if that was granted meanwhile; None if it was refused or has left meanwhile.

        Raises:
            BudgetExceededError: what was in the way still is.
        """
        self._serve_queue()
        with non_reentrant(self._lock):
            self._answer_queue()
            if request in self._holds:
                return Hold(request, self._holds[request].amount)
            waiter = self._waiter(request)
            if waiter is None:
                return None
            refusal = refusal_of(waiter, self._queue, too_late(seconds))
            self._refuse_waiter(waiter, refusal)
            self._answer_queue()
            raise refusal

    def leave(self, request: int) -> None:
        """Take a request out of the queue; if it was granted meanwhile, release its hold."""
        with non_reentrant(self._lock):
            if request in self._holds:
                self._resolve(request)
            elif (waiter := self._waiter(request)) is not None:
                self._refuse_waiter(waiter, LedgerUnreachableError("the caller stopped waiting"))
        if self._queue:
            self._serve_queue()

    def settle(self, hold: int, charge: Charge) -> None:
        """Book a held call at ``charge.nano_usd``, which may differ from what was held.

        Raises:
            KeyError: the hold was resolved before; a hold resolves once.
        """
        if self._lock._is_owned():  # as `non_reentrant`, without its call
            raise interrupted("the ledger")
        with self._lock:
            self._resolve(hold, charge.nano_usd or 0, 1)
            self._charges.append(charge)
        if self._queue:
            self._serve_queue()

    def release(self, hold: int, charge: Charge | None = None) -> None:
        """Release a hold. With a charge (of $0) the call still counts as one that was made.

        Raises:
            KeyError: the hold was resolved before.
        """
        with non_reentrant(self._lock):
            self._resolve(hold, calls=0 if charge is None else 1)
            if charge is not None:
                self._charges.append(charge)
        if self._queue:
            self._serve_queue()

    def flush(self) -> None:
        """Nothing: what is settled here is booked at once."""

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        with non_reentrant(self._lock):
            for key in dict.fromkeys(keys):
                self._accounts[key].refused += 1
            self._refusals.append(refusal)

    def count_unmetered(self, why: str, calls: int) -> None:
        with self._lock:
            self._unmetered[why] += calls

    def unmetered(self) -> Mapping[str, int]:
        """How many calls went out without being metered, by the reason."""
        with self._lock:
            return dict(self._unmetered)

    def total(self, key: str) -> Totals:
        with self._lock:
            account = self._accounts.get(key)
            return Totals() if account is None else account.totals

    def touched(self, key: str) -> bool:
        return key in self._accounts

    def book(self, key: str, nano_usd: int, *, what: str = "") -> None:
        """Charge uptime, which is spent without a call.

        Args:
            what: names uptime that is still to come, and so has to fit; empty for uptime that
                has happened.

        Raises:
            BudgetExceededError: uptime that is still to come does not fit.
        """
        with non_reentrant(self._lock):
            account = self._accounts[key]
            room = account.room()
            if what and room is not None and room < nano_usd:
                raise account.exceeded(nano_usd, what)
            account.spent += nano_usd
            self._answer_queue()

    def book_uptime(self, nano_usd: int, shared: int, *, what: str = "") -> None:
        """Book the uptime of endpoints to the session, as `book` does.

        Args:
            shared: the nano-USD to book to budgets that other runs share; there are none here.
        """
        self.book(SESSION, nano_usd, what=what)

    def share_with(self, uptime: UptimeSource) -> None:
        """Let endpoints, which cost by the minute, spend from this ledger, too."""
        self._uptime = uptime

    def scopes(self) -> dict[str, tuple[Scope, Totals]]:
        """Every scope with its totals, by key."""
        with self._lock:
            return {key: (each.scope, each.totals) for key, each in self._accounts.items()}

    def waiting(self) -> int:
        """How many calls are in the queue."""
        return len(self._queue)

    def charges(self) -> tuple[Charge, ...]:
        """Every settled call, in the order of settlement."""
        with self._lock:
            return tuple(self._charges)

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        with self._lock:
            return tuple(charge for charge in self._charges if key in charge.scopes)

    def refusals(self) -> tuple[Refusal, ...]:
        """Every call that was not sent."""
        with self._lock:
            return tuple(self._refusals)

    # --- under the lock

    def _hold_or_queue(
        self,
        keys: Sequence[str],
        least: int,
        most: int | None,
        draft: Charge,
        caller: Caller | None,
    ) -> Hold | Waiter:
        accounts = tuple(map(self._accounts.__getitem__, dict.fromkeys(keys)))
        self._next += 1
        request = HoldRequest(self._next, accounts, least, most, draft, caller)
        if not self._queue:
            amount = grant(request, NO_QUEUE)
            if amount is not None:
                return self._grant(request, amount)
        waiter = Waiter(request, unanswered())
        self._queue.append(waiter)
        self._answer_queue()
        return waiter.answer.result() if waiter.answer.done() else waiter

    def _grant(self, request: HoldRequest, amount: int) -> Hold:
        request.amount = amount
        for account in request.accounts:
            account.held += amount
            account.in_flight += 1
        self._holds[request.id] = request
        return Hold(request.id, amount)

    def _resolve(self, hold: int, spent: int = 0, calls: int = 0) -> None:
        request = self._holds.pop(hold)
        for account in request.accounts:
            account.held -= request.amount
            account.in_flight -= 1
            account.spent += spent
            account.calls += calls

    def _answer_queue(self) -> None:
        while (decision := decide(self._queue, self._holds.values())) is not None:
            waiter, verdict = decision
            if isinstance(verdict, int):
                self._queue.remove(waiter)
                waiter.answer.set_result(self._grant(waiter.request, verdict))
            else:
                self._refuse_waiter(waiter, verdict)

    def _refuse_waiter(self, waiter: Waiter, why: Exception) -> None:
        self._queue.remove(waiter)
        waiter.answer.set_exception(why)

    def _waiter(self, request: int) -> Waiter | None:
        return next((each for each in self._queue if each.request.id == request), None)

    # --- around the lock

    def _serve_queue(self) -> None:
        """Answer the calls in the queue that need wait no longer, after something has changed."""
        if self._uptime is not None:
            self._uptime.accrue()
        with non_reentrant(self._lock):
            self._answer_queue()
        if self._uptime is not None:
            self._uptime.rearm()
