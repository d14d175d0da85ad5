"""Lines between pytest's own: they erase nothing, and end what takes long with a word."""

from __future__ import annotations

import io
import os
import socket
import threading
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from plugin_suite import Suite

from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.plugin.price_sources import PriceTimeouts, refresh
from pytest_hfbudget.settings import Settings


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
    config = pytester.parseconfig(
        "-p", "no:hfbudget", "-p", "no:subtests", "-o", "console_output_style=classic"
    )
    config.pluginmanager.unregister(name="terminalreporter")
    reporter = TerminalReporter(config, screen)
    config.pluginmanager.register(reporter, "terminalreporter")
    return reporter


def test_a_line_that_passes_erases_no_results_and_the_next_one_erases_it(
    reporter: TerminalReporter, screen: Screen, pytester: pytest.Pytester
) -> None:
    config = reporter.config
    reporter.write_fspath_result(f"{pytester.path}/test_it.py::test_a", "..")
    say(config, "endpoint a/b: initializing, 1 s", transient=True)
    say(config, "endpoint a/b: initializing, 2 s", transient=True)
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
    say(reporter.config, "endpoint a/b: initializing, 1 s", transient=True)
    reporter.write_fspath_result(f"{pytester.path}/test_it.py::test_a", "E")
    assert screen.lines[-1] == "test_it.py E"


def test_a_quiet_result_takes_the_place_of_a_line_that_passes(
    reporter: TerminalReporter, screen: Screen
) -> None:
    config = reporter.config
    config.option.verbose = -1
    passed = pytest.TestReport(
        "test_it.py::test_a", ("test_it.py", 1, ""), {}, "passed", None, "call"
    )
    say(config, "endpoint a/b: initializing, 1 s", transient=True)
    config.hook.pytest_runtest_logreport(report=passed)
    say(config, "endpoint a/b: initializing, 2 s", transient=True)
    say(config, "endpoint a/b: running, 3 s")
    assert [line for line in screen.lines if line] == [".", "endpoint a/b: running, 3 s"]


def test_an_emulator_that_does_not_answer_is_one_line(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    suite.test_file("def test_it():\n    call()\n")
    monkeypatch.setenv("HFBUDGET_EMULATOR", f"http://me:secret@127.0.0.1:{port}")
    result = suite.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in result.errlines if line]) == 1
    said = f"ERROR: HFBUDGET_EMULATOR=http://127.0.0.1:{port}: no emulator answers there (*"
    result.stderr.fnmatch_lines([said])
    result.stderr.no_fnmatch_line("*secret*")


def test_a_read_only_state_folder_is_one_sentence_for_a_test(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint): pass
    """)
    Path(os.environ["HFBUDGET_STATE_DIR"]).write_text("a file, and no folder")
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the journal of leases can't be written (*"])
    result.stdout.no_fnmatch_line("*exception*")
    assert len(result.outlines) < 20


def test_prices_that_take_long_are_announced_and_given_up(
    reporter: TerminalReporter, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: over.wait(30))
    router = Settings(router="http://router.invalid/v1")
    timeouts = PriceTimeouts(most_s=0.2, silence_s=0.05)
    assert refresh(reporter.config, router, needed=True, timeouts=timeouts) is None
    over.set()
    said = " ".join(" ".join(screen.lines).split())
    assert "hfbudget: reading the prices of http://router.invalid/v1 …" in said
    assert "(no answer within 0.2 s); no prices were read before" in said


def test_endpoints_that_take_long_to_look_up_are_announced(suite: Suite) -> None:
    suite.emulator.add_fault(op="get", delay=2.5, times=1)
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass
    """)
    result = suite.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hfbudget: looking up acme/llm …"])
