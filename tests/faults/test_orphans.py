"""Processes whose run is gone: nothing is sent any more, and no process spins."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest
from fault_box import Box, Run, T

WORKS = """
    from huggingface_hub import InferenceClient

    SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

    def call():
        client = InferenceClient(model="emulator/chat", provider="groq")
        client.chat_completion(SAY, max_tokens=10)

    def call_on_and_on():
        while True:
            try:
                call()
            except Exception as error:
                if type(error).__name__ == "LedgerUnreachableError":
                    reached("refusal")
                    return

    def test_it():
        if os.fork() == 0:
            call_on_and_on()
            os._exit(0)
        if "PYTEST_XDIST_WORKER" in os.environ:
            call_on_and_on()
        stay("test")
"""

IDLES = """
    from huggingface_hub import InferenceClient

    SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

    def test_it():
        client = InferenceClient(model="emulator/chat", provider="groq")
        client.chat_completion(SAY, max_tokens=10)
        reached(f"pid-{os.getpid()}")
        stay("test")
"""


def killed(run: Run, box: Box) -> None:
    """Kill a run while its children call; no call of theirs comes a second later."""
    run.sees(op="chat", phase="answered")
    end = run.send(signal.SIGKILL)
    run.wait()
    box.hub.wait_for(after=end.seq, timeout=20, path="/reached/refusal", phase="arrived")
    late = [one for one in box.requests("chat") if one["mono"] > end.mono + T]
    assert late == []


@pytest.mark.parametrize(
    "workers",
    [pytest.param((), id="alone", marks=pytest.mark.quick), pytest.param(("-n1",), id="worker")],
)
def test_children_of_a_killed_run_make_no_more_paid_calls(
    box: Box, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    box.suite(WORKS)
    killed(box.start(*workers, "--hf-session-budget=1"), box)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads CPU times from /proc")
def test_an_orphaned_worker_does_not_spin(box: Box) -> None:
    pytest.importorskip("xdist")
    box.suite(IDLES)
    run = box.start("-n1", "--hf-session-budget=1")
    run.reached()
    (trace,) = [one for one in box.requests("unknown") if "/pid-" in one["path"]]
    worker = int(trace["path"].rpartition("-")[2])
    before = cpu_seconds(worker)
    end = run.send(signal.SIGKILL)
    run.wait()
    # A worker whose controller is gone is ended by execnet, seconds later.
    gone = os.pidfd_open(worker)
    try:
        used = before
        while not _over(gone):
            used = cpu_seconds(worker) or used
    finally:
        os.close(gone)
    # Its last work takes a second on a busy machine, where a process that spins gets two fifths.
    assert used - before < max(1.0, (box.now().mono - end.mono) / 4)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; 0 for one that is over."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _over(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0.1)[0])
