"""One SQLite file below the state folder: opened, brought to its schema, errors as sentences."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from pytest_hfbudget.errors import HistoryError
from pytest_hfbudget.files import check_own, own_folder

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
    """A file, made or migrated where that is needed, readable and writable by this user only.

    The writer begins and ends its transactions; any thread may write, but one at a time.

    Raises:
        HistoryError: it can't be made, read or written; it is empty; another user owns it; or a
            newer release has written it.
    """
    with explained(path, schema):
        own_folder(path.parent)
        if not path.exists():
            _make(path, schema)
        check_own(path)
        connection = _open(path)
        try:
            if schema.shared:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
            _migrate(connection, path, schema)
        except BaseException:
            connection.close()
            raise
        return connection


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _make(path: Path, schema: Schema) -> None:
    """Make a file, complete from its first moment: one that is empty later was cut short."""
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
    """All of what is written inside, or nothing; from its start on no other connection writes."""
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
        if not found:
            raise HistoryError(
                f"{path} is empty, so what was in it is lost: it was cut short by something else "
                f"than pytest-hfbudget. {schema.remedy}"
            )
        _bring_up_to_date(connection, schema, found)


def _bring_up_to_date(connection: sqlite3.Connection, schema: Schema, found: int) -> None:
    for statement in (one for step in schema.steps[found:] for one in step):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(schema.steps)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
