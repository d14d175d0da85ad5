"""The tables of the usage log, in the steps by which releases have added to them.

This module also reads and writes the rows of two of them: what servers have counted in prompts, and
how long tests and cold starts took. The next run plans with the latter.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.history.database import Schema, connect, explained, transaction
from pytest_hfbudget.metering.prompts import ALIKE, DOUBT, FORGET, RULE, Fact
from pytest_hfbudget.metering.usage import MOST_TOKENS

DAY_S = 86_400.0

_FIRST = (
    """
    CREATE TABLE run (
        run TEXT PRIMARY KEY,
        project TEXT NOT NULL,
        started REAL NOT NULL,
        ended REAL NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE entry (
        run TEXT NOT NULL,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        test TEXT,
        place TEXT NOT NULL,
        task TEXT NOT NULL,
        model TEXT NOT NULL,
        provider TEXT,
        endpoint TEXT,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        minutes INTEGER NOT NULL,
        nano_usd INTEGER,
        price_source TEXT NOT NULL,
        status TEXT NOT NULL,
        estimated INTEGER NOT NULL,
        seconds REAL NOT NULL
    )
    """,
    "CREATE INDEX entry_at ON entry (at)",
    "CREATE INDEX entry_run ON entry (run)",
)
_SECOND = (
    "ALTER TABLE run ADD COLUMN session_id TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE entry ADD COLUMN session_id TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE entry ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0",
    # What was reported of a run's session: read_at is when, in unix seconds.
    """
    CREATE TABLE bill (
        run TEXT PRIMARY KEY,
        billed_nano_usd INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        read_at REAL NOT NULL
    ) WITHOUT ROWID
    """,
)

# What servers have counted in prompts; ``rule`` is the version of the hashes.
PROMPT_TOKENS = (
    """
    CREATE TABLE prompt_tokens (
        model TEXT NOT NULL,
        provider TEXT NOT NULL,
        key TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        rule INTEGER NOT NULL,
        seen REAL NOT NULL,
        PRIMARY KEY (model, provider, key)
    ) WITHOUT ROWID
    """,
)

_DURATIONS = (
    """
    CREATE TABLE duration (
        project TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        seconds REAL NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (project, kind, name)
    ) WITHOUT ROWID
    """,
)

SCHEMA = Schema(
    steps=(_FIRST, PROMPT_TOKENS, _DURATIONS, _SECOND),
    remedy=(
        "Make it readable and writable, or move it aside; "
        "HFBUDGET_STATE_DIR names another folder, and hf_log_days = 0 keeps no log."
    ),
)

# --- what servers have counted in prompts

LEARNED = "SELECT model, provider, key, tokens FROM prompt_tokens WHERE model = ? AND rule = ?"
_FORGET = "DELETE FROM prompt_tokens WHERE model = ? AND provider = ? AND seen < ?"
_KEEP = "INSERT OR REPLACE INTO prompt_tokens VALUES (?, ?, ?, ?, ?, ?)"


def learn(
    connection: sqlite3.Connection, learned: Iterable[Fact], started: float, ended: float
) -> None:
    """Add what a run has learned. For a provider in doubt, all else is deleted.

    Servers that are addressed by URL are left out: another model may be there tomorrow.

    Args:
        started, ended: of the run, in unix seconds.
    """
    doubted: set[tuple[str, str]] = set()
    for fact in learned:
        provider = fact.model, fact.provider
        if fact.model.startswith("http") or fact.key == ALIKE or provider in doubted:
            continue
        if fact.key in (FORGET, DOUBT):
            since = started if fact.key == FORGET else math.inf
            connection.execute(_FORGET, (*provider, since))
        if fact.key == DOUBT:
            doubted.add(provider)
        if fact.key != FORGET:
            connection.execute(_KEEP, (*fact, RULE, ended))


def facts(rows: Iterable[tuple[Any, ...]]) -> tuple[Fact, ...]:
    """The facts in rows of the query `LEARNED`, without rows that this release can't read."""
    return tuple(Fact(*row) for row in rows if _is_fact(*row))


def _is_fact(model: object, provider: object, key: object, tokens: object) -> bool:
    """Whether a row has the types and values that this release writes."""
    texts = isinstance(model, str) and isinstance(provider, str) and isinstance(key, str)
    return texts and key != "" and isinstance(tokens, int) and 0 <= tokens < MOST_TOKENS


# --- how long tests and cold starts took

TEST, COLD_START = "test", "cold start"


class Durations(NamedTuple):
    """Seconds, by the id of a test and by the name of an endpoint."""

    tests: Mapping[str, float]
    cold_starts: Mapping[str, float]


class DurationLog:
    """The durations of all projects of this user.

    Args:
        path: the file of the usage log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, project: str) -> Durations:
        """The durations of a project's tests, and of the cold starts in all projects.

        Raises:
            HistoryError: the log can't be read.
        """
        if not self._path.exists():
            return Durations({}, {})
        with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
            ask = "SELECT name, seconds FROM duration WHERE project = ? AND kind = ?"
            tests = connection.execute(ask, (project, TEST)).fetchall()
            starts = connection.execute(ask, ("", COLD_START)).fetchall()
        return Durations(dict(tests), dict(starts))

    def add(self, project: str, measured: Durations, at: float, *, keep_days: int) -> None:
        """Store what was measured: the mean of the stored and the measured seconds.

        Args:
            at: now, in unix seconds.
            keep_days: the age in days beyond which a duration is deleted.

        Raises:
            HistoryError: the log can't be written, and is as it was.
        """
        rows = [(project, TEST, name, s, at) for name, s in measured.tests.items()]
        rows += [("", COLD_START, name, s, at) for name, s in measured.cold_starts.items()]
        with (
            explained(self._path, SCHEMA),
            closing(connect(self._path, SCHEMA)) as connection,
            transaction(connection),
        ):
            connection.executemany(
                "INSERT INTO duration VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET seconds = (seconds + excluded.seconds) / 2, at = excluded.at",
                rows,
            )
            connection.execute("DELETE FROM duration WHERE at < ?", (at - keep_days * DAY_S,))
