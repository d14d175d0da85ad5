"""A command that needs endpoints: they are up while it runs, and paused however it ends."""

from __future__ import annotations

import signal
import sys

import pytest

from pytest_hfbudget.cli.run import FAILED, NOT_FOUND, run_command
from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings

from .conftest import Make, Start, gone

LOOK = """
import json, urllib.request
ask = urllib.request.Request("{api}/endpoint/acme/llm")
ask.add_header("Authorization", "Bearer {token}")
while json.load(urllib.request.urlopen(ask))["status"]["state"] != "{wanted}":
    pass
"""
TELL_PARENT = """
import os, signal, sys
signal.signal(signal.{name}, lambda *_: os._exit(7))
os.kill(os.getppid(), signal.{name})
signal.pause()
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def asked(hub: EmulatorClient, op: str) -> list[int]:
    return [each["seq"] for each in hub.log(kind="request", phase="arrived", op=op)]


def test_a_command_has_its_endpoints_while_it_runs(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    hub.add_endpoint("acme/other")
    look = LOOK.format(api=settings.api, token=settings.token, wanted="running")
    outcome = run_command(lifecycle(), ["acme/llm", "acme/other"], python(look))
    assert (outcome.exit_code, outcome.error, outcome.in_order) == (0, None, True)
    assert [each.verified for each in outcome.receipts] == [True, True]
    assert len(asked(hub, "resume")) == len(asked(hub, "pause")) == 2


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_the_exit_code_is_the_commands(lifecycle: Make, code: str, status: int) -> None:
    outcome = run_command(lifecycle(), ["acme/llm"], python(code))
    assert (outcome.exit_code, outcome.in_order) == (status, True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_go_on_to_the_command(hub: EmulatorClient, lifecycle: Make, name: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    outcome = run_command(lifecycle(), ["acme/llm"], python(TELL_PARENT.format(name=name)))
    assert outcome.exit_code == 7
    assert outcome.in_order
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored(lifecycle: Make) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        ignored = "import signal; raise SystemExit(signal.getsignal(1) is signal.SIG_IGN)"
        assert run_command(lifecycle(), ["acme/llm"], python(ignored)).exit_code == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_such_a_command_nothing_is_resumed(hub: EmulatorClient, lifecycle: Make) -> None:
    outcome = run_command(lifecycle(), ["acme/llm"], ["no-such-command-here"])
    assert (outcome.exit_code, outcome.receipts) == (NOT_FOUND, ())
    assert outcome.error is not None
    assert "no such command" in outcome.error
    assert asked(hub, "resume") == []


def test_an_endpoint_that_is_not_there_is_found_before_any_is_resumed(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    outcome = run_command(lifecycle(), ["acme/llm", "acme/nope"], python(""))
    assert outcome.exit_code == FAILED
    assert outcome.error is not None
    assert "acme/nope" in outcome.error
    assert asked(hub, "resume") == []


def test_an_endpoint_that_does_not_come_up_ends_it_with_all_paused(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_endpoint("acme/broken", resume_to="failed")
    outcome = run_command(lifecycle(), ["acme/llm", "acme/broken"], python("raise SystemExit(9)"))
    assert outcome.exit_code == FAILED
    assert all(each.verified for each in outcome.receipts)


def test_a_killed_command_is_paused(hub: EmulatorClient, other_run: Start) -> None:
    run = other_run()
    assert run.tell("command") == "ran"
    run.end()
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)


def test_the_deadline_is_kept_whatever_the_command_does(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    wait = LOOK.format(api=settings.api, token=settings.token, wanted="paused")

    def progress(name: str, state: str, seconds: float) -> None:
        if state == "running":
            run.pause_after(0.05)

    run = lifecycle(progress)
    outcome = run_command(run, ["acme/llm"], python(wait))
    assert outcome.exit_code == 0
    assert [each.reason for each in outcome.receipts] == ["deadline"]
    assert len(asked(hub, "pause")) == 1


def test_a_deadline_that_is_over_before_the_first_endpoint_says_so(lifecycle: Make) -> None:
    run = lifecycle()
    outcome = run_command(run, ["acme/llm"], python(""), max_uptime_s=0)
    assert outcome.exit_code == FAILED
    assert outcome.error is not None
    assert "may have is used up" in outcome.error
