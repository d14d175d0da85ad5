"""Who gets what, and who waits: the rules alone, without a lock, a clock or a thread.

A call that would fit if the calls in flight cost nothing waits for them. First come, first
served: what those ahead need counts as held, in the scopes that they share with a later one. Two
things end a wait early: something was spent, and the call fits no more; or no caller is left that
could settle what is in the way, because they all wait themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from pytest_hfbudget.errors import IN_VAIN, SMALLER, BudgetExceededError, Figures, over_cap
from pytest_hfbudget.ledger import Caller, Charge, Hold, Scope, Totals


class Account:
    """One scope with what is spent and held in it."""

    __slots__ = ("calls", "held", "in_flight", "refused", "scope", "spent")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.spent = self.held = self.calls = self.in_flight = self.refused = 0

    @property
    def totals(self) -> Totals:
        return Totals(self.spent, self.held, self.calls, self.refused)

    def room(self) -> int | None:
        """What is neither spent nor held; None without a cap."""
        cap = self.scope.cap
        return None if cap is None else cap - self.spent - self.held

    def calls_left(self) -> int | None:
        """How many more calls may be sent; one in flight is as good as sent."""
        most = self.scope.max_calls
        return None if most is None else most - self.calls - self.in_flight

    def over(
        self, needed: int, model: str, *, ahead: int = 0, advice: str = SMALLER
    ) -> BudgetExceededError:
        """The refusal of a call that needs more than is left behind those that wait ahead."""
        return over_cap(
            scope=self.scope.name,
            scope_key=self.scope.key,
            model=model,
            figures=Figures(self.scope.cap or 0, self.spent, self.held + ahead, needed),
            advice=advice,
        )

    def out_of_calls(self, model: str) -> BudgetExceededError:
        """The refusal of one call more than may be sent."""
        return BudgetExceededError(
            f"{self.scope.name}: {model} would be call {self.calls + self.in_flight + 1}, "
            f"but max_calls is {self.scope.max_calls}. The call was not sent. Raise max_calls.",
            scope=self.scope.name,
            scope_key=self.scope.key,
            model=model,
            figures=Figures(self.scope.cap or 0, self.spent, self.held),
        )


class HoldRequest:
    """What a call asks for: from ``least`` to ``most`` nano-USD in all its accounts at once.

    Attributes:
        amount: what it holds, once it was granted.
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
    """A request that waits, and where its answer is put: the hold, or the refusal."""

    request: HoldRequest
    answer: Future[Hold]


class QueueAhead:
    """What those ahead in line need, in each account: to those behind it is as good as held."""

    def __init__(self) -> None:
        self.nano_usd: dict[Account, int] = {}
        self.calls: dict[Account, int] = {}

    def add(self, request: HoldRequest) -> None:
        """Let one more stand there."""
        for account in request.accounts:
            self.nano_usd[account] = self.nano_usd.get(account, 0) + request.least
            self.calls[account] = self.calls.get(account, 0) + 1


NO_QUEUE = QueueAhead()


def grant(request: HoldRequest, ahead: QueueAhead) -> int | None:
    """The amount that a request gets now; None where it has to wait for others.

    Raises:
        BudgetExceededError: it would not fit either if nothing were held.
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
            if 0 < least > unspent:  # what is free fits into any cap
                raise account.over(least, request.draft.model)
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
    """Who of those in line need wait no longer, and why: an amount, or a refusal."""
    holders = _holders(queue, holds)
    ahead = QueueAhead()
    for place in queue:
        # A caller that holds something waits behind no one: others may be waiting for its hold.
        try:
            amount = grant(place.request, NO_QUEUE if place.request.id in holders else ahead)
        except BudgetExceededError as refusal:
            return place, refusal
        if amount is not None:
            return place, amount
        ahead.add(place.request)
    return _deadlock(queue, holds, holders) if holders else None


def sent_away(place: Waiter, queue: Sequence[Waiter], advice: str) -> BudgetExceededError:
    """The refusal of a waiter that is not to wait any longer."""
    ahead = QueueAhead()
    for other in queue[: queue.index(place)]:
        ahead.add(other.request)
    request = place.request
    for account in request.accounts:
        room, claimed = account.room(), ahead.nano_usd.get(account, 0)
        if room is not None and 0 < request.least > room - claimed:
            return account.over(request.least, request.draft.model, ahead=claimed, advice=advice)
    full = (
        a
        for a in request.accounts
        if (left := a.calls_left()) is not None and left <= ahead.calls.get(a, 0)
    )
    return next(full).out_of_calls(request.draft.model)


def _holders(queue: Iterable[Waiter], holds: Iterable[HoldRequest]) -> set[int]:
    """The requests of those in line who have other calls in flight."""
    within = {part for held in holds if held.caller for part in held.caller.within}
    return {p.request.id for p in queue if p.request.caller and p.request.caller.stops in within}


def _deadlock(
    queue: Sequence[Waiter], holds: Collection[HoldRequest], holders: set[int]
) -> tuple[Waiter, BudgetExceededError] | None:
    """The last of those who wait for each other, if some do: who comes last closed the circle.

    Calls whose callers don't wait will be settled, at best for $0. A waiting call that fits then
    goes on and settles too, and so forth. The callers that are left wait for each other.
    """
    stuck = list(queue)
    while stuck:
        frozen = _frozen(stuck, holds)
        short = [(place, a) for place in stuck if (a := _short(place.request, frozen)) is not None]
        if len(short) == len(stuck):
            last, account = next(each for each in reversed(short) if each[0].request.id in holders)
            return last, account.over(last.request.least, last.request.draft.model, advice=IN_VAIN)
        stuck = [place for place, _ in short]
    return None


def _frozen(waiting: Iterable[Waiter], holds: Iterable[HoldRequest]) -> Counter[Account]:
    """What stays held while these wait, in each account."""
    still = {place.request.caller.stops for place in waiting if place.request.caller}
    frozen: Counter[Account] = Counter()
    for held in holds:
        if held.caller and not still.isdisjoint(held.caller.within):
            for account in held.accounts:
                frozen[account] += held.amount
    return frozen


def _short(request: HoldRequest, frozen: Counter[Account]) -> Account | None:
    """The first account that could not take it though all but the frozen were given back."""
    for account in request.accounts:
        room = account.room()
        if room is not None and 0 < request.least > room + account.held - frozen[account]:
            return account
    return None
