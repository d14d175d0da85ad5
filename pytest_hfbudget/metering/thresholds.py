"""What happens when a part of a budget is used up: a warning, once, or a cheaper model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.ledger import LedgerLike, Scope, Totals
from pytest_hfbudget.ledger.locks import own_lock
from pytest_hfbudget.money import show


class Threshold(NamedTuple):
    """A part of a budget's cap, or of its calls, and what is due from there on.

    Attributes:
        model: what calls are to be sent with; empty where a warning is due.
    """

    scope: Scope
    part: Fraction
    model: str = ""

    def reached(self, totals: Totals) -> bool:
        """Whether as much is used up, of the money or of the calls."""
        cap, calls = self.scope.cap, self.scope.max_calls
        spent_it = cap is not None and totals.spent >= self.part * cap
        return spent_it or (calls is not None and totals.calls >= self.part * calls)

    def text(self, totals: Totals) -> str:
        """What a warning says, with both numbers of every limit."""
        cap, calls = self.scope.cap, self.scope.max_calls
        used = [] if cap is None else [f"{show(totals.spent)} of {show(cap)} spent"]
        used += [] if calls is None else [f"{totals.calls} of {calls} calls made"]
        return f"{self.scope.name}: {', '.join(used)} (warn_at={float(self.part):g})"


class Notice(NamedTuple):
    """A warning that waits until it can be raised without harm to an answer that was paid for."""

    scope_key: str
    text: str


class WarnedOnce:
    """Returns True for each key the first time, and False from then on."""

    def __init__(self) -> None:
        self._lock = own_lock()
        self._keys: set[str] = set()

    def __call__(self, key: str) -> bool:
        with self._lock:
            fresh = key not in self._keys
            self._keys.add(key)
            return fresh


@dataclass
class ThresholdWatcher:
    """Checks thresholds after every settlement, and keeps the warnings.

    Attributes:
        first: returns whether a key is new in the whole run; workers ask their controller.
    """

    first: Callable[[str], bool] = field(default_factory=WarnedOnce)
    _notices: list[Notice] = field(default_factory=list)

    def settled(self, thresholds: Sequence[Threshold], ledger: LedgerLike) -> None:
        """Add a warning for each budget that has crossed its part."""
        for threshold in thresholds:
            # A ledger that is gone refuses the next call, which says so better than a warning.
            with suppress(HFBudgetError):
                if not threshold.model:
                    totals = ledger.total(threshold.scope.key)
                    if threshold.reached(totals):
                        self.warn(threshold.scope, "warn_at", threshold.text(totals))

    def due(self, thresholds: Sequence[Threshold], ledger: LedgerLike) -> Threshold | None:
        """The innermost fallback that is due, if any is."""
        for threshold in reversed(thresholds):
            if threshold.model and threshold.reached(ledger.total(threshold.scope.key)):
                return threshold
        return None

    def warn(self, scope: Scope, matter: str, text: str) -> None:
        """Add a warning, unless this budget has been warned of the matter before."""
        if self.first(f"{matter}:{scope.key}"):
            self._notices.append(Notice(scope.key, text))

    def take(self, scope_key: str | None = None) -> list[str]:
        """Remove the warnings of one budget, or of all, and return them."""
        taken = []
        for notice in tuple(self._notices):
            if scope_key in (None, notice.scope_key):
                with suppress(ValueError):  # another thread has taken it
                    self._notices.remove(notice)
                    taken.append(notice.text)
        return taken
