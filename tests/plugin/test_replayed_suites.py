"""Suites that are played back by pytest-recording: nothing is paid, and no endpoint wakes up."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_suite import Suite

pytest.importorskip("pytest_recording")

pytestmark = pytest.mark.slow

ENDPOINT = """
    pytestmark = [pytest.mark.hf_endpoint("acme/llm"), pytest.mark.vcr]

    def test_it(hf_endpoint):
        assert hf_endpoint.client.chat_completion(SAY, max_tokens=50)
"""
ROUTED = """
    pytestmark = [pytest.mark.vcr, pytest.mark.budget(0.01)]

    def test_it():
        assert call(50, model="acme/unheard-of")
"""
CAPPED = ("--hf-session-budget=1", "--hf-report=report.json")


@pytest.fixture(autouse=True)
def _with_recorders(suite: Suite) -> None:
    suite.lean = False


def _resumes(suite: Suite) -> int:
    return len(suite.requests("resume"))


def test_a_replayed_endpoint_is_not_resumed_and_not_even_looked_up(suite: Suite) -> None:
    suite.test_file(ENDPOINT)
    suite.run("--record-mode=once").assert_outcomes(passed=1)
    assert (_resumes(suite), suite.sent) == (1, 1)
    suite.emulator.reset()
    suite.run(*CAPPED).assert_outcomes(passed=1)
    assert suite.emulator.log(kind="request", phase="arrived", op="get") == []
    assert (_resumes(suite), suite.sent) == (0, 0)
    report = suite.report()
    assert report["session"]["spent_usd"] == "0"
    assert report["session"]["replayed"] == 1
    assert report["endpoints"] == []
    (call,) = report["calls"]
    assert (call["replayed"], call["usd"], call["status"]) == (True, "0", "200")
    assert call["output_tokens"] == 10


@pytest.mark.parametrize(
    "blocked", [("--block-network",), pytest.param((), marks=pytest.mark.slow)]
)
def test_a_call_without_a_price_is_not_refused_where_it_is_replayed(
    suite: Suite, blocked: tuple[str, ...]
) -> None:
    suite.test_file(ROUTED.replace(", pytest.mark.budget(0.01)", ""))
    suite.run("--record-mode=once").assert_outcomes(passed=1)
    assert suite.sent == 1
    suite.test_file(ROUTED)
    result = suite.run(*CAPPED, *blocked)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["spent $0.00 of $1.00 * (1 call, 1 replayed)"])
    assert suite.sent == 1


def test_workers_replay_too_with_the_network_blocked(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file(ENDPOINT)
    suite.run("--record-mode=once").assert_outcomes(passed=1)
    suite.emulator.reset()
    suite.run("-n2", "--block-network", *CAPPED).assert_outcomes(passed=1)
    assert (_resumes(suite), suite.sent) == (0, 0)
    assert suite.report()["session"]["replayed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    ['{"filter_headers": ["authorization"]}', '{"record_mode": "none"}'],
)
def test_the_suites_own_vcr_config_is_asked(suite: Suite, config: str) -> None:
    fixture = f"""
    @pytest.fixture(scope="module")
    def vcr_config():
        return {config}
    """
    suite.test_file(ENDPOINT)
    suite.run("--record-mode=once").assert_outcomes(passed=1)
    suite.emulator.reset()
    suite.test_file(ENDPOINT + fixture)
    suite.run().assert_outcomes(passed=1)
    assert _resumes(suite) == 0


def test_a_vcr_config_that_records_has_the_endpoint_resumed_outside_of_the_cassette(
    suite: Suite,
) -> None:
    fixture = """
    @pytest.fixture
    def vcr_config():
        return {"record_mode": "once"}
    """
    suite.test_file(ENDPOINT + fixture)
    suite.run().assert_outcomes(passed=1)
    assert (_resumes(suite), suite.sent) == (1, 1)
    (cassette,) = Path(suite.path).rglob("*.yaml")
    assert "/resume" not in cassette.read_text()


def test_where_no_recording_is_wanted_an_endpoint_is_resumed(suite: Suite) -> None:
    suite.test_file(ENDPOINT)
    suite.run("--disable-recording").assert_outcomes(passed=1)
    assert _resumes(suite) == 1


def test_a_blocked_network_needs_no_endpoint(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.block_network
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            assert True
    """)
    suite.run().assert_outcomes(passed=1)
    assert _resumes(suite) == 0


def test_a_host_that_is_not_blocked_may_be_the_endpoint(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.block_network(allowed_hosts=["127.0.0.*"])
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """)
    suite.run().assert_outcomes(passed=1)
    assert _resumes(suite) == 1


def test_an_endpoint_whose_url_no_cassette_tells_is_explained(suite: Suite) -> None:
    suite.test_file(ENDPOINT)
    result = suite.run()
    result.assert_outcomes(errors=1)
    said = (
        "*The URL of acme/llm is not known: *its cassette has answers of 0 endpoints instead of 1.*"
    )
    result.stdout.fnmatch_lines([said])
    assert _resumes(suite) == 0
