"""SQLite files below the state folder: opened, brought to their schema, shared with other runs."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from pytest_hfbudget.errors import HistoryError
from pytest_hfbudget.files import check_own, own_folder
from pytest_hfbudget.history import BudgetWindow, day_of, oldest_day

# Seconds to wait for a file that another process has locked. The second is for later attempts until
# the lock is gone: a call opens the file several times, and should wait in full only once.
BUSY_S, STILL_BUSY_S = 10.0, 0.1

# Errors of a file that others write, too. OverflowError: an amount does not fit into 64 bits.
TROUBLE = (sqlite3.Error, OSError, OverflowError)


class Schema(NamedTuple):
    """The schema of a file.

    Attributes:
        steps: the statements that lead from each version to the next; their number is the
            version, which the file carries as its ``user_version``.
        remedy: what to do when the file can't be used: the end of a message.
        shared: whether several runs write all the time. Then the file has a write-ahead log: a
            transaction takes microseconds, and survives the death of every process. A power cut
            may lose the last of them.
        loss: a sentence on what is unknown without the file, for error messages; may be empty.
    """

    steps: Sequence[Sequence[str]]
    remedy: str
    shared: bool = False
    loss: str = ""


def connect(path: Path, schema: Schema, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """A connection to a file that only this user can read and write; made or migrated if needed.

    The caller begins and ends transactions. Any thread may use it, but only one at a time.

    Args:
        busy_s: seconds to wait while another process has locked the file.

    Raises:
        HistoryError: the file can't be made, read or written; it is empty; another user owns it;
            or a newer release has written it.
    """
    with explained(path, schema):
        own_folder(path.parent)
        if not path.exists():
            _make(path, schema)
        check_own(path)
        connection = _open(path, busy_s)
        try:
            if schema.shared:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
            _migrate(connection, path, schema)
        except BaseException:
            connection.close()
            raise
        return connection


def _open(path: Path, busy_s: float = BUSY_S) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)


def _make(path: Path, schema: Schema) -> None:
    """Make a file with its tables at once: so a file that is empty later was truncated."""
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}.draft")
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(_open(draft)) as connection:
            _bring_up_to_date(connection, schema, 0)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another run was faster
        except OSError:
            draft.rename(path)  # a file system without links
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all that is written inside, or nothing. Meanwhile no other connection can write."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path, schema: Schema) -> Iterator[None]:
    """Turn errors of SQLite and the file system into a `HistoryError` that says what to do."""
    try:
        yield
    except TROUBLE as error:
        why = getattr(error, "strerror", None) or error
        advice = f"{schema.loss} {schema.remedy}".lstrip()
        raise HistoryError(f"{path}: {why}. {advice}") from None


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    newest = len(schema.steps)
    if _version(connection) == newest:
        return
    with transaction(connection):
        found = _version(connection)  # again: another run may have been faster
        if found > newest:
            raise HistoryError(
                f"{path} was written by a newer pytest-hfbudget (its schema is {found}, this "
                f"release knows {newest}). Update pytest-hfbudget, or move {path} aside. "
                f"{schema.loss}".rstrip()
            )
        if not found:
            raise HistoryError(
                f"{path} is empty: another program has truncated it. Move it aside. "
                f"{schema.loss}".rstrip()
            )
        _bring_up_to_date(connection, schema, found)


def _bring_up_to_date(connection: sqlite3.Connection, schema: Schema, found: int) -> None:
    for statement in (one for step in schema.steps[found:] for one in step):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(schema.steps)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


FILE = "budgets.sqlite3"

# The id in the row that sums up a day's ended runs, so that thousands of runs are quick to add.
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
        "Repair it, or move it aside, which forgets their spending; or set HFBUDGET_STATE_DIR to "
        "another folder; or run without --hf-daily-budget, --hf-weekly-budget and "
        "--hf-monthly-budget."
    ),
    shared=True,
    loss="Without it, what other runs have spent is unknown.",
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
    """What a store has beside this run's own row of today, in nano-USD by the key of a window.

    Attributes:
        taken: what is spent.
        away: what is neither spent nor drawn by this run; other jobs may give it back.
    """

    day: int
    taken: Mapping[str, int]
    away: Mapping[str, int] = {}


class DaySpending(NamedTuple):
    """What a run has spent on one day, and what it holds for calls in flight, in nano-USD."""

    spent: int = 0
    held: int = 0


class DrawNeed(NamedTuple):
    """The least and the most nano-USD that a call needs beyond what its run has drawn."""

    least: int
    most: int


class BudgetStore(Protocol):
    """Where runs share budgets. Its methods are called under the ledger's lock.

    Attributes:
        trouble: why no more can be drawn at the moment; empty if more can be drawn.
    """

    trouble: str

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        """Begin a transaction: until `end`, no other run changes what is returned.

        Args:
            not_before: the earliest day that may count as today.

        Raises:
            HistoryError: the store can't be read.
        """

    def draw(self, needs: Mapping[str, DrawNeed], row: DaySpending) -> Snapshot | None:
        """Draw more of the caps, as much as is needed or nothing.

        Args:
            needs: by the key of a window.
            row: this run's row of today, as it is now.

        Returns:
            What the store has now; None if nothing need be drawn from such a store.
        """

    def end(self, rows: Mapping[int, DaySpending]) -> None:
        """Write this run's rows, by day, and end the transaction.

        Raises:
            HistoryError: they are not written.
        """

    def pause(self) -> None:
        """Close what is open, because the process is about to be forked, or to give up."""

    def forked(self) -> None:
        """In a forked child: use a row of its own from now on."""

    def close(self) -> None:
        """End the run: what is in its row counts as spent."""


class MemoryStore:
    """The store of a rehearsal: no other run shares it, and it keeps nothing."""

    trouble = ""

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        today = max(day_of(time.time()), not_before)
        return Snapshot(today, dict.fromkeys((window.key for window in windows), 0))

    def draw(self, needs: Mapping[str, DrawNeed], row: DaySpending) -> None:
        """Nothing: the whole cap may be spent."""

    def end(self, rows: Mapping[int, DaySpending]) -> None:
        """Nothing is written."""

    def pause(self) -> None:
        """Nothing is open."""

    def forked(self) -> None:
        """Nothing is shared."""

    def close(self) -> None:
        """Nothing is left."""


class SqliteStore:
    """The rows of one run in the file of all projects.

    Args:
        clock: unix seconds. The file's own by default, which no test can freeze.
    """

    trouble = ""

    def __init__(
        self, path: Path, project: str, run: str, clock: Callable[[], float] | None = None
    ) -> None:
        self.path, self.project, self.run = path, project, run
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._busy_s = BUSY_S

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        with explained(self.path, SCHEMA):
            try:
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
            except (sqlite3.OperationalError, HistoryError):
                self._wait_at_most(STILL_BUSY_S)
                raise
            if self._busy_s != BUSY_S:
                self._wait_at_most(BUSY_S)
            try:
                day = max(day_of(self._now(connection)), not_before)
                return Snapshot(day, {w.key: self._taken(connection, w, day) for w in windows})
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def draw(self, needs: Mapping[str, DrawNeed], row: DaySpending) -> None:
        """Nothing: no other run writes before `end`, so what is left may be spent."""

    def end(self, rows: Mapping[int, DaySpending]) -> None:
        with explained(self.path, SCHEMA):
            connection = self._connection or self._open()
            try:
                for day, row in rows.items():
                    connection.execute(_PUT, (self.project, day, self.run, sum(row)))
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
            self._wait_at_most(BUSY_S)
            with transaction(connection):
                connection.execute(_END, (self.project, self.run))
                connection.execute(_FORGET, (self.project, self.run))
        self.pause()

    def _open(self) -> sqlite3.Connection:
        if self._file is not None and not _is_at(self._file, self.path):
            self.pause()  # it was moved aside or deleted: other runs write another one
        if self._connection is None:
            self._connection = connect(self.path, SCHEMA, self._busy_s)
            self._file = os.stat(self.path)
            before = oldest_day(day_of(self._now(self._connection)))
            self._connection.execute("DELETE FROM tab WHERE day < ?", (before,))
        return self._connection

    def _wait_at_most(self, busy_s: float) -> None:
        self._busy_s = busy_s
        if self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout = {busy_s * 1000:.0f}")

    def _now(self, connection: sqlite3.Connection) -> float:
        if self._clock is not None:
            return self._clock()
        return float(connection.execute("SELECT strftime('%s', 'now')").fetchone()[0])

    def _taken(self, connection: sqlite3.Connection, window: BudgetWindow, day: int) -> int:
        since = window.first_day(day)
        row = connection.execute(_TAKEN, (self.project, since, day, self.run)).fetchone()
        return int(row[0])


def _is_at(file: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(file, os.stat(path))
    except FileNotFoundError:
        return False
