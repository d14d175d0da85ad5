"""The report as lines for a terminal; who prints them decides about colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from pytest_hfbudget.money import show
from pytest_hfbudget.reporting.report import EndpointLine, Report, SharedLine, TestLine
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.text import public_url

BAR = 24
DEAREST = 5
MOST_REFUSED = 20
NAME = 56


class Line(NamedTuple):
    """One line and how it is to be coloured: ``green``, ``yellow``, ``red`` or nothing."""

    text: str
    colour: str = ""


def header(settings: Settings, over_runs: Iterable[str] = ()) -> str | None:
    """The caps and endpoints of a run in one line; None where there is nothing to say."""
    parts = []
    if settings.session_cap is not None:
        parts.append(f"session budget {show(settings.session_cap)}")
    if settings.test_cap is not None:
        parts.append(f"test budget {show(settings.test_cap)}")
    parts += over_runs
    if settings.endpoints:
        parts.append(f"endpoints {', '.join(settings.endpoints)}")
    if settings.emulator:
        parts.append(f"rehearsal against {public_url(settings.emulator)}")
    return f"hfbudget: {'; '.join(parts)}" if parts else None


def summary(report: Report, *, blocks: bool = True, blamed: bool = False) -> Iterator[Line]:
    """The section at the end of a run.

    Args:
        blocks: whether the bar may have characters that are not ASCII.
        blamed: something was refused for which the run fails, and no test does.
    """
    yield _session(report, ("█", "░") if blocks else ("#", "."), blamed)
    yield from map(_endpoint, report.endpoints)
    yield from map(_shared, report.shared)
    yield from _tests(report)
    yield from _remarks(report)


def _tests(report: Report) -> Iterator[Line]:
    """The dearest tests, and those that were refused a call and are not in order."""
    by_cost = sorted(report.tests, key=lambda test: -test.whole)
    harmed = [test for test in by_cost[DEAREST:] if test.harmed][:MOST_REFUSED]
    told = [*by_cost[:DEAREST], *harmed]
    width = min(max((len(test.id) for test in told), default=0), NAME)
    for test in told:
        yield _test(test, width)
    if left := len(by_cost) - len(told):
        hidden = sum(test.harmed for test in by_cost[DEAREST:]) - len(harmed)
        refused = f", {hidden} of them refused" if hidden else ""
        yield Line(f"  … and {left} more tests with calls{refused}", "red" if hidden else "")


def bar(part: int, whole: int, drawn: tuple[str, str] = ("█", "░"), width: int = BAR) -> str:
    """How much of a whole is used: full only when all of it is, empty only when nothing is."""
    used, free = drawn
    if whole <= 0:
        return used * width
    filled = min(width * part // whole, width)
    if part and not filled:
        filled = 1
    return used * filled + free * (width - filled)


def _session(report: Report, drawn: tuple[str, str], blamed: bool) -> Line:
    calls = _calls(report.calls)
    calls += f", {report.replayed} replayed" if report.replayed else ""
    refused = f", {report.refused} refused" if report.refused else ""
    if report.cap is None:
        return Line(f"spent {show(report.spent)} ({calls}{refused}; no session budget)")
    harmed = blamed or report.not_run or any(test.harmed for test in report.tests)
    colour = "red" if harmed or report.spent > report.cap else "green"
    used = bar(report.spent, report.cap, drawn)
    return Line(
        f"spent {show(report.spent)} of {show(report.cap)} {used} ({calls}{refused})", colour
    )


def _test(test: TestLine, width: int) -> Line:
    name = test.id if len(test.id) <= width else "…" + test.id[-(width - 1) :]
    cap = f" of {show(test.cap)}" if test.cap is not None else ""
    replayed = f", {test.replayed} replayed" if test.replayed else ""
    refused = f", {test.refused} refused" if test.refused else ""
    uptime = f", uptime {show(test.uptime)}" if test.uptime else ""
    calls = f"{_calls(test.calls)}{replayed}{refused}"
    text = f"  {name:<{width}}  {show(test.whole)}{cap} ({calls}{uptime})"
    return Line(text, "red" if test.harmed else "")


def _shared(budget: SharedLine) -> Line:
    cap = f" of {show(budget.cap)}" if budget.cap is not None else ""
    most = f" of {budget.max_calls}" if budget.max_calls is not None else ""
    refused = f", {budget.refused} refused" if budget.refused else ""
    calls = f"{budget.calls}{most} calls" if most else _calls(budget.calls)
    name = (
        budget.name if budget.name.startswith(budget.level) else f"{budget.name} ({budget.level})"
    )
    return Line(f"  shared by {name}: {show(budget.spent)}{cap} ({calls}{refused})")


def _endpoint(endpoint: EndpointLine) -> Line:
    times = _times(endpoint)
    cost = f"{times}{endpoint.minutes} min, {show(endpoint.nano_usd)}{_unused(endpoint)}"
    if endpoint.verified:
        verdict, colour = "paused, verified", "green"
    elif endpoint.left_to:
        verdict, colour = f"left to run {endpoint.left_to}, which is using it", ""
    elif endpoint.kept:
        verdict, colour = "kept running, as it was found", ""
    else:
        verdict, colour = f"NOT VERIFIED AS PAUSED ({endpoint.state})", "red"
    note = f"; {endpoint.note}" if endpoint.note else ""
    hint = "" if endpoint.in_order else f"; run: hfbudget pause {endpoint.name}"
    return Line(f"  {endpoint.name}: {verdict}; {cost}{note}{hint}", colour)


def _unused(endpoint: EndpointLine) -> str:
    parts = {"idle": endpoint.idle, "cold start": endpoint.cold_start}
    unused = ", ".join(f"{name} {show(nano)}" for name, nano in parts.items() if nano)
    return f" of which {unused}" if unused else ""


def _times(endpoint: EndpointLine) -> str:
    if endpoint.resumed_at is None:
        return ""
    paused = f", paused {_clock(endpoint.paused_at)}" if endpoint.paused_at else ""
    return f"resumed {_clock(endpoint.resumed_at)}{paused}; "


def _clock(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s):%H:%M:%S}"


def _too_little(report: Report) -> str:
    if report.cap is None:
        return "a budget over many runs has too little left."
    if report.over_runs:
        return "the session budget, or one over many runs, has too little left; -rs says which."
    cap = show(report.cap)
    return f"the session budget of {cap} has too little left. Raise --hf-session-budget."


def not_run(report: Report) -> str:
    """Which tests were not run for want of budget, and what to do; empty where there are none."""
    if not report.not_run:
        return ""
    tests = "1 test" if report.not_run == 1 else f"{report.not_run} tests"
    return f"{tests} not run: {_too_little(report)}"


def _remarks(report: Report) -> Iterator[Line]:
    if said := not_run(report):
        yield Line(f"  {said}", "red")
    if swapped := report.swapped:
        total = sum(charge.nano_usd or 0 for charge in swapped)
        models = ", ".join(sorted({f"{c.model} instead of {c.instead_of}" for c in swapped}))
        yield Line(f"  {_calls(len(swapped))} with a fallback, {show(total)}: {models}")
    if report.unpriced:
        yield Line(f"  {_calls(report.unpriced)} without a known price, not in the sum", "yellow")
    if report.estimated:
        yield Line(
            f"  {_calls(report.estimated)} without usage, charged at an upper bound", "yellow"
        )
    for why, calls in report.unmetered:
        yield Line(f"  {_calls(calls)} could not be metered: {why}", "yellow")
    if over := report.over:
        total = sum(charge.over for charge in over)
        yield Line(
            f"  {_calls(len(over))} cost {show(total)} more than was held for it: "
            "see over_hold_usd in the JSON report; give max_seconds in its price, or a timeout",
            "red",
        )
    if outside := report.outside:
        total = sum(charge.nano_usd or 0 for charge in outside)
        places = ", ".join(sorted({charge.where or "outside of a test" for charge in outside}))
        yield Line(f"  {_calls(len(outside))} of no test, {show(total)}: {places}")


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
