"""The `Report` of what a run cost, from which all views are made, and the words of its verdicts.

Terminal, JSON file, HTML page and GitHub job are views of it. `json_report` also reads it back. The
page, `hfbudget report` and the GitHub job share `tables`; `terminal` makes its own lines. Money is
nano-USD.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from pytest_hfbudget.endpoints import GONE
from pytest_hfbudget.ledger import SESSION, Charge, Refusal, RunsBudget, Totals
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.money import FOR_PEOPLE, Amounts
from pytest_hfbudget.reporting.bill import Bill
from pytest_hfbudget.settings import NOT_RUN

if TYPE_CHECKING:
    from pytest_hfbudget.reporting.timeline import Timeline

TEST_PREFIX = "test:"
NO_TEST = "(no test)"
# The first part of the ledger's key of a budget that tests share.
SHARED = ("class", "module", "package", "session")
# The outcomes of tests that have handled a refusal; an expected failure counts as skipped.
IN_ORDER = ("passed", "skipped")
_FIGURES = re.compile(r"<?\$?\d[\d.,]*")
REHEARSAL = "a rehearsal against the emulator: nothing was paid"


class Remark(NamedTuple):
    """A remark on the cost of a call, such as "estimated".

    Attributes:
        word: the text in the row of a call.
        meaning: the text after a number of calls: "2 calls without a known price, ...".
        applies: returns whether a charge has the remark.
    """

    word: str
    meaning: str
    applies: Callable[[Charge], bool]


ESTIMATED = Remark(
    "estimated",
    "without usage, charged at an upper bound",
    lambda charge: charge.estimated and not charge.replayed,
)
UNPRICED = Remark(
    "no price",
    "without a known price, not in the sum",
    lambda charge: charge.nano_usd is None and not charge.replayed,
)
REPLAYED = Remark("replayed", "answered by a cassette or a mock, at $0", lambda call: call.replayed)
REMARKS = (REPLAYED, ESTIMATED, UNPRICED)


def counted(number: int, noun: str) -> str:
    """``1 call``, ``1,000 calls``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def call_counts(calls: int, replayed: int, refused: int) -> str:
    """``3 calls, 1 replayed, 1 refused``; replayed calls are among the calls."""
    parts = [counted(calls, "call")]
    parts += [f"{replayed:,} replayed"] if replayed else []
    parts += [f"{refused:,} refused"] if refused else []
    return ", ".join(parts)


def remarks(charge: Charge) -> str:
    """The remarks on one charge, separated by commas."""
    return ", ".join(remark.word for remark in REMARKS if remark.applies(charge))


def unmetered(why: str, calls: int) -> str:
    """The line for calls that were sent, but whose cost is unknown."""
    return f"{counted(calls, 'call')} could not be metered: {why}"


def endpoint_verdict(state: str, verified: bool, left_to: str | None, kept: bool) -> str:
    """What happened to an endpoint at the end; the arguments are fields of `EndpointLine`."""
    if verified:
        return "deleted" if state == GONE else "paused, verified"
    if left_to:
        return f"left to run {left_to}, which is using it"
    if kept:
        return "kept running, as it was found"
    return f"NOT VERIFIED AS PAUSED ({state})"


@dataclass(frozen=True)
class TestLine:
    """One test that made a call, was refused a call, was not run, or used an endpoint.

    Attributes:
        spent: nano-USD for its calls, without uptime.
        uptime: nano-USD of its share of the uptime of endpoints.
    """

    id: str
    outcome: str
    spent: int
    cap: int | None
    calls: int
    refused: int
    replayed: int = 0
    uptime: int = 0

    @property
    def charged(self) -> int:
        """Nano-USD that were charged to its budget: for calls and for uptime."""
        return self.spent + self.uptime

    @property
    def unhandled_refusal(self) -> bool:
        """Whether it was refused a call and did not pass. A test may also handle a refusal."""
        return bool(self.refused) and self.outcome not in IN_ORDER


@dataclass(frozen=True)
class ScopeBudgetLine:
    """One budget that several tests share, by a marker with a wider ``scope``.

    Attributes:
        level: ``class``, ``module``, ``package`` or ``session``.
        max_calls: the most calls that it lets through; None for any number.
    """

    name: str
    level: str
    spent: int
    cap: int | None
    max_calls: int | None
    calls: int
    refused: int


