"""The process that pauses: killed, stopped, not to be had; and its journal torn, or out of disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fault_box import NAME, REAPER, Box, T, gone, kill, unshare

from pytest_hfbudget.endpoints import process

# How long a process may stay stopped that has to act.
STOPPED_S = 3.0

TWO = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_one():
        stay("one")

    @pytest.mark.hf_endpoint("acme/llm")
    def test_two():
        stay("two")
"""


# -- between the intent and the resume


@pytest.mark.quick
def test_a_kill_before_the_resume_is_sent_resumes_nothing(box: Box) -> None:
    """Row 4: the intent is in the journal, the net on the server is being spread."""
    box.hub.add_fault("update", hang=60, then="close")
    box.suite()
    run = box.start()
    run.sees(op="update")
    assert [record["kind"] for record in box.records()[0]] == ["intent"]
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, resumes=0)


def test_a_kill_while_the_reaper_proves_that_it_can_pause_resumes_nothing(box: Box) -> None:
    """Row 4."""
    box.hub.add_fault("get", skip=2, hang=60, then="close")
    box.suite()
    run = box.start()
    run.sees(op="get", agent=REAPER)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, resumes=0)


# -- a reaper that is killed


@pytest.mark.quick
def test_a_reaper_that_is_killed_in_a_test_is_replaced_or_pauses(box: Box) -> None:
    """Row 29: noticed within a second although the test goes on, and the run is red."""
    box.suite(TWO)
    run = box.start()
    run.reached("one")
    (reaper,) = box.reapers()
    end = box.now()
    kill(reaper)
    assert gone(reaper)
    try:
        noticed = box.noticed(end, within=2)
    except TimeoutError:
        noticed = None
    box.open_gate("one")
    run.reached("two")
    box.open_gate("two")
    code = run.wait()
    box.judge(None)
    assert noticed, "no process watched the endpoint until the end of the test"
    assert code == 1


def test_a_reaper_and_then_its_run_are_killed(box: Box) -> None:
    """Row 29: a second between the two is enough."""
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    end = box.now()
    kill(reaper)
    assert gone(reaper)
    # What the next reaper does first is to reach for the endpoint; without one, wait a second.
    with contextlib.suppress(TimeoutError):
        box.noticed(end, within=T)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


def test_reapers_that_are_killed_with_their_seconds_mean_a_pause_and_a_red_run(box: Box) -> None:
    """Row 29: the run itself has one started anew between tests, and then pauses."""
    box.suite(TWO)
    run = box.start()
    for test in ("one", "two"):
        run.reached(test)
        box.kill_reapers()
        box.open_gate(test)
    code = run.wait()
    box.judge(None)
    assert code == 1


@pytest.mark.parametrize("cap", ["", "--hf-session-budget=1"])
def test_reapers_that_are_killed_twice_are_not_told_as_a_cap_that_is_used_up(
    box: Box, cap: str
) -> None:
    """Row 29: a test that still needs the endpoint fails, and says why."""
    box.suite(f"{TWO}\n{TWO.replace('one', 'three').replace('two', 'four')}")
    run = box.start(*cap.split())
    for test in ("one", "two"):
        run.reached(test)
        box.kill_reapers()
        box.open_gate(test)
    assert run.wait() == 1
    box.judge(None)
    assert "the process that pauses endpoints was killed again" in run.output
    assert "2 errors" in run.output
    assert "budget of $1.00 has" not in run.output
    assert "paused while it was needed" not in run.output


@pytest.mark.quick
def test_a_reaper_and_its_second_that_are_killed_at_once_and_then_the_run(box: Box) -> None:
    """Row 29: in one long test that does nothing."""
    box.suite()
    run = box.start()
    run.reached()
    killed = box.now()
    box.kill_reapers(but_reserves=True)
    box.noticed(killed)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


def test_a_command_whose_reaper_and_standbys_are_killed_at_once_has_others_started(
    box: Box,
) -> None:
    """Row 29: `hfbudget run`, which is killed too, some time later."""
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    wrapper = [sys.executable, "-m", "pytest_hfbudget", "run", "--endpoint", NAME, "--", *waits]
    held, theirs = socket.socketpair()
    run = box.start(command=wrapper, stdin=theirs)
    theirs.close()
    run.sees(op="health", phase="answered")
    killed = box.now()
    box.kill_reapers()
    box.noticed(killed)
    end = run.send(signal.SIGKILL)
    run.wait()
    held.close()
    box.judge(end)


def test_a_reaper_that_is_stopped_is_stood_in_for_when_its_run_is_killed(box: Box) -> None:
    """Row 39: while it stays stopped."""
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    kill(reaper, signal.SIGSTOP)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=T + STOPPED_S)


