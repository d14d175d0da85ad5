"""The report as a JSON file, schema 1: money as decimal strings in USD.

Reading passes over keys that a later release has added, and gives those that an earlier one did
not have yet their defaults, so that the files of a year can be looked at together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.files import write_whole
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.money import parse_usd, usd_text
from pytest_hfbudget.reporting.model import REPLAYED, EndpointLine, Report, SharedLine, TestLine
from pytest_hfbudget.text import undirected

T = TypeVar("T")

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


class ReportFileError(HFBudgetError, ValueError):
    """A file can't be read, is not a report, or has an unknown schema."""


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data; `SCHEMA_FILE` is its JSON Schema."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "date": report.date.isoformat(timespec="seconds"),
        "rehearsal": report.rehearsal,
        "session": _session(report),
        "tests": [_test(test) for test in report.tests],
        "shared": [_shared(budget) for budget in report.shared],
        "calls": [_call(charge) for charge in report.charges],
        "notes": list(report.notes),
        "refusals": [refusal._asdict() for refusal in report.refusals],
        "endpoints": [_endpoint(endpoint) for endpoint in report.endpoints],
    }


def write(report: Report, path: Path) -> None:
    """Write the file whole or not at all; a run that is killed meanwhile leaves the old file.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, json.dumps(as_json(report), indent=1) + "\n")


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


def _test(test: TestLine) -> dict[str, Any]:
    return {
        "id": test.id,
        "outcome": test.outcome,
        "spent_usd": usd_text(test.spent),
        "cap_usd": _usd(test.cap),
        "calls": test.calls,
        "refused": test.refused,
        "replayed": test.replayed,
        "uptime_usd": usd_text(test.uptime),
    }


def _shared(budget: SharedLine) -> dict[str, Any]:
    return {
        "name": budget.name,
        "level": budget.level,
        "spent_usd": usd_text(budget.spent),
        "cap_usd": _usd(budget.cap),
        "max_calls": budget.max_calls,
        "calls": budget.calls,
        "refused": budget.refused,
    }


def _call(charge: Charge) -> dict[str, Any]:
    """One call; ``usd`` is null where it had no known price."""
    return {
        "test": charge.test,
        "task": charge.task,
        "model": charge.model,
        "provider": charge.provider,
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "usd": _usd(charge.nano_usd),
        "price_source": charge.price_source,
        "status": charge.status,
        "estimated": charge.estimated,
        "replayed": charge.replayed,
        "seconds": charge.seconds,
        "over_hold_usd": usd_text(charge.over),
        "where": charge.where,
        "instead_of": charge.instead_of or None,
        "estimated_above_usd": usd_text(charge.above),
        "waited_s": charge.waited,
    }


def _endpoint(endpoint: EndpointLine) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "state": endpoint.state,
        "usd": usd_text(endpoint.nano_usd),
        "minutes": endpoint.minutes,
        "resumed": endpoint.resumed,
        "paused": endpoint.paused,
        "verified": endpoint.verified,
        "resumed_at": _moment(endpoint.resumed_at),
        "paused_at": _moment(endpoint.paused_at),
        "kept": endpoint.kept,
        "left_to": endpoint.left_to,
        "shares": {test: usd_text(nano) for test, nano in endpoint.shares},
        "idle_usd": _usd(endpoint.idle),
        "cold_start_usd": _usd(endpoint.cold_start),
    }


def _moment(unix_s: float | None) -> str | None:
    """RFC 3339, in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def _usd(amount: int | None) -> str | None:
    return None if amount is None else usd_text(amount)


