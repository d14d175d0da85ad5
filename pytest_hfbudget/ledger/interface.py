"""What others need to know of a ledger, wherever it lives."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from pytest_hfbudget.ledger.charge import Charge, Refusal
from pytest_hfbudget.ledger.scope import Scope, Totals


class Hold(NamedTuple):
    """An amount that is set aside until it is settled or released, once."""

    id: int
    amount: int


class Caller(NamedTuple):
    """The maker of a call: while it waits it settles nothing.

    Attributes:
        task: a number of its own for each task of a thread, of asyncio or trio, 0 outside of tasks.
        blocks: whether the whole thread stands still when this caller waits, with all its tasks.
    """

    process: int
    thread: int
    task: int = 0
    blocks: bool = True

    @property
    def stops(self) -> tuple[int, ...]:
        """What stands still while this caller waits: its thread, or its task."""
        return self[:2] if self.blocks else self[:3]

    @property
    def within(self) -> tuple[tuple[int, ...], ...]:
        """All whose standing still includes this caller: its thread and its task."""
        return self[:2], self[:3]


class WaitingHold(NamedTuple):
    """A place in the queue: its answer becomes the hold of the same id, or the refusal."""

    id: int
    answer: Future[Hold]


def unanswered() -> Future[Hold]:
    """An answer that its waiter can't cancel: the waiter leaves the queue instead."""
    answer: Future[Hold] = Future()
    answer.set_running_or_notify_cancel()
    return answer


class LedgerLike(Protocol):
    """What the tap needs of a ledger, wherever that ledger lives."""

    def open(self, scope: Scope) -> None:
        """Make a scope known; a key that is known already keeps what was spent in it."""

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        """Set aside as much as every scope allows, from ``least`` to ``most`` (None: all)."""

    def ask(
        self, keys: Sequence[str], least: int, most: int | None, draft: Charge, caller: Caller
    ) -> Hold | WaitingHold:
        """As `hold`, or a place in line where only calls in flight are in the way."""

    def give_up(self, place: int, seconds: float) -> Hold | None:
        """Leave the line with a refusal, after so many seconds, unless an answer has come."""

    def leave(self, place: int) -> None:
        """Leave the line, and give back what was granted meanwhile."""

    def settle(self, hold: int, charge: Charge) -> None:
        """Book what a held call really cost and give the rest back."""

    def release(self, hold: int, charge: Charge | None = None) -> None:
        """Give a hold back: nothing was bought."""

    def flush(self) -> None:
        """Wait until all that was settled is booked, wherever that is."""

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        """Count a call that was not sent."""

    def miss(self, why: str, calls: int) -> None:
        """Note calls that were sent without having been understood, which no cap forbade."""

    def total(self, key: str) -> Totals:
        """Where a scope stands now."""

    def touched(self, key: str) -> bool:
        """Whether this process has asked for anything in a scope; known without asking."""

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        """Every settled call of one scope."""


class UptimeSource(Protocol):
    """What costs by the minute beside the calls, under the same cap."""

    def accrue(self) -> None:
        """Book the minutes that have started, before a call is measured against the rest."""

    def rearm(self) -> None:
        """Stop earlier, if a call has taken what a later minute would have cost."""