def test_a_reaper_and_its_second_that_are_stopped_are_stood_in_for(box: Box) -> None:
    """Row 39."""
    box.suite()
    run = box.start()
    run.reached()
    box.complete()
    for pid in (*box.reapers(), *box.seconds()):
        kill(pid, signal.SIGSTOP)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=T + STOPPED_S)


def test_a_second_that_is_stopped_is_stood_in_for_when_the_reaper_and_the_run_are_killed(
    box: Box,
) -> None:
    """Rows 29, 39."""
    box.suite()
    run = box.start()
    run.reached()
    box.complete()
    for pid in box.seconds():
        kill(pid, signal.SIGSTOP)
    for pid in box.reapers():
        kill(pid)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=T + STOPPED_S)


def test_a_reaper_that_is_stopped_in_its_pause_is_stood_in_for(box: Box) -> None:
    """Row 39: the run waits for it meanwhile."""
    box.hub.add_fault("pause", lie=True)
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    box.open_gate("test")
    run.sees(op="pause")
    kill(reaper, signal.SIGSTOP)
    assert run.wait() == 1
    box.judge(None)


@pytest.mark.parametrize("by", ["sweep", "the next run"])
def test_what_only_a_stopped_reaper_is_left_to_pause_is_paused_by_another(
    box: Box, by: str
) -> None:
    """Row 39: its standbys and its run are dead."""
    box.suite()
    run = box.start()
    run.reached()
    box.complete()
    (reaper,) = box.reapers()
    kill(reaper, signal.SIGSTOP)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (*box.seconds(), *box.reserves()):
            kill(pid, number)
    end = run.send(signal.SIGKILL)
    run.wait()
    assert not gone(reaper, 0.5)
    resumes = len(box.requests("resume"))
    if by == "sweep":
        assert box.command("sweep").process.returncode == 0
    else:
        box.hub.add_endpoint("acme/other")
        box.suite("""
            @pytest.mark.hf_endpoint("acme/other")
            def test_it():
                pass
        """)
        assert box.start().wait() == 0
    assert box.state_of() == "paused"
    assert len(box.requests("resume", endpoint=NAME)) == resumes
    paused = len(box.requests("pause", endpoint=NAME))
    kill(reaper, signal.SIGCONT)
    assert gone(reaper)
    assert len(box.requests("pause", endpoint=NAME)) == paused
    box.judge(end, within=60)


def test_a_reaper_that_is_killed_before_the_end_is_stood_in_for(box: Box) -> None:
    """Row 29: while it pauses."""
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    box.hub.add_fault("pause", hang=60, then="close")
    box.open_gate("test")
    run.sees(op="pause")
    end = box.now()
    kill(reaper)
    code = run.wait()
    box.judge(end)
    assert code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_do_not_end_the_reaper(box: Box, number: signal.Signals) -> None:
    """Row 29: a shutdown tells every process, and the reaper still has work."""
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    kill(reaper, number)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


# -- a reaper that is not to be had


NO_REAPER = {
    "no-interpreter": "sys.executable = '/nonexistent/python'",
    "no-descriptors": """
        import resource
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))""",
    "no-writing": """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))""",
}


@pytest.mark.parametrize("lack", NO_REAPER)
def test_without_a_reaper_nothing_is_resumed(box: Box, lack: str) -> None:
    """Row 30."""
    box.conftest(f"""
        def pytest_collection_finish():
            {NO_REAPER[lack].strip()}
    """)
    box.suite()
    assert box.start("-s", "--tb=short").wait() != 0
    box.judge(None, resumes=0)


@pytest.mark.quick
def test_without_a_folder_for_the_journal_nothing_is_resumed(box: Box) -> None:
    """Row 30: a file is in its way."""
    box.state.write_text("")
    box.suite()
    run = box.start()
    assert run.wait() == 1
    assert "HFBUDGET_STATE_DIR" in run.output
    box.judge(None, resumes=0)


def test_a_read_only_folder_for_the_journal_resumes_nothing(box: Box) -> None:
    """Row 30."""
    box.suite()
    run = box.start(command=box.on_a_disk_of_its_own("ro,size=64k"))
    assert run.wait() == 1
    assert "HFBUDGET_STATE_DIR" in run.output
    box.judge(None, resumes=0)


def test_a_full_disk_resumes_nothing(box: Box) -> None:
    """Rows 30, 47."""
    box.suite()
    filling = f"; cat /dev/zero > {box.state}/zeros 2>&-"
    run = box.start(command=box.on_a_disk_of_its_own(then=filling))
    assert run.wait() == 1
    assert "HFBUDGET_STATE_DIR" in run.output
    box.judge(None, resumes=0)


