"""Tests of a run with endpoints run in an order, and endpoints are paused, so that few minutes
are paid for: the emulator's log is the evidence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from plugin_suite import Suite

from pytest_hfbudget.history.usage_schema import DurationLog

THREE = """
    import time

    def test_free_1(): time.sleep(0.05)

    @pytest.mark.hf_endpoint("acme/a")
    def test_a1(): pass

    @pytest.mark.hf_endpoint("acme/b")
    def test_b1(): pass

    def test_free_2(): time.sleep(0.05)

    @pytest.mark.hf_endpoint("acme/a")
    def test_a2(): pass

    @pytest.mark.hf_endpoint("acme/a", "acme/b")
    def test_ab(): pass

    def test_free_3(): time.sleep(0.05)
"""


def ran(result: pytest.RunResult) -> list[str]:
    """The tests in the order in which they ran."""
    found = (re.match(r"\S+::(test_\w+(?:\[\S+\])?) \w+", line) for line in result.outlines)
    return [match[1] for match in found if match]


def moments(suite: Suite, op: str) -> dict[str, float]:
    """When a request for each endpoint arrived first."""
    found: dict[str, float] = {}
    for entry in suite.requests(op):
        found.setdefault(str(entry["endpoint"]), float(entry["mono"]))
    return found


def states(suite: Suite) -> dict[str, Any]:
    return {each["name"]: each["state"] for each in suite.emulator.state()["endpoints"]}


def test_tests_that_need_the_same_endpoints_run_together(suite: Suite) -> None:
    suite.test_file(THREE)
    result = suite.run("-v")
    result.assert_outcomes(passed=7)
    used = [name for name in ran(result) if "free" not in name]
    assert used == ["test_a1", "test_a2", "test_ab", "test_b1"]
    result.stdout.fnmatch_lines(
        ["hfbudget: tests sorted by endpoint: 2 endpoints, 3 blocks, 3 tests without one (--hf-*"]
    )


def test_an_endpoint_is_paused_after_its_last_test(suite: Suite) -> None:
    suite.test_file(THREE + "    def test_free_4(): time.sleep(1)\n")
    result = suite.run("-v", "--hf-order=collected")
    assert ran(result)[0:2] == ["test_free_1", "test_a1"]
    result.stdout.fnmatch_lines(
        [
            "hfbudget: order: as collected (hf_order=collected); 2 endpoints",
            "endpoint acme/*: paused, verified: no more tests need it",
        ]
    )
    invoice = suite.emulator.log(kind="state", state="paused")
    assert {entry["endpoint"] for entry in invoice} == {"acme/a", "acme/b"}


WORKERS = """
    import time

    @pytest.mark.parametrize("n", range(4))
    def test_free(n): time.sleep(0.05)

    @pytest.mark.parametrize("n", range(4))
    @pytest.mark.hf_endpoint("acme/a")
    def test_a(n): time.sleep(0.1)

    @pytest.mark.parametrize("n", range(4))
    @pytest.mark.hf_endpoint("acme/b")
    def test_b(n): time.sleep(0.1)
"""


def ending(code: str, deed: str) -> str:
    """The suite with a deed at the end of its last test."""
    head, _, body = code.rpartition(": ")
    return f"{head}:\n        {body.rstrip()}\n        {deed}\n"


@pytest.mark.parametrize("dist", ["load", pytest.param("worksteal", marks=pytest.mark.slow)])
def test_workers_share_the_tests_of_an_endpoint_that_serves(suite: Suite, dist: str) -> None:
    for name in ("acme/a", "acme/b"):
        suite.emulator.add_endpoint(name, initializing_s=0.2)
    suite.test_file(WORKERS)
    result = suite.run("-v", "-n2", f"--dist={dist}")
    result.assert_outcomes(passed=12)
    assert states(suite) == {"acme/a": "paused", "acme/b": "paused"}
    resumed, paused = moments(suite, "resume"), moments(suite, "pause")
    assert resumed["acme/a"] < resumed["acme/b"] < paused["acme/b"]
    assert paused["acme/a"] < paused["acme/b"]
    result.stdout.fnmatch_lines(["hfbudget: tests sorted by *: 2 endpoints, 2 blocks, 4 tests *"])


def test_fixtures_of_a_module_are_set_up_once(suite: Suite) -> None:
    suite.test_file("""
        made = []

        @pytest.fixture(scope="module")
        def shared():
            made.append(1)

        @pytest.mark.hf_endpoint("acme/a")
        def test_a1(shared): pass

        @pytest.mark.hf_endpoint("acme/b")
        def test_b1(shared): pass

        @pytest.mark.hf_endpoint("acme/a")
        def test_a2(): pass

        @pytest.mark.hf_endpoint("acme/a")
        def test_a3(shared): assert made == [1]
    """)
    result = suite.run("-v")
    result.assert_outcomes(passed=4)
    assert [name for name in ran(result) if name != "test_a2"] == ["test_a1", "test_b1", "test_a3"]


@pytest.mark.slow
def test_an_order_of_another_plugin_is_kept_and_endpoints_are_paused(suite: Suite) -> None:
    suite.path.joinpath("conftest.py").write_text(
        "def pytest_collection_modifyitems(items): items.reverse()\n"
    )
    suite.test_file(THREE)
    result = suite.run("-v")
    assert ran(result)[0:3] == ["test_free_3", "test_ab", "test_a2"]
    result.stdout.fnmatch_lines(["*as collected (another plugin has sorted the tests)*"])
    log = suite.emulator.log()
    paused = [e["seq"] for e in log if e.get("state") == "paused" and e["endpoint"] == "acme/a"]
    assert paused, "it is paused before the run's end"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--ff", "--nf", "--stepwise"])
def test_an_order_that_was_asked_for_is_kept(suite: Suite, option: str) -> None:
    suite.lean = False
    suite.test_file(THREE)
    result = suite.pytester.runpytest_subprocess("-v", option)
    assert ran(result)[0:3] == ["test_free_1", "test_a1", "test_b1"]


@pytest.mark.slow
def test_a_late_request_gets_one_line(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/a")
        def test_a(hf_endpoint):
            pytest.kept = hf_endpoint

        def test_b():
            pytest.kept.client.chat_completion(SAY, max_tokens=5)
    """)
    result = suite.run("--hf-order=collected")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*acme/a was paused at *--hf-endpoint=acme/a*"])
    assert len(suite.requests("resume")) == 1


