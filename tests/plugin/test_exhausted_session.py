"""The session budget has too little left: what becomes of the tests that call, and of the run."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

NONE = "--hf-session-budget=0"
ONE = "--hf-session-budget=0.00003"  # holds one small call, not two

THREE = """
    def test_calls():
        call()

    def test_calls_too():
        call()

    def test_computes():
        pass
"""


def test_a_test_that_was_refused_is_not_run_and_the_run_is_red(suite: Suite) -> None:
    suite.test_file(THREE)
    result = suite.run(NONE, "-rs")
    result.assert_outcomes(skipped=2, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "  2 tests not run: the session budget of $0.00 has too little left. *",
            "SKIPPED * test_suite.py:*: not run: session budget: emulator/chat may cost up to *",
        ]
    )
    assert suite.sent == 0


def test_a_test_that_costs_less_may_still_fit(suite: Suite) -> None:
    suite.test_file("""
        def test_dear():
            call(limit=100_000)

        def test_cheap():
            call()
    """)
    result = suite.run(ONE)
    result.assert_outcomes(skipped=1, passed=1)
    assert suite.sent == 1


def test_a_refusal_that_was_swallowed_makes_it_not_run_all_the_same(suite: Suite) -> None:
    suite.test_file("""
        def test_passes():
            try:
                call()
            except Exception:
                pass

        def test_fails_for_it():
            try:
                answer = call()
            except Exception:
                answer = None
            assert answer
    """)
    suite.run(NONE).assert_outcomes(skipped=2)


def test_a_failure_that_has_nothing_to_do_with_it_stays_one(suite: Suite) -> None:
    suite.test_file("""
        @pytest.fixture
        def late():
            yield
            call()

        def test_it(late):
            assert False, "of the product"
    """)
    result = suite.run(NONE, "--hf-report=report.json")
    result.assert_outcomes(failed=1, skipped=1)
    assert suite.report()["tests"][0]["outcome"] == "failed"


def test_a_cap_of_the_tests_own_is_a_failure_as_ever(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0)
        def test_it():
            call()
    """)
    suite.run("--hf-session-budget=1").assert_outcomes(failed=1)


def test_a_call_without_a_known_price_is_a_failure(suite: Suite) -> None:
    suite.test_file("def test_it(): call(model='acme/unheard-of')")
    suite.run("--hf-session-budget=1").assert_outcomes(failed=1)


def test_code_that_deals_with_refusals_by_itself_passes(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(on_exceed="raise")
        def test_it():
            with pytest.raises(BudgetExceededError):
                call()
    """)
    result = suite.run(NONE)
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_every_test_of_a_shared_fixture_that_was_refused_is_not_run(suite: Suite) -> None:
    suite.test_file("""
        @pytest.fixture(scope="session")
        def answer():
            return call()

        @pytest.mark.parametrize("n", range(3))
        def test_it(answer, n):
            pass
    """)
    suite.run(NONE).assert_outcomes(skipped=3)


def test_a_test_that_may_fail_is_not_run_rather_than_expected_to(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.xfail
        def test_it():
            call()
    """)
    suite.run(NONE).assert_outcomes(skipped=1, xfailed=0)


def test_reruns_are_not_wasted_on_it(suite: Suite) -> None:
    pytest.importorskip("pytest_rerunfailures")
    suite.test_file("def test_it(): call()")
    assert suite.run(NONE, "--reruns=3").parseoutcomes() == {"skipped": 1}


def test_exitfirst_goes_on_since_nothing_has_failed(suite: Suite) -> None:
    suite.test_file(THREE)
    suite.run(NONE, "-x").assert_outcomes(skipped=2, passed=1)


def test_an_endpoint_that_can_not_be_paid_is_not_run(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass
    """)
    result = suite.run("--hf-session-budget=0.0001", "--hf-report=report.json")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert suite.report()["tests"][0]["outcome"] == "not run"
    assert not suite.requests("resume")


def test_the_tests_after_an_endpoint_was_paused_for_the_cap_are_not_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.emulator.configure(billing_minute_s=0.5)
    monkeypatch.setenv("HFBUDGET_BILLING_MINUTE", "0.5")
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_hangs(hf_endpoint):
            threading.Event().wait(2.5)

        @pytest.mark.hf_endpoint("acme/llm")
        def test_next(hf_endpoint):
            pass
    """)
    suite.run("--hf-session-budget=0.002").assert_outcomes(failed=1, skipped=1)


