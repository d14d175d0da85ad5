"""Questions to the usage log: its entries by any of their columns, and sums of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.history.database import connect, explained
from pytest_hfbudget.history.usage_log import COLUMNS, SCHEMA, Entry

# What can be summed up by; each is an expression over the tables.
GROUPS = {
    "model": "entry.model",
    "provider": "coalesce(provider, '')",
    "test": "coalesce(test, '')",
    "endpoint": "coalesce(endpoint, '')",
    "run": "entry.run",
    "day": "date(at, 'unixepoch')",
    "project": "project",
}

# What can be asked for by a text.
TEXTS = {
    "test": "test",
    "model": "model",
    "provider": "provider",
    "endpoint": "endpoint",
    "status": "status",
    "kind": "kind",
    "run": "entry.run",
    "project": "project",
}

PAGE = 1000

_NAMES = ", ".join(f"entry.{name}" for name in COLUMNS)
_FROM = "FROM entry JOIN run ON run.run = entry.run"
_SUMS = (
    "coalesce(sum(kind = 'call'), 0), coalesce(sum(kind = 'refusal'), 0), "
    "coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), "
    "coalesce(sum(minutes), 0), coalesce(sum(nano_usd), 0), coalesce(sum(nano_usd IS NULL), 0), "
    "coalesce(sum(estimated), 0)"
)


@dataclass(frozen=True)
class UsageQuery:
    """Which entries are meant: those to which everything applies that is said.

    Attributes:
        texts: by a key of `TEXTS`, what the column has in it somewhere; with ``*`` or ``?`` it is
            a pattern for the whole.
        since, until: unix seconds; ``until`` itself is not in it any more.
    """

    texts: tuple[tuple[str, str], ...] = ()
    since: float | None = None
    until: float | None = None

    def where(self) -> tuple[str, list[object]]:
        """As SQL, and what belongs into its gaps."""
        said: list[str] = ["1"]
        values: list[object] = []
        for key, text in self.texts:
            said.append(f"{TEXTS[key]} GLOB ?")
            values.append(_glob(text))
        if self.since is not None:
            said.append("at >= ?")
            values.append(self.since)
        if self.until is not None:
            said.append("at < ?")
            values.append(self.until)
        return " AND ".join(said), values


class Total(NamedTuple):
    """What some entries add up to.

    Attributes:
        name: what they have in common.
        unpriced: calls without a price, which are not in ``nano_usd``.
        estimated: calls that are in it at an upper bound.
    """

    name: str
    calls: int
    refused: int
    input_tokens: int
    output_tokens: int
    minutes: int
    nano_usd: int
    unpriced: int
    estimated: int


NOTHING = (0,) * (len(Total._fields) - 1)


class QueryResult:
    """Reads a log; one that is not there yet is empty.

    Every method raises `HistoryError` when it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, question: UsageQuery, limit: int = 0) -> tuple[Entry, ...]:
        """The latest entries, oldest first; all of them with a limit of 0."""
        return tuple(self.each(question, limit))

    def each(self, question: UsageQuery, limit: int = 0) -> Iterator[Entry]:
        """As `entries`, but a page at a time: a log may be larger than the memory.

        Between two pages nothing is locked, so a reader that takes its time keeps no run waiting.
        """
        where, values = question.where()
        page = (
            f"SELECT at, entry.rowid, {_NAMES} {_FROM} WHERE {where} AND (at, entry.rowid) > (?, ?)"
            " ORDER BY at, entry.rowid LIMIT ?"
        )
        left, last = limit, self._before(question, limit)
        while rows := self._ask(page, [*values, *last, min(left, PAGE) if limit else PAGE]):
            for at, number, *fields in rows:
                last = at, number
                said = dict(zip(COLUMNS, fields, strict=True))
                yield Entry(**{**said, "estimated": bool(said["estimated"])})
            left -= len(rows)
            if limit and left <= 0:
                return

    def _before(self, question: UsageQuery, limit: int) -> tuple[float, int]:
        """Where the latest entries begin: the time and the number of the one before them."""
        where, values = question.where()
        found = limit and self._ask(
            f"SELECT at, entry.rowid {_FROM} WHERE {where} "
            "ORDER BY at DESC, entry.rowid DESC LIMIT 1 OFFSET ?",
            [*values, limit],
        )
        return found[0] if found else (-math.inf, 0)

    def total(self, question: UsageQuery) -> Total:
        """What all of them add up to."""
        where, values = question.where()
        rows = self._ask(f"SELECT {_SUMS} {_FROM} WHERE {where}", values)
        return Total("", *(rows[0] if rows else NOTHING))

    def totals(self, question: UsageQuery, group: str) -> tuple[Total, ...]:
        """The sums by one of `GROUPS`: days in order, all others with the most expensive first."""
        where, values = question.where()
        order = "1" if group == "day" else "sum(nano_usd) DESC, 1"
        rows = self._ask(
            f"SELECT {GROUPS[group]}, {_SUMS} {_FROM} WHERE {where} GROUP BY 1 ORDER BY {order}",
            values,
        )
        return tuple(Total(*row) for row in rows)

    def _ask(self, sql: str, values: list[object]) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with explained(self.path, SCHEMA), closing(connect(self.path, SCHEMA)) as connection:
            return connection.execute(sql, values).fetchall()


def _glob(text: str) -> str:
    pattern = text.replace("[", "[[]")  # test ids have brackets
    return pattern if any(sign in text for sign in "*?") else f"*{pattern}*"
