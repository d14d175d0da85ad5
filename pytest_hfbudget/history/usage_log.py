"""The usage log: every call, refusal and endpoint of every run, in one file per user.

Written at the end of a run, by one process, in one transaction. It holds what the report holds:
no message and no token ever comes near it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from pytest_hfbudget.history.database import Schema, connect, explained, transaction
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.reporting import EndpointLine, Report
from pytest_hfbudget.text import public_url

FILE = "log.sqlite3"
DAY_S = 86_400.0

CALL = "call"
REFUSAL = "refusal"
ENDPOINT = "endpoint"

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

SCHEMA = Schema(
    steps=(_FIRST,),
    remedy=(
        "Make it readable and writable, or move it aside; "
        "HFBUDGET_STATE_DIR names another folder, and hf_log_days = 0 keeps no log."
    ),
)


@dataclass(frozen=True)
class Entry:
    """One line of the log.

    Attributes:
        at: unix seconds: of a call or an endpoint its begin, of a refusal the end of its run.
        kind: `CALL`, `REFUSAL` or `ENDPOINT`.
        place: where a call was made that belongs to no test.
        endpoint: what ran; for a call the leased endpoint that it went to.
        minutes: started ones, of all replicas of an endpoint.
        nano_usd: None for a call without a known price.
        status: of a call as in the report; of a refusal the budget; of an endpoint its state.
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


COLUMNS = tuple(field.name for field in fields(Entry))


class LoggedRun(NamedTuple):
    """The run that entries belong to; times in unix seconds."""

    run: str
    project: str
    started: float
    ended: float


def entries(report: Report, run: LoggedRun) -> Iterator[Entry]:
    """What a report says, line by line."""
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

    def write(self, run: LoggedRun, entries: Iterable[Entry], *, keep_days: int) -> None:
        """Add a run, whole or not at all, and forget those that are too old.

        Raises:
            HistoryError: it can't be written; nothing of it is.
        """
        with explained(self.path, SCHEMA), closing(connect(self.path, SCHEMA)) as connection:
            marks = ", ".join("?" * len(COLUMNS))
            with transaction(connection):
                # A run that was interrupted while it wrote writes once more.
                connection.execute("DELETE FROM entry WHERE run = ?", (run.run,))
                connection.execute("INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?)", run)
                connection.executemany(
                    f"INSERT INTO entry ({', '.join(COLUMNS)}) VALUES ({marks})",  # noqa: S608
                    map(astuple, entries),
                )
                before = (run.ended - keep_days * DAY_S,)
                connection.execute(
                    "DELETE FROM entry WHERE run IN (SELECT run FROM run WHERE ended < ?)", before
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
    # A test may have frozen the time at which it called.
    return at if run.started <= at <= run.ended else run.ended
