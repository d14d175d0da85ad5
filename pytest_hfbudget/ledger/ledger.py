"""The ledger: hold before a call is sent, settle or release after it; in one process.

The invariant is ``held + spent <= cap`` of every scope whenever a call is let through. It is
what makes a cap hold under concurrency: nothing is sent on the strength of a check that
another call can overtake.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from pytest_hfbudget.errors import BudgetExceededError, over_cap
from pytest_hfbudget.ledger.charge import Charge, Refusal
from pytest_hfbudget.ledger.scope import Scope


class Hold(NamedTuple):
    """An amount that is set aside until it is settled or released, once."""

    id: int
    amount: int


class Totals(NamedTuple):
    """Where one scope stands, in nano-USD and calls."""

    spent: int = 0
    held: int = 0
    calls: int = 0
    refused: int = 0


class LedgerLike(Protocol):
    """What the tap needs of a ledger, wherever that ledger lives."""

    def open(self, scope: Scope) -> None:
        """Make a scope known; a key that is known already keeps what was spent in it."""

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        """Set aside as much as every scope allows, from ``least`` to ``most`` (None: all)."""

    def settle(self, hold: int, charge: Charge) -> None:
        """Book what a held call really cost and give the rest back."""

    def release(self, hold: int, charge: Charge | None = None) -> None:
        """Give a hold back: nothing was bought."""

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        """Count a call that was not sent."""

    def total(self, key: str) -> Totals:
        """Where a scope stands now."""

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        """Every settled call of one scope."""


class Uptime(Protocol):
    """What costs by the minute beside the calls, under the same cap."""

    def accrue(self) -> None:
        """Book the minutes that have started, before a call is measured against the rest."""

    def rearm(self) -> None:
        """Stop earlier, if a call has taken what a later minute would have cost."""


class _Account:
    __slots__ = ("calls", "held", "in_flight", "refused", "scope", "spent")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.spent = self.held = self.calls = self.in_flight = self.refused = 0

    def room(self) -> int | None:
        cap = self.scope.cap
        return None if cap is None else cap - self.spent - self.held

    def out_of_calls(self) -> bool:
        most = self.scope.max_calls
        return most is not None and self.calls + self.in_flight >= most


class _Held(NamedTuple):
    amount: int
    accounts: tuple[_Account, ...]
    draft: Charge
    owner: object


class Ledger:
    """The one ledger of a run. Every method is atomic; none blocks for longer than a lock."""

    def __init__(self) -> None:
        self._lock: AbstractContextManager[object] = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._holds: dict[int, _Held] = {}
        self._next = 0
        self._uptime: Uptime | None = None
        self._charges: list[Charge] = []
        self._refusals: list[Refusal] = []

    def open(self, scope: Scope) -> None:
        with self._lock:
            self._accounts.setdefault(scope.key, _Account(scope))

    def hold(
        self, keys: Sequence[str], least: int, most: int | None, draft: Charge, owner: object = None
    ) -> Hold:
        """Set aside from ``least`` to ``most`` nano-USD in every scope at once, or in none.

        ``draft`` is what is known of the call so far, ``owner`` the connection it came over:
        when that is lost, the draft is booked at the whole hold.

        Raises:
            BudgetExceededError: a scope has less than ``least`` left, or no call left.
        """
        if self._uptime is not None:
            self._uptime.accrue()
        granted = self._hold(keys, least, most, draft, owner)
        if self._uptime is not None:
            self._uptime.rearm()
        return granted

    def _hold(
        self, keys: Sequence[str], least: int, most: int | None, draft: Charge, owner: object
    ) -> Hold:
        with self._lock:
            accounts = tuple(self._accounts[key] for key in dict.fromkeys(keys))
            for account in accounts:
                if account.out_of_calls():
                    raise _out_of_calls(account, draft.model)
            amount = _amount(accounts, least, most, draft.model)
            for account in accounts:
                account.held += amount
                account.in_flight += 1
            self._next += 1
            self._holds[self._next] = _Held(amount, accounts, draft, owner)
            return Hold(self._next, amount)

    def settle(self, hold: int, charge: Charge) -> None:
        """Book a held call at ``charge.nano_usd``, which may differ from what was held.

        Raises:
            KeyError: the hold was resolved before; a hold resolves once.
        """
        with self._lock:
            for account in self._resolve(hold):
                account.spent += charge.nano_usd or 0
                account.calls += 1
            self._charges.append(charge)

    def release(self, hold: int, charge: Charge | None = None) -> None:
        """Give a hold back. With a charge (of $0) the call still counts as one that was made.

        Raises:
            KeyError: the hold was resolved before.
        """
        with self._lock:
            for account in self._resolve(hold):
                account.calls += charge is not None
            if charge is not None:
                self._charges.append(charge)

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        with self._lock:
            for key in dict.fromkeys(keys):
                self._accounts[key].refused += 1
            self._refusals.append(refusal)

    def total(self, key: str) -> Totals:
        with self._lock:
            account = self._accounts.get(key)
            if account is None:
                return Totals()
            return Totals(account.spent, account.held, account.calls, account.refused)

    def book(self, key: str, nano_usd: int, *, what: str = "") -> None:
        """Add what is spent without a call: the uptime of an endpoint.

        With ``what`` it is asked for beforehand, and has to fit; without, it has happened.

        Raises:
            BudgetExceededError: it does not fit.
        """
        with self._lock:
            account = self._accounts[key]
            room = account.room()
            if what and room is not None and room < nano_usd:
                raise _over(account, nano_usd, what)
            account.spent += nano_usd

    def share_with(self, uptime: Uptime) -> None:
        """Let something that costs by the minute spend from this ledger, too."""
        self._uptime = uptime

    def abandon(self, owner: object) -> int:
        """Book every open hold of an owner that died in full, since nobody knows what it got."""
        with self._lock:
            open_holds = [(i, held) for i, held in self._holds.items() if held.owner is owner]
            for hold, held in open_holds:
                for account in self._resolve(hold):
                    account.spent += held.amount
                    account.calls += 1
                self._charges.append(
                    held.draft._replace(nano_usd=held.amount, status="lost", estimated=True)
                )
            return len(open_holds)

    def scopes(self) -> dict[str, tuple[Scope, Totals]]:
        """Every scope with where it stands, for the report."""
        with self._lock:
            return {
                key: (a.scope, Totals(a.spent, a.held, a.calls, a.refused))
                for key, a in self._accounts.items()
            }

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

    def _resolve(self, hold: int) -> tuple[_Account, ...]:
        held = self._holds.pop(hold)
        for account in held.accounts:
            account.held -= held.amount
            account.in_flight -= 1
        return held.accounts


def _amount(accounts: tuple[_Account, ...], least: int, most: int | None, model: str) -> int:
    """What the tightest scope can set aside, between ``least`` and ``most``."""
    amount = most
    for account in accounts:
        room = account.room()
        if room is None:
            continue
        if least and room < least:  # what costs nothing fits into a cap that is overspent, too
            raise _over(account, least, model)
        amount = room if amount is None else min(amount, room)
    return least if amount is None else max(amount, least)


def _over(account: _Account, needed: int, model: str) -> BudgetExceededError:
    return over_cap(
        scope=account.scope.name,
        scope_key=account.scope.key,
        cap=account.scope.cap or 0,
        spent=account.spent,
        held=account.held,
        needed=needed,
        model=model,
    )


def _out_of_calls(account: _Account, model: str) -> BudgetExceededError:
    return BudgetExceededError(
        f"{account.scope.name}: {model} would be call {account.calls + account.in_flight + 1}, "
        f"but max_calls is {account.scope.max_calls}. The call was not sent. Raise max_calls.",
        scope=account.scope.name,
        scope_key=account.scope.key,
        cap=account.scope.cap or 0,
        spent=account.spent,
        held=account.held,
        model=model,
    )
