"""What a job of GitHub Actions shows of a run: its summary in Markdown, a line at each refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pytest_hfbudget.money import show
from pytest_hfbudget.reporting.saved import SavedReport, refused_once
from pytest_hfbudget.reporting.tables import Cell, Column, Table, endpoints, refusals, shared, tests
from pytest_hfbudget.text import printable

TOP = 10
NAME = 120
MESSAGE = 500
# GitHub refuses a step's summary above 1 MiB, and drops all of it.
MOST_BYTES = 1 << 20
# GitHub shows ten errors of a step, and ten warnings.
ANNOTATIONS = 10
# As outcomes of tests that had refusals and dealt with them; an expected failure counts as skipped.
IN_ORDER = ("passed", "skipped")
LINE_ENDS = "\r\n"


class Place(NamedTuple):
    """Where a test is: its file from the root of the repository, and its line, counted from 1."""

    file: str
    line: int


def step_summary(report: SavedReport) -> str:
    """A run in Markdown: spent of cap, endpoints with their receipts, refusals, the top tests."""
    return "\n".join([*_head(report), *_tables(report)]) + "\n"


def notices(report: SavedReport, places: dict[str, Place], *, green: bool) -> Iterator[str]:
    """A workflow command for each of the first refusals, at the test that was refused.

    What a test was refused time and again is one refusal. It is an error where the test, or the
    run, is not in order; a warning where the code under test has dealt with it.

    Args:
        green: the run passes.
    """
    outcomes = {test.id: test.outcome for test in report.tests}
    found: dict[str, list[str]] = {"error": [], "warning": []}
    for refusal, times in refused_once(report.refusals):
        handled = green or outcomes.get(refusal.test or "") in IN_ORDER
        properties = ["title=hfbudget refused a call"]
        if place := places.get(refusal.test or ""):
            properties[:0] = [f"file={_property(place.file)}", f"line={place.line}"]
        again = f" ({times} such calls)" if times > 1 else ""
        said = _data(printable(refusal.message, keep=LINE_ENDS) + again)
        kind = "warning" if handled else "error"
        found[kind].append(f"::{kind} {','.join(properties)}::{said}")
    for commands in found.values():
        yield from commands[:ANNOTATIONS]


def _head(report: SavedReport) -> Iterator[str]:
    of = f"of {show(report.cap)} " if report.cap is not None else ""
    calls = "1 call" if report.sent == 1 else f"{report.sent:,} calls"
    yield "### hf budget"
    yield ""
    yield f"**{show(report.spent)}** {of}spent, {calls}, {report.refused:,} refused"
    if report.rehearsal:
        yield ""
        yield "A rehearsal against the emulator: nothing was paid."
    for sum_up in _remarks(report):
        yield ""
        yield sum_up


def _remarks(report: SavedReport) -> Iterator[str]:
    estimated = sum(call.estimated and not call.replayed for call in report.calls)
    unpriced = sum(call.usd is None and not call.replayed for call in report.calls)
    replayed = sum(call.replayed for call in report.calls)
    if estimated:
        yield f"{estimated:,} without usage, charged at an upper bound"
    if unpriced:
        yield f"{unpriced:,} without a known price, not in the sum"
    if replayed:
        yield f"{replayed:,} replayed, at $0"
    for why, calls in report.unmetered.items():
        yield f"{calls:,} could not be metered: {_literal(why, MESSAGE)}"


def _tables(report: SavedReport) -> Iterator[str]:
    for table in (endpoints(report), refusals(report), shared(report), tests(report)):
        if table.rows:
            yield ""
            yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    shown = table.rows[:TOP]
    yield f"#### {table.title}"
    yield ""
    yield _row(column.label for column in table.columns)
    yield _row("--:" if _is_number(column) else ":--" for column in table.columns)
    for row in shown:
        yield _row(map(_cell, row, table.columns))
    if left := len(table.rows) - len(shown):
        yield ""
        yield f"… and {left:,} more"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _is_number(column: Column) -> bool:
    return column.kind in ("usd", "count", "seconds")


def _cell(value: Cell, column: Column) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _literal(value, MESSAGE if column.kind == "text" else NAME)
    return show(int(value)) if column.kind == "usd" else f"{value:,}"


def _literal(text: str, most: int) -> str:
    """Text of others as nothing but text: whatever could be Markdown or HTML is a reference."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(map(_plain, cut))


def _plain(char: str) -> str:
    if not char.isprintable():
        return " "
    return char if char.isalnum() or char in " /." or not char.isascii() else f"&#{ord(char)};"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
