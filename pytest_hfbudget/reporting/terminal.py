"""The report as lines for a terminal, each with the name of its colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from pytest_hfbudget.metering.settlement import TOLD
from pytest_hfbudget.money import show
from pytest_hfbudget.reporting.model import (
    ESTIMATED,
    UNPRICED,
    EndpointLine,
    Report,
    SharedLine,
    TestLine,
    call_counts,
    counted,
    estimated_above,
    total,
    unmetered,
)
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.text import public_url

BAR = 24
TOP = 5
MOST_REFUSED = 20
NAME = 56


class TerminalLine(NamedTuple):
    """One line and its colour: ``green``, ``yellow``, ``red``, or empty for none."""

    text: str
    colour: str = ""


def header(settings: Settings, over_runs: Iterable[str] = ()) -> str | None:
    """The caps and endpoints of a run in one line; None where it has neither."""
    parts = []
    if settings.own_cap is not None:
        parts.append(f"session budget {show(settings.own_cap)}")
    if settings.test_cap is not None:
        parts.append(f"test budget {show(settings.test_cap)}")
    parts += over_runs
    if settings.endpoints:
        parts.append(f"endpoints {', '.join(settings.endpoints)}")
    if settings.emulator:
        parts.append(f"rehearsal against {public_url(settings.emulator)}")
    return f"hfbudget: {'; '.join(parts)}" if parts else None


def summary(report: Report, *, blocks: bool = True, blamed: bool = False) -> Iterator[TerminalLine]:
    """The section at the end of a run.

    Args:
        blocks: whether the bar may have characters that are not ASCII.
        blamed: a refusal outside of every test fails the run.
    """
    yield _session(report, ("█", "░") if blocks else ("#", "."), blamed)
    yield from map(_endpoint, report.endpoints)
    if report.timeline is not None and report.timeline.paid.minutes:
        yield TerminalLine(f"  {report.timeline.line}")
    yield from map(_shared, report.shared)
    yield from _tests(report)
    yield from _remarks(report)


def shortened(name: str, width: int) -> str:
    """The end of a name, if it is longer than ``width``."""
    return name if len(name) <= width else "…" + name[-(width - 1) :]


def bar(part: int, whole: int, drawn: tuple[str, str] = ("█", "░"), width: int = BAR) -> str:
    """A bar that is full only when all is used, and empty only when nothing is."""
    used, free = drawn
    if whole <= 0:
        return used * width
    filled = min(width * part // whole, width)
    if part and not filled:
        filled = 1
    return used * filled + free * (width - filled)


def _session(report: Report, drawn: tuple[str, str], blamed: bool) -> TerminalLine:
    if report.cap is None:
        return TerminalLine(f"spent {show(report.spent)} ({report.counts}; no session budget)")
    harmed = blamed or report.not_run or any(test.harmed for test in report.tests)
    colour = "red" if harmed or report.spent > report.cap else "green"
    used = bar(report.spent, report.cap, drawn)
    return TerminalLine(
        f"spent {show(report.spent)} of {show(report.cap)} {used} ({report.counts})", colour
    )


def _tests(report: Report) -> Iterator[TerminalLine]:
    """The most expensive tests, and those that a refusal harmed."""
    by_amount = sorted(report.tests, key=lambda test: -test.whole)
    harmed = [test for test in by_amount[TOP:] if test.harmed]
    shown = [*by_amount[:TOP], *harmed[:MOST_REFUSED]]
    width = min(max((len(test.id) for test in shown), default=0), NAME)
    for test in shown:
        yield _test(test, width)
    if left := len(by_amount) - len(shown):
        hidden = len(harmed[MOST_REFUSED:])
        refused = f", {hidden} of them refused" if hidden else ""
        colour = "red" if hidden else ""
        yield TerminalLine(f"  … and {left} more tests with calls{refused}", colour)


def _test(test: TestLine, width: int) -> TerminalLine:
    cap = f" of {show(test.cap)}" if test.cap is not None else ""
    uptime = f", uptime {show(test.uptime)}" if test.uptime else ""
    calls = call_counts(test.calls, test.replayed, test.refused)
    text = f"  {shortened(test.id, width):<{width}}  {show(test.whole)}{cap} ({calls}{uptime})"
    return TerminalLine(text, "red" if test.harmed else "")


def _shared(budget: SharedLine) -> TerminalLine:
    cap = f" of {show(budget.cap)}" if budget.cap is not None else ""
    calls = call_counts(budget.calls, 0, budget.refused)
    most = f"; at most {counted(budget.max_calls, 'call')}" if budget.max_calls is not None else ""
    level = "" if budget.name.startswith(budget.level) else f" ({budget.level})"
    text = f"  shared by {budget.name}{level}: {show(budget.spent)}{cap} ({calls}{most})"
    return TerminalLine(text)


def _endpoint(endpoint: EndpointLine) -> TerminalLine:
    times = _times(endpoint)
    cost = f"{times}{endpoint.minutes} min, {show(endpoint.nano_usd)}{_unused(endpoint)}"
    colour = "green" if endpoint.verified else "" if endpoint.in_order else "red"
    parts = "; ".join(filter(None, (endpoint.verdict, cost, endpoint.note, endpoint.remedy)))
    return TerminalLine(f"  {endpoint.name}: {parts}", colour)


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
    """How many tests were not run for want of budget, and what to do; empty where none was."""
    if not report.not_run:
        return ""
    return f"{counted(report.not_run, 'test')} not run: {_too_little(report)}"


def _remarks(report: Report) -> Iterator[TerminalLine]:
    if line := not_run(report):
        yield TerminalLine(f"  {line}", "red")
    if swapped := report.swapped:
        models = ", ".join(sorted({f"{c.model} instead of {c.instead_of}" for c in swapped}))
        calls = counted(len(swapped), "call")
        yield TerminalLine(f"  {calls} with a fallback, {show(total(swapped))}: {models}")
    for remark in (UNPRICED, ESTIMATED):
        if number := len(report.remarked(remark)):
            yield TerminalLine(f"  {counted(number, 'call')} {remark.meaning}", "yellow")
    if report.above:
        yield TerminalLine(f"  {estimated_above(report)}", "yellow")
    if waited := report.waited:
        calls, seconds = counted(len(waited), "call"), sum(charge.waited for charge in waited)
        text = f"{calls} waited {seconds:,.1f} s in all until calls in flight had settled"
        yield TerminalLine(f"  {text}")
    for note in report.notes:
        yield TerminalLine(f"  {note}", "yellow")
    for why, number in report.unmetered:
        yield TerminalLine(f"  {unmetered(why, number)}", "yellow")
    if over := report.over:
        beyond = show(sum(charge.over for charge in over))
        told = all(charge.price_source == TOLD for charge in over)
        hint = (
            "the provider itself says so, so correct its list price"
            if told
            else "give max_seconds in its price, or a timeout"
        )
        yield TerminalLine(
            f"  {counted(len(over), 'call')} cost {beyond} more than was held for it: "
            f"see over_hold_usd in the JSON report; {hint}",
            "red",
        )
    if other := report.in_other_sessions:
        calls = counted(len(other), "call")
        yield TerminalLine(
            f"  {calls}, {show(total(other))}, under session ids that the tests have set"
        )
    if outside := report.outside:
        places = ", ".join(sorted({charge.where or "outside of a test" for charge in outside}))
        calls = counted(len(outside), "call")
        yield TerminalLine(f"  {calls} of no test, {show(total(outside))}: {places}")
