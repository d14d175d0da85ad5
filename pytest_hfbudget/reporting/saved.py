"""Reports as they were written: what `hfbudget report` and the step summary are made from.

Keys that a later release has added are passed over, and those that an earlier one did not have
yet have defaults, so that the files of a year can be looked at together. Money is nano-USD.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import parse_usd
from pytest_hfbudget.reporting.jsonfile import SCHEMA
from pytest_hfbudget.text import undirected

T = TypeVar("T")
FIGURES = re.compile(r"\d[\d.,]*")


class ReportFileError(HFBudgetError, ValueError):
    """A file that is no report, or one of a schema that is not known here."""


class SavedTest(NamedTuple):
    """One test that called, or was refused a call."""

    id: str
    outcome: str
    spent: int
    cap: int | None
    calls: int
    refused: int


class SavedShared(NamedTuple):
    """One budget that several tests share."""

    name: str
    level: str
    spent: int
    cap: int | None
    calls: int
    refused: int


class SavedCall(NamedTuple):
    """One call. ``usd`` is None where nobody knew a price."""

    test: str | None
    where: str
    task: str
    model: str
    provider: str
    input_tokens: int
    output_tokens: int
    usd: int | None
    price_source: str
    status: str
    estimated: bool
    replayed: bool
    seconds: float


class SavedRefusal(NamedTuple):
    """One call that was not sent."""

    test: str | None
    scope: str
    model: str
    message: str


class SavedEndpoint(NamedTuple):
    """One endpoint. ``shares`` says which test used what of its uptime, ``idle`` is the rest."""

    name: str
    state: str
    usd: int
    minutes: int
    verified: bool
    left_to: str
    kept: bool
    shares: Mapping[str, int]
    idle: int | None

    @property
    def verdict(self) -> str:
        """How it was left."""
        if self.verified:
            return "paused, verified"
        if self.left_to:
            return f"left to run {self.left_to}"
        if self.kept:
            return "kept running, as it was found"
        return f"NOT VERIFIED AS PAUSED ({self.state})"


@dataclass(frozen=True)
class SavedReport:
    """One run, as its file tells it."""

    run: str
    date: datetime
    rehearsal: bool
    spent: int
    cap: int | None
    sent: int
    refused: int
    tests: tuple[SavedTest, ...]
    calls: tuple[SavedCall, ...]
    refusals: tuple[SavedRefusal, ...]
    endpoints: tuple[SavedEndpoint, ...]
    unmetered: Mapping[str, int]
    shared: tuple[SavedShared, ...] = ()

    @property
    def day(self) -> str:
        """Its date for people, to the minute, in UTC."""
        return self.date.strftime("%Y-%m-%d %H:%M")


def refused_once(refusals: Iterable[SavedRefusal]) -> Iterator[tuple[SavedRefusal, int]]:
    """Each refusal that says something new of its test, and how many say the same.

    Figures do not count: a sum that grows from call to call, and a block that has the next number,
    make the same refusal.
    """
    first: dict[tuple[str | None, str, str], SavedRefusal] = {}
    times: Counter[tuple[str | None, str, str]] = Counter()
    for refusal in refusals:
        sentence = FIGURES.sub("0", refusal.message.replace(refusal.model, ""))
        key = refusal.test, refusal.model, sentence
        first.setdefault(key, refusal)
        times[key] += 1
    return ((refusal, times[key]) for key, refusal in first.items())


def read(path: Path) -> SavedReport:
    """The report in a file; one that has no date yet is as old as its file.

    Raises:
        ReportFileError: it can't be read, or is no report.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        return parse(content, written=written)
    except OSError as error:
        raise ReportFileError(f"{path} could not be read: {error.strerror}") from None
    except RecursionError:
        raise ReportFileError(f"{path} is no report of --hf-report: nested too deeply") from None
    except ValueError as error:
        raise ReportFileError(f"{path} is no report of --hf-report: {error}") from None


def parse(content: object, *, written: datetime) -> SavedReport:
    """The report in what was read from JSON; ``written`` is its date if it has none.

    Raises:
        ReportFileError: it has another form.
    """
    top = _Fields.of(content, "the report")
    if (schema := top.count("schema")) != SCHEMA:
        raise ReportFileError(f"its schema is {schema}, and this release reads {SCHEMA}")
    session = top.inner("session")
    return SavedReport(
        run=top.text("run"),
        date=top.date("date") or written,
        rehearsal=top.flag("rehearsal"),
        spent=session.usd("spent_usd") or 0,
        cap=session.usd("cap_usd"),
        sent=session.count("calls"),
        refused=session.count("refused"),
        tests=tuple(_test(one) for one in top.each("tests")),
        calls=tuple(_call(one) for one in top.each("calls")),
        refusals=tuple(_refusal(one) for one in top.each("refusals")),
        endpoints=tuple(_endpoint(one) for one in top.each("endpoints")),
        unmetered=_counts(session.inner("unmetered")),
        shared=tuple(_shared(one) for one in top.each("shared")),
    )


def _counts(row: _Fields) -> Mapping[str, int]:
    return {key: row.count(key) for key in row.values}


def _test(row: _Fields) -> SavedTest:
    return SavedTest(
        id=row.text("id"),
        outcome=row.text("outcome"),
        spent=row.usd("spent_usd") or 0,
        cap=row.usd("cap_usd"),
        calls=row.count("calls"),
        refused=row.count("refused"),
    )


def _shared(row: _Fields) -> SavedShared:
    return SavedShared(
        name=row.text("name"),
        level=row.text("level"),
        spent=row.usd("spent_usd") or 0,
        cap=row.usd("cap_usd"),
        calls=row.count("calls"),
        refused=row.count("refused"),
    )


def _call(row: _Fields) -> SavedCall:
    status = row.text("status")
    return SavedCall(
        test=row.text("test") or None,
        where=row.text("where"),
        task=row.text("task"),
        model=row.text("model"),
        provider=row.text("provider"),
        input_tokens=row.count("input_tokens"),
        output_tokens=row.count("output_tokens"),
        usd=row.usd("usd"),
        price_source=row.text("price_source"),
        status=status,
        estimated=row.flag("estimated"),
        replayed=row.flag("replayed") or status == "replayed",
        seconds=row.seconds("seconds"),
    )


def _refusal(row: _Fields) -> SavedRefusal:
    return SavedRefusal(
        row.text("test") or None, row.text("scope"), row.text("model"), row.text("message")
    )


def _endpoint(row: _Fields) -> SavedEndpoint:
    shares = row.inner("shares")
    return SavedEndpoint(
        name=row.text("name"),
        state=row.text("state"),
        usd=row.usd("usd") or 0,
        minutes=row.count("minutes"),
        verified=row.flag("verified"),
        left_to=row.text("left_to"),
        kept=row.flag("kept"),
        shares={undirected(test): shares.usd(test) or 0 for test in shares.values},
        idle=row.usd("idle_usd"),
    )


@dataclass(frozen=True)
class _Fields:
    """A JSON object whose values are what they should be, or an error says where they are not."""

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> _Fields:
        if not isinstance(value, dict):
            raise ReportFileError(f"{where} is no JSON object")
        return cls(value, where)

    def text(self, key: str) -> str:
        value = self.values.get(key)
        text = "" if value is None else self._checked(key, value, str, "a text")
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

    def inner(self, key: str) -> _Fields:
        value = self.values.get(key)
        return _Fields.of({} if value is None else value, f"{self.where}, {key},")

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
