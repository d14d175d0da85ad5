"""The report as a JSON file, schema 1: money as decimal strings in USD.

Reading ignores keys that a later release has added. Keys that an earlier release did not write get
their defaults. So files of different releases can be shown together. Each value is checked when it
is read, because a user may have edited the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pytest_hfbudget.errors import Figures, HFBudgetError
from pytest_hfbudget.files import write_whole
from pytest_hfbudget.ledger import Charge, Refusal, RunsBudget
from pytest_hfbudget.money import parse_usd, usd_text
from pytest_hfbudget.reporting import REPLAYED, EndpointLine, Report, ScopeBudgetLine, TestLine
from pytest_hfbudget.reporting.timeline import Lane, Minutes, Stretch, TestSpan, Timeline
from pytest_hfbudget.text import undirected

T = TypeVar("T")

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data; `SCHEMA_FILE` is its JSON Schema."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "project": report.project,
        "session_id": report.session_id or None,
        "date": report.date.isoformat(timespec="seconds"),
        "rehearsal": report.rehearsal,
        "session": _session(report),
        "tests": list(map(TEST.write, report.tests)),
        "shared": list(map(SHARED.write, report.scope_budgets)),
        "over_runs": [_over_runs(budget) for budget in report.over_runs],
        "calls": list(map(CALL.write, report.charges)),
        "notes": list(report.notes),
        "refusals": list(map(REFUSAL.write, report.refusals)),
        "endpoints": list(map(ENDPOINT.write, report.endpoints)),
        "timeline": None if report.timeline is None else _timeline(report.timeline),
    }


def write(report: Report, path: Path) -> None:
    """Write the file whole or not at all. If the run is killed meanwhile, the old file stays.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, json.dumps(as_json(report), indent=1) + "\n")


def read(path: Path) -> Report:
    """The report in a file. If it has no date, the modification time of the file is used.

    Raises:
        ReportFileError: it can't be read, or is not a report.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        return parse(content, written=written)
    except OSError as error:
        raise ReportFileError(f"{path} could not be read: {error.strerror}") from None
    except RecursionError:
        raise ReportFileError(f"{path} is not a report of --hf-report: nested too deeply") from None
    except ValueError as error:
        raise ReportFileError(f"{path} is not a report of --hf-report: {error}") from None


def parse(content: object, *, written: datetime) -> Report:
    """The report in parsed JSON; ``written`` is its date if the JSON has none.

    Raises:
        ReportFileError: the JSON is not a report of this schema.
    """
    top = JsonFields.of(content, "the report")
    if (schema := top.count("schema")) != SCHEMA:
        raise ReportFileError(f"its schema is {schema}, and this release reads {SCHEMA}")
    session = top.inner("session")
    unmetered = session.inner("unmetered")
    return Report(
        spent=session.usd("spent_usd") or 0,
        cap=session.usd("cap_usd"),
        calls=session.count("calls"),
        refused=session.count("refused"),
        tests=TEST.each(top, "tests"),
        charges=tuple(map(_read_call, top.each("calls"))),
        refusals=REFUSAL.each(top, "refusals"),
        endpoints=ENDPOINT.each(top, "endpoints"),
        run=top.text("run"),
        project=top.text("project"),
        session_id=top.text("session_id"),
        date=top.date("date") or written,
        rehearsal=top.flag("rehearsal"),
        scope_budgets=SHARED.each(top, "shared"),
        over_runs=tuple(map(_read_over_runs, top.each("over_runs"))),
        notes=tuple(top.texts("notes")),
        unmetered=tuple((why, unmetered.count(why)) for why in unmetered.values),
        timeline=_read_timeline(top.inner("timeline")) if top.values.get("timeline") else None,
    )


# --- parts of a report


def _session(report: Report) -> dict[str, Any]:
    return {
        "spent_usd": usd_text(report.spent),
        "cap_usd": _usd(report.cap),
        "calls": report.calls,
        "refused": report.refused,
        "replayed": len(report.remarked(REPLAYED)),
        "unmetered": dict(report.unmetered),
        "estimated_above_usd": usd_text(report.above),
        "waited_s": round(sum(charge.waited for charge in report.waited), 6),
    }


def _over_runs(budget: RunsBudget) -> dict[str, Any]:
    return {
        "name": budget.label,
        "cap_usd": usd_text(budget.cap),
        "spent_usd": usd_text(budget.cap - budget.left),
        "jobs": budget.jobs,
    }


def _read_over_runs(row: JsonFields) -> RunsBudget:
    cap, jobs = row.usd("cap_usd") or 0, row.values.get("jobs")
    left = cap - (row.usd("spent_usd") or 0)
    return RunsBudget(row.text("name"), cap, left, None if jobs is None else row.count("jobs"))


def _read_call(row: JsonFields) -> Charge:
    charge = CALL.read(row)
    return charge._replace(replayed=charge.replayed or charge.status == "replayed")


def _timeline(told: Timeline) -> dict[str, Any]:
    """The timeline as JSON. Times are seconds since ``began_at``, to the millisecond."""
    figures = (("paid", told.paid), ("least", told.least), ("collected", told.collected))
    return {
        "began_at": _moment(told.began_at),
        "seconds": round(told.seconds, 3),
        **{f"{name}_minutes": minutes.minutes for name, minutes in figures},
        **{f"{name}_usd": usd_text(minutes.nano_usd) for name, minutes in figures},
        "endpoints": list(map(LANE.write, told.lanes)),
        "tests": list(map(SPAN.write, told.tests)),
    }


def _read_timeline(top: JsonFields) -> Timeline:
    paid, least, collected = (
        Minutes(top.count(f"{name}_minutes"), top.usd(f"{name}_usd") or 0)
        for name in ("paid", "least", "collected")
    )
    began_at, seconds = top.unix_s("began_at") or 0.0, top.seconds("seconds")
    lanes, tests = LANE.each(top, "endpoints"), SPAN.each(top, "tests")
    return Timeline(began_at, seconds, lanes, tests, paid, least, collected)


# --- values of a file


class ReportFileError(HFBudgetError, ValueError):
    """A file can't be read, is not a report, or has an unknown schema."""


