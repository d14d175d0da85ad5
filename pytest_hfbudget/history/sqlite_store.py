"""What each run of a project takes, day by day, in a file that all of them write.

A row is the most that one run can have spent on one day: what it has spent, and what it holds for
calls in flight. A run that is killed leaves its row as it was, so its holds count in full until
their window is over, so a run never has to find out which other runs are dead.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from pytest_hfbudget.history.database import Schema, connect, explained, transaction
from pytest_hfbudget.history.windows import BudgetWindow, day_of, oldest_day

FILE = "budgets.sqlite3"

# The row of runs that have ended, so that a day of thousands of runs is as quick to add up.
ENDED = ""

_FIRST = (
    """
    CREATE TABLE tab (
        project TEXT NOT NULL,
        day INTEGER NOT NULL,
        run TEXT NOT NULL,
        nano_usd INTEGER NOT NULL,
        PRIMARY KEY (project, day, run)
    ) WITHOUT ROWID
    """,
)

SCHEMA = Schema(
    steps=(_FIRST,),
    remedy=(
        "Without it, what other runs have spent is unknown. Repair it, or move it aside, which "
        "forgets their spending; or set HFBUDGET_STATE_DIR to another folder; or run without "
        "--hf-daily-budget, --hf-weekly-budget and --hf-monthly-budget."
    ),
    shared=True,
)

_PUT = (
    "INSERT INTO tab VALUES (?, ?, ?, ?) "
    "ON CONFLICT (project, day, run) DO UPDATE SET nano_usd = excluded.nano_usd"
)
_END = (
    f"INSERT INTO tab SELECT project, day, '{ENDED}', nano_usd FROM tab "  # noqa: S608 - a constant
    "WHERE project = ? AND run = ? "
    "ON CONFLICT (project, day, run) DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd"
)
_FORGET = "DELETE FROM tab WHERE project = ? AND run = ?"
_TAKEN = (
    "SELECT coalesce(sum(nano_usd), 0) FROM tab "
    "WHERE project = ? AND day >= ? AND NOT (day = ? AND run = ?)"
)


class Snapshot(NamedTuple):
    """What there is beside this run's own tab of today: by window, in nano-USD."""

    day: int
    taken: Mapping[str, int]


class BudgetStore(Protocol):
    """Where runs share what they may spend. Used under a lock; a run may be forked."""

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        """From here to `end` no other run changes anything.

        Raises:
            HistoryError: it can't be reached.
        """

    def end(self, tabs: Mapping[int, int]) -> None:
        """Write this run's tabs, nano-USD by day, and let the others go on.

        Raises:
            HistoryError: they are not written.
        """

    def pause(self) -> None:
        """Hold nothing open: the process is about to be forked, or will not come back."""

    def forked(self) -> None:
        """From now on this is the tab of a child."""

    def close(self) -> None:
        """The run is over and holds nothing: what is on its tab is spent."""


class MemoryStore:
    """The store of a rehearsal: no other run shares it, and it keeps nothing."""

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        today = max(day_of(time.time()), not_before)
        return Snapshot(today, dict.fromkeys((window.key for window in windows), 0))

    def end(self, tabs: Mapping[int, int]) -> None:
        """Nothing is written."""

    def pause(self) -> None:
        """Nothing is open."""

    def forked(self) -> None:
        """Nothing is shared."""

    def close(self) -> None:
        """Nothing is left."""


class SqliteStore:
    """The tab of one run in the file of all projects.

    Args:
        clock: unix seconds. The file's own by default, which no test can freeze.
    """

    def __init__(
        self, path: Path, project: str, run: str, clock: Callable[[], float] | None = None
    ) -> None:
        self.path, self.project, self.run = path, project, run
        self._clock = clock
        self._connection: sqlite3.Connection | None = None

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        with explained(self.path, SCHEMA):
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                day = max(day_of(self._now(connection)), not_before)
                return Snapshot(day, {w.key: self._taken(connection, w, day) for w in windows})
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def end(self, tabs: Mapping[int, int]) -> None:
        with explained(self.path, SCHEMA):
            connection = self._open()
            try:
                for day, nano_usd in tabs.items():
                    connection.execute(_PUT, (self.project, day, self.run, nano_usd))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def pause(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def forked(self) -> None:
        self.run = f"{self.run}.{os.getpid()}"

    def close(self) -> None:
        with explained(self.path, SCHEMA):
            connection = self._open()
            with transaction(connection):
                connection.execute(_END, (self.project, self.run))
                connection.execute(_FORGET, (self.project, self.run))
        self.pause()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self.path, SCHEMA)
            before = oldest_day(day_of(self._now(self._connection)))
            self._connection.execute("DELETE FROM tab WHERE day < ?", (before,))
        return self._connection

    def _now(self, connection: sqlite3.Connection) -> float:
        if self._clock is not None:
            return self._clock()
        return float(connection.execute("SELECT strftime('%s', 'now')").fetchone()[0])

    def _taken(self, connection: sqlite3.Connection, window: BudgetWindow, day: int) -> int:
        since = window.first_day(day)
        row = connection.execute(_TAKEN, (self.project, since, day, self.run)).fetchone()
        return int(row[0])
