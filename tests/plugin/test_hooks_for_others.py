"""Hooks that tell others what was charged, refused, and done with endpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

LISTENS = """
    import json, threading

    def pytest_configure(config):
        global worker
        worker = hasattr(config, "workerinput")

    def _tell(**said):
        main = threading.current_thread() is threading.main_thread()
        with open("told.jsonl", "a") as file:
            file.write(json.dumps({**said, "main": main, "worker": worker}) + "\\n")

    def pytest_hfbudget_charge(charge):
        _tell(hook="charge", usd=charge.nano_usd, test=charge.test)

    def pytest_hfbudget_refusal(refusal):
        _tell(hook="refusal", test=refusal.test)

    def pytest_hfbudget_endpoint(event):
        _tell(hook="endpoint", what=event.what, name=event.name, usd=event.nano_usd)
"""

CALLS = """
    @pytest.mark.parametrize("n", range(4))
    @pytest.mark.budget(max_usd=0.1)
    def test_calls(n):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    @pytest.mark.budget(max_usd=0)
    def test_is_refused():
        call()

    @pytest.mark.hf_endpoint("acme/llm")
    def test_endpoint(hf_endpoint):
        pass
"""


def told(suite: Suite) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (suite.path / "told.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_everything_is_told_once_in_the_main_thread_of_the_controller(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    suite.pytester.makeconftest(LISTENS)
    suite.test_file(CALLS)
    suite.run(*workers).assert_outcomes(passed=5, failed=1)
    said = told(suite)
    assert sum(s["usd"] for s in said if s["hook"] == "charge") == suite.billed > 0
    assert [s["hook"] for s in said].count("charge") == suite.sent == 4
    assert [s["test"] for s in said if s["hook"] == "refusal"] == ["test_suite.py::test_is_refused"]
    endpoint = [s for s in said if s["hook"] == "endpoint"]
    assert [s["what"] for s in endpoint] == ["resumed", "ready", "paused"]
    assert endpoint[-1]["usd"] == suite.emulator.invoice()["endpoints_nano_usd"]
    assert {(s["main"], s["worker"]) for s in said} == {(True, False)}


def test_a_charge_is_told_before_the_next_test(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        def pytest_hfbudget_charge(charge):
            with open("told", "a") as file:
                file.write(charge.test)
    """)
    suite.test_file("""
        def test_calls():
            call()

        def test_next():
            assert open("told").read() == "test_suite.py::test_calls"
    """)
    suite.run().assert_outcomes(passed=2)


@pytest.mark.parametrize("error", ["ValueError('no')", "pytest.fail.Exception('no')"])
def test_a_hook_that_raises_is_named_once_and_costs_nothing(suite: Suite, error: str) -> None:
    suite.pytester.makeconftest(f"""
        import pytest

        class Careful:
            def pytest_hfbudget_charge(self, charge):
                with open("told", "a") as file:
                    file.write("x")

        def pytest_configure(config):
            config.pluginmanager.register(Careful(), "careful")

        def pytest_hfbudget_charge(charge):
            raise {error}
    """)
    suite.test_file("""
        @pytest.mark.parametrize("n", range(3))
        def test_it(n):
            call()
    """)
    result = suite.run("--hf-session-budget=1", "--hf-report=report.json", "-W", "error")
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    text = result.stdout.str()
    assert text.count("hfbudget: pytest_hfbudget_charge of ") == 1
    assert "conftest.py raised " in text
    assert (suite.path / "told").read_text() == "xxx"
    assert round(float(suite.report()["session"]["spent_usd"]) * 10**9) == suite.billed > 0


def test_a_hook_may_end_the_run(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        import pytest

        def pytest_hfbudget_charge(charge):
            pytest.exit("that will do", returncode=7)
    """)
    suite.test_file("""
        def test_it():
            call()

        def test_next():
            call()
    """)
    assert suite.run().ret == 7
    assert suite.sent == 1


def test_a_price_hook_that_raises_is_named_and_nothing_is_sent(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        def pytest_hfbudget_price(request):
            raise ValueError("no list today")
    """)
    suite.test_file("""
        @pytest.mark.budget(max_usd=1)
        def test_it():
            call()
    """)
    result = suite.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*HFBudgetError: the hook pytest_hfbudget_price raised ValueError: no list today*"]
    )
    assert suite.sent == 0


def test_a_price_hook_that_raises_does_not_fail_a_test_without_a_cap(suite: Suite) -> None:
    suite.pytester.makeconftest("""
        def pytest_hfbudget_price(request):
            raise ValueError("no list today")
    """)
    suite.test_file("def test_it(): call()")
    suite.run().assert_outcomes(passed=1)
    assert suite.sent == 1
