"""Subtests that are refused calls: each is judged, and so is the whole test."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest
from plugin_suite import Suite

BUILT_IN = int(version("pytest").partition(".")[0]) >= 9
PLUGIN = () if BUILT_IN else ("-p", "pytest_subtests.plugin")

pytestmark = pytest.mark.skipif(
    not BUILT_IN and find_spec("pytest_subtests") is None,
    reason="neither pytest 9 nor pytest-subtests",
)

NONE = "--hf-session-budget=0"
SUBTESTS = """
    def test_it(subtests):
        for n in range(3):
            with subtests.test(n=n):
                call()
"""
SWALLOWED = """
    def test_it(subtests):
        for n in range(3):
            with subtests.test(n=n):
                try:
                    call()
                except Exception:
                    pass
"""
UNITTEST = """
    import unittest

    class TestIt(unittest.TestCase):
        def test_it(self):
            for n in range(3):
                with self.subTest(n=n):
                    call()
"""


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (SUBTESTS, ()),
        (SUBTESTS, ("--reruns=1",)),
        pytest.param(SUBTESTS, ("-n1",), marks=pytest.mark.slow),
        pytest.param(SWALLOWED, (), marks=pytest.mark.slow),
        pytest.param(SWALLOWED, ("--reruns=1",), marks=pytest.mark.slow),
        pytest.param(UNITTEST, (), marks=pytest.mark.slow),
        pytest.param(UNITTEST, ("--reruns=1",), marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_test_whose_subtests_were_refused_is_not_run(
    suite: Suite, code: str, options: tuple[str, ...]
) -> None:
    suite.test_file(code)
    result = suite.run(*PLUGIN, NONE, "-v", *options, "--hf-report=report.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    outcomes = result.parseoutcomes()
    assert not {"passed", "failed", "rerun"} & set(outcomes), outcomes
    result.stdout.no_fnmatch_line("*test_it PASSED*")
    assert suite.report()["tests"][0]["outcome"] == "not run"
    assert suite.sent == 0


@pytest.mark.slow
def test_a_refusal_belongs_to_its_subtest_and_to_the_test(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0.0001)
        def test_it(subtests):
            for n in range(3):
                with subtests.test(n=n):
                    try:
                        call(limit=100_000 if n == 1 else 2)
                    except BudgetExceededError:
                        pass
    """)
    result = suite.run(*PLUGIN, "--hf-session-budget=1", "-v")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    subfailed = [line for line in result.outlines if line.startswith("SUBFAIL")]
    assert len(subfailed) <= 2  # in the list of results, and in the short summary
    assert all("n='1'" in line or "n=1" in line for line in subfailed)
    result.stdout.fnmatch_lines(["FAILED test_suite.py::test_it*"])
    assert suite.sent == 2


@pytest.mark.slow
def test_subtests_that_deal_with_refusals_by_themselves_pass(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(on_exceed="raise")
        def test_it(subtests):
            for n in range(2):
                with subtests.test(n=n), pytest.raises(BudgetExceededError):
                    call()
    """)
    result = suite.run(*PLUGIN, NONE)
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 1


@pytest.mark.slow
def test_what_the_subtests_of_one_attempt_were_refused_is_not_held_against_the_next(
    suite: Suite,
) -> None:
    suite.test_file("""
        attempts = []

        @pytest.mark.budget(max_usd=0.0001)
        def test_it(subtests):
            attempts.append(1)
            with subtests.test():
                if len(attempts) == 1:
                    call(limit=100_000)
            assert len(attempts) == 2
    """)
    result = suite.run(*PLUGIN, "--hf-session-budget=1", "--reruns=1")
    assert result.parseoutcomes()["passed"] == 1
