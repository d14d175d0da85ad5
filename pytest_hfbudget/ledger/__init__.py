"""Who may spend: scopes with caps, and the hold, settle and release of every call.

This module has the records that a ledger keeps, and `LedgerLike`: what a ledger does, whether it
is in this process or in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from pytest_hfbudget.money import beside


class Scope(NamedTuple):
    """One budget. Scopes with the same key are the same budget: reruns of a test share its cap.

    Attributes:
        key: unique in a run, over all of its workers.
        name: what messages call it.
        cap: nano-USD, inclusive; None for a budget that only counts.
        max_calls: the most calls that may be sent; None for any number.
    """

    key: str
    name: str
    cap: int | None = None
    max_calls: int | None = None


SESSION = "session"


class Totals(NamedTuple):
    """What one scope has spent and holds, in nano-USD, and its calls that were settled or refused.

    A call that was released without being sent does not count.
    """

    spent: int = 0
    held: int = 0
    calls: int = 0
    refused: int = 0


class RunsBudget(NamedTuple):
    """The state of a budget over many runs, or over many jobs; money in nano-USD.

    Attributes:
        left: what no run and no job has spent or holds.
        jobs: how many jobs share it; None if it is not shared over a server.
    """

    label: str
    cap: int
    left: int
    jobs: int | None = None

    @property
    def line(self) -> str:
        """The state in one line, for people."""
        share = "1 job shares" if self.jobs == 1 else f"{self.jobs} jobs share"
        shared = "" if self.jobs is None else f", {share} it"
        left, cap = beside(self.cap, self.left)
        return f"{self.label} {cap} ({left} left{shared})"


class Charge(NamedTuple):
    """One settled call.

    `draft_of` in ``metering/request.py`` and `charge_of` in ``metering/settlement.py`` make one by
    position.

    Attributes:
        test: the id of the test that made the call; None outside of tests.
        nano_usd: what was charged; None if the call had no known price and no cap.
        status: the HTTP status; or, if none came back, a word such as ``timeout``, ``lost``,
            ``closed``, or ``refused`` (the connection).
        estimated: whether no usage came back, so that the amount is an upper bound.
        seconds: how long the call took.
        where: what was running, if no test was.
        scopes: the keys of all budgets that were charged.
        over: nano-USD that the call cost beyond its hold, for example because it took longer than
            the hold was for.
        replayed: whether a recording or a mock answered, so that the call cost nothing.
        instead_of: the model that the caller asked for, if a fallback has replaced it.
        at: when the call was made, in unix seconds.
        endpoint: the endpoint of the run that the call went to, as ``namespace/name``, or None.
        above: nano-USD of an estimate beyond what provably came back.
        waited: seconds for which the call waited until calls in flight had settled.
        session_id: the inference session that the router was told, by which the bill names the
            call; empty for none.
        cached_tokens: the part of the input that the provider took from its cache, as it says.
    """

    test: str | None
    task: str
    model: str
    provider: str | None
    input_tokens: int
    output_tokens: int
    nano_usd: int | None
    price_source: str
    status: str
    estimated: bool
    seconds: float
    where: str = ""
    scopes: tuple[str, ...] = ()
    over: int = 0
    replayed: bool = False
    instead_of: str = ""
    at: float = 0.0
    endpoint: str | None = None
    above: int = 0
    waited: float = 0.0
    session_id: str = ""
    cached_tokens: int = 0

    @classmethod
    def read(cls, fields: Iterable[Any]) -> Charge:
        """The charge behind fields that were written as JSON, which has no tuples."""
        charged = cls(*fields)
        return charged._replace(scopes=tuple(charged.scopes))


class Refusal(NamedTuple):
    """One call that was not sent.

    Attributes:
        test: the id of the test that made the call; None outside of tests.
        scope, scope_key: the name and the key of the budget that refused; may be empty.
        details: what the call would have held, in one line.
        cap, spent, held, needed: of that budget at that moment, in nano-USD, as in `Figures`; all
            0 if the amount was not the reason.
    """

    test: str | None
    scope: str
    model: str
    message: str
    scope_key: str = ""
    details: str = ""
    cap: int = 0
    spent: int = 0
    held: int = 0
    needed: int = 0


class Hold(NamedTuple):
    """An amount of nano-USD that is set aside for a call until it is settled or released, once."""

    id: int
    amount: int


class Caller(NamedTuple):
    """The thread or task that makes a call. While it waits, it can't settle its other calls.

    Attributes:
        process: the id of its process.
        thread: the native id of its thread.
        task: the number of its asyncio or trio task in this process; 0 outside of tasks.
        blocking: whether its waiting blocks the whole thread, with all tasks of it.
    """

    process: int
    thread: int
    task: int = 0
    blocking: bool = True

    @property
    def blocked(self) -> tuple[int, ...]:
        """The key of what is blocked while this caller waits: its thread, or only its task."""
        return self[:2] if self.blocking else self[:3]

    @property
    def blocked_by(self) -> tuple[tuple[int, ...], ...]:
        """The keys of its thread and of its task: if either is blocked, this caller is, too."""
        return self[:2], self[:3]


class WaitingHold(NamedTuple):
    """A call in the queue. Its answer will be the hold, which has the same id, or the refusal."""

    id: int
    answer: Future[Hold]


def unanswered() -> Future[Hold]:
    """A new answer for a `WaitingHold`. A waiter can't cancel it, but leaves the queue instead."""
    answer: Future[Hold] = Future()
    answer.set_running_or_notify_cancel()
    return answer


class LedgerLike(Protocol):
    """What metering needs of a ledger, in this process or in another. Amounts are nano-USD."""

    def open(self, scope: Scope) -> None:
        """Add a scope; if its key is known already, nothing changes."""

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        """Set aside as much as all scopes allow, from ``least`` to ``most`` (None: no limit)."""

    def hold_or_queue(
        self, keys: Sequence[str], least: int, most: int | None, draft: Charge, caller: Caller
    ) -> Hold | WaitingHold:
        """As `hold`; but if only calls in flight are in the way, the call joins the queue."""

    def give_up(self, request: int, seconds: float) -> Hold | None:
        """Leave the queue after so many seconds: with a refusal, unless an answer has come."""

    def leave(self, request: int) -> None:
        """Leave the queue, and release the hold if it was granted meanwhile."""

    def settle(self, hold: int, charge: Charge) -> None:
        """Book what a held call really cost, and release the rest of its hold."""

    def release(self, hold: int, charge: Charge | None = None) -> None:
        """Release a hold, because nothing was bought."""

    def flush(self) -> None:
        """Wait until all that was settled is booked in the ledger's own process."""

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        """Count a call that was not sent."""

    def count_unmetered(self, why: str, calls: int) -> None:
        """Count calls that went out without being metered, which only calls without a cap may."""

    def total(self, key: str) -> Totals:
        """What a scope has spent and holds now."""

    def touched(self, key: str) -> bool:
        """Whether this process has used a scope; no other process is asked."""

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        """Every settled call of one scope."""


class UptimeSource(Protocol):
    """What the ledger asks of the endpoints, whose uptime is charged under the same caps."""

    def accrue(self) -> None:
        """Book the minutes that have started, before a call is compared with what is left."""

    def rearm(self) -> None:
        """Pause earlier, if a call has taken the money for a later minute."""
