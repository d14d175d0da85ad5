"""Other runs, other people, and what is left when even the reaper is dead."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence

import pytest
from fault_box import NAME, TOKEN, Box, Moment, Run, T, descendants, gone, kill

from pytest_hfbudget.endpoints.api import ControlPlane

A_MINUTE = 550_000  # nano-USD on the emulator's standard hardware

SHARED = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it():
        stay(os.environ["FAULTS_NAME"])
"""


def start(box: Box, name: str, *options: str) -> Run:
    """A run that goes on until its gate is opened."""
    return box.start(*options, env={"FAULTS_NAME": name})


# -- an endpoint that is up already


def test_an_endpoint_that_was_found_running_is_paused_too_and_the_run_says_so(box: Box) -> None:
    """Row 37: the run that declares an endpoint answers for its bill."""
    box.hub.change_endpoint(NAME, state="running")
    box.suite()
    run = box.start()
    run.reached()
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None, resumes=0)
    assert "was running before" in run.output


def test_an_endpoint_that_was_found_running_is_kept_so_if_that_is_asked(box: Box) -> None:
    """Row 37."""
    box.hub.change_endpoint(NAME, state="running")
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm", keep_running=True)
        def test_it():
            stay("test")
    """)
    run = box.start()
    run.reached()
    end = run.send(signal.SIGKILL)
    run.wait()
    assert box.all_gone() == []
    assert box.state_of() == "running"
    assert box.requests("resume", after=0) == box.requests("pause", after=end.seq) == []


def test_an_undeclared_endpoint_is_left_alone(box: Box) -> None:
    """Row 37."""
    box.hub.add_endpoint("acme/other", state="running")
    box.suite()
    run = box.start()
    run.reached()
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)
    assert box.state_of("acme/other") == "running"
    assert box.hub.log(kind="request", endpoint="acme/other") == []


# -- two runs on one machine


@pytest.mark.parametrize("first_out", ["first", "second"])
def test_the_last_of_two_runs_pauses(box: Box, first_out: str) -> None:
    """Row 38: the second joins the resume of the first, and either may leave first."""
    box.suite(SHARED)
    names = ["first", "second"]
    runs = {}
    for name in names:
        runs[name] = start(box, name)
        runs[name].reached(name)
    names.remove(first_out)
    box.open_gate(first_out)
    assert runs[first_out].wait() == 0
    assert box.state_of() == "running"
    assert box.requests("pause") == []
    (last_out,) = names
    box.open_gate(last_out)
    assert runs[last_out].wait() == 0
    box.judge(None)


@pytest.mark.parametrize("killed", ["first", "second"])
def test_a_killed_run_leaves_the_endpoint_to_the_other(box: Box, killed: str) -> None:
    """Row 38."""
    box.suite(SHARED)
    runs = {}
    for name in ("first", "second"):
        runs[name] = start(box, name)
        runs[name].reached(name)
    reapers = len(box.reapers())
    assert reapers == 2
    runs[killed].send(signal.SIGKILL)
    runs[killed].wait()
    (other,) = set(runs) - {killed}
    # The reaper of the killed one has done its work when it is gone.
    ends = time.monotonic() + 5
    while len(box.reapers()) > 1 and time.monotonic() < ends:
        gone(box.reapers()[0], 0.1)
        gone(box.reapers()[-1], 0.1)
    assert box.state_of() == "running"
    assert box.requests("pause") == []
    end = runs[other].send(signal.SIGKILL)
    runs[other].wait()
    box.judge(end)


def test_two_runs_that_are_killed_together_leave_nothing(box: Box) -> None:
    """Row 38: each reaper sees the claim of the other."""
    box.suite(SHARED)
    runs = [start(box, name) for name in ("first", "second")]
    for run, name in zip(runs, ("first", "second"), strict=True):
        run.reached(name)
    end = box.now()
    for run in runs:
        kill(run.pid)
    for run in runs:
        run.wait()
    box.judge(end)


def test_a_run_joins_one_that_is_still_waiting_for_the_endpoint(box: Box) -> None:
    """Row 38: one resume, and both wait for it."""
    box.hub.change_endpoint(NAME, initializing_s=4)
    box.suite(SHARED)
    first = start(box, "first")
    first.sees(kind="state", state="initializing")
    second = start(box, "second")
    first.reached("first")
    second.reached("second")
    box.open_gate("first")
    box.open_gate("second")
    assert (first.wait(), second.wait()) == (0, 0)
    box.judge(None)


def test_a_run_that_comes_while_another_pauses_resumes_anew(box: Box) -> None:
    """Row 38: no run uses an endpoint that is on its way down."""
    box.hub.change_endpoint(NAME, pause_lag_s=3)
    box.suite(SHARED)
    first = start(box, "first")
    first.reached("first")
    box.open_gate("first")
    first.sees(op="pause")
    second = start(box, "second")
    second.reached("second")
    assert first.wait() == 0
    assert box.state_of() == "running"
    end = second.send(signal.SIGKILL)
    second.wait()
    box.judge(end, within=3 + T, resumes=2)


# -- the sweep


def test_a_sweep_does_not_touch_what_a_live_run_has_leased(box: Box) -> None:
    """Row 46: again and again, while the run goes on."""
    box.suite()
    run = box.start()
    run.reached()
    for _ in range(4):
        sweep = box.command("sweep", "acme")
        assert sweep.process.returncode == 0, sweep.output
    assert box.requests("pause") == []
    assert box.state_of() == "running"
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)


def lose_everything(box: Box, run: Run) -> Moment:
    """Kill a run and its reaper in one instant, so that neither can do a thing."""
    for pid in box.processes():
        kill(pid, signal.SIGSTOP)
    end = box.now()
    for pid in box.processes():
        kill(pid)
    run.wait()
    assert box.all_gone() == []
    for log in box.state.glob("leases/*.log"):
        log.unlink()
    assert box.requests("pause") == []
    assert box.state_of() == "running"
    return end


def test_a_sweep_pauses_what_is_left_when_the_reaper_is_dead_too(box: Box) -> None:
    """Row 48: a stand-in for a power cut; only the journal remains."""
    box.suite()
    run = box.start()
    run.reached()
    lose_everything(box, run)
    sweep = box.command("sweep")
    assert sweep.process.returncode == 0, sweep.output
    assert NAME in sweep.output
    box.judge(None)


@pytest.mark.parametrize("tail", [b"", b'{"kind": "res'], ids=["whole", "torn"])
def test_the_next_run_sweeps_what_dead_ones_have_left(box: Box, tail: bytes) -> None:
    """Row 48: although it needs another endpoint."""
    box.hub.add_endpoint("acme/other")
    box.suite(name="test_first.py")
    run = box.start("test_first.py")
    run.reached()
    lose_everything(box, run)
    (journal,) = box.state.glob("leases/*.jsonl")
    with journal.open("ab") as file:
        file.write(tail)
    box.suite(
        """
        @pytest.mark.hf_endpoint("acme/other")
        def test_it():
            reached("second")
        """,
        "test_second.py",
    )
    run = box.start("test_second.py")
    assert run.wait() == 0
    box.judge(None)
    box.judge(None, name="acme/other")


def test_the_next_run_that_needs_the_endpoint_takes_it_over(box: Box) -> None:
    """Row 48: it is not resumed again, and is paused at the end."""
    box.suite(SHARED)
    run = start(box, "first")
    run.reached("first")
    lose_everything(box, run)
    run = start(box, "second")
    run.reached("second")
    box.open_gate("second")
    assert run.wait() == 0
    box.judge(None)  # also of the dead one's journal: its account was taken over


def test_a_container_that_is_killed_is_left_to_the_sweep_and_to_the_server(box: Box) -> None:
    """Row 45: the death of PID 1 takes the reaper along."""
    kill_the_container(box, in_a_container(box))
    assert box.requests("pause") == []
    assert box.state_of() == "running"
    sweep = box.command("sweep")
    assert sweep.process.returncode == 0, sweep.output
    box.judge(None)


def test_the_server_itself_puts_to_sleep_what_no_process_can_pause(box: Box) -> None:
    """Row 45: the last layer, when the whole machine is gone."""
    kill_the_container(box, in_a_container(box))
    box.hub.advance(14 * 60)
    assert box.state_of() == "running"
    box.hub.advance(2 * 60)
    assert box.state_of() == "scaledToZero"


def in_a_container(box: Box, *, host: str = "") -> Run:
    """A run that is PID 1 of its own world of processes, in the middle of a test."""
    box.suite()
    run = box.start(command=contained(*box.pytest(), host=host))
    run.reached()
    return run


def kill_the_container(box: Box, run: Run) -> None:
    """Kill its PID 1, and with it all that is in there.

    The kernel closes the dead one's end of the line a moment before it kills the others, and
    about every other reaper makes use of that moment. Here they have none.
    """
    pid_one = descendants(run.pid)[1]
    box.complete()
    for pid in (*box.reapers(), *box.seconds(), *box.reserves()):
        kill(pid, signal.SIGSTOP)
    kill(pid_one)
    run.wait()
    assert box.all_gone() == []


# -- the time that may be paid for


CAP, TIME = f"--hf-session-budget={2.5 * A_MINUTE / 10**9:.9f}", "--hf-max-uptime=0.12"
NO_MINUTE = "its next minute does not fit into the session budget of $0.001375"


@pytest.mark.parametrize(
    ("limits", "minute_s", "why"),
    [
        pytest.param(
            [CAP],
            1.0,
            f"{NO_MINUTE}. Raise the cap, or select fewer tests.",
            marks=pytest.mark.quick,
            id="cap",
        ),
        # One minute, of which a busy machine takes half to bring the endpoint up.
        pytest.param(
            [TIME],
            4.0,
            f"the run reached {TIME} minutes. Raise it, or select fewer tests.",
            id="time",
        ),
        pytest.param(
            [CAP, TIME],
            4.0,
            f"{NO_MINUTE}, or the run reached {TIME} minutes. Raise what was reached, or select "
            "fewer tests.",
            id="both",
        ),
    ],
)
def test_a_test_that_hangs_costs_no_more_than_the_cap(
    box: Box, limits: list[str], minute_s: float, why: str
) -> None:
    """The reaper pauses by itself, and the test that is left without an endpoint fails."""
    box.hub.configure(billing_minute_s=minute_s)
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            stay("test")
            say = [{"role": "user", "content": "hello"}]
            hf_endpoint.client.chat_completion(say, max_tokens=5)
    """)
    run = box.start(*limits, env={"HFBUDGET_BILLING_MINUTE": f"{minute_s:g}"})
    run.reached()
    run.sees(kind="state", state="paused", timeout=10)
    box.open_gate("test")
    assert run.wait() == 1
    assert f"acme/llm was paused while it was needed: {why}" in run.output
    box.judge(None)
    assert box.hub.invoice()["endpoints_nano_usd"] <= 2 * A_MINUTE


