"""Questions to the usage log: its entries by any of their columns, and sums of them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.history.database import connect, explained
from pytest_hfbudget.history.log import COLUMNS, SCHEMA, Entry

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

_FROM = "FROM entry JOIN run ON run.run = entry.run"
_SUMS = (
    "coalesce(sum(kind = 'call'), 0), coalesce(sum(kind = 'refusal'), 0), "
    "coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), "
    "coalesce(sum(minutes), 0), coalesce(sum(nano_usd), 0), coalesce(sum(nano_usd IS NULL), 0), "
    "coalesce(sum(estimated), 0)"
)


@dataclass(frozen=True)
class Question:
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


class Answers:
    """Reads a log; one that is not there yet is empty.

    Every method raises `HistoryError` when it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, question: Question, limit: int = 0) -> tuple[Entry, ...]:
        """The latest entries, oldest first; all of them with a limit of 0."""
        where, values = question.where()
        names = ", ".join(f"entry.{name}" for name in COLUMNS)
        rows = self._ask(
            f"SELECT {names} {_FROM} WHERE {where} ORDER BY at DESC, entry.rowid DESC LIMIT ?",
            [*values, limit or -1],
        )
        found = [Entry(**dict(zip(COLUMNS, row, strict=True))) for row in rows]
        return tuple(replace(entry, estimated=bool(entry.estimated)) for entry in reversed(found))

    def total(self, question: Question) -> Total:
        """What all of them add up to."""
        where, values = question.where()
        rows = self._ask(f"SELECT {_SUMS} {_FROM} WHERE {where}", values)
        return Total("", *(rows[0] if rows else NOTHING))

    def totals(self, question: Question, group: str) -> tuple[Total, ...]:
        """The sums by one of `GROUPS`: days in their order, all others the dearest first."""
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
