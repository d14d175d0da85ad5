"""A hung test costs no more than the cap: the reaper pauses before a minute that breaks it."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

from pytest_hfbudget.endpoints.uptime import HORIZON_S, MARGIN, RunningEndpoint, seconds_left

MINUTE = 60.0
EARLY = MARGIN * MINUTE


def test_a_budget_of_three_minutes_lasts_until_the_fourth() -> None:
    running = [RunningEndpoint(since=0.0, nano_per_minute=10)]
    assert seconds_left(30, running, now=0.0, minute_s=MINUTE) == 180 - EARLY
    assert seconds_left(39, running, now=30.0, minute_s=MINUTE) == 150 - EARLY


def test_a_budget_that_is_used_up_leaves_nothing() -> None:
    assert seconds_left(9, [RunningEndpoint(0.0, 10)], now=0.0, minute_s=MINUTE) == 0.0
    assert seconds_left(20, [RunningEndpoint(0.0, 10)], now=120.0, minute_s=MINUTE) == 0.0


def test_the_minutes_of_several_endpoints_start_at_their_own_times() -> None:
    running = [
        RunningEndpoint(since=0.0, nano_per_minute=10),
        RunningEndpoint(since=30.0, nano_per_minute=1),
    ]
    # One minute of each has started: 11. At 60 s comes 10, at 90 s 1, at 120 s 10.
    assert seconds_left(21, running, now=40.0, minute_s=MINUTE) == 50 - EARLY
    assert seconds_left(22, running, now=40.0, minute_s=MINUTE) == 80 - EARLY


def test_what_costs_nothing_may_run_for_a_day() -> None:
    assert seconds_left(0, [RunningEndpoint(0.0, 0)], now=0.0, minute_s=MINUTE) == HORIZON_S
    assert seconds_left(0, [], now=0.0, minute_s=MINUTE) == HORIZON_S


HANGS = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        ended = threading.Event()
        ended.wait({seconds})
"""


@pytest.fixture
def short_minutes(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    suite.emulator.configure(billing_minute_s=0.5)
    monkeypatch.setenv("HFBUDGET_BILLING_MINUTE", "0.5")
    return suite


@pytest.mark.slow
def test_a_test_that_hangs_costs_no_more_than_the_session_budget(short_minutes: Suite) -> None:
    short_minutes.test_file(HANGS.format(seconds=3))
    result = short_minutes.run("--hf-session-budget=0.002")
    # Three minutes cost $0.00165. A slow machine starts fewer of them, never more.
    result.stdout.re_match_lines(
        [r".*acme/llm: paused, verified; resumed .*; [23] min, \$0.001\d+"]
    )
    assert 1_100_000 <= short_minutes.emulator.invoice()["total_nano_usd"] <= 2_000_000


def test_a_clock_that_a_test_freezes_moves_no_deadline(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint, monkeypatch):
            monkeypatch.setattr("time.time", lambda: 2e9)
            monkeypatch.setattr("time.monotonic", lambda: 2e9)
            call()
    """)
    suite.run("--hf-session-budget=0.01", "--hf-report=report.json").assert_outcomes(passed=1)
    spent = float(suite.report()["session"]["spent_usd"])
    assert round(spent * 10**9) == suite.emulator.invoice()["total_nano_usd"]


@pytest.mark.slow
def test_a_call_makes_the_deadline_earlier_by_what_it_costs(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            with budget(price={"call": 0.0006}):
                call()
            threading.Event().wait(2.5)
    """)
    short_minutes.run("--hf-session-budget=0.002")
    invoice = short_minutes.emulator.invoice()
    assert invoice["endpoints"][0]["minutes"] <= 2
    assert invoice["endpoints_nano_usd"] + 600_000 <= 2_000_000


@pytest.mark.slow
def test_an_uptime_limit_pauses_without_any_cap(short_minutes: Suite) -> None:
    short_minutes.test_file(HANGS.format(seconds=4))
    short_minutes.run("--hf-max-uptime=0.015")
    # 0.9 s from the resume; how long starting takes decides between one minute and two or three.
    assert 1 <= short_minutes.emulator.invoice()["endpoints"][0]["minutes"] <= 4


def test_a_test_whose_endpoint_was_paused_for_the_cap_fails_and_says_so(
    short_minutes: Suite,
) -> None:
    short_minutes.test_file(HANGS.format(seconds=3))
    result = short_minutes.run("--hf-session-budget=0.002")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*acme/llm was paused*session budget of $0.002*"])


@pytest.mark.slow
def test_a_call_to_an_endpoint_that_was_paused_for_the_cap_is_a_budget_error(
    short_minutes: Suite,
) -> None:
    short_minutes.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            threading.Event().wait(2.5)
            hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    result = short_minutes.run("--hf-session-budget=0.002")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*BudgetExceededError: acme/llm was paused*"])
    assert len(short_minutes.requests("resume")) == 1


@pytest.mark.slow
def test_an_endpoint_that_was_never_resumed_takes_nothing_from_the_cap(
    short_minutes: Suite,
) -> None:
    short_minutes.emulator.add_endpoint("acme/bad", quota_ok=False)
    short_minutes.test_file("""
        @pytest.mark.hf_endpoint("acme/bad")
        def test_bad(hf_endpoint):
            pass

        @pytest.mark.hf_endpoint("acme/llm")
        def test_good(hf_endpoint):
            threading.Event().wait(2)
            call()
    """)
    short_minutes.run("--hf-session-budget=0.006").assert_outcomes(errors=1, passed=1)


@pytest.mark.slow
def test_a_test_that_sets_the_clock_ahead_gets_no_minutes_back(short_minutes: Suite) -> None:
    short_minutes.test_file("""
        import time

        @pytest.mark.hf_endpoint("acme/llm")
        def test_on_it():
            threading.Event().wait(2)  # four minutes or more, for $0.0022

        def test_ahead(monkeypatch):
            tomorrow = time.time() + 86_400
            monkeypatch.setattr(time, "time", lambda: tomorrow)
            threading.Event().wait(2)  # meanwhile the endpoint is paused
            with budget(price={"call": 0.0015}):
                call()
    """)
    result = short_minutes.run("-o", "hf_order=collected", "--hf-session-budget=0.0035")
    result.stdout.fnmatch_lines(["endpoint acme/llm: paused, verified: no more tests need it*"])
    assert short_minutes.sent == 0


@pytest.mark.slow
def test_an_endpoint_that_was_paused_early_takes_nothing_more_from_the_cap(
    short_minutes: Suite,
) -> None:
    short_minutes.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass

        def test_that_calls():
            threading.Event().wait(6)
            call()
    """)
    options = ("--hf-session-budget=0.0045", "--hf-max-uptime=0.015", "--hf-order=collected")
    result = short_minutes.run(*options)
    result.assert_outcomes(passed=2)
