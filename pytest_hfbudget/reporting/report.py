"""What a run cost, as one value that every view is made from. Money is nano-USD."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_hfbudget.ledger import Charge, Ledger, Refusal, Totals
from pytest_hfbudget.ledger.scope import SESSION

TEST_PREFIX = "test:"
NOT_RUN = "not run"
# What stands first in the key of a budget that tests share.
SHARING = ("class", "module", "package", "session")


@dataclass(frozen=True)
class TestLine:
    """One test that called, was refused a call, or was on an endpoint.

    Attributes:
        spent: on calls.
        uptime: its share of the uptime of endpoints, on top of that.
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
    def whole(self) -> int:
        """Both together: what its budget has paid."""
        return self.spent + self.uptime

    @property
    def harmed(self) -> bool:
        """Whether it was refused a call and is not in order: code may deal with a refusal."""
        return bool(self.refused) and self.outcome not in ("passed", "skipped")


@dataclass(frozen=True)
class SharedLine:
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
        verified: it was read back as paused.
        left_to: the other run that goes on using it, and pauses it at its own end.
        kept: it was found running, and was asked to stay so.
        resumed_at, paused_at: unix seconds; the latter is when the pause was read back.
        shares: what each test that used it owes of ``nano_usd``.
        idle, cold_start: the rest of it: no test used it, or it did not serve yet.
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
    idle: int = 0
    cold_start: int = 0

    @property
    def in_order(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.verified or self.kept or self.left_to is not None

    @property
    def to_do(self) -> str:
        """What to type, where something is."""
        return f"NOT VERIFIED AS PAUSED ({self.state}); run: hfbudget pause {self.name}"


@dataclass(frozen=True)
class Report:
    """One run.

    ``unpriced`` calls were sent without a cap and without anybody knowing a price. ``not_run`` is
    the tests for which a budget of the run had too little left.

    Attributes:
        date: when the report was made, RFC 3339 in UTC.
        rehearsal: the calls went to the emulator; nothing was paid.
        over_runs: there were budgets over many runs as well.
        unmetered: why calls were sent that are not in here, and how many for each reason.
        shared: the budgets of classes, modules and packages, in the order of their first call.
    """

    spent: int
    cap: int | None
    calls: int
    refused: int
    tests: tuple[TestLine, ...] = ()
    charges: tuple[Charge, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    endpoints: tuple[EndpointLine, ...] = ()
    not_run: int = 0
    run: str = ""
    date: str = ""
    rehearsal: bool = False
    over_runs: bool = False
    unmetered: tuple[tuple[str, int], ...] = ()
    shared: tuple[SharedLine, ...] = ()

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        cap: int | None,
        outcomes: Mapping[str, str],
        endpoints: Iterable[EndpointLine] = (),
    ) -> Report:
        """The report of what a ledger holds."""
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
            not_run=sum(outcome == NOT_RUN for outcome in outcomes.values()),
            unmetered=tuple(ledger.unmetered().items()),
            shared=tuple(_shared(ledger)),
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        happened = self.calls or self.refused or self.endpoints or self.not_run
        return not (happened or self.unmetered)

    @property
    def unpriced(self) -> int:
        """Calls that were counted without a price."""
        return sum(charge.nano_usd is None for charge in self.charges)

    @property
    def estimated(self) -> int:
        """Calls that were charged at an upper bound, because no usage came back."""
        return sum(charge.estimated and not charge.replayed for charge in self.charges)

    @property
    def replayed(self) -> int:
        """Calls that a cassette or a mock answered, at $0."""
        return sum(charge.replayed for charge in self.charges)

    @property
    def over(self) -> tuple[Charge, ...]:
        """Calls that cost more than was held for them: they took longer than anybody had said."""
        return tuple(charge for charge in self.charges if charge.over)

    @property
    def swapped(self) -> tuple[Charge, ...]:
        """Calls that a fallback has sent with another model than was asked for."""
        return tuple(charge for charge in self.charges if charge.instead_of)

    @property
    def outside(self) -> tuple[Charge, ...]:
        """Calls that belong to no test: fixtures of the session, imports, stray threads."""
        return tuple(charge for charge in self.charges if charge.test is None)


def _shared(ledger: Ledger) -> Iterable[SharedLine]:
    for key, (scope, totals) in ledger.scopes().items():
        level = key.partition(":")[0]
        if level in SHARING and key != SESSION and (totals.calls or totals.refused or totals.spent):
            yield SharedLine(
                *(scope.name, level, totals.spent, scope.cap, scope.max_calls),
                *(totals.calls, totals.refused),
            )


def _uptime(endpoints: Iterable[EndpointLine]) -> Counter[str]:
    uptime: Counter[str] = Counter()
    for endpoint in endpoints:
        uptime.update(dict(endpoint.shares))
    return uptime


def _tests(ledger: Ledger, outcomes: Mapping[str, str], uptime: Counter[str]) -> Iterable[TestLine]:
    replayed = Counter(charge.test for charge in ledger.charges() if charge.replayed)
    silent = {test: outcome for test, outcome in outcomes.items() if outcome == NOT_RUN}
    for key, (scope, totals) in ledger.scopes().items():
        if key.startswith(TEST_PREFIX) and (totals.calls or totals.refused or totals.spent):
            test = key[len(TEST_PREFIX) :]
            silent.pop(test, None)
            yield TestLine(
                id=test,
                outcome=outcomes.get(test, "unknown"),
                spent=totals.spent - uptime[test],  # a share is booked to its test, too
                cap=scope.cap,
                calls=totals.calls,
                refused=totals.refused,
                replayed=replayed[test],
                uptime=uptime[test],
            )
    for test, outcome in silent.items():  # nothing was even asked for
        yield TestLine(test, outcome, 0, None, 0, 0)
