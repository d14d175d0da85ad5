"""What a run cost, as one value that every view is made from. Money is nano-USD."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_hfbudget.ledger import Charge, Ledger, Refusal, Totals
from pytest_hfbudget.ledger.scope import SESSION

TEST_PREFIX = "test:"
NOT_RUN = "not run"


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
    """One run.

    ``unpriced`` calls were sent without a cap and without anybody knowing a price. ``not_run`` is
    the tests for which the session budget had too little left.
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
            not_run=sum(outcome == NOT_RUN for outcome in outcomes.values()),
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.calls or self.refused or self.endpoints or self.not_run)

    @property
    def unpriced(self) -> int:
        """Calls that were counted without a price."""
        return sum(charge.nano_usd is None for charge in self.charges)

    @property
    def estimated(self) -> int:
        """Calls that were charged at an upper bound, because no usage came back."""
        return sum(charge.estimated for charge in self.charges)

    @property
    def swapped(self) -> tuple[Charge, ...]:
        """Calls that a fallback has sent with another model than was asked for."""
        return tuple(charge for charge in self.charges if charge.instead_of)

    @property
    def outside(self) -> tuple[Charge, ...]:
        """Calls that belong to no test: fixtures of the session, imports, stray threads."""
        return tuple(charge for charge in self.charges if charge.test is None)


def _tests(ledger: Ledger, outcomes: Mapping[str, str]) -> Iterable[TestLine]:
    silent = {test: outcome for test, outcome in outcomes.items() if outcome == NOT_RUN}
    for key, (scope, totals) in ledger.scopes().items():
        if key.startswith(TEST_PREFIX) and (totals.calls or totals.refused or totals.spent):
            test = key[len(TEST_PREFIX) :]
            outcome = outcomes.get(test, "unknown")
            silent.pop(test, None)
            yield TestLine(test, outcome, totals.spent, scope.cap, totals.calls, totals.refused)
    for test, outcome in silent.items():  # nothing was even asked for
        yield TestLine(test, outcome, 0, None, 0, 0)
