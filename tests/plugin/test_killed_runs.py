"""pytest is killed for real, in the middle of a test; the emulator's log says what followed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plugin_suite import Suite, read_if_there

WAITS = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(hf_endpoint):
        hf_endpoint.client.chat_completion(SAY, max_tokens=5)
        threading.Event().wait()
"""
SECOND = 1.0


pytestmark = pytest.mark.usefixtures("reapers_end")


def _start(suite: Suite, *options: str) -> subprocess.Popen[bytes]:
    """A run whose test is under way, its endpoint up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *options],
        cwd=suite.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    suite.emulator.wait_for(op="chat", phase="answered", timeout=60)
    return process


def _pause_after(suite: Suite, after: int, killed_at: float) -> float:
    """Seconds from a kill to the pause's arrival; the endpoint ends up paused."""
    asked = suite.emulator.wait_for(op="pause", after=after, timeout=20)
    suite.emulator.wait_for(kind="state", state="paused", after=after, timeout=20)
    return float(asked["time"]) - killed_at


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGQUIT, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_paused_within_a_second(suite: Suite, number: signal.Signals) -> None:
    suite.test_file(WAITS)
    process = _start(suite)
    after, killed_at = suite.emulator.last(), time.time()
    process.send_signal(number)
    process.wait(30)
    assert _pause_after(suite, after, killed_at) < SECOND
    assert len(suite.requests("resume")) == 1


def test_a_whole_group_that_is_killed_is_paused_within_a_second(suite: Suite) -> None:
    suite.test_file(WAITS)
    process = _start(suite)
    after, killed_at = suite.emulator.last(), time.time()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert _pause_after(suite, after, killed_at) < SECOND


def test_a_controller_that_is_killed_is_paused_within_a_second(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file(WAITS)
    process = _start(suite, "-n2")
    after, killed_at = suite.emulator.last(), time.time()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert _pause_after(suite, after, killed_at) < SECOND


@pytest.mark.slow
def test_a_run_that_is_killed_after_a_second_resume_is_paused_within_a_second(
    suite: Suite,
) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_first(hf_endpoint):
            pytest.kept = hf_endpoint

        def test_later():
            while "paused" not in pytest.kept.fetch().status:
                threading.Event().wait(0.05)
            pytest.kept.client.chat_completion(SAY, max_tokens=5)
            threading.Event().wait()
    """)
    process = _start(suite, "-o", "hf_endpoint_gaps=pause", "--hf-order=collected")
    first = int(suite.requests("resume")[0]["seq"])
    second = suite.emulator.wait_for(op="resume", after=first, timeout=20)["seq"]
    suite.emulator.wait_for(kind="state", state="running", after=second, timeout=20)
    after, killed_at = suite.emulator.last(), time.time()
    process.kill()
    process.wait(30)
    assert _pause_after(suite, after, killed_at) < SECOND


@pytest.mark.parametrize(
    "body",
    [
        "os._exit(3)",
        pytest.param("os.abort()", marks=pytest.mark.slow),
        pytest.param("ctypes.string_at(0)", marks=pytest.mark.slow),
    ],
)
def test_a_crash_is_paused_within_a_second(suite: Suite, body: str) -> None:
    suite.test_file(f"""
        import ctypes

        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            hf_endpoint.client.chat_completion(SAY, max_tokens=5)
            {body}
    """)
    process = _start(suite, "-p", "no:faulthandler")
    answered = suite.emulator.wait_for(op="chat", phase="answered")
    process.wait(30)
    assert _pause_after(suite, answered["seq"], float(answered["time"])) < SECOND


def test_the_token_is_on_no_command_line_and_in_no_file(suite: Suite) -> None:
    secret = "hf_emulator"
    suite.test_file(WAITS)
    process = _start(suite)
    lines = [read_if_there(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    process.kill()
    process.wait(30)
    suite.emulator.wait_for(kind="state", state="paused", timeout=20)
    assert not [line for line in lines if secret.encode() in line]
    state = Path(os.environ["HFBUDGET_STATE_DIR"])
    assert [path for path in state.rglob("*") if path.is_file()]
    for path in state.rglob("*"):
        assert not path.is_file() or secret not in path.read_text()