def test_the_last_line_says_why_a_run_failed_in_which_no_test_failed(suite: Suite) -> None:
    suite.test_file("def test_calls(): call()")
    result = suite.run(NONE, "-q")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    last = [line for line in result.outlines if line][-1]
    assert last == (
        "hfbudget: the run failed: 1 test not run: the session budget of $0.00 has too little "
        "left. Raise --hf-session-budget."
    )


def test_a_run_with_a_failure_needs_no_last_line(suite: Suite) -> None:
    suite.test_file("""
        def test_calls(): call()
        def test_fails(): assert False
    """)
    suite.run(NONE).stdout.no_fnmatch_line("*hfbudget: the run failed*")


def test_the_json_report_says_not_run(suite: Suite) -> None:
    suite.test_file(THREE)
    suite.run(NONE, "--hf-report=report.json")
    outcomes = {test["id"]: test["outcome"] for test in suite.report()["tests"]}
    assert outcomes == {
        "test_suite.py::test_calls": "not run",
        "test_suite.py::test_calls_too": "not run",
    }


def test_junit_says_skipped_and_why(suite: Suite) -> None:
    suite.test_file(THREE)
    suite.run(NONE, "--junitxml=junit.xml")
    skipped = list(ElementTree.parse(suite.path / "junit.xml").iter("skipped"))
    assert len(skipped) == 2
    assert all(s.get("message", "").startswith("not run: session budget: ") for s in skipped)


def test_fail_makes_them_failures(suite: Suite) -> None:
    suite.test_file(THREE)
    suite.run(NONE, "--hf-on-exhausted=fail").assert_outcomes(failed=2, passed=1)


def test_stop_ends_the_run_after_the_test_and_pauses(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_endpoint(hf_endpoint):
            pass

        def test_calls():
            call(limit=100_000)

        def test_never_begun():
            pass
    """)
    result = suite.run(
        "--hf-session-budget=0.0006", "--hf-on-exhausted=stop", "--hf-order=collected"
    )
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*acme/llm: paused, verified*",
            "*the budget of the run is used up (--hf-on-exhausted=stop)*",
        ]
    )


def test_a_word_that_is_none_of_the_three(suite: Suite) -> None:
    suite.test_file("def test_it(): pass")
    result = suite.run("--hf-on-exhausted=pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --hf-on-exhausted=pass: write one of skip, stop, fail"])


def test_workers_report_not_run_to_their_controller(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file("""
        @pytest.mark.parametrize("n", range(8))
        def test_calls(n):
            call()

        @pytest.mark.parametrize("n", range(4))
        def test_computes(n):
            pass
    """)
    result = suite.run("-n2", NONE, "--hf-report=report.json")
    result.assert_outcomes(skipped=8, passed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [test["outcome"] for test in suite.report()["tests"]] == ["not run"] * 8
    assert suite.sent == 0


def test_a_worker_that_stops_has_all_of_them_stop(suite: Suite) -> None:
    """The others wait until it has been refused: whatever they begin after that is too much."""
    pytest.importorskip("xdist")
    ran = suite.path / "ran"
    ran.mkdir()
    suite.test_file(f"""
        from pathlib import Path

        REFUSED = Path({str(ran)!r}, "refused")

        @pytest.mark.parametrize("n", range(40))
        def test_it(n, worker_id):
            if worker_id == "gw0":
                call()
            while not REFUSED.exists():
                threading.Event().wait(0.01)
            Path({str(ran)!r}, str(n)).touch()

        @pytest.fixture(autouse=True)
        def _tell(request):
            yield
            REFUSED.touch()
    """)
    result = suite.run("-n2", NONE, "--hf-on-exhausted=stop")
    assert result.ret != 0
    began = [path for path in Path(ran).iterdir() if path.name != "refused"]
    assert len(began) <= 2
