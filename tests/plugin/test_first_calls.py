"""Without a cap the meter comes about with the first call, which it counts like any other."""

from __future__ import annotations

import textwrap

import pytest
from plugin_suite import CLIENTS, Suite

MODULES = """
import sys

def pytest_unconfigure():
    print("meter:", "pytest_hfbudget.metering.meter" in sys.modules)
"""


def _write(suite: Suite, code: str) -> None:
    """A suite that does not import `budget`, which would have the meter made at once."""
    head = f"import asyncio, os, threading\nimport pytest\n{CLIENTS}"
    (suite.path / "test_suite.py").write_text(head + textwrap.dedent(code))


def _calls(suite: Suite) -> tuple[int, int]:
    """How many calls the report has, and how many the emulator was sent."""
    return suite.report()["session"]["calls"], suite.sent


def test_a_suite_that_imports_a_client_and_never_calls_has_no_meter(suite: Suite) -> None:
    (suite.path / "conftest.py").write_text(MODULES)
    _write(suite, "def test_it():\n    InferenceClient()\n")
    suite.run().stdout.fnmatch_lines(["meter: False"])


def test_under_a_cap_the_meter_is_there_before_the_first_call(suite: Suite) -> None:
    (suite.path / "conftest.py").write_text(MODULES)
    _write(suite, "def test_it():\n    assert call\n")
    suite.run("--hf-session-budget=1").stdout.fnmatch_lines(["meter: True"])


@pytest.mark.parametrize(
    "body",
    [
        "call()",
        "thread = threading.Thread(target=call); thread.start(); thread.join()",
        "asyncio.run(asyncio.to_thread(call))",
        "asyncio.run(ask())",
        "list(stream())",
    ],
)
def test_the_first_call_is_counted(suite: Suite, body: str) -> None:
    _write(
        suite,
        f"""
        async def ask():
            client = AsyncInferenceClient(model="emulator/chat", provider="groq")
            await client.chat_completion(SAY, max_tokens=5)

        def stream():
            client = InferenceClient(model="emulator/chat", provider="groq")
            return client.chat_completion(SAY, max_tokens=5, stream=True)

        def test_it():
            {body}
    """,
    )
    suite.run("--hf-report=report.json").assert_outcomes(passed=1)
    report = suite.report()
    assert _calls(suite) == (1, 1)
    assert [call["test"] for call in report["calls"]] == ["test_suite.py::test_it"]
    assert [call["model"] for call in report["calls"]] == ["emulator/chat"]
    spent = round(float(report["session"]["spent_usd"]) * 10**9)
    assert spent == suite.billed or report["calls"][0]["estimated"]


def test_first_calls_of_many_threads_are_all_counted(suite: Suite) -> None:
    _write(
        suite,
        """
        from concurrent.futures import ThreadPoolExecutor

        def test_it():
            ready = threading.Barrier(8)
            with ThreadPoolExecutor(8) as pool:
                for _ in range(8):
                    pool.submit(lambda: (ready.wait(), call()))
    """,
    )
    suite.run("--hf-report=report.json").assert_outcomes(passed=1)
    assert _calls(suite) == (8, 8)


def test_a_first_call_in_a_shared_fixture_belongs_to_no_test(suite: Suite) -> None:
    _write(
        suite,
        """
        @pytest.fixture(scope="session")
        def answer():
            return call()

        def test_one(answer): call()
        def test_two(answer): pass
    """,
    )
    suite.run("--hf-report=report.json").assert_outcomes(passed=2)
    assert _calls(suite) == (2, 2)
    assert [call["test"] for call in suite.report()["calls"]] == [None, "test_suite.py::test_one"]


def test_a_first_call_in_a_forked_child_is_counted(suite: Suite) -> None:
    _write(
        suite,
        """
        def test_it():
            if not (child := os.fork()):
                call()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """,
    )
    suite.run("--hf-report=report.json").assert_outcomes(passed=1)
    assert _calls(suite) == (1, 1)


def test_a_first_call_through_a_wrapper_of_the_tests_own_is_counted_once(suite: Suite) -> None:
    _write(
        suite,
        """
        def test_it(monkeypatch):
            original = InferenceClient._inner_post

            def logged(self, *args, **kwargs):
                return original(self, *args, **kwargs)

            monkeypatch.setattr(InferenceClient, "_inner_post", logged)
            call()
            call()

        def test_after(): call()
    """,
    )
    suite.run("--hf-report=report.json").assert_outcomes(passed=2)
    assert _calls(suite) == (3, 3)


@pytest.mark.parametrize("awake", ["", "from pytest_hfbudget import budget"])
def test_a_cap_that_a_fixture_adds_holds_the_calls_of_its_test(suite: Suite, awake: str) -> None:
    _write(
        suite,
        f"""
        {awake}

        @pytest.fixture(autouse=True)
        def capped(request):
            request.node.add_marker(pytest.mark.budget(max_usd=0))

        def test_it(): call()
        """,
    )
    suite.run().assert_outcomes(failed=1)
    assert suite.sent == 0


@pytest.mark.slow
def test_mocks_see_whether_the_method_is_a_coroutine(suite: Suite) -> None:
    _write(
        suite,
        """
        from unittest.mock import AsyncMock, MagicMock, patch

        def test_it():
            with patch.object(AsyncInferenceClient, "_inner_post") as post:
                assert isinstance(post, AsyncMock)
            with patch.object(InferenceClient, "_inner_post") as post:
                assert not isinstance(post, AsyncMock)
    """,
    )
    suite.run().assert_outcomes(passed=1)


@pytest.mark.slow
def test_workers_wait_for_their_first_calls_too(suite: Suite) -> None:
    pytest.importorskip("xdist")
    _write(
        suite,
        """
        @pytest.mark.parametrize("number", range(4))
        def test_it(number): call()
    """,
    )
    suite.run("-n2", "--hf-report=report.json").assert_outcomes(passed=4)
    assert _calls(suite) == (4, 4)


def test_a_marker_of_a_fixture_that_makes_no_sense_fails_its_test(suite: Suite) -> None:
    _write(
        suite,
        """
        @pytest.fixture(autouse=True)
        def capped(request):
            request.node.add_marker(pytest.mark.budget(max_usd="much"))

        def test_it(): call()
        """,
    )
    result = suite.run("--hf-session-budget=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*max_usd*much*"])
    assert suite.sent == 0


def test_prices_of_the_project_are_read_before_a_test_can_replace_the_files(suite: Suite) -> None:
    (suite.path / "pyproject.toml").write_text(
        '[tool.hfbudget.prices."emulator/chat"]\ninput = 0\noutput = 100\n'
    )
    _write(
        suite,
        """
        from pathlib import Path

        def test_it(monkeypatch):
            monkeypatch.setattr(Path, "read_bytes", lambda self: b"")
            monkeypatch.setattr(Path, "is_file", lambda self: False)
            call()
        """,
    )
    suite.run("--hf-report=report.json").assert_outcomes(passed=1)
    assert suite.report()["session"]["spent_usd"] == "0.001"
