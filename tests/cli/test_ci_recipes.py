"""The files of docs/ci, run as written, and ended as a CI ends its jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cancelled_job import Job, kill_tree, recipe
from command_line import Shell

pytest.importorskip("yaml")
pytestmark = pytest.mark.slow

ENDPOINT = "my-org/ci-llm"
SECOND = 1.0
# What a runner waits is 7.5 s and 2.5 s; here only the order matters.
AFTER_SIGINT_S, AFTER_SIGTERM_S = 0.5, 2.0
SUITE = """
import signal, threading
import pytest

@pytest.fixture
def stubborn():
    before = [signal.signal(number, signal.SIG_IGN) for number in IGNORED]
    yield

@pytest.mark.hf_endpoint("my-org/ci-llm")
def test_that_takes_long(hf_endpoint, stubborn):
    hf_endpoint.client.chat_completion([{"role": "user", "content": "Hi"}], max_tokens=5)
    threading.Event().wait(60)
"""
QUICK = """
import pytest

@pytest.mark.hf_endpoint("my-org/ci-llm")
def test_that_is_quick(hf_endpoint):
    hf_endpoint.client.chat_completion([{"role": "user", "content": "Hi"}], max_tokens=5)
"""


def _step(name: str) -> str:
    """The `run` of a step of the GitHub job."""
    steps = recipe("github-actions.yml")["jobs"]["paid-tests"]["steps"]
    return str(next(step["run"] for step in steps if step.get("name") == name))


@pytest.fixture
def job(hfbudget: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setenv("HFBUDGET_EMULATOR", hfbudget.hub.url)
    hfbudget.hub.add_endpoint(ENDPOINT)
    job = Job(hfbudget, f"github_{uuid.uuid4()}")
    yield job
    job.sweep_orphans()


def _suite(job: Job, *ignored: str) -> None:
    numbers = ", ".join(f"signal.{name}" for name in ignored)
    (job.shell.directory / "test_suite.py").write_text(SUITE + f"\nIGNORED = [{numbers}]\n")


def _under_way(job: Job, lines: str) -> subprocess.Popen[str]:
    """A step whose test has called its endpoint."""
    process = job.start(lines)
    job.shell.hub.wait_for(op="chat", phase="answered", timeout=60)
    return process


def _left(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _cancel(process: subprocess.Popen[str]) -> str:
    """What GitHub's runner does; the last thing that it had to do."""
    for number, seconds in ((signal.SIGINT, AFTER_SIGINT_S), (signal.SIGTERM, AFTER_SIGTERM_S)):
        process.send_signal(number)
        if _left(process, seconds):
            return number.name
    kill_tree(process.pid)
    process.wait(10)
    return "SIGKILL"


def _paused_within(job: Job, seconds: float, after: int, since: float) -> None:
    hub = job.shell.hub
    asked = hub.wait_for(op="pause", after=after, timeout=10)
    assert float(asked["time"]) - since < seconds
    hub.wait_for(kind="state", state="paused", after=after, timeout=10)
    assert len(job.shell.requests("resume")) == 1


def _now(job: Job) -> tuple[int, float]:
    import time

    return job.shell.hub.last(), time.time()


# --- GitHub


def test_a_green_run_leaves_nothing_for_the_last_step(job: Job) -> None:
    (job.shell.directory / "test_suite.py").write_text(QUICK)
    assert job.run(_step("Test")).returncode == 0
    assert job.shell.state(ENDPOINT) == "paused"
    swept = job.run(_step("Pause what is left"))
    assert (swept.returncode, swept.stdout) == (0, "dead runs have left nothing to pause\n")


def test_a_cancel_reaches_pytest_itself_which_pauses_and_reports(job: Job) -> None:
    _suite(job)
    process = _under_way(job, _step("Test"))
    after, since = _now(job)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"{ENDPOINT}: paused, verified" in said
    _paused_within(job, SECOND, after, since)


@pytest.mark.parametrize(
    ("ignored", "end"), [(["SIGINT"], "SIGTERM"), (["SIGINT", "SIGTERM"], "SIGKILL")]
)
def test_a_suite_that_ignores_the_cancel_is_paused_when_it_is_killed(
    job: Job, ignored: list[str], end: str
) -> None:
    _suite(job, *ignored)
    process = _under_way(job, _step("Test"))
    after, _ = _now(job)
    assert _cancel(process) == end
    _, since = _now(job)
    _paused_within(job, SECOND, after, since)


