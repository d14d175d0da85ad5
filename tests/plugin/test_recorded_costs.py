"""The costs file of a run, and tests that have come to cost more than it says."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest
from plugin_suite import Suite

from pytest_hfbudget.money import usd_text

pytestmark = pytest.mark.slow

STORE = "--hf-store-costs"
MOST = "--hf-max-increase=20%"
TWO = """
    def test_calls():
        call()

    def test_computes():
        pass
"""


def written(suite: Suite, name: str = "hf-costs.json") -> dict[str, Any]:
    return dict(json.loads((suite.path / name).read_text())["tests"])


def record(suite: Suite, **tests: str) -> None:
    """A costs file that says what these tests have cost in USD."""
    rows = {f"test_suite.py::{name}": {"usd": usd, "calls": 1} for name, usd in tests.items()}
    (suite.path / "hf-costs.json").write_text(json.dumps({"schema": 1, "tests": rows}))


def test_a_run_writes_no_costs_unless_it_is_asked_to(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run("--hf-session-budget=1").assert_outcomes(passed=2)
    assert not (suite.path / "hf-costs.json").exists()


def test_what_each_test_has_cost_is_stored_as_it_was_billed(suite: Suite) -> None:
    suite.test_file(TWO)
    result = suite.run(STORE)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["hfbudget: stored in hf-costs.json what 2 tests cost"])
    costs = written(suite)
    assert costs["test_suite.py::test_computes"] == {"usd": "0"}
    called = costs["test_suite.py::test_calls"]
    assert called["usd"] == usd_text(suite.billed)
    assert (called["calls"], called["output_tokens"]) == (1, 10)


def test_the_same_suite_writes_the_same_file(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run(STORE)
    first = (suite.path / "hf-costs.json").read_bytes()
    suite.run(STORE)
    assert (suite.path / "hf-costs.json").read_bytes() == first


def test_workers_store_the_same_as_one_process(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file(TWO)
    suite.run(STORE)
    alone = (suite.path / "hf-costs.json").read_bytes()
    suite.run(STORE, "-n2", "--hf-costs=other.json")
    assert (suite.path / "other.json").read_bytes() == alone


def test_only_what_passed_and_was_paid_gets_a_new_entry(suite: Suite) -> None:
    record(suite, test_fails="1", test_is_refused="2", test_is_skipped="3")
    suite.test_file("""
        def test_fails():
            call()
            assert 0

        @pytest.mark.budget(max_usd=0, on_exceed="raise")
        def test_is_refused():
            with pytest.raises(BudgetExceededError):
                call()

        def test_is_skipped():
            pytest.skip("today")

        def test_has_no_price():
            call(model="acme/unheard-of")
    """)
    suite.run(STORE).assert_outcomes(passed=2, failed=1, skipped=1)
    usd = {name.partition("::")[2]: row["usd"] for name, row in written(suite).items()}
    assert usd == {"test_fails": "1", "test_is_refused": "2", "test_is_skipped": "3"}


def test_a_replay_leaves_what_the_real_call_has_cost(suite: Suite) -> None:
    pytest.importorskip("pytest_recording")
    suite.test_file("""
        @pytest.mark.vcr
        def test_it():
            call()
    """)
    suite.run(STORE, "--record-mode=once").assert_outcomes(passed=1)
    first = (suite.path / "hf-costs.json").read_bytes()
    suite.run(STORE, "--record-mode=none").assert_outcomes(passed=1)
    assert suite.sent == 1
    assert (suite.path / "hf-costs.json").read_bytes() == first
    assert written(suite)["test_suite.py::test_it"]["usd"] == usd_text(suite.billed)


def test_tests_that_are_gone_are_forgotten_by_a_run_of_the_whole_suite(suite: Suite) -> None:
    record(suite, test_gone="1", test_calls="1")
    suite.test_file(TWO)
    suite.run(STORE)
    assert set(written(suite)) == {"test_suite.py::test_calls", "test_suite.py::test_computes"}


@pytest.mark.parametrize(
    "part", [("-k", "computes"), pytest.param(("test_suite.py",), marks=pytest.mark.slow)]
)
def test_a_run_of_a_part_forgets_nothing(suite: Suite, part: tuple[str, ...]) -> None:
    record(suite, test_gone="1", test_calls="1")
    suite.test_file(TWO)
    suite.run(STORE, *part)
    assert {"test_suite.py::test_gone", "test_suite.py::test_calls"} <= set(written(suite))


def test_a_run_that_ends_early_forgets_nothing(suite: Suite) -> None:
    record(suite, test_gone="1")
    suite.test_file("def test_fails(): assert 0\n    def test_next(): pass")
    suite.run(STORE, "-x")
    assert "test_suite.py::test_gone" in written(suite)


def test_a_run_that_only_shows_its_set_up_stores_nothing(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run(STORE, "--setup-plan")
    assert not (suite.path / "hf-costs.json").exists()


def test_an_endpoint_is_recorded_by_its_cold_start_and_the_seconds_of_its_tests(
    suite: Suite,
) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    suite.run(STORE).assert_outcomes(passed=1)
    assert written(suite)["test_suite.py::test_it"]["endpoint_s"] >= 1
    assert written(suite)["test_suite.py::test_it"]["usd"] == "0"
    endpoints = json.loads((suite.path / "hf-costs.json").read_text())["endpoints"]
    assert endpoints["acme/llm"]["cold_start_s"] >= 1


def test_a_file_that_can_not_be_written_is_said(suite: Suite) -> None:
    (suite.path / "file").touch()
    suite.test_file(TWO)
    result = suite.run(STORE, "--hf-costs=file/costs.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["hfbudget: no costs could be stored: *"])


@pytest.mark.parametrize(
    "option",
    [
        "--hf-session-budget=1",
        *(pytest.param(option, marks=pytest.mark.slow) for option in (STORE, "--hf-plan", MOST)),
    ],
)
def test_garbage_in_the_file_is_one_line(suite: Suite, option: str) -> None:
    (suite.path / "hf-costs.json").write_text('{"schema": 1, "tests": {"a": {"usd": "nan"}}}')
    suite.test_file("def test_it(): call()")
    result = suite.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert "hf-costs.json is not a costs file: a: usd: 'nan' is not a finite amount" in line
    assert suite.sent == 0


def test_a_run_that_does_not_need_the_file_does_not_read_it(suite: Suite) -> None:
    (suite.path / "hf-costs.json").write_text("garbage")
    suite.test_file("def test_it(): call()")
    suite.run().assert_outcomes(passed=1)
    suite.run("--hf-session-budget=1", "--hf-plan-gate=off").assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [(MOST,), ("--hf-plan", "--hf-costs=none.json")])
def test_a_file_that_has_to_be_there_and_is_not_is_one_line(
    suite: Suite, options: tuple[str, ...]
) -> None:
    suite.test_file(TWO)
    result = suite.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *: there is no such file; pytest --hf-store-costs *"])


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_test_that_costs_more_than_it_may_fails(suite: Suite, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist")
    record(suite, test_dearer="0.000001", test_as_ever="1")
    suite.test_file("""
        def test_dearer():
            call()

        def test_as_ever():
            call()

        def test_new():
            call()
    """)
    result = suite.run(MOST, *workers, "--hf-report=report.json", "--junitxml=junit.xml")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["its calls cost $0.0000*, and $0.000001 is recorded in hf-costs.json: *% more, but *"]
    )
    outcomes = {test["id"]: test["outcome"] for test in suite.report()["tests"]}
    assert outcomes["test_suite.py::test_dearer"] == "failed"
    (failure,) = ElementTree.parse(suite.path / "junit.xml").iter("failure")
    assert "is recorded in hf-costs.json" in (failure.text or "")


def test_a_test_that_was_free_may_cost_nothing(suite: Suite) -> None:
    suite.test_file("def test_it(): pass")
    suite.run(STORE)
    suite.run(MOST).assert_outcomes(passed=1)
    suite.test_file("def test_it(): call()")
    result = suite.run(MOST)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*any cost is an increase over $0*"])


def test_what_is_meant_is_stored_and_passes_from_then_on(suite: Suite) -> None:
    record(suite, test_calls="0.000001")
    suite.test_file(TWO)
    suite.run(MOST, STORE).assert_outcomes(failed=1, passed=1)
    assert written(suite)["test_suite.py::test_calls"]["usd"] == "0.000001"
    suite.run(STORE).assert_outcomes(passed=2)
    suite.run(MOST).assert_outcomes(passed=2)


def test_a_test_that_failed_anyway_fails_once(suite: Suite) -> None:
    record(suite, test_it="0")
    suite.test_file("""
        def test_it():
            call()
            assert 0, "of the product"
    """)
    result = suite.run(MOST)
    result.assert_outcomes(failed=1)
    assert "are recorded" not in result.stdout.str()


def test_what_a_teardown_adds_counts_and_is_said_once(suite: Suite) -> None:
    record(suite, test_late="0", test_both="0")
    suite.test_file("""
        @pytest.fixture
        def late():
            yield
            call()

        def test_late(late):
            pass

        def test_both(late):
            call()
    """)
    result = suite.run(MOST)
    result.assert_outcomes(passed=1, failed=1, errors=1)
    assert result.stdout.str().count("any cost is an increase") == 2


def test_a_charge_at_an_upper_bound_is_no_increase_over_an_exact_record(suite: Suite) -> None:
    record(suite, test_it="0.000001")
    suite.test_file("""
        def test_it():
            client = InferenceClient(model="emulator/chat", provider="groq")
            stream = client.chat_completion(SAY, max_tokens=5000, stream=True)
            next(iter(stream))
            stream.close()
    """)
    suite.run(MOST, "--hf-report=report.json").assert_outcomes(passed=1)
    (call,) = suite.report()["calls"]
    assert call["estimated"]
    assert float(call["usd"]) > 0.000002


def test_the_attempts_of_a_test_count_together(suite: Suite) -> None:
    pytest.importorskip("pytest_rerunfailures")
    suite.test_file("""
        TRIED = []

        def test_it():
            call()
            TRIED.append(1)
            assert len(TRIED) == 2
    """)
    suite.run(STORE, "--reruns=2").assert_outcomes(passed=1)
    assert written(suite)["test_suite.py::test_it"]["calls"] == 2
    assert written(suite)["test_suite.py::test_it"]["usd"] == usd_text(suite.billed)
    result = suite.run(MOST, "--reruns=2")
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
