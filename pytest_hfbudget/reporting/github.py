"""What a GitHub Actions job shows of a run: a summary in Markdown, and a line at each refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pytest_hfbudget.money import beside
from pytest_hfbudget.reporting import (
    IN_ORDER,
    REHEARSAL,
    REMARKS,
    Report,
    counted,
    distinct,
    estimated_above,
    unmetered,
)
from pytest_hfbudget.reporting.merged import compared, comparison
from pytest_hfbudget.reporting.tables import (
    Cell,
    Column,
    Table,
    endpoints,
    refusals,
    shared,
    tests,
)
from pytest_hfbudget.text import printable

TOP = 10
NAME = 120
MESSAGE = 500
# GitHub refuses a step's summary above 1 MiB, and drops all of it.
MOST_BYTES = 1 << 20
# The first line of a comment, by which a job finds the one that it has written before.
MARKER = "<!-- pytest-hfbudget: what the tests cost -->"
# GitHub shows ten errors of a step, and ten warnings.
ANNOTATIONS = 10
LINE_ENDS = "\r\n"


class RefusalPlace(NamedTuple):
    """Where a test is: its file relative to the repository, and its line, counted from 1."""

    file: str
    line: int


def step_summary(report: Report) -> str:
    """A run in Markdown: spent of cap, endpoints, refusals, the most expensive tests."""
    return "\n".join([*_head(report), *_tables(report)]) + "\n"


def comparison_comment(before: Report, after: Report) -> str:
    """What a change does to the cost of the tests, in Markdown: totals first, then the tests."""
    total, *remarks = compared(before, after)
    lines = [MARKER, "### What the tests cost", "", f"**{total}**"]
    for remark in remarks:
        lines += ["", remark]
    for table in comparison(before, after):
        if table.rows:
            lines += ["", *_table(table)]
            lines += ["", table.note] if table.note else []
    return "\n".join(lines) + "\n"


def notices(report: Report, places: dict[str, RefusalPlace], *, green: bool) -> Iterator[str]:
    """A workflow command for each of the first refusals, at the line of the test that called.

    Equal refusals to one test are one command. It is an error where the test or the run fails, and
    a warning where the code under test has handled the refusal.

    Args:
        green: the run passes.
    """
    outcomes = {test.id: test.outcome for test in report.tests}
    found: dict[str, list[str]] = {"error": [], "warning": []}
    for refusal, times in distinct(report.refusals):
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


def _head(report: Report) -> Iterator[str]:
    spent, *cap = beside(report.cap, report.spent)
    of = f"of {cap[0]} " if cap else ""
    yield "### hf budget"
    yield ""
    yield f"**{spent}** {of}spent, {report.counts}"
    if report.rehearsal:
        yield ""
        yield f"{REHEARSAL.capitalize()}."
    for remark in _remarks(report):
        yield ""
        yield remark


def _remarks(report: Report) -> Iterator[str]:
    for remark in REMARKS:
        if calls := len(report.remarked(remark)):
            yield f"{counted(calls, 'call')} {remark.meaning}"
    if report.above:
        yield estimated_above(report)
    yield from (_literal(note, MESSAGE) for note in report.notes)
    for why, calls in report.unmetered:
        yield unmetered(_literal(why, MESSAGE), calls)


def _tables(report: Report) -> Iterator[str]:
    for table in (endpoints(report), refusals(report), shared(report), tests(report)):
        if table.rows:
            yield ""
            yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    shown = table.rows[:TOP]
    if table.title:
        yield f"#### {table.title}"
        yield ""
    yield _row(column.label for column in table.columns)
    yield _row("--:" if column.is_number else ":--" for column in table.columns)
    for row in shown:
        texts = table.texts(row)
        yield _row(map(_cell, row, table.columns, texts))
    if left := len(table.rows) - len(shown):
        yield ""
        yield f"… and {left:,} more"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Cell, column: Column, text: str) -> str:
    if isinstance(value, str):
        return _literal(value, MESSAGE if column.kind == "text" else NAME)
    return text


def _literal(text: str, most: int) -> str:
    """Text in which every character that Markdown or HTML could interpret is a reference."""
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
