"""An endpoint that autoscales costs no more than the session budget."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from plugin_suite import Suite

MINUTE = 550_000  # nano-USD of one replica
BUSY: dict[str, Any] = {"max_replica": 4, "load": 4, "load_check_s": 0.2}
HANGS = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        threading.Event().wait({seconds})
"""
# Running when pytest looks for the first time, and for no longer than that takes.
FOUND_RUNNING = """
    import os
    from pytest_hfbudget.emulator import EmulatorClient

    def pytest_collection_finish():
        hub = EmulatorClient(os.environ["HFBUDGET_EMULATOR"])
        hub.change_endpoint("acme/llm", state="running")
"""
RAISES_IT = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        from pytest_hfbudget.emulator import EmulatorClient

        hub = EmulatorClient(os.environ["HFBUDGET_EMULATOR"])
        hub.change_endpoint("acme/llm", {change})
        threading.Event().wait(5)
"""


@pytest.fixture
def busy(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Its endpoint wants four replicas; a minute is half a second."""
    suite.emulator.configure(billing_minute_s=0.5)
    monkeypatch.setenv("HFBUDGET_BILLING_MINUTE", "0.5")
    suite.emulator.add_endpoint("acme/llm", **BUSY)
    return suite


def bill(suite: Suite) -> int:
    return int(suite.emulator.invoice()["total_nano_usd"])


def scaling(suite: Suite) -> dict[str, Any]:
    """As it is now."""
    shown = suite.emulator.change_endpoint("acme/llm")
    return dict(shown["compute"]["scaling"])


def most_replicas(suite: Suite) -> int:
    return len({span["replica"] for span in suite.emulator.invoice()["endpoints"][0]["spans"]})


@pytest.mark.slow
def test_an_endpoint_does_not_scale_beyond_what_the_cap_pays_for(busy: Suite) -> None:
    busy.test_file(HANGS.format(seconds=3))
    result = busy.run("--hf-session-budget=0.002")
    assert bill(busy) <= 2_000_000
    assert most_replicas(busy) == 1
    result.stdout.fnmatch_lines(["*its maxReplica was lowered from 4 to 1 for this run*"])


def test_the_scaling_is_put_back_at_the_end(busy: Suite) -> None:
    before = scaling(busy)
    busy.test_file(HANGS.format(seconds=0.1))
    busy.run("--hf-session-budget=0.01").assert_outcomes(passed=1)
    assert scaling(busy) == before


@pytest.mark.slow
def test_an_endpoint_may_have_as_many_replicas_as_it_starts_with(busy: Suite) -> None:
    busy.emulator.change_endpoint("acme/llm", min_replica=2)
    busy.test_file(HANGS.format(seconds=2))
    busy.run("--hf-session-budget=0.0035")
    assert bill(busy) <= 3_500_000
    assert most_replicas(busy) == 2


@pytest.mark.slow
def test_an_endpoint_scales_as_it_likes_without_a_cap(busy: Suite) -> None:
    busy.test_file(HANGS.format(seconds=1))
    busy.run().assert_outcomes(passed=1)
    assert most_replicas(busy) == 4


@pytest.mark.slow
def test_an_endpoint_that_was_found_running_is_charged_with_all_replicas_it_may_have(
    busy: Suite,
) -> None:
    (busy.path / "conftest.py").write_text(textwrap.dedent(FOUND_RUNNING))
    busy.test_file(HANGS.format(seconds=4))
    busy.run("--hf-session-budget=0.0075")
    assert busy.requests("update") == [], "a change would deploy it anew"
    assert bill(busy) <= 7_500_000 + MINUTE  # it ran a moment before the run looked at it


def test_an_endpoint_that_was_found_running_with_too_many_replicas_is_not_used(
    busy: Suite,
) -> None:
    busy.emulator.change_endpoint("acme/llm", state="running", load=0)
    busy.test_file(HANGS.format(seconds=0.1))
    result = busy.run("--hf-session-budget=0.002", "-rs")
    said = (
        "*session budget: acme/llm may scale to 4 replicas. A minute of 3 more replicas costs $*, "
        "but only $* of $0.002 is left. Lower its maxReplica, or raise --hf-session-budget.*"
    )
    result.stdout.fnmatch_lines([said])
    assert busy.requests("pause") == []


@pytest.mark.slow
def test_all_replicas_are_paid_for_ahead_where_the_server_refuses_to_be_told(
    busy: Suite,
) -> None:
    busy.emulator.add_fault("update", status=403, times=None)
    busy.test_file(HANGS.format(seconds=3))
    busy.run("--hf-session-budget=0.0045")
    assert bill(busy) <= 4_500_000
    assert most_replicas(busy) == 4


@pytest.mark.slow
def test_an_endpoint_that_can_neither_be_limited_nor_paid_for_is_not_resumed(
    busy: Suite,
) -> None:
    busy.emulator.add_fault("update", status=403, times=None)
    busy.test_file(HANGS.format(seconds=0.1))
    result = busy.run("--hf-session-budget=0.002", "-rs")
    result.stdout.fnmatch_lines(["*acme/llm may scale to 4 replicas*"])
    assert busy.requests("resume") == []
    assert bill(busy) == 0


@pytest.mark.slow
@pytest.mark.parametrize("change", ["max_replica=4", "replicas=4"])
def test_replicas_that_someone_adds_in_mid_run_are_seen_and_charged(
    busy: Suite, change: str
) -> None:
    busy.test_file(RAISES_IT.format(change=change))
    result = busy.run("--hf-session-budget=0.0085")
    assert most_replicas(busy) == 4
    assert bill(busy) <= 8_500_000
    result.stdout.fnmatch_lines(["*acme/llm was paused*session budget of $0.0085*"])
