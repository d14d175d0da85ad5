"""A control plane that answers oddly for a while: the pause and its bill come out right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints import Endpoint
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import leases, leases_dir, read_all
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_leases
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.uptime_meter import price_per_hour
from pytest_hfbudget.errors import EndpointError

from .conftest import Make, gone, kill, standbys_of, until

pytestmark = pytest.mark.slow


def state(hub: EmulatorClient) -> str:
    (endpoint,) = hub.state()["endpoints"]
    return str(endpoint["state"])


@pytest.fixture
def run(lifecycle: Make) -> Lifecycle:
    """Has brought acme/llm up."""
    made = lifecycle()
    made.ensure("acme/llm")
    return made


def test_a_denial_after_other_failures_is_no_answer_yet(
    hub: EmulatorClient, run: Lifecycle
) -> None:
    hub.add_fault("pause", times=2, status=503)
    hub.add_fault("pause", times=1, status=403)
    (receipt,) = run.finish()
    assert receipt.verified
    assert state(hub) == "paused"


@pytest.mark.parametrize("op", ["pause", "get"])
def test_not_found_once_is_not_gone(hub: EmulatorClient, run: Lifecycle, op: str) -> None:
    hub.add_fault(op, times=1, status=404)
    (receipt,) = run.finish()
    assert (receipt.verified, receipt.state) == (True, "paused")
    assert state(hub) == "paused"


@pytest.mark.parametrize(
    "retry_after",
    ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "\u00b2", "Mon, 31 Feb 2026", "-", "1e9"],
)
def test_an_odd_retry_after_ends_no_pause(
    hub: EmulatorClient, run: Lifecycle, retry_after: str
) -> None:
    hub.add_fault("pause", times=1, status=429, headers={"Retry-After": retry_after})
    (receipt,) = run.finish()
    assert receipt.verified


@pytest.mark.parametrize("answer", [{"items": 7}, {"items": [None, 3]}, [], "none"])
def test_replicas_that_are_none_leave_an_estimate(
    hub: EmulatorClient, run: Lifecycle, answer: object
) -> None:
    hub.add_fault("replicas", times=None, status=200, json=answer)
    (receipt,) = run.finish()
    assert receipt.verified
    assert receipt.cost.minutes >= 1
    assert receipt.cost.estimated


def test_what_ran_before_is_not_charged_though_the_first_look_failed(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    for number in range(3):
        earlier = lifecycle(run=f"earlier-{number}")
        earlier.ensure("acme/llm")
        earlier.finish()
    run = lifecycle(run="this")
    hub.add_fault("replicas", times=None, status=503)
    run.ensure("acme/llm")
    hub.clear_faults()
    (receipt,) = run.finish()
    assert receipt.cost.estimated
    assert receipt.cost.minutes <= 2  # as many as it may have replicas; three more ran before


def test_scaling_that_could_not_be_put_back_is_by_the_next_run(
    hub: EmulatorClient, lifecycle: Make, plane: ControlPlane
) -> None:
    before = plane.get("acme/llm").raw_scaling
    first = lifecycle(run="first")
    first.ensure("acme/llm")
    hub.add_fault("update", times=None, status=503)
    (receipt,) = first.finish()
    assert receipt.verified
    assert "could not be put back" in " ".join(receipt.warnings)
    hub.clear_faults()
    second = lifecycle(run="second")
    second.ensure("acme/llm")
    second.finish()
    assert plane.get("acme/llm").raw_scaling == before
    assert not any("hfbudget" in tag for tag in plane.get("acme/llm").tags)


def test_a_renewal_that_failed_is_tried_again(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle(max_run_s=0.5)
    run.ensure("acme/llm")
    hub.add_fault("update", times=1, status=503)
    seen = hub.last()

    def renewed() -> bool:
        run.tend()
        return bool(hub.log(op="update", phase="answered", status=200, after=seen))

    assert until(renewed)
    (receipt,) = run.finish()
    assert "a sweep from elsewhere may pause it" in " ".join(receipt.warnings)


def test_a_standby_that_fell_behind_is_no_second_reaper(
    hub: EmulatorClient, run: Lifecycle, settings: EndpointSettings
) -> None:
    """It has heard of a limit that is long past, and not of what became of it."""
    (second,) = until(lambda: standbys_of(settings.state_dir, settings.run))
    os.kill(second, signal.SIGSTOP)
    for number in range(600):
        run.pause_after(2 + number / 1000)
    run.pause_after(None)
    os.kill(second, signal.SIGCONT)
    assert until(lambda: second not in standbys_of(settings.state_dir, settings.run))
    assert run.paused_early() == {}
    assert not run.reaper_lost
    assert state(hub) == "running"
    (receipt,) = run.finish()
    assert (receipt.verified, receipt.warnings) == (True, ())
    assert len(hub.log(op="pause", phase="arrived")) == 1


@pytest.mark.parametrize(
    "hardware",
    [
        {"vendors": [None]},
        {"vendors": [{"name": "aws", "regions": 3}]},
        {"vendors": [{"name": "aws", "regions": [{"name": "us-east-1", "computes": None}]}]},
        {"vendors": [{"name": "aws", "regions": [{"name": "us-east-1", "computes": ["x"]}]}]},
    ],
)
def test_a_list_of_hardware_with_holes_knows_no_price(
    plane: ControlPlane, hub: EmulatorClient, hardware: dict[str, Any]
) -> None:
    endpoint: Endpoint = plane.get("acme/llm")
    assert price_per_hour(hardware, endpoint) is None


def test_nothing_is_remembered_of_what_was_put_back(
    run: Lifecycle, settings: EndpointSettings
) -> None:
    run.finish()
    assert read_leases(lease_store_dir(settings.state_dir)) == ()


# -- answers that would end the pause, from a server or a gateway in trouble


PAUSED = {"name": "llm", "status": {"state": "paused"}}
BURSTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "404": [("get", {"status": 404}), ("pause", {"status": 404})],
    "404-and-an-empty-list": [
        ("get", {"status": 404}),
        ("pause", {"status": 404}),
        ("list", {"status": 200, "json": {"items": []}}),
    ],
    "404-and-no-list": [
        ("get", {"status": 404}),
        ("pause", {"status": 404}),
        ("list", {"garbage": True}),
    ],
    "html": [("get", {"garbage": True}), ("pause", {"garbage": True, "applied": False})],
    "another-endpoint": [
        ("get", {"status": 200, "json": {**PAUSED, "name": "other"}}),
        ("pause", {"status": 200, "json": {**PAUSED, "name": "other"}}),
    ],
    "no-endpoint": [("get", {"status": 200, "json": {"status": {"state": "paused"}}})],
    "401": [("pause", {"status": 401}), ("get", {"status": 401})],
    "403": [("pause", {"status": 403})],
}


@pytest.mark.parametrize("burst", BURSTS)
def test_a_burst_of_answers_that_would_end_the_pause_ends_nothing(
    hub: EmulatorClient, other_run: Callable[..., Any], settings: EndpointSettings, burst: str
) -> None:
    run = other_run()
    for op, answer in BURSTS[burst]:
        hub.add_fault(op, times=None, **answer)
    seen = hub.last()
    run.end(signal.SIGKILL)
    for _ in range(4):
        seen = hub.wait_for(op=BURSTS[burst][0][0], after=seen)["seq"]
    hub.clear_faults()
    hub.wait_for(kind="state", state="paused")
    assert gone(run.reaper)
    (lease,) = leases(leases_dir(settings.state_dir))
    assert lease.paused is not None
    assert (lease.paused.verified, lease.paused.state) == (True, "paused")


def test_an_endpoint_that_was_deleted_is_gone_for_certain(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    """It has answered 404 for a while, and the list of its namespace never had it."""
    run = lifecycle(doubt_s=0.5)
    run.ensure("acme/llm")
    hub.add_fault("get", times=None, status=404)
    hub.add_fault("list", times=None, status=200, json={"items": [], "totalItems": 0})
    began = hub.last()
    (receipt,) = run.finish()
    assert (receipt.verified, receipt.state) == (True, "gone")
    answers = hub.log(after=began, op="get", phase="answered")
    assert answers[-1]["mono"] - answers[0]["mono"] > 0.4


def test_404_for_what_its_namespace_lists_is_not_gone(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle(doubt_s=0.2, deadline_s=1.5)
    run.ensure("acme/llm")
    hub.add_fault("get", times=None, status=404)
    (receipt,) = run.finish()
    assert not receipt.verified
    assert "the list of its namespace has it" in (receipt.error or "")
    hub.clear_faults()


def test_one_view_of_two_that_says_paused_does_not_verify_it(
    hub: EmulatorClient, run: Lifecycle
) -> None:
    """The pause was not done; every other answer comes from a server that is wrong about it."""
    hub.add_fault("pause", lie=True)
    hub.add_fault("get", status=200, json=PAUSED)
    (receipt,) = run.finish()
    assert receipt.verified
    assert state(hub) == "paused"
    assert len(hub.log(op="pause", phase="arrived")) == 2


def test_a_refused_token_lets_the_run_end_and_not_the_reaper(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle(doubt_s=0.5)
    run.ensure("acme/llm")
    hub.configure(bad_tokens=[settings.token])
    (receipt,) = run.finish()
    assert not receipt.verified
    assert "HTTP 401" in (receipt.error or "")
    assert (receipt.error or "").endswith(
        "The reaper goes on trying. The endpoint may still cost money. To pause it: "
        "`hfbudget pause acme/llm`"
    )
    hub.configure(bad_tokens=[])
    hub.wait_for(kind="state", state="paused")
    assert run.reaper_pid
    assert gone(run.reaper_pid)
    (lease,) = leases(leases_dir(settings.state_dir))
    assert lease.finished


def test_a_reaper_that_is_killed_while_its_token_is_refused_is_stood_in_for(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle(doubt_s=0.2)
    run.ensure("acme/llm")
    hub.configure(bad_tokens=[settings.token])
    run.finish()
    kill(run.reaper_pid)
    hub.configure(bad_tokens=[])
    hub.wait_for(kind="state", state="paused")


def test_a_resume_that_was_answered_by_something_else_is_looked_for_in_the_state(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_fault("resume", garbage=True, applied=False)
    run = lifecycle()
    assert run.ensure("acme/llm").state == "running"
    assert len(hub.log(op="resume", phase="arrived")) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_lost_resume_is_looked_for_through_a_burst(
    hub: EmulatorClient, lifecycle: Make, status: int
) -> None:
    run = lifecycle(late_resume_s=3)
    hub.add_fault("resume", hang=1.2)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(run.ensure, "acme/llm")
        hub.wait_for(op="resume")
        hub.add_fault("get", times=2, status=status)
        assert coming.result().state == "running"
    assert len(hub.log(op="resume", phase="arrived")) == 1


def test_a_lost_resume_of_which_no_state_tells_is_not_repeated(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    hub.add_fault("resume", reset="before")
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(run.ensure, "acme/llm")
        hub.wait_for(op="resume")
        hub.add_fault("get", times=None, status=404)
        with pytest.raises(EndpointError, match="404"):
            coming.result()
    hub.clear_faults()
    assert run.finish()[0].verified
    assert len(hub.log(op="resume", phase="arrived")) == 1


@pytest.mark.parametrize("page", [{}, {"items": None}, {"items": {}}])
def test_something_else_than_a_list_is_not_an_empty_list(
    hub: EmulatorClient, plane: ControlPlane, page: dict[str, Any]
) -> None:
    hub.add_fault("list", status=200, json=page)
    assert [one.full_name for one in plane.list("acme")] == ["acme/llm"]


# -- what was paused for certain, and runs again


@pytest.fixture
def looking(lifecycle: Make) -> Lifecycle:
    """Has brought acme/llm up; its reaper looks again after 0.5 and 1.5 s."""
    made = lifecycle(looks_s=(0.5, 1.5))
    made.ensure("acme/llm")
    return made


def test_what_runs_again_after_its_pause_is_paused_once_more(
    hub: EmulatorClient, looking: Lifecycle, settings: EndpointSettings
) -> None:
    (receipt,) = looking.finish()
    assert receipt.verified
    hub.change_endpoint("acme/llm", state="running")
    seen = hub.last()
    hub.wait_for(kind="state", state="paused", after=seen)
    assert looking.reaper_pid
    assert gone(looking.reaper_pid)
    lines = [line for line in read_all(leases_dir(settings.state_dir)) if line.kind == "paused"]
    assert [(line.reason, line.verified) for line in lines] == [
        ("asked", True),
        ("awake again", False),
        ("awake again", True),
    ]
    (log,) = leases_dir(settings.state_dir).glob("*.log")
    assert '"running" 0.5 s after its pause was verified' in log.read_text()


def test_a_pause_that_was_read_too_early_is_made_good_by_a_later_look(
    hub: EmulatorClient, looking: Lifecycle
) -> None:
    """The server tells states of two seconds ago: of before the resume, when it slept."""
    hub.change_endpoint("acme/llm", view_lag_s=1, state="running")
    hub.add_fault("pause", lie=True)
    hub.add_fault("get", times=3, status=200, json=PAUSED)
    assert looking.finish()[0].verified
    assert state(hub) == "running"
    hub.wait_for(kind="state", state="paused", after=hub.last())


def test_settings_that_wake_it_when_they_are_put_back_are_noticed_later(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    """It is read as paused for a while although it runs."""
    run = lifecycle(looks_s=(1.5,))
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", view_lag_s=0.7)
    hub.configure(update_resumes=True)
    assert run.finish()[0].verified
    assert state(hub) == "running"
    hub.wait_for(kind="state", state="paused", after=hub.last())
    assert run.reaper_pid
    assert gone(run.reaper_pid)
    assert state(hub) == "paused"


def test_a_later_look_leaves_the_next_run_alone(
    hub: EmulatorClient, looking: Lifecycle, lifecycle: Make
) -> None:
    looking.finish()
    following = lifecycle(run="run-2", looks_s=())
    following.ensure("acme/llm")
    seen = hub.last()
    assert looking.reaper_pid
    assert gone(looking.reaper_pid)
    assert hub.log(op="pause", phase="arrived", after=seen) == []
    assert following.finish()[0].verified


def test_a_later_look_leaves_a_run_of_another_machine_alone(
    hub: EmulatorClient, looking: Lifecycle, plane: ControlPlane
) -> None:
    looking.finish()
    tags = ["hfbudget-run-elsewhere", f"hfbudget-until-{int(time.time()) + 600}"]
    hub.change_endpoint("acme/llm", state="running", tags=tags)
    seen = hub.last()
    assert looking.reaper_pid
    assert gone(looking.reaper_pid)
    assert hub.log(op="pause", phase="arrived", after=seen) == []
    assert len(hub.log(op="get", phase="arrived", after=seen)) >= 2


def test_the_run_does_not_wait_for_the_later_looks(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle(looks_s=(2,))
    run.ensure("acme/llm")
    (second,) = standbys_of(settings.state_dir, settings.run)
    began = time.monotonic()
    run.finish()
    assert time.monotonic() - began < 1.5
    assert gone(second), "one process is enough to look again"
