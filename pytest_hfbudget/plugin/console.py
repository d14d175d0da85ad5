"""Writes lines to the terminal during the run, also while pytest captures the output."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from pytest_hfbudget.money import Amounts, parse_usd
from pytest_hfbudget.text import printable

# After this many seconds of silence a person wants to know what the run waits for.
SILENCE_S = 2.0
# The verbosity (-vv) from which amounts are written to the last digit.
EXACT_FROM = 2
# Put into the reporter's `currentfspath` (the path of its current line) during a transient line.
TRANSIENT: Any = object()


def say(config: pytest.Config, text: str, *, transient: bool = False, **markup: bool) -> None:
    """Write a line of its own. On a terminal, the next line overwrites a ``transient`` one.

    It is not a Python warning, because ``-W error`` turns a warning into a failure.
    """
    text = printable(text, keep="\n")
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        sys.stderr.write(f"{text}\n")  # -p no:terminal asked for no report, not for silence
        return
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        if transient and terminal.isatty:
            if terminal.currentfspath is not TRANSIENT:
                _end_line(config, terminal)  # what pytest has written on this line stays
            if not config.pluginmanager.has_plugin(EraseBeforeResult.name):
                config.pluginmanager.register(EraseBeforeResult(terminal), EraseBeforeResult.name)
            terminal.rewrite(text, erase=True, **markup)
            terminal.currentfspath = TRANSIENT  # so that pytest's next result begins a new line
            return
        if not _erase(terminal):
            _end_line(config, terminal)
        for line in fitted(config, text):
            terminal.write_line(line, **markup)


def _erase(terminal: Any) -> bool:
    """Erase the transient line, if the terminal shows one; returns whether it did."""
    if terminal.currentfspath is not TRANSIENT:
        return False
    terminal.rewrite("", erase=True)
    terminal.write("\r")
    terminal.currentfspath = None
    return True


class EraseBeforeResult:
    """Erases a transient line before pytest writes a result behind it, as with -q and xdist."""

    name = "hfbudget-erase-before-result"

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Free the line for the result."""
        _erase(self._terminal)


def _end_line(config: pytest.Config, terminal: Any) -> None:
    terminal.ensure_newline()
    writer = config.get_terminal_writer()
    if writer.width_of_current_line:  # with -q and under xdist pytest keeps no path for its dots
        writer.line()


def fitted(config: pytest.Config, text: str) -> list[str]:
    """The lines of a text, wrapped between words to the width of the terminal."""
    width, lines = columns(config), text.splitlines()
    if width is None or all(len(line) <= width for line in lines):
        return lines
    from pytest_hfbudget.reporting.terminal import TerminalLine, wrapped

    return [part.text for line in lines for part in wrapped(TerminalLine(line), width)]


@contextmanager
def announced(config: pytest.Config, text: str, after_s: float = SILENCE_S) -> Iterator[None]:
    """Say what the run waits for, once that takes longer than ``after_s``."""
    timer = threading.Timer(after_s, say, (config, text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def on_a_terminal(config: pytest.Config) -> bool:
    """Whether the output is a terminal, where a line can be overwritten."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    return bool(terminal and terminal.isatty)


def columns(config: pytest.Config) -> int | None:
    """The width of the terminal, or COLUMNS; None if the output is a file without COLUMNS."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or not (terminal.isatty or os.environ.get("COLUMNS")):
        return None
    return config.get_terminal_writer().fullwidth


def amounts(config: pytest.Config) -> Amounts:
    """How this run writes amounts: rounded, or to the last digit from -vv on."""
    return Amounts(to_the_last=config.get_verbosity() >= EXACT_FROM)


def can_show(text: str, encoding: str | None) -> bool:
    """Whether an encoding has all characters of a text."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


Status = tuple[str, str, Any]


class CostOnLine:
    """Adds the cost of a test to its result line (``PASSED [$0.01]``). Registered with ``-v``.

    pytest also asks for the word of a result in the short summary, where tools expect
    ``FAILED path``. So the cost is added only while a report is being logged.
    """

    def __init__(self, note_cost: Callable[[pytest.Item], None], usd: Amounts) -> None:
        """``note_cost`` writes what a test has cost so far into its user properties."""
        self._note_cost, self._usd = note_cost, usd
        self._logged: pytest.TestReport | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note the cost so far, because pytest writes the line before the teardown."""
        if call.when != "teardown":
            self._note_cost(item)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(
        self, report: pytest.TestReport
    ) -> Generator[None, object, object]:
        """Remember which report the terminal is writing."""
        self._logged = report
        try:
            return (yield)
        finally:
            self._logged = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> Generator[None, Status, Status]:
        """Add the cost to the result word of a test that has cost something."""
        status = yield
        if report is not self._logged or not (cost := self._cost(report)):
            return status
        category, letter, word = status
        if isinstance(word, str):
            return category, letter, f"{word} {cost}" if word else word
        text, *markup = word
        return category, letter, (f"{text} {cost}", *markup)

    def _cost(self, report: pytest.TestReport) -> str:
        usd = dict(report.user_properties).get("hfbudget.usd", "0")
        return f"[{self._usd.show(parse_usd(usd))}]" if usd != "0" else ""
