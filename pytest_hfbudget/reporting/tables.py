"""The tables of a report, before anybody has drawn them: a page, a terminal, a summary of CI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from pytest_hfbudget.reporting.saved import SavedCall, SavedReport, SavedTest, refused_once

Kind = Literal["text", "name", "word", "usd", "count", "seconds"]
Cell = str | int | float | None

NO_TEST = "(no test)"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


class Column(NamedTuple):
    """``kind`` is ``name`` for what may be long and has no spaces, ``word`` for what has few
    values, ``usd`` for nano-USD. A ``bar`` shows its part of the column's greatest value."""

    label: str
    kind: Kind
    bar: bool = False


class Table(NamedTuple):
    """Rows in the order in which they are to be read first."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def tables(reports: Sequence[SavedReport]) -> Iterator[Table]:
    """Every table that has rows: of the newest run, which is the last, and one over all runs."""
    newest = reports[-1]
    made = (
        refusals(newest),
        endpoints(newest),
        shares(newest),
        tests(newest),
        shared(newest),
        models(newest),
        providers(newest),
        prices(newest),
        runs(reports),
        calls(newest),
    )
    return (table for table in made if table.rows)


def tests(report: SavedReport) -> Table:
    """By test, the dearest first; what belongs to no test is a row too."""
    columns = (
        Column("test", "name"),
        Column("spent", "usd", bar=True),
        Column("cap", "usd"),
        Column("calls", "count"),
        Column("refused", "count"),
        Column("outcome", "word"),
    )
    rows: list[SavedTest] = [*report.tests]
    if outside := [call for call in report.calls if call.test is None]:
        spent = sum(call.usd or 0 for call in outside)
        rows.append(SavedTest(NO_TEST, "", spent, None, len(outside), 0))
    told = ((one.id, one.spent, one.cap, one.calls, one.refused, one.outcome) for one in rows)
    return Table("tests", "By test", columns, _dearest(told, 1))


def shared(report: SavedReport) -> Table:
    """The budgets that several tests share, as they were first used."""
    columns = (
        Column("budget", "name"),
        Column("of a", "word"),
        Column("spent", "usd", bar=True),
        Column("cap", "usd"),
        Column("calls", "count"),
        Column("refused", "count"),
    )
    rows = tuple(
        (one.name, one.level, one.spent, one.cap, one.calls, one.refused) for one in report.shared
    )
    return Table("shared", "Shared budgets", columns, rows)


def models(report: SavedReport) -> Table:
    """By model."""
    return _grouped("models", "By model", "model", report.calls, lambda call: call.model)


def providers(report: SavedReport) -> Table:
    """By who answered."""
    title = "By provider"
    return _grouped("providers", title, "provider", report.calls, lambda call: call.provider)


def prices(report: SavedReport) -> Table:
    """Where prices came from, and of which day they are."""
    columns = (
        Column("source", "name"),
        Column("of", "word"),
        Column("spent", "usd", bar=True),
        Column("calls", "count"),
    )
    groups = _groups(report.calls, lambda call: call.price_source.partition(": ")[0])
    rows = (
        (source or "(no price)", day[0] if (day := _DAY.findall(source)) else "", *_sum(group))
        for source, group in groups
    )
    return Table("prices", "Where prices came from", columns, _dearest(rows, 2))


def endpoints(report: SavedReport) -> Table:
    """The endpoints of the run, and how each was left."""
    columns = (
        Column("endpoint", "name"),
        Column("left", "text"),
        Column("minutes", "count"),
        Column("cost", "usd", bar=True),
        Column("idle", "usd"),
    )
    rows = ((e.name, e.verdict, e.minutes, e.usd, e.idle) for e in report.endpoints)
    note = "Minutes are started minutes of all replicas. Idle is what no test used."
    return Table("endpoints", "Endpoints", columns, _dearest(rows, 3), note)


def shares(report: SavedReport) -> Table:
    """Which test used what of an endpoint's uptime."""
    columns = (
        Column("test", "name"),
        Column("endpoint", "name"),
        Column("share", "usd", bar=True),
    )
    rows = ((test, e.name, usd) for e in report.endpoints for test, usd in e.shares.items())
    return Table("shares", "Uptime by test", columns, _dearest(rows, 2))


