"""The usage log: every call, refusal and endpoint of every run, in one file per user.

One process writes it, at the end of a run, in one transaction. It holds what the report holds, and
never a prompt, an answer or a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.history.database import connect, explained, transaction
from pytest_hfbudget.history.usage_schema import DAY_S, LEARNED, SCHEMA, facts, learn
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.metering.prompts import RULE, Fact
from pytest_hfbudget.reporting import EndpointLine, Report
from pytest_hfbudget.text import public_url

FILE = "log.sqlite3"

CALL = "call"
REFUSAL = "refusal"
ENDPOINT = "endpoint"


@dataclass(frozen=True)
class Entry:
    """One line of the log.

    Attributes:
        at: unix seconds: when a call was made; for an endpoint the start of its run, for a refusal
            the end of its run.
        kind: `CALL`, `REFUSAL` or `ENDPOINT`.
        place: what was running when a call was made outside of a test.
        endpoint: the endpoint of the line; for a call the leased endpoint that it went to.
        minutes: the started minutes of an endpoint, times its replicas.
        nano_usd: None for a call without a known price.
        status: for a call as in the report; for a refusal the name of the budget; for an endpoint
            its state.
        session_id: the inference session that the router was told; empty for none.
        cached_tokens: the part of ``input_tokens`` that came from a cache.
    """

    run: str
    at: float
    kind: str
    test: str | None = None
    place: str = ""
    task: str = ""
    model: str = ""
    provider: str | None = None
    endpoint: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    minutes: int = 0
    nano_usd: int | None = 0
    price_source: str = ""
    status: str = ""
    estimated: bool = False
    seconds: float = 0.0
    session_id: str = ""
    cached_tokens: int = 0


COLUMNS = tuple(field.name for field in fields(Entry))


class LoggedRun(NamedTuple):
    """The run that entries belong to; times in unix seconds.

    Attributes:
        session_id: its inference session; empty if it has sent none.
    """

    run: str
    project: str
    started: float
    ended: float
    session_id: str = ""


def entries(report: Report, run: LoggedRun) -> Iterator[Entry]:
    """The calls, refusals and endpoints of a report, as lines of the log."""
    yield from (_call(charge, run) for charge in report.charges)
    yield from (_refusal(refusal, run) for refusal in report.refusals)
    yield from (_endpoint(line, run) for line in report.endpoints)


class UsageLog:
    """The log of this user.

    Args:
        path: its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self,
        run: LoggedRun,
        entries: Iterable[Entry],
        learned: Iterable[Fact] = (),
        *,
        keep_days: int,
    ) -> None:
        """Add a run, whole or not at all, and delete runs that are too old.

        Args:
            learned: what the run has learned of prompts.
            keep_days: the age in days beyond which a run is deleted.

        Raises:
            HistoryError: the log can't be written, and is as it was.
        """
        with explained(self.path, SCHEMA), closing(connect(self.path, SCHEMA)) as connection:
            marks = ", ".join("?" * len(COLUMNS))
            with transaction(connection):
                # A run that was interrupted while it wrote writes once more.
                connection.execute("DELETE FROM entry WHERE run = ?", (run.run,))
                connection.execute("INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?, ?)", run)
                connection.executemany(
                    f"INSERT INTO entry ({', '.join(COLUMNS)}) VALUES ({marks})",  # noqa: S608
                    map(astuple, entries),
                )
                learn(connection, learned, run.started, run.ended)
                before = (run.ended - keep_days * DAY_S,)
                connection.execute("DELETE FROM prompt_tokens WHERE seen < ?", before)
                connection.execute(
                    "DELETE FROM entry WHERE run IN (SELECT run FROM run WHERE ended < ?)", before
                )
                connection.execute(
                    "DELETE FROM bill WHERE run IN (SELECT run FROM run WHERE ended < ?)", before
                )
                connection.execute("DELETE FROM run WHERE ended < ?", before)


def _call(charge: Charge, run: LoggedRun) -> Entry:
    return Entry(
        run=run.run,
        at=_within(charge.at, run),
        kind=CALL,
        test=charge.test,
        place=charge.where,
        task=charge.task,
        model=public_url(charge.model),
        provider=charge.provider,
        endpoint=charge.endpoint,
        input_tokens=charge.input_tokens,
        output_tokens=charge.output_tokens,
        nano_usd=charge.nano_usd,
        price_source=charge.price_source,
        status=charge.status,
        estimated=charge.estimated and not charge.replayed,
        seconds=charge.seconds,
        session_id="" if charge.replayed else charge.session_id,
        cached_tokens=charge.cached_tokens,
    )


