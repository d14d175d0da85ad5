"""Runs of one project at real processes, with a budget over all of them; the invoice decides.

They are led to the emulator by its addresses: what is only a rehearsal counts nowhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lean_pytest import lean
from plugin_suite import Suite

from pytest_hfbudget.money import parse_usd

pytestmark = pytest.mark.slow

MANY = """
    @pytest.mark.parametrize("n", range(20))
    def test_it(n):
        call()
"""
CAP = 25_000  # nano-USD: a call costs 1,500 and holds 20,250 while it is in flight


def start(suite: Suite, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=suite.path,
        env={**os.environ, **lean(options)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_second_run_has_what_the_first_one_has_left(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    first = real.run("--hf-daily-budget=1")
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines(["hfbudget: daily budget $1.00 ($1.00 left)"])
    spent = real.billed
    second = real.run(f"--hf-daily-budget=0.{spent:09}")
    second.assert_outcomes(skipped=1)
    assert second.ret == pytest.ExitCode.TESTS_FAILED
    second.stdout.fnmatch_lines(
        [
            "hfbudget: daily budget $* ($0.00 left)",
            "  1 test not run: the daily budget has too little left*",
        ]
    )
    third = real.run(f"--hf-daily-budget=0.{spent:09}", "-rs")
    third.stdout.fnmatch_lines(["SKIPPED*not run: daily budget (the next one begins *"])
    last = real.run(f"--hf-daily-budget=0.{spent:09}", "--hf-on-exhausted=fail")
    last.assert_outcomes(failed=1)
    last.stdout.fnmatch_lines(["*daily budget (the next one begins *"])
    assert (real.sent, real.billed) == (1, spent)


def test_two_runs_at_the_same_time_stay_below_one_cap(real: Suite) -> None:
    real.test_file(MANY)
    both = [start(real, "--hf-daily-budget=0.000025", "--tb=line") for _ in range(2)]
    said = [run.communicate(timeout=120)[0] for run in both]
    assert 0 < real.billed <= CAP
    assert 0 < real.sent < 40
    assert all("the daily budget has too little left" in text for text in said)


def test_workers_spend_from_it_too(real: Suite) -> None:
    pytest.importorskip("xdist")
    real.test_file(MANY)
    result = real.run("-n2", "--hf-daily-budget=0.000025")
    assert real.sent == result.parseoutcomes()["passed"] < 20
    assert 0 < real.billed <= CAP
    third = real.run("--hf-daily-budget=0.000025", "-k", "0-")
    assert "passed" not in third.parseoutcomes()


def test_what_a_killed_run_had_sent_and_held_is_not_forgotten(real: Suite) -> None:
    real.test_file("""
        def test_it():
            call()
            call(limit=1000)
    """)
    real.emulator.add_fault("chat", skip=1, hang=60)
    process = start(real, "--hf-daily-budget=1")
    real.emulator.wait_for(op="chat", phase="answered", timeout=60)
    after = real.emulator.log(op="chat")[0]["seq"]
    real.emulator.wait_for(op="chat", phase="arrived", after=after, timeout=60)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    billed = real.billed
    real.test_file("def test_it(): pass\n")
    lines = real.run("--hf-daily-budget=1").stdout.lines
    (line,) = (line for line in lines if line.startswith("hfbudget: daily"))
    left = parse_usd(line.partition("($")[2].partition(" left")[0])
    most = 1000 * 80  # of what the second call may write, at $0.08 per 1M tokens
    assert 10**9 - left >= billed + most


def test_the_uptime_of_endpoints_counts(real: Suite) -> None:
    real.emulator.add_endpoint("acme/llm")
    real.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass
    """)
    real.run("--hf-daily-budget=0.0006").assert_outcomes(passed=1)
    second = real.run("--hf-daily-budget=0.0006", "--hf-on-exhausted=fail")
    said = (
        "*daily budget (the next one begins *): acme/llm: its first minute costs $*, but only "
        "<$0.0001 of $0.0006 is left. The endpoint was not resumed. Raise --hf-daily-budget.*"
    )
    second.stdout.fnmatch_lines([said])
    assert len(real.requests("resume")) == 1
    assert real.emulator.invoice()["total_nano_usd"] <= 600_000


@pytest.mark.slow
def test_the_endpoints_of_two_runs_stop_before_a_minute_that_breaks_the_cap(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.emulator.configure(billing_minute_s=1)
    monkeypatch.setenv("HFBUDGET_BILLING_MINUTE", "1")
    for name in ("one", "other"):
        real.emulator.add_endpoint(f"acme/{name}")
        real.test_file(
            f"""
            @pytest.mark.hf_endpoint("acme/{name}")
            def test_it(hf_endpoint):
                threading.Event().wait(5)
            """,
            f"test_{name}.py",
        )
    both = [start(real, "--hf-daily-budget=0.003", f"test_{name}.py") for name in ("one", "other")]
    for run in both:
        run.communicate(timeout=120)
    assert len(real.requests("resume")) == 2
    first_minutes = 2 * 550_000  # a slow machine gets little further
    assert first_minutes < real.emulator.invoice()["total_nano_usd"] <= 3_000_000


def test_checkouts_share_a_budget_by_the_name_of_their_project(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFBUDGET_DAILY", "0.000021")
    monkeypatch.setenv("HFBUDGET_LOG_DAYS", "0")  # the second run does not know what the call holds
    real.test_file("def test_it():\n    call()\n")
    for name in ("one", "other"):
        folder = real.path / name
        folder.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\nhf_project = ours\n")
        (folder / "test_suite.py").write_text((real.path / "test_suite.py").read_text())
    real.run("--rootdir=one", "-c", "one/pytest.ini", "one").assert_outcomes(passed=1)
    real.run("--rootdir=other", "-c", "other/pytest.ini", "other").assert_outcomes(skipped=1)
    assert real.sent == 1


def test_a_rehearsal_keeps_to_the_cap_and_counts_nowhere(suite: Suite) -> None:
    suite.test_file(MANY)
    for _ in range(2):
        result = suite.run("--hf-daily-budget=0.000025")
        assert 0 < result.parseoutcomes()["passed"] < 20
    assert not list(Path(os.environ["HFBUDGET_STATE_DIR"]).rglob("*.sqlite3"))


def test_a_store_that_can_not_be_used_is_one_line_before_anything_is_sent(real: Suite) -> None:
    state = Path(os.environ["HFBUDGET_STATE_DIR"])
    state.mkdir(parents=True)
    (state / "budgets.sqlite3").write_text("no database at all " * 100)
    real.test_file("def test_it():\n    call()\n")
    result = real.run("--hf-daily-budget=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: */budgets.sqlite3: file is not a database. *"])
    assert real.sent == 0


def test_such_a_run_leaves_the_report_of_the_run_before_it(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    real.run("--hf-daily-budget=1", "--hf-report=report.json").assert_outcomes(passed=1)
    before = real.report()
    (Path(os.environ["HFBUDGET_STATE_DIR"]) / "budgets.sqlite3").write_text("no database " * 100)
    result = real.run("--hf-daily-budget=1", "--hf-report=report.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.errlines)
    assert line.startswith("ERROR: ")
    assert real.report() == before