APART = """
    import time

    @pytest.mark.hf_endpoint("acme/a")
    def test_a1(hf_endpoint):
        assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)

    def test_free(): time.sleep(4)

    @pytest.mark.hf_endpoint("acme/a")
    def test_a2(hf_endpoint):
        assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
"""
IN_GAPS = ("-o", "hf_order=collected", "-o", "hf_endpoint_cold_start=0.1")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_an_endpoint_is_paused_between_tests_that_lie_apart(suite: Suite, workers: str) -> None:
    suite.emulator.configure(billing_minute_s=0.4)
    suite.test_file(APART)
    settings = ("-o", "hf_billing_minute=0.4", "-o", "hf_endpoint_gaps=pause", *IN_GAPS)
    result = suite.run(workers, *settings, "--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=3)
    assert len(suite.requests("resume")) == 2
    assert states(suite) == {"acme/a": "paused"}
    report, invoice = suite.report(), suite.emulator.invoice()
    assert round(float(report["session"]["spent_usd"]) * 10**9) == invoice["total_nano_usd"]
    (endpoint,) = report["endpoints"]
    assert endpoint["minutes"] <= 6, "to keep it up would have taken ten"
    result.stdout.fnmatch_lines(["*acme/a: paused, verified: its next test is far off*"])


@pytest.mark.slow
def test_an_endpoint_is_kept_between_tests_unless_that_is_asked_for(suite: Suite) -> None:
    suite.emulator.configure(billing_minute_s=0.4)
    suite.test_file(APART)
    suite.run("-o", "hf_billing_minute=0.4", *IN_GAPS).assert_outcomes(passed=3)
    assert len(suite.requests("resume")) == 1


@pytest.mark.slow
def test_a_late_request_resumes_what_was_paused_where_gaps_are_pauses(suite: Suite) -> None:
    suite.test_file("""
        import time

        @pytest.mark.hf_endpoint("acme/a")
        def test_a(hf_endpoint):
            pytest.kept = hf_endpoint

        def test_b():
            time.sleep(0.5)
            assert pytest.kept.client.chat_completion(SAY, max_tokens=5)
    """)
    result = suite.run("-o", "hf_order=collected", "-o", "hf_endpoint_gaps=pause")
    result.assert_outcomes(passed=2)
    assert len(suite.requests("resume")) == 2
    assert states(suite) == {"acme/a": "paused"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_an_endpoint_that_fails_stops_no_tests_of_others(suite: Suite, workers: str) -> None:
    suite.emulator.add_endpoint("acme/a", resume_to="failed")
    suite.test_file(THREE)
    result = suite.run(workers)
    result.assert_outcomes(passed=4, errors=3)
    assert moments(suite, "pause").keys() == {"acme/a", "acme/b"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_rerun_still_has_its_endpoint(suite: Suite, workers: str) -> None:
    suite.lean = False
    suite.test_file("""
        tries = []

        @pytest.mark.hf_endpoint("acme/a")
        def test_a(hf_endpoint):
            tries.append(1)
            assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
            assert len(tries) == 2

        def test_free(): pass
    """)
    result = suite.run("--reruns=1", workers)
    assert "2 passed, 1 rerun" in result.stdout.str()
    assert len(suite.requests("resume")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dist", ["each", "loadfile", "loadscope", "loadgroup"])
def test_groupings_of_xdist_are_obeyed(suite: Suite, dist: str) -> None:
    suite.test_file(WORKERS)
    result = suite.run("-v", "-n2", f"--dist={dist}")
    result.assert_outcomes(passed=24 if dist == "each" else 12)
    assert set(states(suite).values()) == {"paused"}
    assert "EndpointScheduling" not in result.stdout.str()


@pytest.mark.slow
def test_a_crashed_worker_gives_its_tests_back(suite: Suite) -> None:
    suite.test_file(ending(WORKERS, "if n == 1: os._exit(3)"))
    result = suite.run("-v", "-n2")
    result.assert_outcomes(passed=11, failed=1)
    assert set(states(suite).values()) == {"paused"}
    assert len(suite.requests("resume")) == 2


@pytest.mark.slow
def test_the_first_failure_ends_a_run_with_workers(suite: Suite) -> None:
    suite.test_file(ending(WORKERS, "assert n != 1"))
    result = suite.run("-n2", "-x")
    assert result.ret == 2
    assert set(states(suite).values()) == {"paused"}


def test_a_suite_without_endpoints_loads_nothing_of_it(suite: Suite) -> None:
    suite.path.joinpath("conftest.py").write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    loaded = [m for m in sys.modules if 'scheduling' in m and 'hfbudget' in m]\n"
        "    loaded += [m for m in sys.modules if m.endswith(('plugin.schedule', 'test_order'))]\n"
        "    print('loaded', loaded)\n"
    )
    suite.test_file("def test_b(): pass\ndef test_a(): pass\n")
    result = suite.run("-v", "-s")
    assert ran(result) == ["test_b", "test_a"]
    result.stdout.fnmatch_lines(["*loaded []"])


def test_the_summary_and_the_report_tell_what_was_saved(suite: Suite) -> None:
    suite.test_file(THREE)
    result = suite.run("--hf-report=report.json")
    result.stdout.fnmatch_lines(["  endpoint minutes: 2 ($*) paid, as few as possible"])
    told = suite.report()["timeline"]
    assert (told["paid_minutes"], told["least_minutes"]) == (2, 2)
    assert {lane["name"] for lane in told["endpoints"]} == {"acme/a", "acme/b"}
    (both,) = (test for test in told["tests"] if test["test"].endswith("test_ab"))
    assert both["endpoints"] == ["acme/a", "acme/b"]
    assert len(told["tests"]) == 7


@pytest.mark.slow
def test_the_next_run_knows_how_long_everything_took(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setenv("HFBUDGET_STATE_DIR", str(real.path / "state"))
    real.emulator.add_endpoint("acme/a", initializing_s=0.5)
    real.test_file("""
        import time

        def test_free(): time.sleep(0.3)

        @pytest.mark.hf_endpoint("acme/a")
        def test_a(): time.sleep(0.2)
    """)
    real.run().assert_outcomes(passed=2)
    log = DurationLog(real.path / "state" / "log.sqlite3").read(str(real.path.resolve()))
    assert 0.3 <= log.tests["test_suite.py::test_free"] < 5
    assert 0.2 <= log.tests["test_suite.py::test_a"] < 5
    assert 0.4 <= log.cold_starts["acme/a"] < 5
    result = real.run("--hf-plan")
    result.stdout.fnmatch_lines(["  order:", "    acme/a: 1 test, 0 s", "    no endpoint, during*"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_an_endpoint_that_a_cap_can_not_pay_ahead_of_its_tests_is_never_resumed(
    real: Suite, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setenv("HFBUDGET_STATE_DIR", str(real.path / "state"))
    for name in ("acme/a", "acme/b"):
        real.emulator.add_endpoint(name, initializing_s=0.5)
    real.test_file("""
        @pytest.mark.hf_endpoint("acme/a")
        @pytest.mark.parametrize("n", range(2))
        def test_a(n): pass

        @pytest.mark.hf_endpoint("acme/b")
        def test_b(): pass

        def test_free(): pass
    """)
    real.run(workers).assert_outcomes(passed=4)  # the next run knows when to resume
    before = len(real.requests("resume"))
    result = real.run(workers, "--hf-session-budget=0.0006")  # pays for one minute of one endpoint
    (resumed,) = [entry["endpoint"] for entry in real.requests("resume")[before:]]
    not_run = 1 if resumed == "acme/a" else 2  # two workers may begin with either
    result.assert_outcomes(passed=4 - not_run, skipped=not_run)
    assert set(states(real).values()) == {"paused"}
