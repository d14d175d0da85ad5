"""Endpoints as a suite uses them: resumed once, paused at the end, seen in the emulator's log."""

from __future__ import annotations

import textwrap
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from plugin_suite import Suite

ONE = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
"""


def _state(suite: Suite, name: str = "acme/llm") -> str:
    states = {
        endpoint["name"]: endpoint["state"] for endpoint in suite.emulator.state()["endpoints"]
    }
    return str(states[name])


def _counts(suite: Suite) -> tuple[int, bool]:
    """Resumes, and whether anything was paused."""
    return len(suite.requests("resume")), bool(suite.requests("pause"))


def test_an_endpoint_is_resumed_and_paused_and_its_price_is_uptime(suite: Suite) -> None:
    suite.test_file(ONE)
    result = suite.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*acme/llm: paused, verified; resumed *, paused *; 1 min, $*"])
    assert _counts(suite) == (1, True)
    assert _state(suite) == "paused"
    report = suite.report()
    (endpoint,) = report["endpoints"]
    assert (endpoint["resumed"], endpoint["paused"], endpoint["verified"]) == (True, True, True)
    invoice = suite.emulator.invoice()
    assert round(float(report["session"]["spent_usd"]) * 10**9) == invoice["total_nano_usd"] > 0


@pytest.mark.slow
def test_the_plugins_own_resume_is_not_taken_for_one_of_the_tested_code(suite: Suite) -> None:
    suite.test_file(ONE)
    result = suite.run("--hf-session-budget=1")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*the code under test has started*")


@pytest.mark.slow
def test_many_tests_share_one_resume(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.parametrize("n", range(5))
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint, n):
            assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    suite.run().assert_outcomes(passed=5)
    assert _counts(suite) == (1, True)


@pytest.mark.slow
def test_a_test_may_need_several_endpoints(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/one", "acme/two")
        def test_it(hf_endpoints):
            assert list(hf_endpoints) == ["acme/one", "acme/two"]
            assert all(endpoint.status == "running" for endpoint in hf_endpoints.values())
    """)
    suite.run().assert_outcomes(passed=1)
    assert (_state(suite, "acme/one"), _state(suite, "acme/two")) == ("paused", "paused")


def test_the_whole_run_can_need_an_endpoint(suite: Suite) -> None:
    suite.test_file("""
        def test_it(hf_endpoint):
            assert hf_endpoint.name == "llm"
    """)
    result = suite.run("--hf-endpoint=llm", "--hf-namespace=acme")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hfbudget: endpoints llm; rehearsal against *"])
    assert _counts(suite) == (1, True)


def test_the_endpoint_of_a_marker_comes_before_that_of_the_run(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/own")
        def test_it(hf_endpoint, hf_endpoints):
            assert hf_endpoint.name == "own"
            assert list(hf_endpoints) == ["acme/own", "acme/llm"]
    """)
    suite.run("--hf-endpoint=acme/llm").assert_outcomes(passed=1)


@pytest.mark.slow
def test_waiting_for_an_endpoint_shows_a_line_that_counts_the_seconds(suite: Suite) -> None:
    suite.emulator.add_endpoint("acme/llm", initializing_s=1.2)
    suite.test_file(ONE)
    suite.run().stdout.re_match_lines([r"endpoint acme/llm: running, [12] s"])


def test_the_fixture_without_a_name_says_what_to_write(suite: Suite) -> None:
    suite.test_file("def test_it(hf_endpoint): pass")
    suite.run().stdout.fnmatch_lines(['*needs @pytest.mark.hf_endpoint("namespace/name")*'])


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "--collect-only",
        *(pytest.param(o, marks=pytest.mark.slow) for o in ("--help", "--markers", "--fixtures")),
    ],
)
def test_looking_touches_nothing(suite: Suite, option: str) -> None:
    suite.test_file(ONE)
    suite.run("--hf-endpoint=acme/other", option)
    assert _counts(suite) == (0, False)


@pytest.mark.slow
def test_setup_plan_touches_nothing(suite: Suite) -> None:
    suite.test_file(ONE)
    suite.run("--setup-plan", "--hf-endpoint=acme/other")
    assert _counts(suite) == (0, False)


@pytest.mark.slow
def test_a_skipped_test_needs_nothing(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.skip
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass
    """)
    suite.run().assert_outcomes(skipped=1)
    assert _counts(suite) == (0, False)


