"""Which calls are granted, which wait and which are refused: rules without lock, clock or thread.

A call waits if it would fit, should the calls in flight cost nothing. First come, first served:
what the calls ahead in the queue need counts as held, in the scopes that they share with a later
call. A wait ends early in two cases. Too much was spent meanwhile, and the call no longer fits. Or
the callers that hold what is in the way all wait themselves, so none of them can settle it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from pytest_hfbudget.errors import IN_VAIN, SMALLER, BudgetExceededError, Figures, over_cap
from pytest_hfbudget.ledger import Caller, Charge, Hold, Scope, Totals


class Account:
    """One scope, with its nano-USD spent and held, and its calls settled, in flight and refused."""

    __slots__ = ("calls", "held", "in_flight", "refused", "scope", "spent")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.spent = self.held = self.calls = self.in_flight = self.refused = 0

    @property
    def totals(self) -> Totals:
        return Totals(self.spent, self.held, self.calls, self.refused)

    def room(self) -> int | None:
        """Nano-USD that are neither spent nor held, less than 0 if overspent; None without cap."""
        cap = self.scope.cap
        return None if cap is None else cap - self.spent - self.held

    def calls_left(self) -> int | None:
        """How many more calls may be sent, if those in flight count as sent; None for any."""
        most = self.scope.max_calls
        return None if most is None else most - self.calls - self.in_flight

    def exceeded(
        self, needed: int, model: str, *, ahead: int = 0, advice: str = SMALLER
    ) -> BudgetExceededError:
        """The refusal of a call that needs more than is left.

        Args:
            needed: nano-USD of the call.
            ahead: nano-USD that the calls ahead of it in the queue need.
            advice: what the message ends with.
        """
        return over_cap(
            scope=self.scope.name,
            scope_key=self.scope.key,
            model=model,
            figures=Figures(self.scope.cap or 0, self.spent, self.held + ahead, needed),
            advice=advice,
        )

    def out_of_calls(self, model: str) -> BudgetExceededError:
        """The refusal of a call beyond ``max_calls``."""
        return BudgetExceededError(
            f"{self.scope.name}: {model} would be call {self.calls + self.in_flight + 1}, "
            f"but max_calls is {self.scope.max_calls}. The call was not sent. Raise max_calls.",
            scope=self.scope.name,
            scope_key=self.scope.key,
            model=model,
            figures=Figures(self.scope.cap or 0, self.spent, self.held),
        )


class HoldRequest:
    """A request to hold from ``least`` to ``most`` nano-USD in all its accounts at once.

    Attributes:
        id: a number that becomes the id of the hold.
        amount: the nano-USD that it holds, once it is granted.
    """

    __slots__ = ("accounts", "amount", "caller", "draft", "id", "least", "most")

    def __init__(
        self,
        number: int,
        accounts: tuple[Account, ...],
        least: int,
        most: int | None,
        draft: Charge,
        caller: Caller | None,
    ) -> None:
        self.id, self.accounts, self.least, self.most = number, accounts, least, most
        self.draft, self.caller, self.amount = draft, caller, 0


class Waiter(NamedTuple):
    """A request in the queue, and the future for its answer: the hold, or the refusal."""

    request: HoldRequest
    answer: Future[Hold]


class QueueAhead:
    """What the calls ahead in the queue need, in each account. To later calls it counts as held."""

    def __init__(self) -> None:
        self.nano_usd: dict[Account, int] = {}
        self.calls: dict[Account, int] = {}

    def add(self, request: HoldRequest) -> None:
        """Add what one more request needs."""
        for account in request.accounts:
            self.nano_usd[account] = self.nano_usd.get(account, 0) + request.least
            self.calls[account] = self.calls.get(account, 0) + 1


NO_QUEUE = QueueAhead()


def grant(request: HoldRequest, ahead: QueueAhead) -> int | None:
    """The nano-USD that a request gets now; None if it has to wait for others.

    Raises:
        BudgetExceededError: it would not fit even if nothing were held.
    """
    waits, least, amount = False, request.least, request.most
    for account in request.accounts:
        _, _, cap, max_calls = account.scope
        if max_calls is not None:
            left = max_calls - account.calls - account.in_flight
            if left < 1:
                raise account.out_of_calls(request.draft.model)
            waits = waits or left <= ahead.calls.get(account, 0)
        if cap is not None:
            unspent = cap - account.spent
            if 0 < least > unspent:  # a call of $0 fits into any cap, even an overspent one
                raise account.exceeded(least, request.draft.model)
            room = unspent - account.held - ahead.nano_usd.get(account, 0)
            waits = waits or 0 < least > room
            if amount is None or room < amount:
                amount = room
    if waits:
        return None
    return least if amount is None or amount < least else amount


def decide(
    queue: Sequence[Waiter], holds: Collection[HoldRequest]
) -> tuple[Waiter, int | BudgetExceededError] | None:
    """The next waiter that can be answered, and its answer: nano-USD, or a refusal; else None."""
    holders = _holders(queue, holds)
    ahead = QueueAhead()
    for waiter in queue:
        # A caller with other calls in flight need not queue: others may be waiting for these.
        try:
            amount = grant(waiter.request, NO_QUEUE if waiter.request.id in holders else ahead)
        except BudgetExceededError as refusal:
            return waiter, refusal
        if amount is not None:
            return waiter, amount
        ahead.add(waiter.request)
    return _deadlock(queue, holds, holders) if holders else None


def refusal_of(waiter: Waiter, queue: Sequence[Waiter], advice: str) -> BudgetExceededError:
    """The refusal of a waiter that is not to wait any longer; its message ends with ``advice``."""
    ahead = QueueAhead()
    for other in queue[: queue.index(waiter)]:
        ahead.add(other.request)
    request = waiter.request
    for account in request.accounts:
        room, claimed = account.room(), ahead.nano_usd.get(account, 0)
        if room is not None and 0 < request.least > room - claimed:
            return account.exceeded(
                request.least, request.draft.model, ahead=claimed, advice=advice
            )
    full = (
        a
        for a in request.accounts
        if (left := a.calls_left()) is not None and left <= ahead.calls.get(a, 0)
    )
    return next(full).out_of_calls(request.draft.model)


def _holders(queue: Iterable[Waiter], holds: Iterable[HoldRequest]) -> set[int]:
    """The ids of the queued requests whose waiting blocks calls in flight from being settled."""
    settlers = {key for held in holds if held.caller for key in held.caller.blocked_by}
    callers = ((waiter.request.id, waiter.request.caller) for waiter in queue)
    return {number for number, caller in callers if caller and caller.blocked in settlers}


def _deadlock(
    queue: Sequence[Waiter], holds: Collection[HoldRequest], holders: set[int]
) -> tuple[Waiter, BudgetExceededError] | None:
    """The last of the callers that wait for each other, and its refusal; None if none do.

    Assume that all calls whose callers don't wait are settled, for $0. Then some of the waiting
    calls fit, so they will settle, too, and so forth. The callers that are left at the end wait for
    each other. The one that came last has closed the circle.
    """
    stuck = list(queue)
    while stuck:
        frozen = _frozen(stuck, holds)
        short = [(w, a) for w in stuck if (a := _short(w.request, frozen)) is not None]
        if len(short) == len(stuck):
            last, account = next(each for each in reversed(short) if each[0].request.id in holders)
            return last, account.exceeded(
                last.request.least, last.request.draft.model, advice=IN_VAIN
            )
        stuck = [waiter for waiter, _ in short]
    return None


def _frozen(waiting: Iterable[Waiter], holds: Iterable[HoldRequest]) -> Counter[Account]:
    """The nano-USD in each account that can't be settled while these wait."""
    blocked = {waiter.request.caller.blocked for waiter in waiting if waiter.request.caller}
    frozen: Counter[Account] = Counter()
    for held in holds:
        if held.caller and not blocked.isdisjoint(held.caller.blocked_by):
            for account in held.accounts:
                frozen[account] += held.amount
    return frozen


def _short(request: HoldRequest, frozen: Counter[Account]) -> Account | None:
    """The first account that has no room for a request, even if all but the frozen is released."""
    for account in request.accounts:
        room = account.room()
        if room is not None and 0 < request.least > room + account.held - frozen[account]:
            return account
    return None
