"""The reaper: what ends a run ends neither the reaper nor the promise."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.journal import leases, leases_dir, unfinished
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.process import start_time
from pytest_hfbudget.endpoints.reaper_client import ReaperClient
from pytest_hfbudget.endpoints.reaper_messages import Arm
from pytest_hfbudget.errors import EndpointError

from .conftest import (
    TOKEN,
    Make,
    Start,
    comm_of,
    gone,
    kill,
    kill_all,
    reaper_of,
    reapers_of,
    reserves_of,
    standbys_of,
    until,
)


def paused_within(hub: EmulatorClient, since: float) -> float:
    """Seconds from a moment until the pause request was on the wire; the pause is waited for."""
    asked = hub.wait_for(op="pause")
    hub.wait_for(kind="state", state="paused")
    return float(asked["mono"]) - since


def test_a_killed_run_is_paused_at_once(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings
) -> None:
    run = other_run()
    # A standby that is still being started would open the log once more.
    assert until(lambda: reserves_of(settings.state_dir, settings.run))
    delay = paused_within(hub, run.end(signal.SIGKILL))
    assert delay < 0.5
    assert gone(run.reaper)
    (lease,) = leases(leases_dir(settings.state_dir))
    assert lease.finished
    assert sorted(path.name for path in leases_dir(settings.state_dir).iterdir()) == ["run-1.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_terminated_run_is_paused(hub: EmulatorClient, other_run: Start, number: int) -> None:
    assert paused_within(hub, other_run().end(number)) < 1


@pytest.mark.parametrize("deed", ["exit", "segfault", "abort"])
def test_a_run_that_just_ends_is_paused(hub: EmulatorClient, other_run: Start, deed: str) -> None:
    run = other_run()
    run.tell(deed)
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)


def test_a_forked_child_that_holds_every_descriptor_delays_nothing(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    child = int(run.tell("fork"))
    try:
        assert paused_within(hub, run.end()) < 0.5
        assert gone(run.reaper)
    finally:
        os.kill(child, signal.SIGKILL)


def test_killing_the_process_group_does_not_reach_the_reaper(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    assert os.getpgid(run.reaper) != os.getpgid(run.process.pid)
    assert os.getsid(run.reaper) != os.getsid(run.process.pid)
    os.killpg(run.process.pid, signal.SIGKILL)
    hub.wait_for(kind="state", state="paused")


def test_the_reaper_is_not_in_the_runs_process_tree(other_run: Start) -> None:
    run = other_run()
    parents = Path(f"/proc/{run.reaper}/stat").read_text().rpartition(")")[2].split()
    assert int(parents[1]) not in (run.process.pid, os.getpid())


def test_signals_do_not_end_the_reaper(hub: EmulatorClient, other_run: Start) -> None:
    run = other_run()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(run.reaper, number)
    run.end()
    hub.wait_for(kind="state", state="paused")


def test_a_process_that_closes_all_descriptors_is_paused_at_once(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    assert run.tell("wreck") == "wrecked"
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)
    assert run.tell("finish") == "[true]"


def test_a_kill_before_the_resume_is_answered_is_paused_after_it_took_effect(
    hub: EmulatorClient, other_run: Start
) -> None:
    hub.add_fault("resume", delay=0.25)
    run = other_run(wait=False)
    hub.wait_for(op="resume")
    run.end()
    hub.wait_for(op="pause")
    woken = hub.wait_for(kind="state", state="running")
    hub.wait_for(kind="state", state="paused", after=woken["seq"])


def test_a_kill_while_the_endpoint_comes_up_is_paused(
    hub: EmulatorClient, other_run: Start
) -> None:
    hub.change_endpoint("acme/llm", initializing_s=60)
    run = other_run(wait=False)
    hub.wait_for(kind="state", state="initializing")
    hub.wait_for(op="get", after=hub.last())
    run.end()
    hub.wait_for(kind="state", state="paused")


def test_all_endpoints_are_asked_before_any_is_verified(
    hub: EmulatorClient, other_run: Start
) -> None:
    names = [f"acme/e{number}" for number in range(4)]
    for name in names:
        hub.add_endpoint(name)
    run = other_run(*names)
    hub.add_fault("pause", times=None, delay=0.1)
    before = hub.last()
    run.end()
    assert gone(run.reaper)
    ops = [each["op"] for each in hub.log(after=before, kind="request", phase="arrived")]
    assert ops[:4] == ["pause"] * 4


def test_a_killed_run_gives_the_endpoint_its_settings_back(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    run.end()
    assert gone(run.reaper)
    (shown,) = hub.log(kind="request", op="update", phase="answered")[-1:]
    assert "(reaper)" in shown["agent"]
    assert shown["status"] == 200


def test_faults_at_the_moment_of_the_kill_are_outlasted(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    hub.add_fault("pause", times=3, status=503)
    hub.add_fault("pause", reset="before")
    hub.add_fault("pause", lie=True)
    run.end()
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)


def test_the_token_is_nowhere_to_be_found(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings
) -> None:
    run = other_run(HF_TOKEN=TOKEN, SECRET_OF_THE_JOB="x", RUNNER_TRACKING_ID="github_1")
    proc = Path(f"/proc/{run.reaper}")
    assert TOKEN.encode() not in (proc / "cmdline").read_bytes()
    environ = (proc / "environ").read_bytes()
    assert TOKEN.encode() not in environ
    assert b"SECRET_OF_THE_JOB" not in environ
    assert b"RUNNER_TRACKING_ID=\0" in environ
    hub.add_fault("pause", status=503)  # so that something goes wrong that might be logged
    files = [path.read_bytes() for path in settings.state_dir.rglob("*") if path.is_file()]
    run.end()
    assert gone(run.reaper)
    files += [path.read_bytes() for path in settings.state_dir.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not any(TOKEN.encode() in content for content in files)


def test_the_reaper_needs_nothing_of_the_surroundings_of_its_client(other_run: Start) -> None:
    run = other_run()
    proc = Path(f"/proc/{run.reaper}")
    assert os.readlink(proc / "cwd") == "/"
    open_files = {os.readlink(fd) for fd in (proc / "fd").iterdir()}
    assert not [name for name in open_files if "pipe" in name], "it holds a pipe of the client's"


def test_a_stopped_client_is_not_a_dead_one(hub: EmulatorClient, other_run: Start) -> None:
    run = other_run()
    run.end(signal.SIGSTOP)
    os.kill(run.reaper, signal.SIGSTOP)
    os.kill(run.reaper, signal.SIGCONT)
    assert hub.log(op="pause") == []
    run.end(signal.SIGKILL)
    hub.wait_for(kind="state", state="paused")


# -- a reaper that is lost


def test_a_killed_reaper_is_replaced_although_the_run_does_nothing(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    first, seen = run.reaper_pid, hub.last()
    kill(first)
    reached = hub.wait_for(op="get", phase="arrived", after=seen)
    assert "(reaper)" in reached["agent"]
    assert hub.log(op="pause") == []
    (receipt,) = run.finish()
    assert run.reaper_pid != first
    assert receipt.verified
    assert "its standby has stepped in" in receipt.warnings[0]
    (pause,) = hub.log(op="pause", phase="arrived")
    assert "(reaper)" in pause["agent"]


def test_reapers_that_are_killed_one_after_the_other_are_all_replaced(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")

    def replaced(known: int) -> bool:
        run.tend()
        return run.reaper_pid != known

    for _ in range(3):
        known = reaper_of(run)
        kill(known)
        assert until(partial(replaced, known))
    assert hub.log(op="pause") == []
    (receipt,) = run.finish()
    assert receipt.verified


def test_a_standby_that_is_killed_is_replaced(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    (second,) = standbys_of(settings.state_dir, settings.run)
    kill(second)
    seen = hub.last()
    run.pause_after(3600)  # goes by the reaper, which looks after its standbys at the same time
    assert until(
        lambda: any(pid != second for pid in standbys_of(settings.state_dir, settings.run))
    )
    kill(run.reaper_pid)
    hub.wait_for(op="get", phase="arrived", after=seen)
    (receipt,) = run.finish()
    assert receipt.verified


def test_a_reaper_that_is_killed_while_it_pauses_is_stood_in_for(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    hub.add_fault("pause", hang=60, then="close")
    run.end(signal.SIGKILL)
    hub.wait_for(op="pause", phase="arrived")
    kill(run.reaper)
    hub.wait_for(kind="state", state="paused")


def test_a_limit_outlives_the_reaper_that_was_told_it(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    run.pause_after(1.5)
    kill(run.reaper_pid)
    hub.wait_for(kind="state", state="paused", timeout=5)
    assert "uptime that this run may have is used up" in run.paused_early()["acme/llm"]


def test_a_limit_that_is_years_away_ends_no_reaper(lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    before = run.reaper_pid
    run.pause_after(1e9)
    run.finish()
    assert run.reaper_pid == before


def test_no_standby_stays_behind(lifecycle: Make, settings: EndpointSettings) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    (second,) = standbys_of(settings.state_dir, settings.run)
    (reserve,) = until(lambda: reserves_of(settings.state_dir, settings.run))
    run.finish()
    assert gone(second)
    assert gone(reserve)


def test_a_reaper_and_its_second_that_are_killed_at_once_are_stood_in_for(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    assert until(lambda: reserves_of(settings.state_dir, settings.run))
    pair = (reaper_of(run), *standbys_of(settings.state_dir, settings.run))
    seen = hub.last()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pair:
            os.kill(pid, number)
    reached = hub.wait_for(op="get", phase="arrived", after=seen)
    assert "(reaper)" in reached["agent"]
    assert hub.log(op="pause") == []
    (receipt,) = run.finish()
    assert run.reaper_pid not in pair
    assert receipt.verified
    assert "its standby has stepped in" in receipt.warnings[0]


def test_a_reserve_that_is_killed_is_replaced(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    (first,) = until(lambda: reserves_of(settings.state_dir, settings.run))
    kill(first)
    assert until(lambda: [p for p in reserves_of(settings.state_dir, settings.run) if p != first])
    (receipt,) = run.finish()
    assert receipt.verified
    assert len(hub.log(op="pause", phase="arrived")) == 1


def test_a_reaper_that_is_stopped_is_stood_in_for_at_the_end(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    stopped = reaper_of(run)
    os.kill(stopped, signal.SIGSTOP)
    (receipt,) = run.finish()
    assert receipt.verified
    assert gone(stopped)
    assert run.reaper_pid != stopped


@pytest.mark.slow
def test_a_reaper_that_is_stopped_does_not_outlast_the_limit(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.pause_after(2)
    run.ensure("acme/llm")
    os.kill(reaper_of(run), signal.SIGSTOP)
    hub.wait_for(kind="state", state="paused", timeout=10)


def test_what_finds_pytest_by_its_name_does_not_find_a_reaper(
    lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    assert until(lambda: reserves_of(settings.state_dir, settings.run))
    paths = (str(settings.state_dir).encode(), sys.executable.encode())
    for pid in reapers_of(settings.state_dir):
        said = Path(f"/proc/{pid}/cmdline").read_bytes()
        for path in paths:  # a user's own
            said = said.replace(path, b"")
        assert b"pytest" not in said
        assert comm_of(pid).startswith("hfbudget-")


def test_a_reaper_whose_standbys_died_with_it_is_replaced_between_tests(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    first = run.reaper_pid
    kill_all(run, settings)
    run.tend()
    assert run.reaper_pid != first
    assert hub.log(op="pause") == []
    (receipt,) = run.finish()
    assert receipt.verified
    assert receipt.warnings[0].endswith("was killed; pytest-hfbudget has started another one")
    (pause,) = hub.log(op="pause", phase="arrived")
    assert "(reaper)" in pause["agent"]


def test_a_reaper_that_is_killed_again_means_a_pause_at_once(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    for _ in range(2):
        kill_all(run, settings)
        run.tend()
    assert hub.log(kind="state", state="paused")
    (receipt,) = run.finish()
    assert receipt.verified
    assert "was killed, so endpoints were paused before the run's end: " in receipt.warnings[-1]
    assert unfinished(leases_dir(settings.state_dir)) == ()


@pytest.mark.slow
def test_reapers_that_are_killed_as_soon_as_they_begin_are_not_replaced_for_ever(
    lifecycle: Make, settings: EndpointSettings
) -> None:
    folder, name, run, killed = settings.state_dir, settings.run, lifecycle(), 0
    run.ensure("acme/llm")

    def noticed(reaper: int) -> bool:
        run.tend()
        return bool(run.paused_early()) or reaper_of(run) != reaper

    while not run.paused_early():
        reaper = reaper_of(run)
        # Each could be stood in for, as long as there are standbys.
        until(partial(complete, folder, name), 0.5)
        kill(reaper)
        killed += 1
        assert killed < 100
        assert until(partial(noticed, reaper))
    assert killed > 10
    assert run.finish()[0].reason == "reaper lost"


def complete(folder: Path, name: str) -> bool:
    """Whether a reaper has both of its standbys."""
    return bool(standbys_of(folder, name) and reserves_of(folder, name))


def test_a_reaper_that_is_found_dead_at_the_end_is_stood_in_for(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    kill_all(run, settings)
    (receipt,) = run.finish()
    assert receipt.verified
    assert receipt.warnings[-1].endswith("was killed, so pytest-hfbudget pauses them itself")
    assert hub.log(kind="state", state="paused")
    assert unfinished(leases_dir(settings.state_dir)) == ()


# -- a reaper that can't be had


def arm(settings: EndpointSettings, **changes: Any) -> Arm:
    known = {
        "token": TOKEN,
        "api": settings.api,
        "client_pid": os.getpid(),
        "client_start": start_time(os.getpid()),
        "run": "r",
        "journal": str(settings.state_dir / "r.jsonl"),
        "lease_dir": str(settings.lease_dir),
    }
    return Arm(**{**known, **changes})


def test_a_reaper_that_hangs_before_it_is_ready_is_not_waited_for(
    settings: EndpointSettings, tmp_path: Path
) -> None:
    held: list[socket.socket] = []

    def silent(end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
        held.append(end.dup())

    with pytest.raises(
        EndpointError, match=r"has not answered within 0\.1 s, so nothing is resumed"
    ):
        ReaperClient.start(arm(settings), log=tmp_path / "log", timeout_s=0.1, spawn=silent)
    held[0].close()


def test_a_reaper_that_dies_at_once_leaves_its_last_words(
    settings: EndpointSettings, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    broken = arm(settings, journal=str(in_the_way / "r.jsonl"))
    with pytest.raises(
        EndpointError, match=r"has ended, so nothing is resumed\. .*journal of leases"
    ):
        ReaperClient.start(broken, log=tmp_path / "log", timeout_s=10)


def test_without_an_interpreter_nothing_is_resumed(
    hub: EmulatorClient, lifecycle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(EndpointError, match="can't be started"):
        lifecycle().ensure("acme/llm")
    assert hub.log(op="resume") == []


def test_a_reaper_that_cannot_reach_the_server_means_no_resume(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_fault("get", skip=1, times=None, status=503)
    with pytest.raises(EndpointError, match="the process that would pause it is not ready"):
        lifecycle().ensure("acme/llm")
    hub.clear_faults()
    assert hub.log(op="resume") == []


def test_an_owner_that_is_dead_already_is_noticed(
    settings: EndpointSettings, tmp_path: Path
) -> None:
    settings.state_dir.mkdir()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = arm(settings, client_pid=child.pid, client_start="1")
    link = ReaperClient.start(dead, log=tmp_path / "log", timeout_s=10)
    assert link.pid is not None
    assert gone(link.pid)
    link.close()
