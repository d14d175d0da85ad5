"""What a run says about its cost: terminal, JSON, JUnit, header."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

TWO = """
    @pytest.mark.budget(max_usd=0.1)
    def test_pays():
        call()

    @pytest.mark.budget(max_usd=0)
    def test_is_refused():
        call()
"""


def test_the_summary_shows_spent_of_cap_and_the_most_expensive_tests(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run("--hf-session-budget=1").stdout.fnmatch_lines(
        [
            "hfbudget: session budget $1.00; rehearsal against *",
            "*= hf budget =*",
            "spent <$0.0001 of $1.00 █░* (1 call, 1 refused)",
            "  test_suite.py::test_is_refused  $0.00 of $0.00 (0 calls, 1 refused)",
            "  test_suite.py::test_pays        <$0.0001 of $0.10 (1 call)",
        ]
    )


def test_a_refusal_is_rounded_for_people_and_exact_in_the_json_report(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0.0123456)
        def test_it():
            call()
            call(limit=200_000)
    """)
    result = suite.run("--hf-report=report.json")
    result.stdout.fnmatch_lines(["*may cost up to $0.02, but only $0.01 of $0.0123456 is left *"])
    (refusal,) = suite.report()["refusals"]
    cap, spent, needed = (refusal[f"{name}_usd"] for name in ("cap", "spent", "needed"))
    assert (cap, refusal["held_usd"]) == ("0.0123456", "0")
    assert spent == suite.report()["session"]["spent_usd"]
    assert needed.startswith("0.01600")
    assert needed != "0.016"


def test_the_json_report_has_the_documented_form(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run("--hf-session-budget=1", "--hf-report=report.json")
    report = suite.report()
    parts = ["session", "tests", "shared", "calls", "refusals", "endpoints"]
    known = ["schema", "run", "session_id", "date", "rehearsal", *parts]
    assert [part for part in report if part in known] == known
    assert (report["schema"], report["rehearsal"]) == (1, True)
    documented = "spent_usd cap_usd calls refused replayed unmetered waited_s estimated_above_usd"
    assert set(report["session"]) == {*documented.split()}
    pays, refused = report["tests"]
    assert pays == {
        "id": "test_suite.py::test_pays",
        "outcome": "passed",
        "spent_usd": report["session"]["spent_usd"],
        "cap_usd": "0.1",
        "calls": 1,
        "refused": 0,
        "replayed": 0,
        "uptime_usd": "0",
    }
    assert (refused["outcome"], refused["refused"]) == ("failed", 1)
    (call,) = report["calls"]
    documented = "test task model provider input_tokens output_tokens usd price_source status"
    assert {*documented.split(), "estimated", "seconds"} <= set(call)
    assert call["usd"] == report["session"]["spent_usd"]


def test_junit_carries_the_cost_of_each_test(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run("--junitxml=junit.xml")
    tree = ElementTree.parse(suite.path / "junit.xml")
    found = {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in tree.iter("testcase")
    }
    assert float(found["test_pays"]["hfbudget.usd"] or "nan") * 10**9 == pytest.approx(suite.billed)
    assert found["test_is_refused"]["hfbudget.refused"] == "1"


def test_junit_carries_the_cost_from_workers_too(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file(TWO)
    suite.run("-n2", "--junitxml=junit.xml")
    tree = ElementTree.parse(suite.path / "junit.xml")
    assert "hfbudget.usd" in {p.get("name") for p in tree.iter("property")}


def test_the_report_is_written_after_a_ctrl_c(suite: Suite) -> None:
    suite.test_file("""
        def test_it():
            call()
            raise KeyboardInterrupt
    """)
    suite.run("--hf-report=report.json")
    assert suite.report()["session"]["calls"] == 1


def test_the_report_is_written_after_an_internal_error(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        def pytest_runtest_teardown(item):
            item.config.hook.pytest_no_such_hook()

        def pytest_runtest_logfinish():
            raise RuntimeError("a broken plugin")
    """)
    suite.test_file("def test_it(): call()")
    suite.run("--hf-report=report.json")
    assert suite.report()["session"]["calls"] == 1


def test_a_report_that_can_not_be_written_is_said(suite: Suite) -> None:
    (suite.path / "report.json").mkdir()
    suite.test_file("def test_it(): call()")
    result = suite.run("--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hfbudget: the report * could not be written: *"])


def test_calls_without_a_price_are_named_in_the_summary(suite: Suite) -> None:
    suite.test_file("def test_it(): call(model='acme/unheard-of')")
    suite.run().stdout.fnmatch_lines(["*1 call without a known price*"])


def _listen_to_ctrl_c() -> None:
    """A shell that runs tests in the background leaves SIGINT ignored for all of them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_that_is_interrupted_by_a_signal_reports(suite: Suite) -> None:
    suite.test_file("""
        def test_it():
            call()
            threading.Event().wait()
    """)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "--hf-report=report.json"],
        cwd=suite.path,
        stdout=subprocess.DEVNULL,
        preexec_fn=_listen_to_ctrl_c,
    )
    suite.emulator.wait_for(op="chat", phase="answered", timeout=30)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 2
    report = json.loads((suite.path / "report.json").read_text())
    assert report["session"]["calls"] == 1


def test_a_report_that_could_not_be_written_is_not_announced(suite: Suite) -> None:
    suite.test_file("def test_it(): call()")
    (suite.path / "taken").write_text("a file, and no folder")
    result = suite.run("--hf-session-budget=1", "--hf-report=taken/report.json")
    result.stdout.fnmatch_lines(["hfbudget: the report * could not be written: *"])
    result.stdout.no_fnmatch_line("  report: *")


def test_a_look_at_the_tests_sums_up_nothing(suite: Suite) -> None:
    suite.test_file("def test_it(): call()")
    result = suite.run("--collect-only", "--hf-session-budget=1")
    result.stdout.no_fnmatch_line("*= hf budget =*")


def test_a_daily_budget_of_which_nothing_was_spent_is_shown(real: Suite) -> None:
    real.test_file("def test_it(): pass")
    result = real.run("--hf-daily-budget=2")
    result.stdout.fnmatch_lines(["*= hf budget =*", "  daily budget $2.00 ($2.00 left)"])