@pytest.mark.parametrize(
    "skipped",
    [
        """
        class TestIt(unittest.TestCase):
            @unittest.skip("not today")
            def test_it(self): pass
        """,
        """
        @unittest.skipIf(True, "not today")
        class TestIt(unittest.TestCase):
            def test_it(self): pass
        """,
        """
        @unittest.skip("not today")
        def test_it(): pass
        """,
    ],
)
def test_a_test_that_unittest_skips_needs_nothing(suite: Suite, skipped: str) -> None:
    code = 'import unittest\npytestmark = pytest.mark.hf_endpoint("acme/llm")\n'
    suite.test_file(code + textwrap.dedent(skipped))
    suite.run().assert_outcomes(skipped=1)
    assert _counts(suite) == (0, False)


def test_a_run_in_which_no_test_is_left_needs_nothing(suite: Suite) -> None:
    suite.test_file("def test_it(): pass\n")
    assert suite.run("--hf-endpoint=acme/llm", "-k", "nothing").ret == 5
    assert _counts(suite) == (0, False)


@pytest.mark.parametrize("workers", ["", "-n1"])
def test_what_an_endpoint_without_a_known_price_costs_is_not_told_as_nothing(
    suite: Suite, workers: str
) -> None:
    suite.emulator.add_fault("provider", times=None, status=200, json={"vendors": []})
    suite.test_file(ONE)
    result = suite.run("--hf-report=report.json", *workers.split())
    result.assert_outcomes(passed=1)
    told = "*1 min, at an unknown price; *the list of hardware has none for aws us-east-1 *"
    result.stdout.fnmatch_lines([told])
    (endpoint,) = suite.report()["endpoints"]
    assert (endpoint["usd"], endpoint["unpriced"]) == ("0", True)
    assert suite.emulator.invoice()["endpoints_nano_usd"] > 0