@dataclass(frozen=True)
class JsonFields:
    """A JSON object whose values are checked as they are read.

    Its methods raise `ReportFileError`, which names the place, if a value has another type.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> JsonFields:
        if not isinstance(value, dict):
            raise ReportFileError(f"{where} is not a JSON object")
        return cls(value, where)

    def text(self, key: str) -> str:
        value = self.values.get(key)
        text = "" if value is None else self._checked(key, value, str, "text")
        return undirected(text)

    def count(self, key: str) -> int:
        value = self._checked(key, self.values.get(key, 0), int, "a count")
        if isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a count")
        return value

    def flag(self, key: str) -> bool:
        return self._checked(key, self.values.get(key, False), bool, "true or false")

    def seconds(self, key: str) -> float:
        value = self.values.get(key, 0)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, "a number of seconds")
        return float(value)

    def usd(self, key: str) -> int | None:
        if self.values.get(key) is None:
            return None
        try:
            return parse_usd(self.text(key))
        except ValueError:
            raise self._wrong(key, "USD as a decimal string") from None

    def date(self, key: str) -> datetime | None:
        if not (text := self.text(key)):
            return None
        try:
            date = datetime.fromisoformat(text.replace("Z", "+00:00"))
            return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).astimezone(
                timezone.utc
            )
        except (ValueError, OverflowError):
            raise self._wrong(key, "a date") from None

    def unix_s(self, key: str) -> float | None:
        date = self.date(key)
        return date.timestamp() if date else None

    def inner(self, key: str) -> JsonFields:
        value = self.values.get(key)
        return JsonFields.of({} if value is None else value, f"{self.where}, {key},")

    def texts(self, key: str) -> Iterator[str]:
        for value in self._checked(key, self.values.get(key, []), list, "a list"):
            if not isinstance(value, str):
                raise self._wrong(key, "a list of texts")
            yield undirected(value)

    def each(self, key: str) -> Iterator[JsonFields]:
        values = self._checked(key, self.values.get(key, []), list, "a list")
        for number, value in enumerate(values):
            yield JsonFields.of(value, f"{key}[{number}]")

    def _checked(self, key: str, value: object, kind: type[T], called: str) -> T:
        if not isinstance(value, kind):
            raise self._wrong(key, called)
        return value

    def _wrong(self, key: str, called: str) -> ReportFileError:
        return ReportFileError(f"{self.where}: {key} is not {called}: {self.values.get(key)!r:.80}")


# --- rows


class Kind(NamedTuple):
    """How a value is written as JSON, and read back from its key."""

    write: Callable[[Any], Any]
    read: Callable[[JsonFields, str], Any]


class RowFormat(Generic[T]):
    """How a record is written as a JSON object, and read back.

    Args:
        make: the record's class.
        fields: for each value its key in the object, its name in the record, and its kind.
    """

    def __init__(self, make: Callable[..., T], *fields: tuple[str, str, Kind]) -> None:
        self._make, self._fields = make, fields

    def write(self, record: T) -> dict[str, Any]:
        return {key: kind.write(getattr(record, name)) for key, name, kind in self._fields}

    def read(self, row: JsonFields) -> T:
        return self._make(**{name: kind.read(row, key) for key, name, kind in self._fields})

    def each(self, top: JsonFields, key: str) -> tuple[T, ...]:
        """The records of a list."""
        return tuple(map(self.read, top.each(key)))


def _moment(unix_s: float | None) -> str | None:
    """A time as RFC 3339, in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def _usd(amount: int | None) -> str | None:
    return None if amount is None else usd_text(amount)