def test_without_exec_the_suite_hears_nothing_and_outlives_its_step(job: Job) -> None:
    _suite(job)
    process = _under_way(job, _step("Test").removeprefix("exec ") + "\n")
    after, _ = _now(job)
    assert _cancel(process) == "SIGTERM"  # of the shell, not of pytest
    assert job.shell.state(ENDPOINT) == "running"
    # The run lives, so the last step has nothing to pause.
    assert job.run(_step("Pause what is left")).returncode == 0
    assert job.shell.state(ENDPOINT) == "running"
    # Only the end of the job ends it, and the reaper pauses then.
    _, since = _now(job)
    assert job.sweep_orphans()
    _paused_within(job, SECOND, after, since)


def test_the_reaper_outlives_the_sweep_of_orphans(job: Job) -> None:
    job.shell.hub.change_endpoint(ENDPOINT, pause_lag_s=0.5)
    job.shell.hub.add_fault("pause", delay=0.5)
    _suite(job)
    process = _under_way(job, _step("Test"))
    after, since = _now(job)
    assert process.pid in job.sweep_orphans()
    _paused_within(job, SECOND, after, since)


def test_the_last_step_finds_what_a_killed_reaper_has_left(job: Job) -> None:
    _suite(job)
    process = _under_way(job, _step("Test"))
    for reaper in _reapers(job):
        os.kill(reaper, signal.SIGKILL)
    process.kill()
    process.wait(10)
    assert job.shell.state(ENDPOINT) == "running"
    swept = job.run(_step("Pause what is left"))
    assert (swept.returncode, job.shell.state(ENDPOINT)) == (0, "paused")


def _reapers(job: Job) -> list[int]:
    """Processes that write their log beside this job's journals."""
    from pathlib import Path

    mark, found = os.fsencode(job.shell.state_dir), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"hfbudget-reaper" in line and mark in line:
            found.append(int(path.parent.name))
    assert found
    return found


def test_the_scheduled_sweep_pauses_what_a_lost_machine_has_left(hfbudget: Shell) -> None:
    tags = ["hfbudget-run-lost", "hfbudget-until-1000000000"]
    hfbudget.hub.add_endpoint("my-org/left", state="running", tags=tags)
    hfbudget.hub.add_endpoint("my-org/ours", state="running")
    steps = recipe("github-sweep.yml")["jobs"]["sweep"]["steps"]
    job = Job(hfbudget, "github_schedule")
    assert job.run(str(steps[-1]["run"])).returncode == 0
    assert hfbudget.states == {"my-org/left": "paused", "my-org/ours": "running"}


def _github() -> list[dict[str, Any]]:
    return [recipe(name) for name in ("github-actions.yml", "github-sweep.yml")]


def test_no_token_is_written_into_a_line_that_is_run() -> None:
    for content in _github():
        for work in content["jobs"].values():
            assert "env" not in work, "a step that needs no token gets none"
            assert not [step for step in work["steps"] if "HF_TOKEN" in step.get("run", "")]


def test_the_last_step_runs_whatever_happened() -> None:
    last = recipe("github-actions.yml")["jobs"]["paid-tests"]["steps"][-1]
    assert last["if"] == "always()"
    assert last["run"].startswith("hfbudget sweep")


# --- GitLab


def test_gitlab_after_script_pauses_what_a_killed_job_has_left(job: Job) -> None:
    _suite(job)
    work = recipe("gitlab-ci.yml")["paid-tests"]
    process = _under_way(job, "\n".join(work["script"]))
    after = job.shell.hub.last()
    for reaper in _reapers(job):  # as with the container's first process
        os.kill(reaper, signal.SIGKILL)
    kill_tree(process.pid)
    process.wait(10)
    assert job.run("\n".join(work["after_script"])).returncode == 0
    job.shell.hub.wait_for(kind="state", state="paused", after=after)


def test_gitlab_a_green_script_is_green(job: Job) -> None:
    (job.shell.directory / "test_suite.py").write_text(QUICK)
    work = recipe("gitlab-ci.yml")["paid-tests"]
    assert job.run("\n".join(work["script"])).returncode == 0
    assert job.run("\n".join(work["after_script"])).returncode == 0


def test_gitlab_leaves_time_for_after_script() -> None:
    work = recipe("gitlab-ci.yml")["paid-tests"]
    limits = [work["variables"][f"RUNNER_{name}_TIMEOUT"] for name in ("SCRIPT", "AFTER_SCRIPT")]
    assert sum(int(limit.rstrip("m")) for limit in limits) <= int(work["timeout"].rstrip("m"))


def test_gitlab_keeps_the_journal_where_after_script_finds_it() -> None:
    variables = recipe("gitlab-ci.yml")["paid-tests"]["variables"]
    assert variables["HFBUDGET_STATE_DIR"].startswith("$CI_PROJECT_DIR/")
