"""The reports of the jobs of one run, as one report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_hfbudget.reporting.model import EndpointLine, Report, SharedLine, TestLine

MINUTE_S = 60.0
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
