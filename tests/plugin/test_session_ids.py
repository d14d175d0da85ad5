"""The inference session of a run: one for all its processes, in its report and its log."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from plugin_suite import Suite


def sessions(suite: Suite) -> list[str | None]:
    return [entry["session"] for entry in suite.requests("chat")]


def logged(sql: str) -> list[tuple[Any, ...]]:
    file = sqlite3.connect(Path(os.environ["HFBUDGET_STATE_DIR"]) / "log.sqlite3")
    try:
        return file.execute(sql).fetchall()
    finally:
        file.close()


EVERYWHERE = """
    import subprocess, sys

    @pytest.mark.parametrize("n", range(4))
    def test_calls(n):
        call()

    def test_forks():
        call()
        pid = os.fork()
        if not pid:
            try:
                call()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    @pytest.mark.budget(max_usd=1)
    def test_starts_another_interpreter():
        code = '''
    import pytest_hfbudget.join
    from huggingface_hub import InferenceClient
    client = InferenceClient(model="emulator/chat", provider="groq")
    client.chat_completion([{"role": "user", "content": "Hello"}], max_tokens=5)
    '''
        subprocess.run([sys.executable, "-c", code], check=True)
"""


@pytest.mark.parametrize("options", [pytest.param((), marks=pytest.mark.slow), ("-n2",)])
def test_all_processes_of_a_run_have_one(real: Suite, options: tuple[str, ...]) -> None:
    if options:
        pytest.importorskip("xdist")
    real.test_file(EVERYWHERE)
    done = real.run("--hf-report=report.json", *options)
    done.assert_outcomes(passed=6)
    report = real.report()
    session = report["session_id"]
    assert session == f"hfbudget-{report['run']}"
    assert sessions(real) == [session] * 7
    assert {call["session_id"] for call in report["calls"]} == {session}
    assert logged("SELECT run, session_id FROM run") == [(report["run"], session)]
    assert logged("SELECT DISTINCT session_id FROM entry") == [(session,)]
    done.stdout.fnmatch_lines([f"  session id: {session} (hfbudget bill)"])


def test_each_run_has_another(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    for _ in range(2):
        real.run().assert_outcomes(passed=1)
    first, second = sessions(real)
    assert first != second


def test_off_sends_none(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    done = real.run("--hf-report=report.json", "-o", "hf_session_header=off")
    done.assert_outcomes(passed=1)
    done.stdout.no_fnmatch_line("*session id*")
    assert sessions(real) == [None]
    assert real.report()["session_id"] is None
    assert real.report()["calls"][0]["session_id"] is None


def test_another_word_than_on_and_off_is_refused(real: Suite) -> None:
    real.test_file("def test_it():\n    call()\n")
    done = real.run("-o", "hf_session_header=of")
    assert done.ret == 4
    done.stderr.fnmatch_lines(["ERROR: hf_session_header=of: write one of on, off"])


def test_a_session_that_a_test_has_set_is_kept_and_counted_apart(real: Suite) -> None:
    real.test_file("""
        def test_it():
            call()
            client = InferenceClient(
                model="emulator/chat", provider="groq", headers={"X-HF-Session-Id": "mine"}
            )
            client.chat_completion(SAY, max_tokens=20)
    """)
    done = real.run("--hf-report=report.json")
    done.assert_outcomes(passed=1)
    own = real.report()["session_id"]
    assert sessions(real) == [own, "mine"]
    assert [call["session_id"] for call in real.report()["calls"]] == [own, "mine"]
    done.stdout.fnmatch_lines(["  1 call, <$0.0001, under session ids that the tests have set"])


def test_a_rehearsal_has_one_and_says_nothing_of_a_bill(suite: Suite) -> None:
    suite.test_file("def test_it():\n    call()\n")
    done = suite.run("--hf-report=report.json")
    done.assert_outcomes(passed=1)
    assert sessions(suite) == [suite.report()["session_id"]]
    done.stdout.no_fnmatch_line("*hfbudget bill*")