def _refusal(refusal: Refusal, run: LoggedRun) -> Entry:
    return Entry(
        run=run.run,
        at=run.ended,
        kind=REFUSAL,
        test=refusal.test,
        model=public_url(refusal.model),
        status=refusal.scope or "no price",
    )


def _endpoint(line: EndpointLine, run: LoggedRun) -> Entry:
    return Entry(
        run=run.run,
        at=run.started,
        kind=ENDPOINT,
        endpoint=line.name,
        minutes=line.minutes,
        nano_usd=line.nano_usd,
        price_source="list of hardware",
        status=line.state,
        seconds=run.ended - run.started,
    )


def _within(at: float, run: LoggedRun) -> float:
    # A test may have frozen the clock, so the time of its call may be outside of the run.
    return at if run.started <= at <= run.ended else run.ended


# What totals can be grouped by, as SQL expressions.
GROUPS = {
    "model": "entry.model",
    "provider": "coalesce(provider, '')",
    "test": "coalesce(test, '')",
    "endpoint": "coalesce(endpoint, '')",
    "run": "entry.run",
    "day": "date(at, 'unixepoch')",
    "project": "project",
}

# The columns that a text can filter, as SQL expressions.
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
    """A filter on entries: all of its conditions have to apply.

    Attributes:
        texts: pairs of a key of `TEXTS` and a text that the column contains. A text with ``*`` or
            ``?`` is a pattern for the whole column.
        since, until: unix seconds; ``until`` itself is excluded.
    """

    texts: tuple[tuple[str, str], ...] = ()
    since: float | None = None
    until: float | None = None

    def where(self) -> tuple[str, list[object]]:
        """The condition in SQL, and the values of its placeholders."""
        conditions: list[str] = ["1"]
        values: list[object] = []
        for key, text in self.texts:
            conditions.append(f"{TEXTS[key]} GLOB ?")
            values.append(_glob(text))
        if self.since is not None:
            conditions.append("at >= ?")
            values.append(self.since)
        if self.until is not None:
            conditions.append("at < ?")
            values.append(self.until)
        return " AND ".join(conditions), values


class Total(NamedTuple):
    """The sums of a group of entries.

    Attributes:
        name: the value that they are grouped by; empty for all entries.
        unpriced: calls without a price, which are not in ``nano_usd``.
        estimated: calls that are in ``nano_usd`` with an upper bound.
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


class LogReader:
    """Reads a log. A log that does not exist yet is empty.

    Every method raises `HistoryError` if the log can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, query: UsageQuery, limit: int = 0) -> tuple[Entry, ...]:
        """The latest entries, oldest first; all of them with a limit of 0."""
        return tuple(self.each(query, limit))

    def each(self, query: UsageQuery, limit: int = 0) -> Iterator[Entry]:
        """As `entries`, but read a page at a time: a log may be larger than the memory.

        Nothing is locked between two pages, so a slow reader keeps no run waiting.
        """
        where, values = query.where()
        page = (
            f"SELECT at, entry.rowid, {_NAMES} {_FROM} WHERE {where} AND (at, entry.rowid) > (?, ?)"
            " ORDER BY at, entry.rowid LIMIT ?"
        )
        left, last = limit, self._before(query, limit)
        while rows := self._ask(page, [*values, *last, min(left, PAGE) if limit else PAGE]):
            for at, number, *row in rows:
                last = at, number
                said = dict(zip(COLUMNS, row, strict=True))
                yield Entry(**{**said, "estimated": bool(said["estimated"])})
            left -= len(rows)
            if limit and left <= 0:
                return

    def _before(self, query: UsageQuery, limit: int) -> tuple[float, int]:
        """The time and the number of the entry before the latest ``limit`` entries."""
        where, values = query.where()
        found = limit and self._ask(
            f"SELECT at, entry.rowid {_FROM} WHERE {where} "
            "ORDER BY at DESC, entry.rowid DESC LIMIT 1 OFFSET ?",
            [*values, limit],
        )
        return found[0] if found else (-math.inf, 0)

    def counts(self, model: str) -> tuple[Fact, ...]:
        """What servers have counted in prompts of a model, if this release can read its hashes."""
        return facts(self._ask(LEARNED, [model, RULE]))

    def total(self, query: UsageQuery) -> Total:
        """The sums of all entries that match a query."""
        where, values = query.where()
        rows = self._ask(f"SELECT {_SUMS} {_FROM} WHERE {where}", values)
        return Total("", *(rows[0] if rows else NOTHING))

    def totals(self, query: UsageQuery, group: str) -> tuple[Total, ...]:
        """The sums by one of `GROUPS`: days in order, other groups by falling cost."""
        where, values = query.where()
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