def read(path: Path) -> Report:
    """The report in a file; a report without a date has the date of its file.

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
    """The report in parsed JSON; ``written`` is its date if it has none.

    Raises:
        ReportFileError: it has another form.
    """
    top = _Fields.of(content, "the report")
    if (schema := top.count("schema")) != SCHEMA:
        raise ReportFileError(f"its schema is {schema}, and this release reads {SCHEMA}")
    session = top.inner("session")
    unmetered = session.inner("unmetered")
    return Report(
        spent=session.usd("spent_usd") or 0,
        cap=session.usd("cap_usd"),
        calls=session.count("calls"),
        refused=session.count("refused"),
        tests=tuple(map(_read_test, top.each("tests"))),
        charges=tuple(map(_read_call, top.each("calls"))),
        refusals=tuple(map(_read_refusal, top.each("refusals"))),
        endpoints=tuple(map(_read_endpoint, top.each("endpoints"))),
        run=top.text("run"),
        date=top.date("date") or written,
        rehearsal=top.flag("rehearsal"),
        shared=tuple(map(_read_shared, top.each("shared"))),
        notes=tuple(top.texts("notes")),
        unmetered=tuple((why, unmetered.count(why)) for why in unmetered.values),
    )


def _read_test(row: _Fields) -> TestLine:
    return TestLine(
        id=row.text("id"),
        outcome=row.text("outcome"),
        spent=row.usd("spent_usd") or 0,
        cap=row.usd("cap_usd"),
        calls=row.count("calls"),
        refused=row.count("refused"),
        replayed=row.count("replayed"),
        uptime=row.usd("uptime_usd") or 0,
    )


def _read_shared(row: _Fields) -> SharedLine:
    return SharedLine(
        name=row.text("name"),
        level=row.text("level"),
        spent=row.usd("spent_usd") or 0,
        cap=row.usd("cap_usd"),
        max_calls=None if row.values.get("max_calls") is None else row.count("max_calls"),
        calls=row.count("calls"),
        refused=row.count("refused"),
    )


def _read_call(row: _Fields) -> Charge:
    status = row.text("status")
    return Charge(
        test=row.text("test") or None,
        task=row.text("task"),
        model=row.text("model"),
        provider=row.text("provider") or None,
        input_tokens=row.count("input_tokens"),
        output_tokens=row.count("output_tokens"),
        nano_usd=row.usd("usd"),
        price_source=row.text("price_source"),
        status=status,
        estimated=row.flag("estimated"),
        seconds=row.seconds("seconds"),
        where=row.text("where"),
        over=row.usd("over_hold_usd") or 0,
        replayed=row.flag("replayed") or status == "replayed",
        instead_of=row.text("instead_of"),
        above=row.usd("estimated_above_usd") or 0,
        waited=row.seconds("waited_s"),
    )


def _read_refusal(row: _Fields) -> Refusal:
    return Refusal(
        test=row.text("test") or None,
        scope=row.text("scope"),
        model=row.text("model"),
        message=row.text("message"),
        scope_key=row.text("scope_key"),
        details=row.text("details"),
    )


def _read_endpoint(row: _Fields) -> EndpointLine:
    shares = row.inner("shares")
    return EndpointLine(
        name=row.text("name"),
        state=row.text("state"),
        nano_usd=row.usd("usd") or 0,
        minutes=row.count("minutes"),
        resumed=row.flag("resumed"),
        paused=row.flag("paused"),
        verified=row.flag("verified"),
        left_to=row.text("left_to") or None,
        kept=row.flag("kept"),
        resumed_at=row.unix_s("resumed_at"),
        paused_at=row.unix_s("paused_at"),
        shares=tuple((undirected(test), shares.usd(test) or 0) for test in shares.values),
        idle=row.usd("idle_usd"),
        cold_start=row.usd("cold_start_usd"),
    )


@dataclass(frozen=True)
class _Fields:
    """A JSON object whose values are checked as they are read.

    Its methods raise `ReportFileError`, which names the place, for a value of another type.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> _Fields:
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

    def inner(self, key: str) -> _Fields:
        value = self.values.get(key)
        return _Fields.of({} if value is None else value, f"{self.where}, {key},")

    def texts(self, key: str) -> Iterator[str]:
        for value in self._checked(key, self.values.get(key, []), list, "a list"):
            if not isinstance(value, str):
                raise self._wrong(key, "a list of texts")
            yield undirected(value)

    def each(self, key: str) -> Iterator[_Fields]:
        values = self._checked(key, self.values.get(key, []), list, "a list")
        for number, value in enumerate(values):
            yield _Fields.of(value, f"{key}[{number}]")

    def _checked(self, key: str, value: object, kind: type[T], called: str) -> T:
        if not isinstance(value, kind):
            raise self._wrong(key, called)
        return value

    def _wrong(self, key: str, called: str) -> ReportFileError:
        return ReportFileError(f"{self.where}: {key} is not {called}: {self.values.get(key)!r:.80}")
