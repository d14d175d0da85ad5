"""`hfbudget run`: any command, its endpoint up before it and paused after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import TOKEN, Shell

HANGS = "import sys, time; print('here', flush=True); time.sleep(60)"
pytestmark = pytest.mark.slow

SAYS_ITS_SIGNAL = """
import signal, sys, threading
def leave(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, leave)
print("here", flush=True)
threading.Event().wait(60)
"""


@pytest.fixture
def llm(hfbudget: Shell) -> Iterator[Shell]:
    hfbudget.hub.add_endpoint("acme/llm")
    yield hfbudget
    # The next test has the same emulator: a reaper that still verifies would pause it there.
    hfbudget.hub.clear_faults()
    hfbudget.wait_for_reapers()


def _python(code: str) -> tuple[str, ...]:
    return ("run", "--endpoint", "acme/llm", "--", sys.executable, "-c", code)


def test_the_endpoint_is_up_while_the_command_runs_and_paused_after_it(llm: Shell) -> None:
    asks = f"""
import json, urllib.request
state = json.load(urllib.request.urlopen("{llm.hub.url}/_emulator/state"))
print(state["endpoints"][0]["state"])
"""
    done = llm(*_python(asks))
    assert (done.returncode, done.stdout) == (0, "running\n")
    assert "acme/llm: paused, verified; 1 min" in done.stderr
    assert llm.state("acme/llm") == "paused"
    assert len(llm.requests("resume")) == 1


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_commands_exit_code_is_passed_on(llm: Shell, code: str, status: int) -> None:
    assert llm(*_python(code)).returncode == status
    assert llm.state("acme/llm") == "paused"


def test_a_pause_that_is_not_verified_makes_success_a_failure(llm: Shell) -> None:
    llm.hub.add_fault("pause", times=None, status=403)
    done = llm(*_python("pass"))
    assert done.returncode == 1
    assert "hfbudget pause acme/llm" in done.stderr


def test_a_pause_that_is_not_verified_leaves_the_commands_own_failure(llm: Shell) -> None:
    llm.hub.add_fault("pause", times=None, status=403)
    assert llm(*_python("raise SystemExit(5)")).returncode == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_its_answer_comes_back(
    llm: Shell, number: signal.Signals
) -> None:
    process = llm.start(*_python(SAYS_ITS_SIGNAL))
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"got {number.name}\n"
    assert process.wait(20) == 7
    assert llm.state("acme/llm") == "paused"


def test_a_kill_is_answered_by_the_reaper(llm: Shell) -> None:
    process = llm.start(*_python(HANGS))
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    after = llm.hub.last()
    os.killpg(process.pid, signal.SIGKILL)
    llm.hub.wait_for(op="pause", after=after, timeout=10)
    llm.hub.wait_for(kind="state", state="paused", after=after, timeout=10)


def test_the_time_that_may_be_paid_for_ends_while_the_command_runs(llm: Shell) -> None:
    process = llm.start("run", "--max-uptime", "0.06", *_python(HANGS)[1:])
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    llm.hub.wait_for(kind="state", state="paused", timeout=20)
    assert process.poll() is None
    process.terminate()
    assert process.stderr
    assert "paused by --max-uptime, verified" in process.stderr.read()


def test_a_command_that_there_is_not_resumes_nothing(llm: Shell) -> None:
    done = llm("run", "--endpoint", "acme/llm", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr
    assert not llm.requests("resume")


def test_an_endpoint_that_can_not_come_up_keeps_the_command_from_starting(llm: Shell) -> None:
    llm.hub.change_endpoint("acme/llm", resume_to="failed")
    llm.hub.add_endpoint("acme/slow", initializing_s=60)
    run, *rest = _python("print('started')")
    done = llm(run, *rest[:2], "--endpoint", "acme/slow", *rest[2:])
    assert done.returncode == 1
    assert llm.state("acme/slow") == "paused"
    assert "started" not in done.stdout
    assert "failed" in done.stderr
    assert llm.state("acme/llm") == "paused"


def test_ctrl_c_while_it_starts_pauses_it(llm: Shell) -> None:
    llm.hub.change_endpoint("acme/llm", initializing_s=30)
    process = llm.start(*_python("pass"))
    resumed = llm.hub.wait_for(op="resume", phase="answered", timeout=20)
    llm.hub.wait_for(op="get", after=resumed["seq"], timeout=20)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted by Ctrl-C before the command started." in told
    assert llm.state("acme/llm") == "paused"


def test_ctrl_c_while_it_pauses_waits_for_the_pause(llm: Shell) -> None:
    llm.hub.add_fault("pause", endpoint="acme/llm", hang=2.0)
    process = llm.start(*_python("pass"))
    llm.hub.wait_for(op="pause", timeout=20)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted by Ctrl-C after the command had ended." in told
    assert llm.state("acme/llm") == "paused"


def test_the_receipts_can_be_had_as_json(llm: Shell) -> None:
    command = _python("raise SystemExit(5)")
    llm("run", "--json", "receipts.json", *command[1:])
    told = json.loads((llm.directory / "receipts.json").read_text())
    assert (told["schema"], told["exit_code"]) == (1, 5)
    (one,) = told["endpoints"]
    assert (one["name"], one["state"], one["verified"]) == ("acme/llm", "paused", True)
    assert one["usd"] == "0.00055"


def test_the_endpoints_may_come_from_the_environment(llm: Shell) -> None:
    assert llm("run", "true", HFBUDGET_ENDPOINTS="acme/llm").returncode == 0
    assert llm.requests("resume") == ["acme/llm"]


def test_two_runs_of_one_machine_share_it_and_the_last_one_pauses_it(llm: Shell) -> None:
    first = llm.start(*_python("print('here', flush=True); input()"), stdin=subprocess.PIPE)
    assert first.stdout
    assert first.stdout.readline() == "here\n"
    second = llm(*_python("pass"))
    assert (second.returncode, llm.state("acme/llm")) == (0, "running")
    assert "left to run" in second.stderr
    first.communicate("\n", timeout=20)
    assert (first.returncode, llm.state("acme/llm")) == (0, "paused")
    assert len(llm.requests("resume")) == 1


def test_without_an_endpoint_it_says_what_to_type(hfbudget: Shell) -> None:
    done = hfbudget("run", "true")
    assert done.returncode == 2
    assert "--endpoint" in done.stderr


def test_the_token_is_in_no_argument_list(llm: Shell) -> None:
    process = llm.start(*_python(HANGS))
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:  # it has ended meanwhile
            continue
    process.terminate()
    process.wait(20)
    assert not [line for line in lines if TOKEN.encode() in line]
