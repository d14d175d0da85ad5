"""What a run is expected to cost, before it costs anything: ``--hf-plan`` and its gate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

PLAN = "--hf-plan"
STOP = "--hf-plan-gate=stop"
THREE = """
    def test_recorded():
        call()

    @pytest.mark.budget(max_usd=0.01)
    def test_capped():
        call()

    def test_new():
        call()
"""
ENDPOINT = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        hf_endpoint.client.chat_completion(SAY, max_tokens=5)
"""


def record(suite: Suite, *, cold_start_s: int | None = None, **tests: dict[str, Any]) -> None:
    """A costs file with these tests in it."""
    rows = {f"test_suite.py::{name}": row for name, row in tests.items()}
    endpoints = {"acme/llm": {"cold_start_s": cold_start_s}} if cold_start_s else {}
    text = json.dumps({"schema": 1, "tests": rows, "endpoints": endpoints})
    (suite.path / "hf-costs.json").write_text(text)


RECORDED: dict[str, Any] = {"usd": "0.002", "calls": 3, "input_tokens": 17, "output_tokens": 32}


def changed(suite: Suite) -> list[str]:
    """What arrived at the emulator that is more than a look."""
    looks = {"get", "provider", "models"}
    log = suite.emulator.log(kind="request", phase="arrived")
    return [entry["op"] for entry in log if entry["op"] not in looks]


def test_the_plan_shows_each_test_and_runs_none(suite: Suite) -> None:
    record(suite, test_recorded=RECORDED)
    suite.test_file(THREE)
    result = suite.run(PLAN, "--hf-session-budget=0.05")
    assert result.ret == 0
    result.assert_outcomes()
    result.stdout.fnmatch_lines(
        [
            "*= hf budget: plan =*",
            "expected $0.002 of $0.05 █░* (1 of 3 tests recorded)",
            "  test_suite.py::test_capped    at most $0.01",
            "  test_suite.py::test_recorded  $0.002 (3 calls, 17 + 32 tokens)",
            "  test_suite.py::test_new       unknown",
            "  1 test without a record: at most $0.01 more, by caps; not in the sum",
            "  1 test without a record or a cap: unknown, not in the sum; *--hf-store-costs*",
        ]
    )
    assert changed(suite) == []


def test_the_plan_is_of_what_was_selected_and_needs_no_workers(suite: Suite) -> None:
    pytest.importorskip("xdist")
    record(suite, test_recorded=RECORDED)
    suite.test_file(THREE)
    result = suite.run(PLAN, "-n2", "-k", "recorded")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["expected $0.002 (1 of 1 test recorded; no session budget)"])
    assert "created:" not in result.stdout.str()
    assert changed(suite) == []


def test_what_a_run_has_stored_is_what_the_next_is_expected_to_cost(suite: Suite) -> None:
    suite.test_file("""
        def test_calls():
            call()

        def test_computes():
            pass

        @pytest.mark.skip
        def test_is_skipped():
            call()
    """)
    suite.run("--hf-store-costs", "--hf-report=report.json")
    spent = suite.report()["session"]["spent_usd"]
    suite.run(PLAN, "-vv").stdout.fnmatch_lines(
        [
            f"expected ${spent} (2 of 2 tests recorded; no session budget)",
            f"  test_suite.py::test_calls  ${spent} (1 call, *)",
            "  1 test without calls",
        ]
    )


def test_an_endpoint_is_planned_by_the_minute_with_its_cold_start(suite: Suite) -> None:
    suite.emulator.add_endpoint("acme/llm")
    record(suite, test_it={"usd": "0", "calls": 1, "endpoint_s": 130}, cold_start_s=61)
    suite.test_file(ENDPOINT)
    result = suite.run(PLAN)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["  acme/llm: 4 min, $0.0022 (cold start 61 s, recorded; tests 130 s)"]
    )
    assert changed(suite) == []


def test_an_endpoint_that_runs_and_is_kept_costs_this_run_nothing(suite: Suite) -> None:
    suite.emulator.add_endpoint("acme/llm", state="running")
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm", keep_running=True)
        def test_it(hf_endpoint):
            pass
    """)
    result = suite.run(PLAN)
    result.stdout.fnmatch_lines(["expected $0.00 *", "  acme/llm: kept running, as it was found*"])
    assert changed(suite) == []


def test_an_endpoint_of_which_nothing_is_known_has_the_default_and_no_price(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.setenv("HFBUDGET_ENDPOINTS_API", f"{suite.emulator.url}/v2")
    suite.test_file(ENDPOINT)
    result = suite.run(PLAN, "-o", "hf_endpoint_cold_start=90")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "  acme/llm: at least 2 min, its price is unknown (cold start 90 s, assumed; *",
            "  uptime of acme/llm: unknown, not in the sum",
        ]
    )
    result.stdout.fnmatch_lines(["    acme/llm runs from 0 s to 90 s, minutes: 2; as collected: 2"])
    assert suite.emulator.log(kind="request", phase="arrived") == []


def test_a_suite_that_can_not_be_collected_has_no_plan(suite: Suite) -> None:
    suite.test_file("import nothing_of_that_name")
    result = suite.run(PLAN)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "expected" not in result.stdout.str()


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_run_that_is_expected_to_break_its_cap_stops_before_anything_is_sent(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    record(suite, cold_start_s=50, test_it={"usd": "0.002", "calls": 1, "endpoint_s": 1})
    suite.test_file(ENDPOINT + "\n    def test_calls(): call()\n")
    result = suite.run("--hf-session-budget=0.001", STOP, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert "expected to cost $0.00255" in line
    assert "its session budget is $0.001" in line
    assert "--hf-plan" in line
    assert changed(suite) == []


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_run_that_is_expected_to_break_its_cap_is_warned_and_goes_on(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    record(suite, test_recorded=RECORDED)
    suite.test_file(THREE)
    result = suite.run("--hf-session-budget=0.001", *workers)
    result.assert_outcomes(passed=3)
    said = "hfbudget: this run is expected to cost $0.002, and its session budget is $0.001. "
    assert result.stdout.str().count(said) == 1


def test_the_gate_counts_what_was_selected_and_no_caps(suite: Suite) -> None:
    record(suite, test_recorded=RECORDED)
    suite.test_file(THREE)
    options = ("--hf-session-budget=0.001", STOP, "--hf-test-budget=1")
    suite.run(*options, "-k", "not recorded").assert_outcomes(passed=2)


def test_a_gate_that_is_off_says_nothing(suite: Suite) -> None:
    record(suite, test_recorded=RECORDED)
    suite.test_file(THREE)
    result = suite.run("--hf-session-budget=0.001", "--hf-plan-gate=off")
    result.assert_outcomes(passed=3)
    assert "expected to cost" not in result.stdout.str()


def test_a_gate_that_is_none(suite: Suite) -> None:
    suite.test_file("def test_it(): pass")
    result = suite.run("--hf-plan-gate=maybe")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --hf-plan-gate=maybe: write one of stop, warn, off"])


def test_a_plan_leaves_the_last_report_as_it_is(suite: Suite) -> None:
    suite.test_file("def test_it(): call()")
    suite.run("--hf-report=report.json")
    before = (suite.path / "report.json").read_bytes()
    suite.run("--hf-report=report.json", "--hf-plan")
    assert (suite.path / "report.json").read_bytes() == before