@dataclass(frozen=True)
class EndpointLine:
    """One leased endpoint.

    Attributes:
        verified: the server says that it is paused or deleted.
        left_to: the other run that goes on using it, and pauses it at its own end.
        kept: it ran before the run, and was to keep running.
        unpriced: its price is unknown, so ``nano_usd`` is 0.
        resumed_at, paused_at: unix seconds of the resume, and of the verified pause.
        shares: each test with its part of ``nano_usd``.
        idle, cold_start: the parts for the time that no test used it, and until it served. None
            in a report of an older release, which did not write them.
    """

    name: str
    state: str
    nano_usd: int
    minutes: int
    resumed: bool
    paused: bool
    verified: bool
    left_to: str | None = None
    note: str = ""
    kept: bool = False
    resumed_at: float | None = None
    paused_at: float | None = None
    shares: tuple[tuple[str, int], ...] = ()
    idle: int | None = 0
    cold_start: int | None = 0
    unpriced: bool = False

    @property
    def in_order(self) -> bool:
        """Whether the endpoint needs no further action."""
        return self.verified or self.kept or self.left_to is not None

    @property
    def verdict(self) -> str:
        """What happened to it at the end, in words."""
        return endpoint_verdict(self.state, self.verified, self.left_to, self.kept)

    @property
    def remedy(self) -> str:
        """The command to type; empty if none is needed."""
        return "" if self.in_order else f"run: hfbudget pause {self.name}"

    @property
    def to_do(self) -> str:
        """The verdict with what to type."""
        return "; ".join(filter(None, (self.verdict, self.remedy)))


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Report:
    """The report of one run.

    Attributes:
        spent, cap, calls, refused: of the session budget.
        date: when the report was made, in UTC.
        project: the name of the project under test.
        session_id: the inference session id that the run sent to the router; empty if none.
        rehearsal: the calls went to the emulator; nothing was paid.
        over_runs: the budgets that this run shares with other runs or jobs.
        unmetered: reasons why calls could not be metered, each with the number of these calls.
        scope_budgets: the budgets that tests share, in the order of their first test.
        notes: findings about how servers count tokens, a sentence each.
        timeline: what endpoints and tests did when; None if no test names an endpoint.
        bill: what Hugging Face has billed, if `hfbudget bill` has read it. Not in the JSON file.
    """

    spent: int
    cap: int | None
    calls: int
    refused: int
    tests: tuple[TestLine, ...] = ()
    charges: tuple[Charge, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    endpoints: tuple[EndpointLine, ...] = ()
    run: str = ""
    date: datetime = field(default_factory=_now)
    rehearsal: bool = False
    over_runs: tuple[RunsBudget, ...] = ()
    unmetered: tuple[tuple[str, int], ...] = ()
    scope_budgets: tuple[ScopeBudgetLine, ...] = ()
    notes: tuple[str, ...] = ()
    timeline: Timeline | None = None
    session_id: str = ""
    project: str = ""
    bill: Bill | None = None

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        cap: int | None,
        outcomes: Mapping[str, str],
        endpoints: Iterable[EndpointLine] = (),
    ) -> Report:
        """Make the report from a ledger, and from the outcomes of tests by node id."""
        scopes = ledger.scopes()
        session = scopes[SESSION][1] if SESSION in scopes else Totals()
        endpoints = tuple(endpoints)
        return cls(
            spent=session.spent,
            cap=cap,
            calls=session.calls,
            refused=session.refused,
            tests=tuple(_tests(ledger, outcomes, _uptime(endpoints))),
            charges=ledger.charges(),
            refusals=ledger.refusals(),
            endpoints=endpoints,
            unmetered=tuple(ledger.unmetered().items()),
            scope_budgets=tuple(_scope_budgets(ledger)),
        )

    @property
    def day(self) -> str:
        """The date of the report to the minute, in UTC."""
        return self.date.strftime("%Y-%m-%d %H:%M")

    @property
    def empty(self) -> bool:
        """Whether there is nothing to report."""
        return not any((self.calls, self.refused, self.endpoints, self.not_run, self.unmetered))

    @property
    def not_run(self) -> int:
        """The number of tests that were not run because a budget of the run was used up."""
        return sum(test.outcome == NOT_RUN for test in self.tests)

    @property
    def counts(self) -> str:
        """``3 calls, 1 replayed, 1 refused``."""
        return call_counts(self.calls, len(self.remarked(REPLAYED)), self.refused)

    @property
    def uptime(self) -> int:
        """Nano-USD of all endpoints."""
        return sum(endpoint.nano_usd for endpoint in self.endpoints)

    @property
    def overruns(self) -> tuple[Charge, ...]:
        """Calls that cost more than was held for them: they took longer than expected."""
        return tuple(charge for charge in self.charges if charge.over)

    @property
    def above(self) -> int:
        """The part of ``spent`` by which estimates exceed the cost of what came back."""
        return sum(charge.above for charge in self.charges if not charge.replayed)

    @property
    def waited(self) -> tuple[Charge, ...]:
        """Calls that waited until calls in flight had settled."""
        return tuple(charge for charge in self.charges if charge.waited)

    @property
    def swapped(self) -> tuple[Charge, ...]:
        """Calls that a fallback has sent to another model than the caller asked for."""
        return tuple(charge for charge in self.charges if charge.instead_of)

    @property
    def outside(self) -> tuple[Charge, ...]:
        """Calls that belong to no test: fixtures of the session, imports, stray threads."""
        return tuple(charge for charge in self.charges if charge.test is None)

    @property
    def in_other_sessions(self) -> tuple[Charge, ...]:
        """Calls for which the caller has set an inference session id of its own."""
        own = ("", self.session_id)
        return tuple(charge for charge in self.charges if charge.session_id not in own)

    @property
    def on_the_bill(self) -> bool:
        """Whether Hugging Face bills calls to the run's session id."""
        own = "" if self.rehearsal else self.session_id
        return bool(own) and any(charge.session_id == own for charge in self.charges)

    def remarked(self, remark: Remark) -> tuple[Charge, ...]:
        """The calls that a remark applies to."""
        return tuple(filter(remark.applies, self.charges))


