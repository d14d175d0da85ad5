"""Lines between pytest's own: they erase nothing, and end what takes long with a word."""

from __future__ import annotations

import io
import threading

import pytest
from _pytest.terminal import TerminalReporter

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.plugin import prices
from pytest_hfbudget.plugin.rehearsal import Rehearsal
from pytest_hfbudget.plugin.voice import say


class Screen(io.StringIO):
    """A terminal of a hundred columns, as a person sees it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What is left on it: a carriage return goes back, and what follows overwrites."""
        seen = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            seen.append(shown.rstrip())
        return seen


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return Screen()


@pytest.fixture
def reporter(pytester: pytest.Pytester, screen: Screen) -> TerminalReporter:
    config = pytester.parseconfig("-p", "no:hfbudget", "-o", "console_output_style=classic")
    config.pluginmanager.unregister(name="terminalreporter")
    reporter = TerminalReporter(config, screen)
    config.pluginmanager.register(reporter, "terminalreporter")
    return reporter


def test_a_line_that_passes_erases_no_results_and_the_next_one_erases_it(
    reporter: TerminalReporter, screen: Screen, pytester: pytest.Pytester
) -> None:
    config = reporter.config
    reporter.write_fspath_result(f"{pytester.path}/test_it.py::test_a", "..")
    say(config, "endpoint a/b: initializing, 1 s", passing=True)
    say(config, "endpoint a/b: initializing, 2 s", passing=True)
    assert [line.strip() for line in screen.lines] == [
        "",
        "test_it.py ..",
        "endpoint a/b: initializing, 2 s",
    ]

    say(config, "endpoint a/b: running, 3 s")
    reporter.write_fspath_result(f"{pytester.path}/test_it.py::test_b", ".")
    said = [line.strip() for line in screen.lines if line]
    assert said == ["test_it.py ..", "endpoint a/b: running, 3 s", "test_it.py ."]


def test_a_result_after_a_line_that_passes_begins_a_line_of_its_own(
    reporter: TerminalReporter, screen: Screen, pytester: pytest.Pytester
) -> None:
    say(reporter.config, "endpoint a/b: initializing, 1 s", passing=True)
    reporter.write_fspath_result(f"{pytester.path}/test_it.py::test_a", "E")
    assert screen.lines[-1] == "test_it.py E"


def test_an_emulator_that_does_not_answer_is_one_line(free_port: int) -> None:
    url = f"http://me:secret@127.0.0.1:{free_port}"
    with pytest.raises(ConfigError, match=r"^no emulator answers at .*Start one with") as error:
        Rehearsal.start(url)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_prices_that_take_long_are_announced_and_given_up(
    reporter: TerminalReporter, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "SILENCE_S", 0.05)
    monkeypatch.setattr(prices, "MOST_S", 0.1)
    never = threading.Event()

    def read(_url: str) -> bytes:
        never.wait(10)
        return b""

    with pytest.raises(OSError, match="no answer within"):
        prices._in_time(reporter.config, read, "http://127.0.0.1/router")
    never.set()
    assert "hfbudget: reading the prices of http://127.0.0.1/router …" in screen.lines
