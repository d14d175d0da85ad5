"""Uptime, shared out to the tests: what the report says adds up to what the server bills."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow


@pytest.fixture
def short_minutes(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A minute of an endpoint takes 0.2 s, and costs $0.00055."""
    suite.emulator.configure(billing_minute_s=0.2)
    monkeypatch.setenv("HFBUDGET_BILLING_MINUTE", "0.2")
    return suite


def nano(usd: str) -> int:
    return round(float(usd) * 10**9)


def checked(suite: Suite) -> dict[str, Any]:
    """The only endpoint of the report, after its parts were added up."""
    report = suite.report()
    (endpoint,) = report["endpoints"]
    shares = {test: nano(usd) for test, usd in endpoint["shares"].items()}
    parts = [*shares.values(), nano(endpoint["idle_usd"]), nano(endpoint["cold_start_usd"])]
    invoice = suite.emulator.invoice()
    assert sum(parts) == nano(endpoint["usd"]) == invoice["endpoints_nano_usd"] > 0
    assert nano(report["session"]["spent_usd"]) == invoice["total_nano_usd"]
    of_tests = {test["id"]: nano(test["uptime_usd"]) for test in report["tests"]}
    assert {test: of for test, of in of_tests.items() if of} == {
        test: share for test, share in shares.items() if share
    }
    calls = sum(nano(test["spent_usd"]) for test in report["tests"])
    assert calls == invoice["calls_nano_usd"]
    return dict(endpoint)