def test_calls_see_what_uptime_has_left_of_the_session_budget(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            with pytest.raises(BudgetExceededError):
                call()
    """)
    minute = 550_000  # nano-USD of the emulator's standard endpoint
    budget = f"--hf-session-budget={(minute + 5_000) / 10**9:.9f}"
    suite.run(budget, "--hf-on-exhausted=fail").assert_outcomes(failed=1)
    assert suite.sent == 0


@pytest.mark.slow
def test_a_deselected_test_needs_nothing(suite: Suite) -> None:
    suite.test_file(ONE)
    suite.run("-k", "nothing")
    assert _counts(suite) == (0, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "exit_code"),
    [
        ("assert False", 1),
        pytest.param("raise SystemExit(3)", 1, marks=pytest.mark.slow),
        ("raise KeyboardInterrupt", 2),
        pytest.param("pytest.exit('enough', returncode=9)", 9, marks=pytest.mark.slow),
    ],
)
def test_it_is_paused_however_a_test_ends(suite: Suite, body: str, exit_code: int) -> None:
    suite.test_file(f"""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            {body}
    """)
    assert suite.run("--hf-report=report.json").ret == exit_code
    assert _counts(suite) == (1, True)
    assert _state(suite) == "paused"
    assert suite.report()["endpoints"][0]["verified"]


@pytest.mark.slow
def test_an_endpoint_that_fails_to_start_is_an_error_of_its_tests_and_is_paused(
    suite: Suite,
) -> None:
    suite.emulator.add_endpoint("acme/llm", resume_to="failed")
    suite.test_file(ONE)
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*acme/llm*failed*"])
    assert _counts(suite) == (1, True)


@pytest.mark.slow
@pytest.mark.usefixtures("reapers_end")
def test_a_pause_that_can_not_be_verified_fails_the_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.emulator.add_fault("pause", times=None, status=403, json={"error": "revoked"})
    suite.test_file(ONE)
    result = suite.run("--hf-report=report.json")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*acme/llm: NOT VERIFIED AS PAUSED*hfbudget pause acme/llm*"])
    assert not suite.report()["endpoints"][0]["verified"]


@pytest.mark.slow
@pytest.mark.usefixtures("reapers_end")
def test_what_is_left_to_do_is_printed_last(suite: Suite) -> None:
    suite.emulator.add_fault("pause", times=None, status=403, json={"error": "revoked"})
    suite.test_file(ONE + "\n    def test_that_fails():\n        assert False\n")
    result = suite.run()
    result.assert_outcomes(passed=1, failed=1)
    last = [line for line in result.stdout.lines if line][-1]
    assert "acme/llm: NOT VERIFIED AS PAUSED (running); run: hfbudget pause acme/llm" in last


def test_the_receipt_says_when_it_was_resumed_and_paused(suite: Suite) -> None:
    suite.test_file(ONE)
    result = suite.run("--hf-report=report.json")
    result.stdout.re_match_lines(
        [r"  acme/llm: paused, verified; resumed [\d:]{8}, paused [\d:]{8}; 1 min, \$0"]
    )
    (endpoint,) = suite.report()["endpoints"]
    assert endpoint["resumed_at"] < endpoint["paused_at"]


@pytest.mark.slow
def test_one_that_is_kept_running_is_no_trouble(suite: Suite) -> None:
    # Reapers of other tests, which were refused their pause, may still try to pause theirs.
    suite.emulator.add_endpoint("acme/kept", state="running")
    suite.test_file(
        ONE.replace('hf_endpoint("acme/llm"', 'hf_endpoint("acme/kept", keep_running=True')
    )
    result = suite.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*acme/kept: kept running, as it was found*"])
    assert _state(suite, "acme/kept") == "running"


def test_a_session_budget_that_can_not_pay_the_first_minute_resumes_nothing(suite: Suite) -> None:
    suite.test_file(ONE)
    result = suite.run("--hf-session-budget=0.0001", "--hf-on-exhausted=fail")
    result.assert_outcomes(errors=1)
    said = (
        "*session budget: acme/llm: its first minute costs $*, but only $0.0001 of $0.0001 is "
        "left. The endpoint was not resumed. Raise --hf-session-budget.*"
    )
    result.stdout.fnmatch_lines([said])
    assert _counts(suite) == (0, False)


@pytest.mark.slow
def test_an_undeclared_endpoint_is_never_touched(suite: Suite) -> None:
    suite.emulator.add_endpoint("acme/other", state="running")
    suite.test_file(ONE)
    suite.run()
    assert _state(suite, "acme/other") == "running"


REVIVED = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        from huggingface_hub import HfApi

        HfApi().pause_inference_endpoint("llm", namespace="acme")
        {call}
"""


@pytest.mark.parametrize(
    "call",
    [
        "assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)",
        "assert asyncio.run(hf_endpoint.async_client.chat_completion(SAY, max_tokens=5))",
        pytest.param(
            "import trio; "
            "trio.run(lambda: hf_endpoint.async_client.chat_completion(SAY, max_tokens=5))",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(find_spec("trio") is None, reason="trio is not installed"),
                pytest.mark.skipif(
                    version("huggingface_hub").startswith("0."), reason="its client is asyncio's"
                ),
            ],
        ),
    ],
    ids=["sync", "asyncio", "trio"],
)
def test_an_endpoint_that_another_user_paused_is_brought_back_once(suite: Suite, call: str) -> None:
    suite.test_file(REVIVED.format(call=call))
    result = suite.run("--hf-session-budget=1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*acme/llm: paused, verified; *; another process paused it*"])
    assert len(suite.requests("resume")) == 2
    assert _state(suite) == "paused"


@pytest.mark.slow
def test_an_error_of_an_endpoint_that_runs_is_the_callers(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            hf_endpoint.client.chat_completion(SAY, max_tokens=999_999)
    """)
    result = suite.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*BadRequestError*"])
    assert len(suite.requests("resume")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--continue-on-collection-errors",)])
def test_a_suite_that_can_not_be_collected_resumes_nothing_unless_it_goes_on(
    suite: Suite, options: tuple[str, ...]
) -> None:
    suite.emulator.add_endpoint("acme/llm")
    suite.test_file("def test_it(): pass")
    suite.test_file("import no_such_module", "test_broken.py")
    suite.run("--hf-endpoint=acme/llm", *options)
    assert len(suite.requests("resume")) == len(options)
