"""Calls to an endpoint of this run: free of themselves, but they keep a test on it."""

from __future__ import annotations

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.ledger import Hold, LedgerLike
from pytest_hfbudget.metering.payer import RunningTest
from pytest_hfbudget.money import show


def check_share(ledger: LedgerLike, test: RunningTest | None, hold: Hold, name: str) -> None:
    """Give the hold of a call back where the test's share of the uptime is beyond its caps.

    Raises:
        BudgetExceededError: it is; a test can't stop the minute that runs, but it can go home.
    """
    for scope in reversed(test.scopes if test else ()):
        total = ledger.total(scope.key)
        if scope.cap is not None and total.spent > scope.cap:
            ledger.release(hold.id)
            raise BudgetExceededError(
                f"{scope.name}: {show(total.spent)} of {show(scope.cap)} is spent, the share of "
                f"the uptime of {name} included, and each second on it costs more. "
                "The call was not sent. Raise the cap.",
                scope=scope.name,
                scope_key=scope.key,
                cap=scope.cap,
                spent=total.spent,
                held=total.held,
                model=name,
            )
