"""What a run cost, as one value that every view is made from. Money is nano-USD."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_hfbudget.ledger import Charge, Ledger, Refusal, Totals
from pytest_hfbudget.ledger.scope import SESSION

TEST_PREFIX = "test:"


@dataclass(frozen=True)
class TestLine:
    """One test that called, or was refused a call."""

    id: str
    outcome: str
    spent: int
    cap: int | None
    calls: int
    refused: int


@dataclass(frozen=True)
class EndpointLine:
    """One leased endpoint.

    Attributes:
        verified: it was read back as paused.
        left_to: the other run that goes on using it, and pauses it at its own end.
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


@dataclass(frozen=True)
class Report:
    """One run. ``unpriced`` calls were sent without a cap and without anybody knowing a price.

    Attributes:
        date: when the report was made, RFC 3339 in UTC.
        rehearsal: the calls went to the emulator; nothing was paid.
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
    date: str = ""
    rehearsal: bool = False

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
        return cls(
            spent=session.spent,
            cap=cap,
            calls=session.calls,
            refused=session.refused,
            tests=tuple(_tests(ledger, outcomes)),
            charges=ledger.charges(),
            refusals=ledger.refusals(),
            endpoints=tuple(endpoints),
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.calls or self.refused or self.endpoints)

    @property
    def unpriced(self) -> int:
        """Calls that were counted without a price."""
        return sum(charge.nano_usd is None for charge in self.charges)

    @property
    def estimated(self) -> int:
        """Calls that were charged at an upper bound, because no usage came back."""
        return sum(charge.estimated for charge in self.charges)

    @property
    def outside(self) -> tuple[Charge, ...]:
        """Calls that belong to no test: fixtures of the session, imports, stray threads."""
        return tuple(charge for charge in self.charges if charge.test is None)


def _tests(ledger: Ledger, outcomes: Mapping[str, str]) -> Iterable[TestLine]:
    for key, (scope, totals) in ledger.scopes().items():
        if key.startswith(TEST_PREFIX) and (totals.calls or totals.refused or totals.spent):
            test = key[len(TEST_PREFIX) :]
            outcome = outcomes.get(test, "unknown")
            yield TestLine(test, outcome, totals.spent, scope.cap, totals.calls, totals.refused)