def estimated_above(report: Report, usd: Amounts = FOR_PEOPLE) -> str:
    """The sentence on `Report.above`: how much of what was charged is only an upper bound."""
    return (
        "{} of {} may not have been spent: pytest-hfbudget charges an upper bound for calls that "
        "were lost, not read to their end, or answered without usage"
    ).format(*usd.beside(None, report.above, report.spent))


def total(charges: Iterable[Charge]) -> int:
    """Nano-USD of several calls; a call without a known price counts as 0."""
    return sum(charge.nano_usd or 0 for charge in charges)


def _scope_budgets(ledger: Ledger) -> Iterator[ScopeBudgetLine]:
    for key, (scope, totals) in ledger.scopes().items():
        level = key.partition(":")[0]
        used = totals.calls or totals.refused or totals.spent
        if level in SHARED and key != SESSION and used:
            yield ScopeBudgetLine(
                name=scope.name,
                level=level,
                spent=totals.spent,
                cap=scope.cap,
                max_calls=scope.max_calls,
                calls=totals.calls,
                refused=totals.refused,
            )


def _uptime(endpoints: Iterable[EndpointLine]) -> Counter[str]:
    uptime: Counter[str] = Counter()
    for endpoint in endpoints:
        uptime.update(dict(endpoint.shares))
    return uptime


def _tests(ledger: Ledger, outcomes: Mapping[str, str], uptime: Counter[str]) -> Iterator[TestLine]:
    replayed = Counter(charge.test for charge in ledger.charges() if charge.replayed)
    without_calls = {test: outcome for test, outcome in outcomes.items() if outcome == NOT_RUN}
    for key, (scope, totals) in ledger.scopes().items():
        if key.startswith(TEST_PREFIX) and (totals.calls or totals.refused or totals.spent):
            test = key[len(TEST_PREFIX) :]
            without_calls.pop(test, None)
            yield TestLine(
                id=test,
                outcome=outcomes.get(test, "unknown"),
                spent=totals.spent - uptime[test],  # the ledger's total includes uptime
                cap=scope.cap,
                calls=totals.calls,
                refused=totals.refused,
                replayed=replayed[test],
                uptime=uptime[test],
            )
    for test, outcome in without_calls.items():
        yield TestLine(test, outcome, 0, None, 0, 0)


def distinct(refusals: Iterable[Refusal]) -> Iterator[tuple[Refusal, int]]:
    """The refusals, each with the number of equal ones: of one test and model, figures aside."""
    first: dict[tuple[str | None, str, str], Refusal] = {}
    times: Counter[tuple[str | None, str, str]] = Counter()
    for refusal in refusals:
        sentence = _FIGURES.sub("0", refusal.message.replace(refusal.model, ""))
        key = refusal.test, refusal.model, sentence
        first.setdefault(key, refusal)
        times[key] += 1
    return ((refusal, times[key]) for key, refusal in first.items())
