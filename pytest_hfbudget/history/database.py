"""One SQLite file below the state folder: opened, brought to its schema, errors as sentences."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pytest_hfbudget.errors import HistoryError

BUSY_S = 10.0

# What may go wrong with a file that others write too; an absurd amount does not fit into 64 bits.
TROUBLE = (sqlite3.Error, OSError, OverflowError)


class Schema(NamedTuple):
    """What a file is to look like.

    Attributes:
        steps: the statements that lead from each version to the next; their number is the
            version, which the file carries as its ``user_version``.
        shared: whether several runs write all the time. Then a log is written ahead: a
            transaction takes microseconds and survives the death of every process. A power cut
            may cost the last moments of it.
        remedy: what to do when the file can't be used.
    """

    steps: Sequence[Sequence[str]]
    remedy: str
    shared: bool = False


def connect(path: Path, schema: Schema) -> sqlite3.Connection:
    """A file, made or migrated where that is needed, readable by this user only.

    Transactions are begun and ended by whoever writes; any thread may, but one at a time.

    Raises:
        HistoryError: it can't be made, read or written, or a newer release has written it.
    """
    with explained(path, schema):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            if schema.shared:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
            _migrate(connection, path, schema)
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is written inside, or nothing; from its start on nobody else writes."""
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
    """Errors of SQLite and the file system as one line that says what to do."""
    try:
        yield
    except TROUBLE as error:
        why = getattr(error, "strerror", None) or error
        raise HistoryError(f"{path}: {why}. {schema.remedy}") from None


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    newest = len(schema.steps)
    if _version(connection) == newest:
        return
    with transaction(connection):
        found = _version(connection)  # again: another run may have been faster
        if found > newest:
            raise HistoryError(
                f"{path} was written by a newer pytest-hfbudget (its schema is {found}, this "
                f"release knows {newest}). Update pytest-hfbudget here. {schema.remedy}"
            )
        for statement in (one for step in schema.steps[found:] for one in step):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {newest}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
