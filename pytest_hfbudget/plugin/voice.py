"""Lines to the terminal in mid-run, whatever is captured at that moment."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import pytest

from pytest_hfbudget.text import printable

# In the place of the path that pytest's reporter thinks its current line begins with.
PASSING: Any = object()


def say(config: pytest.Config, text: str, *, passing: bool = False, **markup: bool) -> None:
    """Write a line of its own; a ``passing`` one is overwritten by the next, on a terminal.

    Not a warning: under ``-W error`` a warning ends the run, and these end nothing.
    """
    text = printable(text, keep="\n")
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        sys.stderr.write(f"{text}\n")  # -p no:terminal asked for no report, not for silence
        return
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        ours = terminal.currentfspath is PASSING
        if passing and terminal.isatty:
            if not ours:
                terminal.ensure_newline()  # what pytest has written on this line stays
            terminal.rewrite(text, erase=True, **markup)
            terminal.currentfspath = PASSING  # so whoever writes next begins a line of its own
            return
        if ours:
            terminal.rewrite("", erase=True)
            terminal.write("\r")
            terminal.currentfspath = None
        terminal.ensure_newline()
        terminal.write_line(text, **markup)


def on_a_terminal(config: pytest.Config) -> bool:
    """Whether somebody watches lines change."""
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    return bool(terminal and terminal.isatty)


def can_show(text: str, encoding: str | None) -> bool:
    """Whether an output has these characters."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
