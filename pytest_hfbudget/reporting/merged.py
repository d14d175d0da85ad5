"""Several reports: those of the jobs of one run as one, and two of different runs compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pytest_hfbudget.money import change
from pytest_hfbudget.reporting import (
    REHEARSAL,
    REMARKS,
    EndpointLine,
    Report,
    SharedLine,
    TestLine,
    counted,
)
from pytest_hfbudget.reporting.bill import drift, drift_text
from pytest_hfbudget.reporting.tables import Column, Table, by_amount

MINUTE_S = 60.0
ONE_SIDED = "A test that makes no call and uses no endpoint is in no report."
# Where several jobs have run a test, the worst outcome counts.
_WORST = ("failed", "interrupted", "not run")


def merged(reports: Sequence[Report], run: str) -> Report:
    """One report of a run. What an endpoint costs by running counts once, for all jobs."""
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
        shared=_shared(reports),
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
    """From the first resume to the last pause; its price is that of each job's own minutes."""
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


def _shared(reports: Sequence[Report]) -> tuple[SharedLine, ...]:
    found: dict[str, SharedLine] = {}
    for line in (line for report in reports for line in report.shared):
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


def comparison(before: Report, after: Report) -> Iterator[Table]:
    """What two runs cost and by how much that differs: in all, and by test."""
    amounts = (Column("before", "usd"), Column("after", "usd"))
    differ = (Column("difference", "more"), Column("change", "word"))
    totals = ((one.spent, one.spent - one.uptime, one.uptime) for one in (before, after))
    in_all = (
        (name, *_change(old, new))
        for name, old, new in zip(("in all", "calls", "endpoints"), *totals, strict=True)
    )
    yield Table("totals", "", (Column("cost", "word"), *amounts, *differ), tuple(in_all))
    was, now = ({test.id: test.whole for test in one.tests} for one in (before, after))
    changed = ((test, *_change(was[test], now[test])) for test in was if test in now)
    rows = sorted((row for row in changed if row[3]), key=lambda row: -abs(row[3]))
    test = Column("test", "name")
    yield Table("changed", "Changed most", (test, *amounts, *differ), tuple(rows))
    for title, column, of, others in (("New", "after", now, was), ("Gone", "before", was, now)):
        only = ((name, nano) for name, nano in of.items() if name not in others)
        columns = (test, Column(column, "usd"))
        yield Table(title.lower(), title, columns, by_amount(only, 1), ONE_SIDED)


def compared(before: Report, after: Report) -> Iterator[str]:
    """What two runs cost, in sentences; the first one is the sum, the others what to know of it."""
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
    return {(test.id, test.whole) for test in report.tests}
