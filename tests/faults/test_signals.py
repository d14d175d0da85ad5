"""Runs that are ended from outside: by people, by shells, by CI runners."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess

import pytest
from fault_box import NAME, Box, descendants, environ_of, gone, kill, kill_tree


@pytest.mark.quick
def test_ctrl_c_in_a_test_pauses_at_once(box: Box) -> None:
    """Row 2."""
    box.suite()
    run = box.start()
    run.reached()
    end = run.send(signal.SIGINT)
    assert run.wait() == 2
    box.judge(end)


def test_ctrl_c_in_a_fixture_pauses_at_once(box: Box) -> None:
    """Row 2: no fixture of that test is torn down then."""
    box.suite("""
        @pytest.fixture
        def slow():
            stay("fixture")

        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(slow):
            pass
    """)
    run = box.start()
    run.reached("fixture")
    end = run.send(signal.SIGINT)
    assert run.wait() == 2
    box.judge(end)


@pytest.mark.quick
def test_ctrl_c_while_the_endpoint_comes_up_pauses_it(box: Box) -> None:
    """Row 3."""
    box.hub.change_endpoint(NAME, initializing_s=30)
    box.suite()
    run = box.start()
    up = run.sees(kind="state", state="initializing")
    run.sees(op="get", phase="answered", after=up.seq)
    end = run.send(signal.SIGINT)
    assert run.wait() == 2
    box.judge(end)


@pytest.mark.parametrize("times", [2, 3, 8])
def test_an_impatient_user_does_not_stop_the_pause(box: Box, times: int) -> None:
    """Row 6: Ctrl-C again and again, every 0.4 s, while the pause takes 1.5 s."""
    box.suite()
    run = box.start()
    run.reached()
    box.hub.add_fault("pause", delay=1.5)
    end = run.send(signal.SIGINT)
    for _ in range(times - 1):
        try:
            run.process.wait(0.4)
        except subprocess.TimeoutExpired:
            run.send(signal.SIGINT)
    assert run.wait() != 0
    box.judge(end, within=2.5)
    assert len(box.requests("pause")) == 1


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        pytest.param(signal.SIGKILL, marks=pytest.mark.quick),
    ],
)
def test_a_killed_run_is_paused(box: Box, number: signal.Signals) -> None:
    """Rows 7, 8."""
    box.suite()
    run = box.start()
    run.reached()
    end = run.send(number)
    assert run.wait() == -number
    box.judge(end)


@pytest.mark.quick
def test_a_killed_process_group_leaves_the_reaper(box: Box) -> None:
    """Row 9."""
    box.suite()
    run = box.start()
    run.reached()
    end = run.kill_group()
    assert run.wait() == -signal.SIGKILL
    box.judge(end)


def test_a_killed_session_leaves_the_reaper(box: Box) -> None:
    """Row 9: with every process of the session, whatever its group."""
    box.suite("""
        import subprocess

        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
            stay("test")
    """)
    run = box.start()
    run.reached()
    end = box.now()
    for pid in box.processes():
        if os.getsid(pid) == run.pid:
            kill(pid)
    run.wait()
    box.judge(end)


@pytest.mark.parametrize("options", [(), ("-n2",)], ids=["alone", "workers"])
def test_a_killed_process_tree_leaves_the_reaper(box: Box, options: tuple[str, ...]) -> None:
    """Row 10: walked by parents, from the shell that started pytest."""
    box.suite()
    command = shlex.join(box.pytest(*options))
    run = box.start(command=["bash", "-c", f"{command}; exit $?"])
    run.reached()
    assert len(descendants(run.pid)) >= 2 + 2 * len(options)
    end = run.kill_tree()
    run.wait()
    box.judge(end)


def test_a_cancelled_step_of_github_actions_is_paused(box: Box) -> None:
    """Row 11: only bash is told; pytest learns nothing before it is killed."""
    tracking = {"RUNNER_TRACKING_ID": f"github_{box.tag}"}
    box.suite()
    run = box.start(command=["bash", "-c", f"{shlex.join(box.pytest())}; exit $?"], env=tracking)
    run.reached()
    (pytest_pid,) = (pid for pid in descendants(run.pid) if pid != run.pid)
    run.send(signal.SIGINT)
    assert not gone(pytest_pid, 7.5)
    run.send(signal.SIGTERM)
    assert not gone(pytest_pid, 2.5)
    assert box.requests("pause") == []
    end = box.now()
    kill_tree(run.pid)
    sweep_orphans(box, tracking)
    run.wait()
    assert gone(pytest_pid)
    box.judge(end)


@pytest.mark.quick
def test_a_cancelled_step_that_execs_pytest_is_paused_by_its_first_signal(box: Box) -> None:
    """Row 11: as the documentation recommends."""
    box.suite()
    run = box.start(command=["bash", "-c", f"exec {shlex.join(box.pytest())}"])
    run.reached()
    end = run.send(signal.SIGINT)
    assert run.wait(7.5) == 2
    box.judge(end)


def test_the_sweep_of_orphans_by_the_runner_leaves_the_reaper(box: Box) -> None:
    """Row 12."""
    tracking = {"RUNNER_TRACKING_ID": f"github_{box.tag}"}
    box.suite()
    run = box.start(env=tracking)
    run.reached()
    box.hub.add_fault("pause", delay=0.5)
    end = run.send(signal.SIGKILL)
    sweep_orphans(box, tracking)
    run.wait()
    sweep_orphans(box, tracking)
    box.judge(end, within=1.5)


def sweep_orphans(box: Box, tracking: dict[str, str]) -> None:
    """Kill all processes with the job's id in their environment."""
    (name, value), *_ = tracking.items()
    for pid in box.processes():
        if environ_of(pid).get(name.encode()) == value.encode():
            kill(pid)


DEAF = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it():
        {deafness}
"""


@pytest.mark.parametrize(
    "deafness",
    [
        'signal.signal(signal.SIGINT, signal.SIG_IGN); stay("test")',
        "signal.signal(signal.SIGINT, lambda *_: None); stay('test')",
    ],
    ids=["ignored", "handled"],
)
def test_a_test_that_is_deaf_to_ctrl_c_is_paused_when_it_is_killed(box: Box, deafness: str) -> None:
    """Row 20."""
    box.suite(DEAF.format(deafness=deafness))
    run = box.start()
    run.reached()
    run.send(signal.SIGINT)
    run.send(signal.SIGINT)
    assert not gone(run.pid, 0.3)
    end = run.send(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    box.judge(end)


def test_a_test_that_swallows_ctrl_c_is_paused_when_it_is_killed(box: Box) -> None:
    """Row 20."""
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            count = 0
            while True:
                count += 1
                try:
                    stay(f"try-{count}")
                except KeyboardInterrupt:
                    continue
    """)
    run = box.start()
    for count in (1, 2):
        run.reached(f"try-{count}")
        run.send(signal.SIGINT)
    run.reached("try-3")
    end = run.send(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    box.judge(end)


def test_a_run_that_was_started_with_ctrl_c_ignored_ends_as_usual(box: Box) -> None:
    """Row 20: `pytest &` in a script."""
    box.suite()
    run = box.start(command=["bash", "-c", f"{shlex.join(box.pytest())} & wait $!"])
    run.reached()
    (pytest_pid,) = (pid for pid in descendants(run.pid) if pid != run.pid)
    kill(pytest_pid, signal.SIGINT)
    assert not gone(pytest_pid, 0.3)
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)
