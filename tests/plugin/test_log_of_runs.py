"""What runs leave in the usage log, read by the command, held against the emulator's invoice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

FILE = "log.sqlite3"


def state() -> Path:
    return Path(os.environ["HFBUDGET_STATE_DIR"])


def log(*arguments: str) -> Any:
    """What `hfbudget log` knows."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest_hfbudget", "log", "--json", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def nano(usd: str) -> int:
    return round(float(usd) * 10**9)


def test_every_call_of_every_run_is_in_it(real: Suite) -> None:
    real.test_file("""
        @pytest.mark.parametrize("n", range(2))
        def test_pays(n):
            call()

        @pytest.mark.budget(max_usd=0)
        def test_is_refused():
            call()
    """)
    for _ in range(2):
        real.run().assert_outcomes(passed=2, failed=1)
    told = log()
    assert (told["total"]["calls"], told["total"]["refused"]) == (real.sent, 2) == (4, 2)
    assert nano(told["total"]["usd"]) == real.billed
    assert len({entry["run"] for entry in told["entries"]}) == 2
    assert {entry["provider"] for entry in told["entries"] if entry["kind"] == "call"} == {"groq"}
    assert len(log("--project", str(real.path))["entries"]) == 6


def test_workers_leave_one_run(real: Suite) -> None:
    pytest.importorskip("xdist")
    real.test_file("""
        @pytest.mark.parametrize("n", range(6))
        def test_it(n):
            call()
    """)
    real.run("-n2").assert_outcomes(passed=6)
    (run,) = log("--by", "run")["totals"]
    assert (run["calls"], nano(run["usd"])) == (real.sent, real.billed)


def test_the_minutes_of_an_endpoint_are_in_it(real: Suite) -> None:
    real.emulator.add_endpoint("acme/llm")
    real.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    real.run().assert_outcomes(passed=1)
    call, endpoint = sorted(log("--endpoint", "acme/llm")["entries"], key=lambda one: one["kind"])
    assert (call["kind"], call["usd"]) == ("call", "0")
    assert (endpoint["kind"], endpoint["minutes"]) == ("endpoint", 1)
    assert nano(endpoint["usd"]) == real.emulator.invoice()["total_nano_usd"]


def test_a_run_that_is_interrupted_is_in_it(real: Suite) -> None:
    real.test_file("""
        import signal

        def test_it():
            call()
            os.kill(os.getpid(), signal.SIGINT)
    """)
    assert real.run().ret == pytest.ExitCode.INTERRUPTED
    assert log()["total"]["calls"] == 1


def test_a_rehearsal_is_not_in_it(suite: Suite) -> None:
    suite.test_file("def test_it():\n    call()\n")
    suite.run().assert_outcomes(passed=1)
    assert not (state() / FILE).exists()


def test_a_log_of_no_days_is_no_log(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    real.run("-o", "hf_log_days=0").assert_outcomes(passed=1)
    assert not (state() / FILE).exists()


def test_a_run_without_calls_leaves_nothing(real: Suite) -> None:
    real.test_file("def test_it(): pass\n")
    real.run("--hf-session-budget=1").assert_outcomes(passed=1)
    assert not (state() / FILE).exists()


def test_a_log_that_can_not_be_written_fails_no_run_and_costs_no_report(real: Suite) -> None:
    state().mkdir(parents=True)
    (state() / FILE).write_text("no database at all " * 100)
    real.test_file("def test_it():\n    call()\n")
    result = real.run("--hf-report=report.json", "-W", "error")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["hfbudget: this run is not in the usage log: *: file is not a database. Make it *"]
    )
    assert real.report()["session"]["calls"] == 1


def test_a_log_that_another_process_holds_locked_fails_no_run(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.test_file("def test_it():\n    call()\n")
    real.run().assert_outcomes(passed=1)
    (real.path / "conftest.py").write_text(
        "from pytest_hfbudget.history import database\ndatabase.BUSY_S = 0.1\n"
    )
    holder = sqlite3.connect(state() / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    result = real.run()
    holder.close()
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["hfbudget: this run is not in the usage log: *is locked*"])
    assert log()["total"]["calls"] == 1


def test_a_run_that_is_killed_while_it_logs_leaves_the_log_whole(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    real.run().assert_outcomes(passed=1)
    (real.path / "conftest.py").write_text(
        "import os, signal, sqlite3\n"
        "connect = sqlite3.connect\n"
        "def watch(sql):\n"
        "    if sql.startswith('INSERT INTO entry'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "def watched(*args, **kwargs):\n"
        "    connection = connect(*args, **kwargs)\n"
        "    connection.set_trace_callback(watch)\n"
        "    return connection\n"
        "sqlite3.connect = watched\n"
    )
    assert real.run().ret == -signal.SIGKILL
    assert log()["total"]["calls"] == 1
