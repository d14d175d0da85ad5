"""What outlasts a run: the usage log, and budgets that the runs of a project share.

Such a budget is for a day, week or month of the calendar in UTC, not for a rolling window. A bill
follows the calendar, too; every machine has the same midnight; and a refusal can say when the next
window begins. A day is a number here, counted from 1970-01-01.

A run without paid calls imports nothing of this room. Only a run that opens a file imports sqlite3,
because that import is slow.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import NamedTuple

from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.settings import Settings

_EPOCH = date(1970, 1, 1)
_WEEK = 7
LENGTHS = ("day", "week", "month")
RUN = "run"
_MONDAY = 4  # 1970-01-05


class BudgetWindow(NamedTuple):
    """One budget over many runs.

    Attributes:
        length: ``day``, ``week`` or ``month``; `RUN` for all jobs of one run.
        cap: nano-USD, inclusive.
    """

    length: str
    cap: int

    @property
    def key(self) -> str:
        """Its key in the ledger."""
        return f"window:{self.length}"

    @property
    def label(self) -> str:
        """Its name in messages and reports."""
        if self.length == RUN:
            return "session budget of all jobs"
        return {"day": "daily", "week": "weekly", "month": "monthly"}[self.length] + " budget"

    def first_day(self, day: int) -> int:
        """The first day of the window that contains ``day``."""
        if self.length == RUN:
            return 0
        if self.length == "day":
            return day
        if self.length == "week":
            return day - (day - _MONDAY) % _WEEK
        return _number(_date(day).replace(day=1))

    def next_day(self, day: int) -> int:
        """The first day of the window after the one that contains ``day``."""
        if self.length == "month":
            within_next = _date(self.first_day(day)) + timedelta(days=31)
            return _number(within_next.replace(day=1))
        return self.first_day(day) + (_WEEK if self.length == "week" else 1)

    def scope(self, day: int | None = None) -> Scope:
        """Its scope in the ledger. With ``day``, the name says when the next window begins."""
        if day is None or self.length == RUN:
            return Scope(self.key, self.label, self.cap)
        again = f"{_date(self.next_day(day))} 00:00 UTC"
        return Scope(self.key, f"{self.label} (the next one begins {again})", self.cap)


def windows(settings: Settings) -> tuple[BudgetWindow, ...]:
    """The budgets that a run shares: with other jobs of the run, then by the day, week, month."""
    of_run = settings.session_cap if settings.shared is not None else None
    caps = (of_run, settings.daily_cap, settings.weekly_cap, settings.monthly_cap)
    each = zip((RUN, *LENGTHS), caps, strict=True)
    return tuple(BudgetWindow(length, cap) for length, cap in each if cap is not None)


def oldest_day(day: int) -> int:
    """The first day that has to be kept: that of the earliest window before the present ones.

    So nothing is forgotten if a clock is put forward into the next window, and back.
    """
    each = (BudgetWindow(length, 0) for length in LENGTHS)
    return min(window.first_day(window.first_day(day) - 1) for window in each)


def day_of(unix_s: float) -> int:
    """The day of a time."""
    return _number(datetime.fromtimestamp(unix_s, timezone.utc).date())


def _number(day: date) -> int:
    return (day - _EPOCH).days


def _date(day: int) -> date:
    return _EPOCH + timedelta(days=day)
