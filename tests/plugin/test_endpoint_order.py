"""Tests of a run with endpoints run in an order, and endpoints are paused, so that few minutes
are paid for: the emulator's log is the evidence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from plugin_suite import Suite

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
        ["hfbudget: order: 2 endpoints in 3 blocks, 3 free tests during cold starts (hf_order*"]
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


@pytest.mark.parametrize("dist", ["load", "worksteal"])
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
    result.stdout.fnmatch_lines(["hfbudget: order: 2 endpoints in 2 blocks, 4 free tests*"])
