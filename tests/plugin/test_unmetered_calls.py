"""Calls that can't be metered: without a cap they are sent, and the summary says so."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

ODD = """
    class Odd(str):
        def isascii(self):
            raise RuntimeError("no clock measures\\nme")

    @pytest.mark.parametrize("n", range(2))
    def test_it(n):
        client = InferenceClient(model="emulator/chat", provider="groq")
        assert client.chat_completion([{"role": "user", "content": Odd("[[tokens=3]]")}])
"""


@pytest.mark.parametrize("workers", ["", pytest.param("-n2", marks=pytest.mark.slow)])
def test_a_call_that_can_not_be_metered_is_sent_and_shown(suite: Suite, workers: str) -> None:
    suite.test_file(ODD)
    result = suite.run(*filter(None, (workers,)), "--hf-report=report.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*  2 calls could not be metered: RuntimeError: no clock measures me"]
    )
    session = suite.report()["session"]
    assert session["unmetered"] == {"RuntimeError: no clock measures me": 2}
    assert (session["calls"], suite.sent) == (0, 2)


def test_a_call_that_can_not_be_metered_is_refused_under_a_cap(suite: Suite) -> None:
    suite.test_file(ODD)
    result = suite.run("--hf-session-budget=1")
    result.assert_outcomes(failed=2)
    assert suite.sent == 0


@pytest.mark.slow
def test_a_call_of_a_child_process_that_can_not_be_metered_is_shown(suite: Suite) -> None:
    suite.test_file("""
        import subprocess, sys

        CHILD = '''
        import pytest_hfbudget.join

        class Odd(str):
            def isascii(self):
                raise RuntimeError("no clock measures me")

        from huggingface_hub import InferenceClient

        client = InferenceClient(model="emulator/chat", provider="groq")
        client.chat_completion([{"role": "user", "content": Odd("[[tokens=3]]")}])
        '''

        def test_it():
            import textwrap

            subprocess.run([sys.executable, "-c", textwrap.dedent(CHILD)], check=True)
    """)
    result = suite.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*  1 call could not be metered: RuntimeError: *"])
