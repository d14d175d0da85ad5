"""Reports in CI: several jobs as one report, two runs compared, and what GitHub shows.

GitHub shows a step summary, a comment on a pull request, and an annotation at each refusal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from pytest_hfbudget.money import beside, change
from pytest_hfbudget.reporting import (
    IN_ORDER,
    REHEARSAL,
    REMARKS,
    EndpointLine,
    Report,
    ScopeBudgetLine,
    TestLine,
    counted,
    distinct,
    estimated_above,
    unmetered,
)
from pytest_hfbudget.reporting.bill import drift, drift_text
from pytest_hfbudget.reporting.tables import (
    Cell,
    Column,
    Table,
    by_amount,
    endpoints,
    refusals,
    scope_budgets,
    tests,
)
from pytest_hfbudget.text import printable

# --- several jobs as one

MINUTE_S = 60.0
ONE_SIDED = "A test that makes no call and uses no endpoint is in no report."
# If several jobs have run a test, the worst outcome counts; the worst is first.
_WORST = ("failed", "interrupted", "not run")


def merged(reports: Sequence[Report], run: str) -> Report:
    """Merge the reports of a run's jobs. An endpoint's uptime counts once for all jobs."""
    endpoints = tuple(
        _endpoint([one for report in reports for one in report.endpoints if one.name == name])
        for name in dict.fromkeys(one.name for report in reports for one in report.endpoints)
    )
    calls_alone = sum(report.spent - report.uptime for report in reports)
    tests: dict[str, TestLine] = {}
    for test in (test for report in reports for test in report.tests):
        tests[test.id] = _both(tests[test.id], test) if test.id in tests else test
    return Report(
        spent=calls_alone + sum(one.nano_usd for one in endpoints),
        cap=None,
        calls=sum(report.calls for report in reports),
        refused=sum(report.refused for report in reports),
        tests=tuple(tests.values()),
        charges=tuple(charge for report in reports for charge in report.charges),
        refusals=tuple(refusal for report in reports for refusal in report.refusals),
        endpoints=endpoints,
        run=run,
        project=reports[0].project,
        date=max(report.date for report in reports),
        over_runs=max(reports, key=lambda report: report.date).over_runs,
        unmetered=_added(report.unmetered for report in reports),
        scope_budgets=_scope_budgets(reports),
    )


def _both(one: TestLine, other: TestLine) -> TestLine:
    outcomes = (one.outcome, other.outcome)
    worst = next((word for word in _WORST if word in outcomes), one.outcome)
    return replace(
        one,
        outcome=worst,
        spent=one.spent + other.spent,
        calls=one.calls + other.calls,
        refused=one.refused + other.refused,
        replayed=one.replayed + other.replayed,
        uptime=one.uptime + other.uptime,
    )


def _endpoint(lines: Sequence[EndpointLine]) -> EndpointLine:
    """One endpoint for all jobs, from the first resume to the last pause.

    Its price per minute is that of the job with the most minutes.
    """
    last = max(lines, key=lambda one: (one.verified, one.paused_at or 0.0))
    starts = [one.resumed_at for one in lines if one.resumed_at is not None]
    ends = [one.paused_at for one in lines if one.paused_at is not None]
    span = math.ceil((max(ends) - min(starts)) / MINUTE_S) if starts and ends else 0
    longest = max(lines, key=lambda one: one.minutes)
    minutes = max(longest.minutes, span)
    nano_usd = minutes * longest.nano_usd // longest.minutes if longest.minutes else 0
    return replace(
        last,
        minutes=minutes,
        nano_usd=nano_usd,
        resumed=any(one.resumed for one in lines),
        resumed_at=min(starts, default=None),
        paused_at=max(ends, default=None),
        shares=_added(one.shares for one in lines),
        idle=None,
        cold_start=None,
    )


def _added(each: Iterable[Iterable[tuple[str, int]]]) -> tuple[tuple[str, int], ...]:
    sums: dict[str, int] = {}
    for name, number in (pair for pairs in each for pair in pairs):
        sums[name] = sums.get(name, 0) + number
    return tuple(sums.items())


def _scope_budgets(reports: Sequence[Report]) -> tuple[ScopeBudgetLine, ...]:
    found: dict[str, ScopeBudgetLine] = {}
    for line in (line for report in reports for line in report.scope_budgets):
        known = found.get(line.name)
        found[line.name] = (
            line
            if known is None
            else replace(
                known,
                spent=known.spent + line.spent,
                calls=known.calls + line.calls,
                refused=known.refused + line.refused,
            )
        )
    return tuple(found.values())


# --- two runs compared


def comparison(before: Report, after: Report) -> Iterator[Table]:
    """Tables of what two runs cost, and of the differences: in all, and by test."""
    amounts = (Column("before", "usd"), Column("after", "usd"))
    differ = (Column("difference", "more"), Column("change", "word"))
    totals = ((one.spent, one.spent - one.uptime, one.uptime) for one in (before, after))
    in_all = (
        (name, *_change(old, new))
        for name, old, new in zip(("in all", "calls", "endpoints"), *totals, strict=True)
    )
    yield Table("totals", "", (Column("cost", "word"), *amounts, *differ), tuple(in_all))
    was, now = ({test.id: test.charged for test in one.tests} for one in (before, after))
    changed = ((test, *_change(was[test], now[test])) for test in was if test in now)
    rows = sorted((row for row in changed if row[3]), key=lambda row: -abs(row[3]))
    test = Column("test", "name")
    yield Table("changed", "Changed most", (test, *amounts, *differ), tuple(rows))
    for title, column, of, others in (("New", "after", now, was), ("Gone", "before", was, now)):
        only = ((name, nano) for name, nano in of.items() if name not in others)
        columns = (test, Column(column, "usd"))
        yield Table(title.lower(), title, columns, by_amount(only, 1), ONE_SIDED)


def compared(before: Report, after: Report) -> Iterator[str]:
    """Sentences on what two runs cost: first the sum, then remarks on it."""
    *_, more, percent = _change(before.spent, after.spent)
    old, new, differ = change(before.spent, after.spent)
    differ += f" ({percent})" if percent else ""
    yield f"{new}, before {old}: {differ}" if more else f"{new}, as before"
    yield f"{after.counts}; before {before.counts}"
    if before.rehearsal and after.rehearsal:
        yield f"Both are rehearsals: {REHEARSAL.partition(': ')[2]}."
    elif before.rehearsal or after.rehearsal:
        yield "One of the two is a rehearsal, with the prices of the emulator: they do not compare."
    counts = {
        "not run, so their costs are missing": [one.not_run for one in (before, after)],
        **{one.meaning: [len(run.remarked(one)) for run in (before, after)] for one in REMARKS},
    }
    for meaning, (earlier, later) in counts.items():
        if earlier or later:
            what = "test" if meaning.startswith("not run") else "call"
            yield f"{counted(later, what)} {meaning}; before {earlier:,}"
    if same := len(_costs(before) & _costs(after)):
        yield f"{counted(same, 'test')} {'costs' if same == 1 else 'cost'} the same"


def _change(before: int, after: int) -> tuple[int, int, int, str]:
    return before, after, after - before, drift_text(drift(before, after))


def _costs(report: Report) -> set[tuple[str, int]]:
    return {(test.id, test.charged) for test in report.tests}


# --- on GitHub

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


class SourceLocation(NamedTuple):
    """The place of a test: its file relative to the repository, and its line from 1."""

    file: str
    line: int


def step_summary(report: Report) -> str:
    """The Markdown of a run: spent of cap, endpoints, refusals, the most expensive tests."""
    return "\n".join([*_head(report), *_tables(report)]) + "\n"


def comparison_comment(before: Report, after: Report) -> str:
    """The Markdown that compares the costs of two runs: totals first, then the tests."""
    total, *remarks = compared(before, after)
    lines = [MARKER, "### What the tests cost", "", f"**{total}**"]
    for remark in remarks:
        lines += ["", remark]
    for table in comparison(before, after):
        if table.rows:
            lines += ["", *_table(table)]
            lines += ["", table.note] if table.note else []
    return "\n".join(lines) + "\n"


def notices(report: Report, places: dict[str, SourceLocation], *, green: bool) -> Iterator[str]:
    """A workflow command for each of the first refusals, at the line of the test that called.

    Equal refusals of one test make one command. It is a warning if the run passes, or the test has
    handled the refusal; else it is an error.

    Args:
        places: the place of each test, by node id.
        green: whether the run passes.
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
    for table in (endpoints(report), refusals(report), scope_budgets(report), tests(report)):
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
