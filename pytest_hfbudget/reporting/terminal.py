"""The section "hf budget" at the end of a run: lines with the names of their colours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from pytest_hfbudget.metering.settlement import TOLD
from pytest_hfbudget.money import FOR_PEOPLE, Amounts, exact
from pytest_hfbudget.reporting import (
    ESTIMATED,
    REHEARSAL,
    UNPRICED,
    EndpointLine,
    Report,
    ScopeBudgetLine,
    TestLine,
    call_counts,
    counted,
    estimated_above,
    total,
    unmetered,
)
from pytest_hfbudget.settings import NOT_RUN, Settings
from pytest_hfbudget.text import public_url, shortened

BAR = 24
TOP = 5
MOST_REFUSED = 20
NAME = 56
LEAST_NAME = 24


class TerminalLine(NamedTuple):
    """One line and its colour: ``green``, ``yellow``, ``red``, or empty for none."""

    text: str
    colour: str = ""


def header(settings: Settings, over_runs: Iterable[str] = ()) -> str | None:
    """The caps and endpoints of a run in one line; None if it has neither."""
    parts = []
    if settings.own_cap is not None:
        parts.append(f"session budget {exact(settings.own_cap)}")
    if settings.test_cap is not None:
        parts.append(f"test budget {exact(settings.test_cap)}")
    parts += over_runs
    if settings.endpoints:
        parts.append(f"endpoints {', '.join(settings.endpoints)}")
    if settings.emulator:
        parts.append(f"rehearsal against {public_url(settings.emulator)}")
    return f"hfbudget: {'; '.join(parts)}" if parts else None


def summary(
    report: Report,
    *,
    block_characters: bool = True,
    width: int | None = None,
    usd: Amounts = FOR_PEOPLE,
) -> Iterator[TerminalLine]:
    """The lines of the section at the end of a run.

    Tests that were refused a call, or not run, come first, because the run fails for them.

    Args:
        block_characters: whether the bar may have characters that are not ASCII.
        width: columns of the terminal; None for a log, whose lines are not wrapped.
        usd: how amounts are written.
    """
    lines = (
        _session(report, ("█", "░") if block_characters else ("#", "."), usd),
        *([TerminalLine(f"  {REHEARSAL}")] if report.rehearsal else ()),
        *_tests(report, width, usd),
        *_remarks(report, usd),
    )
    for line in lines:
        yield from wrapped(line, width)


def wrapped(line: TerminalLine, width: int | None) -> Iterator[TerminalLine]:
    """A line, wrapped between words to the width of the terminal."""
    if width is None or len(line.text) <= width:
        yield line
        return
    indent = " " * (len(line.text) - len(line.text.lstrip()) + 4)
    texts = textwrap.wrap(
        line.text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (TerminalLine(text, line.colour) for text in texts)


def bar(part: int, whole: int, drawn: tuple[str, str] = ("█", "░"), width: int = BAR) -> str:
    """A bar as text. It is full only if all is used, and empty only if nothing is."""
    used, free = drawn
    if whole <= 0:
        return used * width
    filled = min(width * part // whole, width)
    if part and not filled:
        filled = 1
    return used * filled + free * (width - filled)


def name_width(names: Iterable[str], tails: Iterable[str], width: int | None) -> int:
    """The width of the column of names, so that a name and the longest tail fit on a line."""
    longest = min(max(map(len, names), default=0), NAME)
    if width is None:
        return longest
    tail = max(map(len, tails), default=0)
    return min(longest, max(width - tail - len("    "), LEAST_NAME))


def _session(report: Report, drawn: tuple[str, str], usd: Amounts) -> TerminalLine:
    spent, *cap = usd.beside(report.cap, report.spent)
    if report.cap is None:
        return TerminalLine(f"spent {spent} ({report.counts}; no session budget)")
    used = bar(report.spent, report.cap, drawn)
    # A budget that is used up is fine (green); a budget that is exceeded is an error (red).
    colour = "red" if report.spent > report.cap else "green"
    return TerminalLine(f"spent {spent} of {cap[0]} {used} ({report.counts})", colour)


def _tests(report: Report, width: int | None, usd: Amounts) -> Iterator[TerminalLine]:
    """Lines for the tests that fail the run, endpoints, shared budgets, and expensive tests."""
    by_amount = sorted(report.tests, key=lambda test: -test.charged)
    failed = [test for test in by_amount if test.unhandled_refusal or test.outcome == NOT_RUN]
    others = [test for test in by_amount if test not in failed]
    first, rest = failed[:MOST_REFUSED], others[:TOP]
    tails = {test.id: _tail(test, usd) for test in (*first, *rest)}
    names = name_width(tails, tails.values(), width)

    def row(test: TestLine, colour: str = "") -> TerminalLine:
        name = shortened(test.id, names)
        return TerminalLine(f"  {name:<{names}}  {tails[test.id]}", colour)

    if line := not_run(report):
        yield TerminalLine(f"  {line}", "red")
    for test in first:
        yield row(test, "red")
    if left := len(failed) - len(first):
        yield TerminalLine(f"  … and {counted(left, 'more test')} refused or not run", "red")
    for endpoint in report.endpoints:
        yield _endpoint(endpoint, usd)
    if report.timeline is not None and report.timeline.paid.minutes:
        yield TerminalLine(f"  {report.timeline.line}")
    for budget in report.scope_budgets:
        yield _shared(budget, usd)
    yield from map(row, rest)
    if left := len(others) - len(rest):
        yield TerminalLine(f"  … and {counted(left, 'more test')} with calls")


def _tail(test: TestLine, usd: Amounts) -> str:
    whole, *cap = usd.beside(test.cap, test.charged)
    said = "not run" if test.outcome == NOT_RUN else ""
    if said and not (test.calls or test.refused or test.charged):
        return said
    of = f" of {cap[0]}" if cap else ""
    calls = call_counts(test.calls, test.replayed, test.refused)
    parts = ", ".join(
        filter(None, (said, calls, f"uptime {usd.show(test.uptime)}" if test.uptime else ""))
    )
    return f"{whole}{of} ({parts})"


def _shared(budget: ScopeBudgetLine, usd: Amounts) -> TerminalLine:
    spent, *cap = usd.beside(budget.cap, budget.spent)
    of = f" of {cap[0]}" if cap else ""
    calls = call_counts(budget.calls, 0, budget.refused)
    most = f"; at most {counted(budget.max_calls, 'call')}" if budget.max_calls is not None else ""
    level = "" if budget.name.startswith(budget.level) else f" ({budget.level})"
    return TerminalLine(f"  shared by {budget.name}{level}: {spent}{of} ({calls}{most})")


def _endpoint(endpoint: EndpointLine, usd: Amounts) -> TerminalLine:
    idle, cold_start = endpoint.idle or 0, endpoint.cold_start or 0
    in_all, *shown = usd.beside(None, endpoint.nano_usd, idle, cold_start)
    names = {f"idle {shown[0]}": idle, f"cold start {shown[1]}": cold_start}
    unused = ", ".join(text for text, nano in names.items() if nano)
    of_which = f" of which {unused}" if unused else ""
    price = "at an unknown price" if endpoint.unpriced else f"{in_all}{of_which}"
    cost = f"{_times(endpoint)}{endpoint.minutes} min, {price}"
    colour = "green" if endpoint.verified else "" if endpoint.in_order else "red"
    name = endpoint.name
    remedy = "" if endpoint.note.endswith(f"`hfbudget pause {name}`") else endpoint.remedy
    texts = "; ".join(filter(None, (endpoint.verdict, cost, endpoint.note, remedy)))
    return TerminalLine(f"  {name}: {texts}", colour)


def _times(endpoint: EndpointLine) -> str:
    if endpoint.resumed_at is None:
        return ""
    paused = f", paused {_clock(endpoint.paused_at)}" if endpoint.paused_at else ""
    return f"resumed {_clock(endpoint.resumed_at)}{paused}; "


def _clock(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s):%H:%M:%S}"


def _why_not_run(report: Report) -> str:
    tests = {test.id for test in report.tests if test.outcome == NOT_RUN}
    unpaid = {call.test for call in report.charges if call.status == "402" and not call.replayed}
    capped = report.cap is not None or report.over_runs
    if unpaid and (tests <= unpaid or not capped):
        return (
            "the service refused the calls, because the account has no credit left. "
            "Run pytest with -rs to see the details."
        )
    if unpaid & {*tests, None}:  # a call of a fixture that tests share is of no test
        return "a budget has too little left, or the account has no credit left; -rs says which."
    return _too_little(report) if capped else "run pytest with -rs to see why."


def _too_little(report: Report) -> str:
    if report.cap is None:
        names = " or ".join(f"the {each.label}" for each in report.over_runs)
        return f"{names} has too little left; pytest -rs says more."
    if report.over_runs:
        return "the session budget, or one over many runs, has too little left; -rs says which."
    cap = exact(report.cap)
    return f"the session budget of {cap} has too little left. Raise --hf-session-budget."


def refused(report: Report) -> str:
    """The sentence on tests that failed because a budget refused a call; empty if none did."""
    names = [
        test.id for test in report.tests if test.unhandled_refusal and test.outcome == "failed"
    ]
    if not names:
        return ""
    if len(names) == 1:
        return f"a budget refused a call of 1 test: {names[0]}."
    more = f"{names[0]} and {len(names) - 1:,} more"
    return f"budgets refused calls of {len(names):,} tests: {more}."


def not_run(report: Report) -> str:
    """The sentence on tests that a budget or the service kept from running; empty if none."""
    if not report.not_run:
        return ""
    return f"{counted(report.not_run, 'test')} not run: {_why_not_run(report)}"


def _remarks(report: Report, usd: Amounts) -> Iterator[TerminalLine]:
    if swapped := report.swapped:
        models = ", ".join(sorted({f"{c.model} instead of {c.instead_of}" for c in swapped}))
        calls = counted(len(swapped), "call")
        yield TerminalLine(f"  {calls} with a fallback, {usd.show(total(swapped))}: {models}")
    for remark in (UNPRICED, ESTIMATED):
        if number := len(report.remarked(remark)):
            yield TerminalLine(f"  {counted(number, 'call')} {remark.meaning}", "yellow")
    if report.above:
        yield TerminalLine(f"  {estimated_above(report, usd)}", "yellow")
    if waited := report.waited:
        calls, seconds = counted(len(waited), "call"), sum(charge.waited for charge in waited)
        text = f"{calls} waited {seconds:,.1f} s in all until calls in flight had settled"
        yield TerminalLine(f"  {text}")
    for note in report.notes:
        yield TerminalLine(f"  {note}", "yellow")
    for why, number in report.unmetered:
        yield TerminalLine(f"  {unmetered(why, number)}", "yellow")
    if overruns := report.overruns:
        beyond = usd.show(sum(charge.over for charge in overruns))
        told = all(charge.price_source == TOLD for charge in overruns)
        hint = (
            "the provider itself says so, so correct its list price"
            if told
            else "a server has counted more tokens than before, or a call that is paid by the "
            "second took longer: give max_seconds in its price, or a timeout"
        )
        yield TerminalLine(
            f"  {counted(len(overruns), 'call')} cost {beyond} more than was held: "
            f"see over_hold_usd in the JSON report; {hint}",
            "red",
        )
    if other := report.in_other_sessions:
        calls = counted(len(other), "call")
        yield TerminalLine(
            f"  {calls}, {usd.show(total(other))}, under session ids that the tests have set"
        )
    if outside := report.outside:
        places = ", ".join(sorted({charge.where or "outside of a test" for charge in outside}))
        calls = counted(len(outside), "call")
        yield TerminalLine(f"  {calls} of no test, {usd.show(total(outside))}: {places}")
