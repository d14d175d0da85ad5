"""How long tests and cold starts took, beside the usage log: the next run plans with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pytest_hfbudget.history.database import connect, explained, transaction
from pytest_hfbudget.history.usage_log import DAY_S
from pytest_hfbudget.history.usage_schema import SCHEMA

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
        """What is remembered of a project; of an endpoint, whichever project used it.

        Raises:
            HistoryError: it can't be read.
        """
        if not self._path.exists():
            return Durations({}, {})
        with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
            ask = "SELECT name, seconds FROM duration WHERE project = ? AND kind = ?"
            tests = connection.execute(ask, (project, TEST)).fetchall()
            starts = connection.execute(ask, ("", COLD_START)).fetchall()
        return Durations(dict(tests), dict(starts))

    def add(self, project: str, measured: Durations, at: float, *, keep_days: int) -> None:
        """Half of what was known and half of what was measured now is expected next time.

        Args:
            at: unix seconds; what is older than the days to keep is forgotten.

        Raises:
            HistoryError: it can't be written; nothing of it is.
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