SPLIT = """
    @pytest.mark.hf_endpoint("acme/llm")
    @pytest.mark.parametrize("n", range(4))
    def test_on_it(hf_endpoint, n):
        hf_endpoint.client.chat_completion(SAY, max_tokens=5)
        call()
        threading.Event().wait(0.1)

    @pytest.mark.parametrize("n", range(2))
    def test_elsewhere(n):
        call()
        threading.Event().wait(0.1)
"""
REPORT = "--hf-report=report.json"


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "two workers"])
def test_uptime_is_split_between_tests_idle_and_cold_start(
    short_minutes: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    short_minutes.emulator.add_endpoint("acme/llm", initializing_s=0.5)
    short_minutes.test_file(SPLIT)
    result = short_minutes.run(*workers, "--hf-session-budget=1", REPORT)
    result.assert_outcomes(passed=6)
    endpoint = checked(short_minutes)
    assert set(endpoint["shares"]) == {f"test_suite.py::test_on_it[{n}]" for n in range(4)}
    assert all(nano(usd) > 0 for usd in endpoint["shares"].values())
    assert nano(endpoint["idle_usd"]) > 0
    assert nano(endpoint["cold_start_usd"]) > 0
    result.stdout.fnmatch_lines(["*acme/llm: paused, verified; * of which idle *, cold start *"])
    result.stdout.fnmatch_lines(["*test_on_it* (2 calls, uptime *)*"])


def test_two_tests_that_meet_on_an_endpoint_owe_half_each(short_minutes: Suite) -> None:
    pytest.importorskip("xdist")
    short_minutes.test_file("""
        import pathlib

        HERE = pathlib.Path(__file__).parent

        @pytest.mark.hf_endpoint("acme/llm")
        @pytest.mark.parametrize("n", range(2))
        def test_it(n):
            (HERE / str(n)).touch()
            while not (HERE / str(1 - n)).exists():
                threading.Event().wait(0.01)
            threading.Event().wait(1.5)
    """)
    short_minutes.run("-n2", "--hf-session-budget=1", REPORT).assert_outcomes(passed=2)
    one, other = map(nano, checked(short_minutes)["shares"].values())
    assert abs(one - other) < 0.3 * max(one, other)


def test_without_a_marker_a_test_is_on_the_endpoint_from_its_first_call_on(
    short_minutes: Suite,
) -> None:
    short_minutes.test_file(CALLED)
    run = short_minutes.run("--hf-endpoint=acme/llm", "--hf-session-budget=1", REPORT)
    run.assert_outcomes(passed=2)
    assert set(checked(short_minutes)["shares"]) == {"test_suite.py::test_calls"}


def test_a_worker_knows_the_endpoints_of_the_whole_run(short_minutes: Suite) -> None:
    pytest.importorskip("xdist")
    short_minutes.test_file(CALLED)
    options = ("--hf-endpoint=acme/llm", "--hf-session-budget=1", REPORT)
    short_minutes.run("-n1", *options).assert_outcomes(passed=2)
    assert set(checked(short_minutes)["shares"]) == {"test_suite.py::test_calls"}


CALLED = """
    from huggingface_hub import get_inference_endpoint

    def test_calls():
        url = get_inference_endpoint("llm", namespace="acme").url
        InferenceClient(url).chat_completion(SAY, max_tokens=5)
        threading.Event().wait(0.1)

    def test_does_not():
        call()
"""


def test_a_test_that_is_too_long_on_an_endpoint_breaks_its_own_cap(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        @pytest.mark.budget(max_usd=0.0005)
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            threading.Event().wait(0.4)
    """)
    result = short_minutes.run(REPORT)
    outcomes = result.parseoutcomes()  # a slow machine is over it by the end of the set-up
    assert outcomes.get("failed", 0) + outcomes.get("errors", outcomes.get("error", 0)) == 1
    result.stdout.fnmatch_lines(
        ["*::test_it: $0.00* of $0.0005 is spent; of that $* share of the uptime of acme/llm*"]
    )


def test_a_call_is_refused_when_the_share_has_used_the_cap_up(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        @pytest.mark.budget(max_usd=0.0005)
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            hf_endpoint.client.chat_completion(SAY, max_tokens=5)
            threading.Event().wait(0.4)
            with pytest.raises(BudgetExceededError, match="share of the uptime of acme/llm"):
                hf_endpoint.client.chat_completion(SAY, max_tokens=5)
            with pytest.raises(BudgetExceededError, match="left"):
                call()
    """)
    short_minutes.run().assert_outcomes(failed=1)
    assert short_minutes.sent == 1


def test_a_share_below_the_cap_leaves_the_rest_for_calls(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        @pytest.mark.budget(max_usd=0.05)
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            hf_endpoint.client.chat_completion(SAY, max_tokens=5)
            call()
    """)
    short_minutes.run("--hf-session-budget=1", REPORT).assert_outcomes(passed=1)
    checked(short_minutes)


def test_a_class_that_shares_a_budget_pays_for_its_tests_together(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        @pytest.mark.budget(max_usd=0.001, scope="class")
        @pytest.mark.hf_endpoint("acme/llm")
        class TestIt:
            @pytest.mark.parametrize("n", range(3))
            def test_it(self, n):
                threading.Event().wait(0.25)
    """)
    outcomes = short_minutes.run().parseoutcomes()
    assert outcomes["failed"] >= 1
    assert outcomes["passed"] >= 1


def test_a_worker_that_crashes_is_not_on_the_endpoint_any_more(short_minutes: Suite) -> None:
    pytest.importorskip("xdist")
    short_minutes.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_crashes():
            os._exit(3)

        def test_elsewhere():
            threading.Event().wait(1)
    """)
    short_minutes.run("-n1", "--hf-session-budget=1", REPORT)
    endpoint = checked(short_minutes)
    (share,) = map(nano, endpoint["shares"].values())
    assert share < nano(endpoint["idle_usd"])


def test_junit_has_the_share_of_a_test(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            threading.Event().wait(0.1)
    """)
    short_minutes.run("--junitxml=junit.xml").assert_outcomes(passed=1)
    text = (short_minutes.path / "junit.xml").read_text()
    assert 'name="hfbudget.uptime_usd" value="0.00' in text
    assert 'name="hfbudget.usd" value="0"' in text


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "two workers"])
def test_uptime_is_no_increase_of_what_is_recorded(
    short_minutes: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    short_minutes.test_file(SPLIT)
    short_minutes.run("--hf-store-costs", *workers).assert_outcomes(passed=6)
    result = short_minutes.run("--hf-max-increase=0%", REPORT, *workers)
    result.assert_outcomes(passed=6)
    assert sum(nano(test["uptime_usd"]) for test in short_minutes.report()["tests"]) > 0
    short_minutes.test_file(SPLIT.replace("max_tokens=5)", "max_tokens=5); call()"))
    short_minutes.run("--hf-max-increase=20%", *workers).assert_outcomes(passed=2, failed=4)
