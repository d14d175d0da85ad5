"""What has a cap, where it stands, and how it refuses."""

from __future__ import annotations

from typing import NamedTuple

from pytest_hfbudget.errors import SMALLER, BudgetExceededError, Figures, over_cap


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

    def charge(self, nano_usd: int) -> None:
        """Book a call that was made."""
        self.spent += nano_usd
        self.calls += 1

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
