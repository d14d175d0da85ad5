"""A run's endpoints, from the first resume to the verified pause, as the server saw it."""

from __future__ import annotations

import os
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.journal import leases, leases_dir, unfinished
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.errors import BudgetExceededError, EndpointError

from .conftest import TOKEN, Make


def changes(hub: EmulatorClient, agent: str | None = None) -> list[str]:
    """What was asked of the server that changes anything, in order."""
    return [
        entry["op"]
        for entry in hub.log(kind="request", phase="arrived")
        if entry["op"] in ("update", "resume", "pause")
        and (agent is None or f"({agent})" in entry["agent"])
    ]


def states(hub: EmulatorClient, name: str = "acme/llm") -> list[str]:
    return [entry["state"] for entry in hub.log(kind="state", endpoint=name)]


def scaling(hub: EmulatorClient, lifecycle_settings: EndpointSettings) -> object:
    from pytest_hfbudget.endpoints.api import ControlPlane

    return ControlPlane(lifecycle_settings.api, TOKEN).get("acme/llm").raw_scaling


def test_an_endpoint_is_resumed_used_and_paused(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    assert run.ensure("acme/llm").state == "running"
    (receipt,) = run.finish()
    assert (receipt.name, receipt.state, receipt.verified) == ("acme/llm", "paused", True)
    assert receipt.resumed
    assert not receipt.found_running
    assert receipt.error is None
    assert receipt.warnings == ()
    assert receipt.resumed_at is not None
    assert receipt.paused_at is not None
    assert receipt.resumed_at <= receipt.paused_at
    assert states(hub)[-1] == "paused"


def test_the_order_is_reaper_net_resume_pause_restore(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    run.finish()
    assert changes(hub) == ["update", "resume", "pause", "update"]
    assert changes(hub, "reaper") == ["pause", "update"]
    asked = hub.log(kind="request", phase="arrived")
    reached = next(each["seq"] for each in asked if "(reaper)" in each["agent"])
    net = next(each["seq"] for each in asked if each["op"] == "update")
    assert reached < net, "the reaper had not shown that it can reach the endpoint"


def test_the_intent_is_on_disk_before_the_server_is_told(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    hub.add_fault("update", delay=0.3)
    run = lifecycle()
    with ThreadPoolExecutor() as pool:
        bringing = pool.submit(run.ensure, "acme/llm")
        hub.wait_for(op="update")
        (lease,) = unfinished(leases_dir(settings.state_dir))
        assert (lease.intent.kind, lease.intent.state, lease.resumed_at) == (
            "intent",
            "paused",
            None,
        )
        assert lease.intent.scaling == {
            "minReplica": 1,
            "maxReplica": 2,
            "scaleToZeroTimeout": None,
            "measure": None,
        }
        bringing.result()
    run.finish()
    (lease,) = leases(leases_dir(settings.state_dir))
    assert lease.finished
    assert lease.resumed_at is not None


def test_the_server_has_a_net_while_it_runs_and_its_settings_back_after(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    before = scaling(hub, settings)
    run = lifecycle(idle_timeout_min=7)
    endpoint = run.ensure("acme/llm")
    assert endpoint.raw_scaling["minReplica"] == 0
    assert endpoint.raw_scaling["scaleToZeroTimeout"] == 7
    assert endpoint.tags[0] == "hfbudget-run-run-1"
    assert endpoint.tags[1].startswith("hfbudget-until-")
    run.finish()
    assert scaling(hub, settings) == before
    assert hub.state()["endpoints"]


def test_a_net_that_cannot_be_had_is_a_warning(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.add_fault("update", status=400)
    run = lifecycle()
    run.ensure("acme/llm")
    (receipt,) = run.finish()
    assert receipt.verified
    assert "was not told to scale it to zero" in receipt.warnings[0]


def test_settings_that_cannot_be_put_back_are_a_warning(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_fault("update", skip=1, times=None, status=400)
    run = lifecycle()
    run.ensure("acme/llm")
    (receipt,) = run.finish()
    assert receipt.verified
    assert "could not be put back" in receipt.warnings[0]


def test_an_endpoint_that_wakes_over_its_settings_is_paused_again(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.configure(update_resumes=True)
    (receipt,) = run.finish()
    assert receipt.verified
    assert changes(hub)[-2:] == ["update", "pause"]
    assert states(hub)[-1] == "paused"


def test_eight_threads_resume_once(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", initializing_s=0.1)
    run = lifecycle()
    with ThreadPoolExecutor(8) as pool:
        endpoints = list(pool.map(run.ensure, ["acme/llm"] * 8))
    assert {endpoint.state for endpoint in endpoints} == {"running"}
    assert changes(hub).count("resume") == 1


def test_several_endpoints_share_a_reaper(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.add_endpoint("acme/other")
    run = lifecycle()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run.ensure, ["acme/llm", "acme/other"]))
    receipts = run.finish()
    assert {receipt.name for receipt in receipts} == {"acme/llm", "acme/other"}
    assert all(receipt.verified for receipt in receipts)


def test_the_bill_is_the_servers(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.configure(billing_minute_s=0.05)
    hub.change_endpoint("acme/llm", initializing_s=0.12)
    run = lifecycle(billing_minute_s=0.05)
    run.ensure("acme/llm")
    (receipt,) = run.finish()
    (billed,) = hub.invoice()["endpoints"]
    assert receipt.cost.minutes == billed["minutes"] > 1
    assert receipt.cost.nano_usd == billed["nano_usd"]
    assert receipt.cost.price_nano_per_hour == 33_000_000
    assert not receipt.cost.estimated


def test_without_the_servers_times_the_bill_is_an_upper_bound(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_fault("replicas", times=None, status=500)
    run = lifecycle()
    run.ensure("acme/llm")
    (live,) = run.live()
    (receipt,) = run.finish()
    assert (live.cost.minutes, receipt.cost.minutes) == (
        2,
        2,
    )  # two replicas at most, a minute each
    assert receipt.cost.estimated
    assert receipt.cost.nano_usd == 1_100_000


def test_a_run_that_needs_no_endpoint_starts_nothing(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    assert run.live() == run.finish() == ()
    assert run.reaper_pid is None
    assert not settings.state_dir.exists()


def test_finishing_twice_pauses_once(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    assert run.finish() == run.finish() == run.live()
    assert changes(hub).count("pause") == 1


def test_asking_for_the_pause_does_not_wait_for_it(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.add_fault("pause", delay=0.3)
    run.request_pause()
    hub.wait_for(op="pause")
    (receipt,) = run.finish()
    assert receipt.verified
    assert changes(hub).count("pause") == 1
    hub.add_endpoint("acme/late")
    with pytest.raises(EndpointError, match="the run is ending"):
        run.ensure("acme/late")


def test_a_pause_during_the_wait_ends_it(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", resume_to="stuck")
    run = lifecycle()
    with ThreadPoolExecutor() as pool:
        bringing = pool.submit(run.ensure, "acme/llm")
        hub.wait_for(kind="state", state="initializing")
        (receipt,) = run.finish()
        with pytest.raises(EndpointError, match="the run is ending"):
            bringing.result()
    assert receipt.verified
    assert receipt.resumed


# -- what is found


def test_check_finds_what_is_missing_before_anything_is_resumed(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    lifecycle().check(["acme/llm"])
    with pytest.raises(EndpointError, match='no endpoint "acme/nope"'):
        lifecycle().check(["acme/llm", "acme/nope"])
    with pytest.raises(EndpointError, match="set HF_TOKEN"):
        lifecycle(token="hf_wrong").check(["acme/llm"])
    with pytest.raises(EndpointError, match="set HF_TOKEN"):
        lifecycle(token=None).check(["acme/llm"])
    assert changes(hub) == []


def test_what_was_running_is_paused_too_and_said_to_have_been(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    run = lifecycle()
    run.ensure("acme/llm")
    (receipt,) = run.finish()
    assert receipt.found_running
    assert not receipt.resumed
    assert receipt.verified
    assert receipt.cost.minutes == 1
    assert changes(hub) == ["pause"], "a change would have deployed it anew"


def test_what_was_running_is_left_alone_when_asked_to(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", state="running")
    run = lifecycle()
    run.ensure("acme/llm", keep_running=True)
    (receipt,) = run.finish()
    assert receipt.kept
    assert receipt.error is None
    assert (receipt.cost.minutes, receipt.cost.nano_usd) == (0, 0)
    assert changes(hub) == []


def test_keeping_it_running_does_not_hold_for_what_slept(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm", keep_running=True)
    (receipt,) = run.finish()
    assert receipt.verified
    assert not receipt.kept


def test_what_is_scaled_to_zero_is_woken_by_a_resume(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", state="scaledToZero")
    run = lifecycle()
    assert run.ensure("acme/llm").state == "running"
    assert run.finish()[0].state == "paused"


@pytest.mark.parametrize("state", ["pending", "initializing", "updating"])
def test_what_is_coming_up_is_waited_for_and_not_resumed(
    hub: EmulatorClient, lifecycle: Make, state: str
) -> None:
    hub.change_endpoint("acme/llm", state=state)
    seen: list[str] = []

    def progress(name: str, found: str, seconds: float) -> None:
        if found == state:
            hub.change_endpoint("acme/llm", state="running")
        seen.append(found)

    run = lifecycle(progress)
    run.ensure("acme/llm")
    assert seen[0] == state
    assert "resume" not in changes(hub)


# -- refusals


def test_a_cap_that_cannot_pay_a_minute_refuses_before_anything(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    asked: list[int | None] = []

    def afford(endpoint: object, nano_per_minute: int | None) -> None:
        asked.append(nano_per_minute)
        raise BudgetExceededError("too dear")

    run = lifecycle(afford=afford)
    for _ in range(2):
        with pytest.raises(BudgetExceededError):
            run.ensure("acme/llm")
    assert asked == [550_000]
    assert run.finish() == ()
    assert changes(hub) == []


def test_a_refused_resume_is_an_error_each_time_and_paused_all_the_same(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.change_endpoint("acme/llm", quota_ok=False)
    run = lifecycle()
    for _ in range(2):
        with pytest.raises(EndpointError, match="Quota exceeded"):
            run.ensure("acme/llm")
    (receipt,) = run.finish()
    assert changes(hub).count("resume") == 1
    assert receipt.verified
    assert not receipt.resumed
    assert receipt.cost.nano_usd == 0


@pytest.mark.parametrize("state", ["failed", "updateFailed"])
def test_a_failed_start_is_an_end_and_not_a_wait(
    hub: EmulatorClient, lifecycle: Make, state: str
) -> None:
    hub.change_endpoint("acme/llm", resume_to=state)
    run = lifecycle()
    with pytest.raises(EndpointError, match=f'"{state}" instead of running: Endpoint failed to'):
        run.ensure("acme/llm")
    assert run.finish()[0].verified


def test_being_paused_by_another_is_an_end_and_not_a_wait(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.change_endpoint("acme/llm", resume_to="stuck")

    def progress(name: str, state: str, seconds: float) -> None:
        if state == "initializing":
            hub.change_endpoint("acme/llm", state="paused")

    run = lifecycle(progress)
    with pytest.raises(EndpointError, match="another process"):
        run.ensure("acme/llm")


def test_what_never_gets_healthy_ends_with_the_time(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", health_delay_s=60)
    run = lifecycle(wait_timeout_s=0.3)
    with pytest.raises(EndpointError, match=r"did not serve within 0\.3 s: its health route"):
        run.ensure("acme/llm")
    assert run.finish()[0].verified


def test_it_is_not_served_before_its_health_says_so(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", health_delay_s=0.2)
    lifecycle().ensure("acme/llm")
    assert hub.log(op="health", status=503)
    assert hub.log(op="health", status=200)


def test_a_control_plane_that_stutters_is_waited_out(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.add_fault("get", skip=3, times=4, status=502)
    assert lifecycle(retry_s=0.1).ensure("acme/llm").state == "running"


# -- a resume whose answer is lost


@pytest.mark.parametrize("fault", [{"reset": "after"}, {"status": 500, "applied": True}])
def test_a_resume_without_an_answer_counts_as_one(
    hub: EmulatorClient, lifecycle: Make, fault: dict[str, Any]
) -> None:
    hub.add_fault("resume", **fault)
    run = lifecycle()
    assert run.ensure("acme/llm").state == "running"
    (receipt,) = run.finish()
    assert receipt.resumed
    assert changes(hub).count("resume") == 1


def test_a_resume_that_had_no_effect_is_repeated(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.add_fault("resume", reset="before")
    run = lifecycle()
    assert run.ensure("acme/llm").state == "running"
    assert states(hub).count("running") == 1


# -- pauses that go wrong


def test_a_pause_that_lies_is_seen_and_sent_again(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.add_fault("pause", lie=True, times=2)
    (receipt,) = run.finish()
    assert receipt.verified
    assert changes(hub).count("pause") == 3
    assert states(hub)[-1] == "paused"


def test_a_pause_that_takes_its_time_is_waited_for(hub: EmulatorClient, lifecycle: Make) -> None:
    hub.change_endpoint("acme/llm", pause_lag_s=0.3)
    run = lifecycle()
    run.ensure("acme/llm")
    (receipt,) = run.finish()
    assert receipt.verified
    assert changes(hub).count("pause") == 2  # one, and again after `resend_s`


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 3},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"reset": "before"},
        {"reset": "after"},
        {"hang": 3},
        {"garbage": True},
        {"status": 400, "applied": True},
        {"status": 403},
    ],
    ids=lambda fault: "-".join(map(str, fault)) + str(fault.get("status", "")),
)
def test_a_pause_comes_through_faults(
    hub: EmulatorClient, lifecycle: Make, fault: dict[str, Any]
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.add_fault("pause", **fault)
    (receipt,) = run.finish()
    assert receipt.verified
    assert states(hub)[-1] == "paused"


def test_an_endpoint_that_was_deleted_meanwhile_is_as_good_as_paused(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    request = urllib.request.Request(
        f"{hub.url}/v2/endpoint/acme/llm",
        method="DELETE",
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    urllib.request.urlopen(request).close()
    (receipt,) = run.finish()
    assert receipt.verified
    assert receipt.state == "gone"


def test_an_endpoint_that_was_paused_meanwhile_is_verified(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.change_endpoint("acme/llm", state="paused")
    assert run.finish()[0].verified


def test_a_revoked_token_is_told_with_the_command_to_type(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    hub.configure(limited_tokens=[TOKEN])
    (receipt,) = run.finish()
    assert not receipt.verified
    assert receipt.error is not None
    assert "Manage Inference Endpoints" in receipt.error
    assert "`hfbudget pause acme/llm`" in receipt.error
    (lease,) = unfinished(leases_dir(settings.state_dir))
    assert lease.paused is not None


def test_a_pause_that_is_late_leaves_the_reaper_at_work(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = lifecycle(verify_deadline_s=0.2)
    run.ensure("acme/llm")
    hub.add_fault("pause", times=None, status=503)
    (receipt,) = run.finish()
    assert not receipt.verified
    assert receipt.error is not None
    assert f"Process {run.reaper_pid} goes on" in receipt.error
    assert "`hfbudget pause acme/llm`" in receipt.error
    hub.clear_faults()
    hub.wait_for(kind="state", state="paused")


def test_a_reaper_gives_up_after_its_deadline(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle(deadline_s=0.4)
    run.ensure("acme/llm")
    hub.add_fault("pause", times=None, status=503)
    (receipt,) = run.finish()
    assert not receipt.verified
    assert receipt.error is not None
    assert "HTTP 503" in receipt.error


def test_a_time_limit_is_kept_by_the_reaper_alone(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    run.pause_after(60)
    run.pause_after(0.05)
    hub.wait_for(kind="state", state="paused")
    (receipt,) = run.finish()
    assert receipt.verified


def test_a_time_limit_can_be_taken_away(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    run.pause_after(0.3)
    run.pause_after(None)
    with pytest.raises(TimeoutError):
        hub.wait_for(op="pause", timeout=0.5)


# -- a process among others


def test_a_forked_child_has_no_say(hub: EmulatorClient, lifecycle: Make) -> None:
    run = lifecycle()
    run.ensure("acme/llm")
    child = os.fork()
    if child == 0:
        run.request_pause()
        os._exit(0 if run.finish() == () else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "pause" not in changes(hub)
    assert run.finish()[0].verified


def test_no_thread_stays_in_the_tests_process(hub: EmulatorClient, lifecycle: Make) -> None:
    before = threading.active_count()
    lifecycle().ensure("acme/llm")
    assert threading.active_count() == before


def test_what_cannot_be_journalled_is_not_resumed(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    settings.state_dir.write_text("in the way")
    with pytest.raises(EndpointError, match="HFBUDGET_STATE_DIR"):
        lifecycle().ensure("acme/llm")
    assert changes(hub) == []