def test_a_user_who_may_start_no_process_resumes_nothing(box: Box) -> None:
    """Row 30: root is exempt from that limit, so this runs as another user."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to become another user")
    box.conftest("""
        import resource
        def pytest_collection_finish():
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    """)
    box.suite()
    user = 61000 + os.getpid() % 1000  # a user of its own: the limit counts all processes
    files = "-all,+dac_override,+dac_read_search"  # so that it can read this interpreter
    command = ["setpriv", f"--reuid={user}", f"--inh-caps={files}", f"--ambient-caps={files}"]
    run = box.start(command=[*command, *box.pytest("-s")])
    assert run.wait() == 1, run.output
    assert "can't be started" in run.output
    box.judge(None, resumes=0)


@pytest.mark.parametrize("when", ["before-it-is-detached", "before-it-is-ready"])
def test_a_reaper_that_hangs_before_it_is_ready_resumes_nothing(box: Box, when: str) -> None:
    """Row 31."""
    box.hurry(arm_timeout_s=1)
    sleeper = box.path / "sleeper"
    sleeper.symlink_to(shutil.which("sleep") or "")
    python = box.path / "python"
    detached = f"{sleeper} 60 & exit 0"
    python.write_text(
        "#!/bin/sh\n" + (f"exec {sleeper} 60" if when == "before-it-is-detached" else detached)
    )
    python.chmod(0o755)
    box.conftest(f"""
        def pytest_collection_finish():
            sys.executable = {str(python)!r}
    """)
    box.suite()
    run = box.start()
    assert run.wait() == 1
    sleepers = tuple(box.processes())
    for pid in sleepers:
        kill(pid)
    box.judge(None, resumes=0)
    assert "so nothing is resumed" in run.output


def test_without_the_call_that_watches_processes_a_death_is_seen_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 30: an old kernel, or a sandbox."""

    def refused(pid: int) -> int:
        raise OSError(errno.ENOSYS, "no such system call")

    monkeypatch.setattr(os, "pidfd_open", refused)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = process.watch(child.pid, process.start_time(child.pid))
    assert watch.period_s is not None
    assert not watch.dead()
    child.communicate()
    assert watch.dead()


# -- time and pids


def test_a_stopped_run_keeps_its_endpoint_until_it_is_killed(box: Box) -> None:
    """Row 39: a laptop that sleeps."""
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    stopped = run.send(signal.SIGSTOP)
    kill(reaper, signal.SIGSTOP)
    assert not gone(reaper, 2)
    kill(reaper, signal.SIGCONT)
    assert box.hub.log(op="pause", after=stopped.seq) == []
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


def test_a_stopped_reaper_pauses_when_it_goes_on(box: Box) -> None:
    """Row 39: the run dies meanwhile."""
    box.suite()
    run = box.start()
    run.reached()
    (reaper,) = box.reapers()
    kill(reaper, signal.SIGSTOP)
    run.send(signal.SIGKILL)
    run.wait()
    assert not gone(reaper, 0.5)
    end = box.now()
    kill(reaper, signal.SIGCONT)
    box.judge(end)


def test_a_reaper_is_not_deceived_by_a_clock_that_jumps(box: Box, tmp_path: Path) -> None:
    """Row 40: an hour ahead and back with each look; the deadline is on the steady clock."""
    from pytest_hfbudget.endpoints.api import ControlPlane
    from pytest_hfbudget.endpoints.lease_end import Pauser
    from pytest_hfbudget.endpoints.reaper_messages import BeginLease
    from pytest_hfbudget.endpoints.retry import Timings
    from pytest_hfbudget.locks import SystemClock

    class Jumping(SystemClock):
        ahead = 1

        def time(self) -> float:
            self.ahead = -self.ahead
            return super().time() + 3600 * self.ahead

    box.hub.change_endpoint(NAME, state="running")
    box.hub.add_fault("pause", times=2, status=503)
    plane = ControlPlane(f"{box.hub.url}/v2", "hf_any")
    timings = Timings(deadline_s=20, verify_poll_s=0.02)
    clock = Jumping()
    receipt = Pauser(plane, BeginLease(NAME), timings, resume_over=True, clock=clock).run(
        lambda _: None
    )
    assert receipt.verified
    assert box.state_of() == "paused"


def test_a_process_with_the_number_of_a_dead_one_is_another() -> None:
    """Row 44: it has started at another time."""
    mine = process.start_time(os.getpid())
    assert process.alive(os.getpid(), mine)
    assert not process.alive(os.getpid(), str(int(mine or 0) - 1))
    watch = process.watch(os.getpid(), str(int(mine or 0) - 1))
    assert watch.dead()
    watch.close()