def refusals(report: SavedReport) -> Table:
    """The calls that were not sent; those that were refused to one test alike are one row."""
    columns = (
        Column("test", "name"),
        Column("model", "name"),
        Column("times", "count"),
        Column("why", "text"),
    )
    rows = tuple(
        (one.test or NO_TEST, one.model, times, one.message)
        for one, times in refused_once(report.refusals)
    )
    return Table("refusals", "Refused calls", columns, rows)


def runs(reports: Sequence[SavedReport]) -> Table:
    """Over runs, the newest first; a single run is no history."""
    columns = (
        Column("date (UTC)", "word"),
        Column("run", "word"),
        Column("spent", "usd", bar=True),
        Column("cap", "usd"),
        Column("calls", "count"),
        Column("refused", "count"),
        Column("endpoints", "usd"),
    )
    rows = tuple(
        (one.day, one.run, one.spent, one.cap, one.sent, one.refused, uptime(one))
        for one in reversed(reports)
        if len(reports) > 1
    )
    return Table("runs", "Over runs", columns, rows)


def calls(report: SavedReport) -> Table:
    """Each call, in the order of settlement."""
    columns = (
        Column("#", "count"),
        Column("test", "name"),
        Column("cost", "usd"),
        Column("remarks", "word"),
        Column("model", "name"),
        Column("provider", "word"),
        Column("status", "word"),
        Column("in", "count"),
        Column("out", "count"),
        Column("seconds", "seconds"),
        Column("task", "word"),
        Column("price", "word"),
    )
    rows = tuple(
        (
            *(number, call.test or call.where or NO_TEST, call.usd, remarks(call)),
            *(call.model, call.provider, call.status, call.input_tokens, call.output_tokens),
            *(call.seconds, call.task, call.price_source),
        )
        for number, call in enumerate(report.calls, 1)
    )
    return Table("calls", "Calls", columns, rows)


def remarks(call: SavedCall) -> str:
    """What has to be known of a cost."""
    said = (
        (call.replayed, "replayed"),
        (call.estimated and not call.replayed, "estimated"),
        (call.usd is None and not call.replayed, "no price"),
    )
    return ", ".join(remark for true, remark in said if true)


def uptime(report: SavedReport) -> int:
    """What the endpoints cost, in nano-USD."""
    return sum(endpoint.usd for endpoint in report.endpoints)


def _grouped(
    key: str, title: str, label: str, of: Iterable[SavedCall], by: Callable[[SavedCall], str]
) -> Table:
    columns = (
        Column(label, "name"),
        Column("spent", "usd", bar=True),
        Column("calls", "count"),
        Column("in", "count"),
        Column("out", "count"),
        Column("estimated", "count"),
    )
    rows = (
        (
            *(name or "(unknown)", *_sum(group)),
            *(sum(call.input_tokens for call in group), sum(call.output_tokens for call in group)),
            sum("estimated" in remarks(call) for call in group),
        )
        for name, group in _groups(of, by)
    )
    return Table(key, title, columns, _dearest(rows, 1))


def _groups(
    calls: Iterable[SavedCall], by: Callable[[SavedCall], str]
) -> Iterable[tuple[str, list[SavedCall]]]:
    found: dict[str, list[SavedCall]] = {}
    for call in calls:
        found.setdefault(by(call), []).append(call)
    return found.items()


def _sum(group: list[SavedCall]) -> tuple[int, int]:
    return sum(call.usd or 0 for call in group), len(group)


def _dearest(rows: Iterable[tuple[Cell, ...]], column: int) -> tuple[tuple[Cell, ...], ...]:
    """Sorted by an amount, the greatest first; among equals as they came."""

    def amount(row: tuple[Cell, ...]) -> float:
        value = row[column]
        return -value if isinstance(value, (int, float)) else 0

    return tuple(sorted(rows, key=amount))