def test_an_endpoint_that_another_user_pauses_is_revived_once(box: Box) -> None:
    """The call that meets with it is sent again, and the report says so."""
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            stay("test")
            say = [{"role": "user", "content": "hello"}]
            assert hf_endpoint.client.chat_completion(say, max_tokens=5)
            stay("again")
    """)
    run = box.start()
    run.reached()
    connection = http.client.HTTPConnection(box.hub.url.partition("://")[2])
    headers = {"authorization": "Bearer hf_another_user"}
    connection.request("POST", f"/v2/endpoint/{NAME}/pause", headers=headers)
    assert connection.getresponse().status == 200
    connection.close()
    box.open_gate("test")
    run.reached("again")
    box.open_gate("again")
    assert run.wait() == 0
    assert "another process paused it" in run.output
    box.judge(None, resumes=2)


# -- containers that share a folder of state


def contained(*command: str, host: str = "") -> list[str]:
    """A command with process ids of its own, and a host name of its own if one is given."""
    if os.getuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    named = ["--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"] if host else []
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *named, *command]


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("", id="same-host-name"),
        pytest.param("elsewhere", id="other-host-name"),
    ],
)
def test_what_a_live_run_in_a_container_uses_is_not_swept_from_outside(box: Box, host: str) -> None:
    """Row 51."""
    box.suite(SHARED)
    run = box.start(command=contained(*box.pytest(), host=host), env={"FAULTS_NAME": "test"})
    run.reached()
    for namespace in ((), ("acme",)):
        swept = box.command("sweep", *namespace)
        assert swept.process.returncode == 0
        assert "can't be checked from here" in swept.output
        assert "hfbudget pause --force acme/llm" in swept.output
    _run_that_needs_another(box)
    assert box.state_of() == "running"
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)


def test_what_a_live_run_uses_is_not_swept_from_a_container(box: Box) -> None:
    """Row 51."""
    box.suite(SHARED)
    run = start(box, "test")
    run.reached()
    hfbudget = [sys.executable, "-m", "pytest_hfbudget"]
    swept = box.start(command=contained(*hfbudget, "sweep", "acme"))
    assert swept.wait() == 0
    assert "can't be checked from here" in swept.output
    assert box.state_of() == "running"
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)


def test_what_a_dead_container_left_is_paused_from_outside(box: Box) -> None:
    """Rows 45, 51: there it can be seen that none of its processes is left."""
    run = in_a_container(box, host="elsewhere")
    kill_the_container(box, run)
    sweep = box.command("sweep")
    assert sweep.process.returncode == 0, sweep.output
    box.judge(None)


@pytest.mark.parametrize("by", ["sweep", "the next run"])
@pytest.mark.parametrize("host", ["", "elsewhere"], ids=["same-host-name", "other-host-name"])
def test_what_a_dead_container_left_is_named_in_another_and_paused_when_its_tag_has_expired(
    box: Box, host: str, by: str
) -> None:
    """Rows 45, 51."""
    run = in_a_container(box, host=host)
    # The kernel would give its number to the next one, and then it were known to be gone.
    pinned = os.open(f"/proc/{descendants(run.pid)[1]}/ns/pid", os.O_RDONLY)
    kill_the_container(box, run)
    end = box.now()
    hfbudget = [sys.executable, "-m", "pytest_hfbudget"]
    swept = box.start(command=contained(*hfbudget, "sweep"))
    assert swept.wait() == 0
    (told,) = [line for line in swept.output.splitlines() if "acme/llm: not touched (run " in line]
    assert told.endswith(". If that run is dead: hfbudget pause --force acme/llm")
    assert box.state_of() == "running"
    endpoint = ControlPlane(f"{box.hub.url}/v2", TOKEN).get(NAME)
    expired = [tag if "until" not in tag else "hfbudget-until-1000000000" for tag in endpoint.tags]
    box.hub.change_endpoint(NAME, tags=expired)
    if by == "sweep":
        assert box.start(command=contained(*hfbudget, "sweep")).wait() == 0
        again = box.start(command=contained(*hfbudget, "sweep"))
        assert again.wait() == 0
        assert "nothing to pause" in again.output
    else:
        _run_that_needs_another(box, contained())
    os.close(pinned)
    assert box.state_of() == "paused"
    box.judge(end, within=60)


def _run_that_needs_another(box: Box, wrapper: Sequence[str] = ()) -> None:
    box.hub.add_endpoint("acme/other")
    (box.path / "other").mkdir()
    box.suite(
        """
        @pytest.mark.hf_endpoint("acme/other")
        def test_it():
            pass
    """,
        "other/test_other.py",
    )
    other = box.start(command=[*wrapper, *box.pytest("other")])
    assert other.wait() == 0, other.output
