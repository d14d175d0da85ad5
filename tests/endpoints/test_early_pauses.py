"""Endpoints that are put to rest before the run's end: by its own deadline, or by someone else."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import leases_dir, read_all
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.errors import BudgetExceededError, EndpointError

from .conftest import Make, Start, gone, kill_all, until

pytestmark = pytest.mark.slow


def asked(hub: EmulatorClient, op: str) -> int:
    return len(hub.log(kind="request", phase="arrived", op=op))


# -- by its own deadline


def test_a_deadline_is_told_at_once_and_nothing_is_resumed_after_it(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_endpoint("acme/other")
    run = lifecycle()
    run.ensure("acme/llm")
    assert run.paused_early() == {}
    hub.add_fault("pause", hang=0.3)
    run.pause_after(0)
    told = until(run.paused_early)
    assert hub.log(kind="state", state="paused") == [], "it was told only once it had happened"
    assert list(told) == ["acme/llm"]
    assert "the uptime that this run may have is used up" in told["acme/llm"]
    for name in ("acme/llm", "acme/other"):
        with pytest.raises(EndpointError, match="may have is used up"):
            run.ensure(name)
    with pytest.raises(EndpointError, match="may have is used up"):
        run.revive("acme/llm")
    (receipt,) = run.finish()
    assert (receipt.reason, receipt.verified) == ("deadline", True)
    assert asked(hub, "resume") == 1


def test_a_deadline_is_kept_while_the_run_hangs(hub: EmulatorClient, other_run: Start) -> None:
    run = other_run()
    run.tell("limit")
    run.order("hang")
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)
    assert run.process.poll() is None


def test_a_deadline_is_kept_while_the_run_is_stopped(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings
) -> None:
    run = other_run()
    run.tell("limit")
    run.end(signal.SIGSTOP)
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)
    os.kill(run.process.pid, signal.SIGCONT)
    receipt = run.receipts()["acme/llm"]
    assert (receipt["reason"], receipt["verified"]) == ("deadline", True)
    last = read_all(leases_dir(settings.state_dir))[-1]
    assert (last.kind, last.reason) == ("paused", "deadline")


def test_the_wait_for_an_endpoint_ends_with_the_deadline(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.change_endpoint("acme/llm", resume_to="stuck")
    run = lifecycle()
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(run.ensure, "acme/llm")
        hub.wait_for(kind="state", state="initializing")
        run.pause_after(0)
        with pytest.raises(EndpointError, match="may have is used up"):
            coming.result()
    assert run.finish()[0].reason == "deadline"


def test_the_receipt_tells_why_it_was_paused(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle(run="asked")
    run.ensure("acme/llm")
    assert run.finish()[0].reason == "asked"
    killed = other_run(run="killed")
    killed.end()
    assert gone(killed.reaper)
    reasons = {each.run: each.reason for each in read_all(leases_dir(settings.state_dir))}
    assert reasons == {"asked": "asked", "killed": "owner gone"}


def test_a_reaper_that_is_lost_twice_is_told_of_too(
    lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    for _ in range(2):
        kill_all(run, settings)
        run.tend()
    assert "was killed again" in run.paused_early()["acme/llm"]
    with pytest.raises(EndpointError, match="was killed again"):
        run.ensure("acme/llm")
    assert run.finish()[0].reason == "reaper lost"


# -- by someone else


@pytest.mark.parametrize("state", ["paused", "scaledToZero"])
def test_what_someone_else_put_to_rest_is_resumed_once_more(
    hub: EmulatorClient, lifecycle: Make, state: str, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state=state)
    assert run.revive("acme/llm").state == "running"
    assert run.ensure("acme/llm").state == "running"
    hub.change_endpoint("acme/llm", state="paused")
    with pytest.raises(EndpointError, match="more than once"):
        run.revive("acme/llm")
    (receipt,) = run.finish()
    assert (receipt.revived, receipt.verified) == (1, True)
    assert asked(hub, "resume") == 2
    kinds = [each.kind for each in read_all(leases_dir(settings.state_dir))]
    assert kinds == ["intent", "resumed", "revived", "resumed", "paused"]


def test_eight_threads_that_fail_at_once_resume_it_once(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="paused", initializing_s=0.1)
    with ThreadPoolExecutor(8) as pool:
        revived = list(pool.map(run.revive, ["acme/llm"] * 8))
    assert {endpoint.state for endpoint in revived} == {"running"}
    assert asked(hub, "resume") == 2
    assert run.finish()[0].revived == 1


def test_two_runs_that_lose_it_resume_it_once(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    runs = [lifecycle(run=name) for name in "ab"]
    for run in runs:
        run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="paused", initializing_s=0.1)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.revive("acme/llm"), runs))
    assert asked(hub, "resume") == 2
    assert sum(run.finish()[0].revived for run in runs) == 1


def test_what_runs_is_just_returned(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    assert run.revive("acme/llm").state == "running"
    assert asked(hub, "resume") == 1
    assert run.finish()[0].revived == 0


def test_what_someone_else_resumes_already_is_waited_for(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="initializing")
    with ThreadPoolExecutor() as pool:
        before = hub.last()
        coming = pool.submit(run.revive, "acme/llm")
        hub.wait_for(op="get", after=before)
        hub.change_endpoint("acme/llm", state="running")
        assert coming.result().state == "running"
    assert asked(hub, "resume") == 1


def test_the_cap_is_asked_before_it_is_resumed_again(hub: EmulatorClient, lifecycle: Make) -> None:
    asks: list[int | None] = []

    def afford(endpoint: object, nano_per_minute: int | None) -> None:
        asks.append(nano_per_minute)
        if len(asks) > 1:
            raise BudgetExceededError("too dear")

    run = lifecycle(afford=afford)
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="paused")
    with pytest.raises(BudgetExceededError):
        run.revive("acme/llm")
    assert len(asks) == 2
    assert asked(hub, "resume") == 1


def test_only_what_this_run_has_up_is_revived(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    with pytest.raises(EndpointError, match="was not brought up by this run"):
        run.revive("acme/llm")
    hub.change_endpoint("acme/llm", state="running")
    run.ensure("acme/llm", keep_running=True)
    hub.change_endpoint("acme/llm", state="paused")
    with pytest.raises(EndpointError, match="ran before this run"):
        run.revive("acme/llm")
    assert asked(hub, "resume") == 0


def test_a_run_that_ends_revives_nothing(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    run.request_pause()
    with pytest.raises(EndpointError, match="the run is ending"):
        run.revive("acme/llm")
    assert run.finish()[0].verified
    assert asked(hub, "resume") == 1


def test_a_kill_in_the_middle_of_a_revival_is_paused_after_it_took_effect(
    hub: EmulatorClient, other_run: Start
) -> None:
    run = other_run()
    hub.change_endpoint("acme/llm", state="paused")
    hub.add_fault("resume", delay=0.25)
    before = hub.last()
    run.order("revive")
    hub.wait_for(op="resume", after=before)
    run.end()
    woken = hub.wait_for(kind="state", state="running", after=before)
    hub.wait_for(kind="state", state="paused", after=woken["seq"])


def test_a_revived_endpoint_is_billed_as_the_server_does(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.configure(billing_minute_s=0.05)
    run = lifecycle(billing_minute_s=0.05)
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="paused")
    threading.Event().wait(0.2)  # nothing is to be paid for this
    run.revive("acme/llm")
    (receipt,) = run.finish()
    (billed,) = hub.invoice()["endpoints"]
    assert receipt.cost.minutes == billed["minutes"]
    assert not receipt.cost.estimated


def test_a_revived_endpoint_that_had_been_running_gets_its_settings_back(
    hub: EmulatorClient, lifecycle: Make, plane: ControlPlane
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    before = plane.get("acme/llm").raw_scaling
    run = lifecycle()
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="paused")
    assert run.revive("acme/llm").raw_scaling["minReplica"] == 0
    assert run.finish()[0].verified
    endpoint = plane.get("acme/llm")
    assert (endpoint.raw_scaling, endpoint.tags) == (before, ())