def _shares(row: JsonFields, key: str) -> tuple[tuple[str, int], ...]:
    shares = row.inner(key)
    return tuple((undirected(test), shares.usd(test) or 0) for test in shares.values)


def _as_it_is(value: T) -> T:
    return value


TEXT = Kind(_as_it_is, JsonFields.text)
NAME = Kind(_as_it_is, lambda row, key: row.text(key) or None)
TEXT_OR_NULL = Kind(lambda text: text or None, JsonFields.text)
NAMES = Kind(
    _as_it_is,
    lambda row, key: tuple(undirected(str(name)) for name in row.values.get(key) or ()),
)
COUNT = Kind(_as_it_is, JsonFields.count)
COUNT_OR_NULL = Kind(
    _as_it_is, lambda row, key: None if row.values.get(key) is None else row.count(key)
)
FLAG = Kind(_as_it_is, JsonFields.flag)
SECONDS = Kind(_as_it_is, JsonFields.seconds)
MILLISECONDS = Kind(lambda seconds: round(seconds, 3), JsonFields.seconds)
MOMENT = Kind(_moment, JsonFields.unix_s)
USD = Kind(usd_text, lambda row, key: row.usd(key) or 0)
USD_OR_NULL = Kind(_usd, JsonFields.usd)
SHARES = Kind(lambda shares: {test: usd_text(nano) for test, nano in shares}, _shares)


def _named(kind: Kind, *names: str) -> tuple[tuple[str, str, Kind], ...]:
    """Fields whose key in the object is their name in the record."""
    return tuple((name, name, kind) for name in names)


TEST = RowFormat(
    TestLine,
    *_named(TEXT, "id", "outcome"),
    ("spent_usd", "spent", USD),
    ("cap_usd", "cap", USD_OR_NULL),
    *_named(COUNT, "calls", "refused", "replayed"),
    ("uptime_usd", "uptime", USD),
)
SHARED = RowFormat(
    ScopeBudgetLine,
    *_named(TEXT, "name", "level"),
    ("spent_usd", "spent", USD),
    ("cap_usd", "cap", USD_OR_NULL),
    *_named(COUNT_OR_NULL, "max_calls"),
    *_named(COUNT, "calls", "refused"),
)
CALL = RowFormat(
    Charge,
    *_named(NAME, "test"),
    *_named(TEXT, "task", "model"),
    *_named(NAME, "provider"),
    *_named(COUNT, "input_tokens", "output_tokens", "cached_tokens"),
    ("usd", "nano_usd", USD_OR_NULL),  # null where it had no known price
    *_named(TEXT, "price_source", "status"),
    *_named(FLAG, "estimated", "replayed"),
    *_named(SECONDS, "seconds"),
    ("over_hold_usd", "over", USD),
    *_named(TEXT, "where"),
    *_named(TEXT_OR_NULL, "instead_of"),
    ("estimated_above_usd", "above", USD),
    ("waited_s", "waited", SECONDS),
    *_named(TEXT_OR_NULL, "session_id"),
    *_named(NAME, "endpoint"),
)
REFUSAL = RowFormat(
    Refusal,
    *_named(NAME, "test"),
    *_named(TEXT, "scope", "model", "message", "scope_key", "details"),
    *((f"{name}_usd", name, USD) for name in Figures._fields),
)
ENDPOINT = RowFormat(
    EndpointLine,
    *_named(TEXT, "name", "state"),
    ("usd", "nano_usd", USD),
    *_named(COUNT, "minutes"),
    *_named(FLAG, "resumed", "paused", "verified"),
    *_named(MOMENT, "resumed_at", "paused_at"),
    *_named(FLAG, "kept", "unpriced"),
    *_named(NAME, "left_to"),
    *_named(SHARES, "shares"),
    ("idle_usd", "idle", USD_OR_NULL),
    ("cold_start_usd", "cold_start", USD_OR_NULL),
)
STRETCH = RowFormat(Stretch, *_named(TEXT, "state"), *_named(MILLISECONDS, "start", "stop"))
STRETCHES = Kind(lambda stretches: list(map(STRETCH.write, stretches)), STRETCH.each)
LANE = RowFormat(Lane, ("name", "endpoint", TEXT), ("stretches", "stretches", STRETCHES))
SPAN = RowFormat(
    TestSpan,
    *_named(TEXT, "test", "worker"),
    *_named(MILLISECONDS, "start", "stop"),
    *_named(NAMES, "endpoints"),
)