REUSE = """
import os, subprocess, sys, time
from pytest_hfbudget.endpoints import process
first = subprocess.Popen(["sleep", "60"])
start = process.start_time(first.pid)
assert process.alive(first.pid, start)
first.kill()
first.wait()
ticks = os.sysconf("SC_CLK_TCK")
time.sleep(2 / ticks)
for _ in range(50):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(first.pid - 1))
    second = subprocess.Popen(["sleep", "60"])
    if second.pid == first.pid:
        break
assert second.pid == first.pid, (first.pid, second.pid)
assert process.start_time(second.pid)
assert not process.alive(first.pid, start)
assert process.watch(first.pid, start).dead()
"""


def test_a_number_that_the_kernel_gives_out_again_is_not_taken_for_the_old_process(
    box: Box,
) -> None:
    """Row 44: for real, in a pid namespace."""
    command = [*unshare("--pid", "--fork", "--mount-proc", "--kill-child"), sys.executable]
    run = box.start(command=[*command, "-c", REUSE])
    assert run.wait() == 0, run.output


# -- the journal


TORN = {
    "torn": b'{"kind": "resu',
    "garbage": b"\xff\xfe\x00nonsense\n[1, 2]\n{}\nnull\n",
    "foreign": b'{"kind": "paused", "run": "other", "endpoint": "acme/other"}\n',
}


@pytest.mark.parametrize("tail", TORN)
def test_a_journal_with_a_bad_tail_loses_nothing_else(box: Box, tail: str) -> None:
    """Row 47."""
    box.suite()
    run = box.start()
    run.reached()
    (journal,) = box.state.glob("leases/*.jsonl")
    with journal.open("ab") as file:
        file.write(TORN[tail])
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)
    assert box.records()[0][-1]["kind"] == "paused"


def test_a_journal_that_is_cut_in_the_middle_of_a_line_loses_only_that_line(box: Box) -> None:
    """Row 47."""
    box.suite()
    run = box.start()
    run.reached()
    (journal,) = box.state.glob("leases/*.jsonl")
    os.truncate(journal, journal.stat().st_size - 20)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)
    kinds = [record["kind"] for record in box.records()[0]]
    assert (kinds[0], kinds[-1]) == ("intent", "paused")


def test_several_writers_do_not_mix_their_lines(box: Box) -> None:
    """Row 47: a reaper that writes about many endpoints at a time."""
    names = [f"acme/e{number}" for number in range(6)]
    for name in names:
        box.hub.add_endpoint(name)
    box.suite(f"""
        @pytest.mark.hf_endpoint(*{names})
        def test_it():
            stay("test")
    """)
    run = box.start()
    run.reached()
    end = run.send(signal.SIGKILL)
    run.wait()
    for name in names:
        box.judge(end, name=name)
        assert len(box.requests("resume", endpoint=name)) == 1
    (journal,) = box.state.glob("leases/*.jsonl")
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_a_disk_that_fills_up_in_the_run_does_not_stop_the_pause(box: Box) -> None:
    """Row 47: only the journal's last line is lost, and the receipt has it."""
    box.suite()
    run = box.start(command=box.on_a_disk_of_its_own())
    run.reached()
    box.fill(run)
    end = box.now()
    box.open_gate("test")
    run.wait()
    box.judge(end)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.quick), signal.SIGTERM]
)
def test_a_kill_on_a_full_disk_is_paused(box: Box, number: signal.Signals) -> None:
    """Row 47: neither a line in a log, nor the lease's file, nor the journal can be written."""
    box.suite()
    run = box.start(command=box.on_a_disk_of_its_own())
    run.reached()
    box.fill(run)
    end = run.send(number)
    run.wait()
    box.judge(end)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_reapers_that_may_write_no_file_pause_all_the_same(
    box: Box, number: signal.Signals
) -> None:
    """Row 47: no space is left for them alone."""
    box.suite()
    run = box.start()
    run.reached()
    box.complete()
    for pid in (*box.reapers(), *box.seconds(), *box.reserves()):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
    end = run.send(number)
    run.wait()
    box.judge(end, journal=False)


def test_a_second_that_steps_in_without_a_folder_for_the_journal_pauses(box: Box) -> None:
    """Rows 29, 47: the journal can't even be opened any more."""
    box.suite()
    run = box.start()
    run.reached()
    shutil.rmtree(box.state / "leases")
    (box.state / "leases").write_text("in the way")
    (reaper,) = box.reapers()
    kill(reaper)
    assert gone(reaper)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


def test_reapers_that_get_no_thread_pause_one_endpoint_after_the_other(box: Box) -> None:
    """Row 30: no memory is left for one when the run dies."""
    box.hub.add_endpoint("acme/other")
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm", "acme/other")
        def test_it():
            stay("test")
    """)
    run = box.start()
    run.reached()
    box.complete()
    for pid in (*box.reapers(), *box.seconds(), *box.reserves()):
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size + 2**20, size + 2**20))
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)
    box.judge(end, name="acme/other")
