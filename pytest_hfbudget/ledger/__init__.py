"""Who may spend: scopes with caps, and the hold, settle and release of every call.

Here is what everyone says about a ledger: what has a cap, what the ledger remembers, and what it
can be asked, wherever it lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from pytest_hfbudget.money import beside


class Scope(NamedTuple):
    """One budget. Two scopes of one key are the same budget: reruns of a test share its cap.

    Attributes:
        key: unique in a run, over all of its workers.
        name: how a message calls it.
        cap: nano-USD, inclusive; None where nothing is capped and all is counted.
        max_calls: the most calls that may be sent; None for any number.
    """

    key: str
    name: str
    cap: int | None = None
    max_calls: int | None = None


SESSION = "session"


class Totals(NamedTuple):
    """Where one scope stands, in nano-USD and calls."""

    spent: int = 0
    held: int = 0
    calls: int = 0
    refused: int = 0


class RunsBudget(NamedTuple):
    """A budget over many runs, or over many jobs, as it stands.

    Attributes:
        left: nano-USD that no run and no job has spent or holds.
        jobs: how many jobs share it; None where it is not shared over a server.
    """

    label: str
    cap: int
    left: int
    jobs: int | None = None

    @property
    def line(self) -> str:
        """For people."""
        share = "1 job shares" if self.jobs == 1 else f"{self.jobs} jobs share"
        shared = "" if self.jobs is None else f", {share} it"
        left, cap = beside(self.cap, self.left)
        return f"{self.label} {cap} ({left} left{shared})"


class Charge(NamedTuple):
    """One settled call. Money is nano-USD; None where the call had no price and no cap.

    ``estimated`` says that no usage came back and the amount is an upper bound. ``status`` is
    the HTTP status, or a word where none came back: ``timeout``, ``lost``, ``closed``,
    ``refused`` (the connection). ``over`` is what it cost beyond its hold: it took longer
    than that was for. ``scopes`` are the keys of every budget that was charged. ``replayed`` says
    that a recording or a mock answered, so that it cost nothing. ``instead_of`` is the
    model that the caller had asked for, where a budget's fallback has put another in its place.
    ``cached_tokens`` are the part of the input that a provider took from its cache, as its usage
    says. ``session_id`` is the inference session that the router was told, to be found on the
    bill; empty for none. ``at`` is when the call was made, in unix seconds. ``endpoint`` is the
    endpoint of the run, by ``namespace/name``, that the call went to; None for every other call.
    ``above`` is the part of an estimated charge that is above what provably came back. ``waited``
    is for how many seconds it waited until calls in flight had settled.

    `_draft` in ``metering/hold.py`` and `charge_of` in ``metering/usage.py`` make one by position.
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
        """A charge that was written as JSON, which knows no tuples."""
        charged = cls(*fields)
        return charged._replace(scopes=tuple(charged.scopes))


class Refusal(NamedTuple):
    """One call that was not sent.

    Attributes:
        details: what it would have held, in one line.
        cap, spent, held, needed: of the budget as it refused, in nano-USD, as in `Figures`; all 0
            where the budget is not the reason.
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
    """What metering needs of a ledger, wherever that ledger lives."""

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
