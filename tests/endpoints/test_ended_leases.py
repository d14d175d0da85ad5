"""An endpoint that nothing needs any more is paused while the run goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import leases_dir, unfinished
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings, EndpointSummary
from pytest_hfbudget.errors import EndpointError

from .conftest import gone, kill_all, standbys_of, until

Make = Callable[..., Lifecycle]


@pytest.fixture(autouse=True)
def _another(hub: EmulatorClient) -> None:
    hub.add_endpoint("acme/other")


def receipt(run: Lifecycle, name: str) -> EndpointSummary:
    return {each.name: each for each in run.live()}[name]


def verified(run: Lifecycle, name: str) -> bool:
    return bool(until(lambda: receipt(run, name).verified))


def states(hub: EmulatorClient) -> dict[str, str]:
    return {each["name"]: each["state"] for each in hub.state()["endpoints"]}


def both_up(make: Make, **changes: object) -> Lifecycle:
    run = make(**changes)
    run.ensure("acme/llm")
    run.ensure("acme/other")
    return run


def test_it_is_paused_and_verified_while_the_other_one_runs(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = both_up(lifecycle)
    assert run.end_lease("acme/llm")
    assert verified(run, "acme/llm")
    assert states(hub) == {"acme/llm": "paused", "acme/other": "running"}
    assert [each.intent.endpoint for each in unfinished(leases_dir(settings.state_dir))] == [
        "acme/other"
    ]
    receipts = {each.name: each for each in run.finish()}
    assert all(each.verified and each.reason == "asked" for each in receipts.values())
    assert len(hub.log(kind="state", state="paused")) == 2


def test_its_settings_are_put_back(
    hub: EmulatorClient, lifecycle: Make, plane: ControlPlane
) -> None:
    before = plane.get("acme/llm").raw_scaling
    run = both_up(lifecycle)
    run.end_lease("acme/llm")
    assert until(lambda: plane.get("acme/llm").raw_scaling == before)
    assert plane.get("acme/llm").tags == ()


def test_its_cost_ends_with_its_pause(hub: EmulatorClient, lifecycle: Make) -> None:
    run = both_up(lifecycle, billing_minute_s=0.05)
    run.end_lease("acme/llm")
    assert verified(run, "acme/llm")
    minutes = receipt(run, "acme/llm").cost.minutes
    assert until(lambda: receipt(run, "acme/other").cost.minutes > minutes + 5)
    assert receipt(run, "acme/llm").cost.minutes == minutes


def test_it_is_not_resumed_again_and_one_line_says_why(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = both_up(lifecycle)
    run.end_lease("acme/llm")
    for ask in (run.ensure, run.revive):
        with pytest.raises(EndpointError, match=r"acme/llm was paused at .*--hf-endpoint=acme/llm"):
            ask("acme/llm")
    assert len(hub.log(kind="request", phase="arrived", op="resume")) == 2


def test_a_release_is_asked_for_once_and_only_for_what_is_leased(lifecycle: Make) -> None:
    run = lifecycle()
    assert not run.end_lease("acme/llm")
    run.ensure("acme/llm")
    assert run.end_lease("acme/llm")
    assert not run.end_lease("acme/llm")


def test_a_lease_does_not_end_where_an_endpoint_was_found_running_and_is_kept(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    run = lifecycle()
    run.ensure("acme/llm", keep_running=True)
    assert not run.end_lease("acme/llm")


def test_a_run_that_ends_meanwhile_waits_for_the_pause(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    hub.add_fault("pause", hang=0.3, endpoint="acme/llm")
    run = both_up(lifecycle)
    run.end_lease("acme/llm")
    assert all(each.verified for each in run.finish())


def test_what_could_not_be_paused_is_paused_at_the_end(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = both_up(lifecycle, deadline_s=0.6)
    hub.add_fault("pause", times=None, status=503, endpoint="acme/llm")
    run.end_lease("acme/llm")
    assert until(lambda: receipt(run, "acme/llm").error)
    hub.clear_faults()
    assert all(each.verified for each in run.finish())
    assert states(hub) == {"acme/llm": "paused", "acme/other": "paused"}


def test_the_wish_outlives_the_reaper(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = both_up(lifecycle)
    assert until(lambda: standbys_of(settings.state_dir, settings.run))
    hub.add_fault("pause", hang=1, endpoint="acme/llm")
    asked = hub.last()
    run.end_lease("acme/llm")
    hub.wait_for(after=asked, op="pause")
    assert run.reaper_pid is not None
    os.kill(run.reaper_pid, signal.SIGKILL)
    assert gone(run.reaper_pid)

    def verified() -> bool:
        run.tend()
        return receipt(run, "acme/llm").verified

    assert until(verified)
    assert states(hub)["acme/other"] == "running"
    run.finish()


@pytest.mark.slow
def test_a_new_reaper_leaves_alone_an_endpoint_whose_lease_has_ended(
    hub: EmulatorClient, lifecycle: Make, settings: EndpointSettings
) -> None:
    run = both_up(lifecycle)
    run.end_lease("acme/llm")
    assert verified(run, "acme/llm")
    asked = hub.last()
    kill_all(run, settings)
    run.tend()
    assert all(each.verified for each in run.finish())
    paused = hub.log(after=asked, kind="request", phase="arrived", op="pause")
    assert {each["endpoint"] for each in paused} == {"acme/other"}


def test_a_deadline_that_passes_later_does_not_concern_it(
    hub: EmulatorClient, lifecycle: Make
) -> None:
    run = both_up(lifecycle)
    run.end_lease("acme/llm")
    assert verified(run, "acme/llm")
    run.pause_after(0)
    assert until(run.paused_early)
    assert list(run.paused_early()) == ["acme/other"]


def test_another_run_that_uses_it_keeps_it(hub: EmulatorClient, lifecycle: Make) -> None:
    first, second = lifecycle(), lifecycle(run="run-2")
    first.ensure("acme/llm")
    second.ensure("acme/llm")
    first.end_lease("acme/llm")
    assert until(lambda: receipt(first, "acme/llm").left_to == "run-2")
    assert states(hub)["acme/llm"] == "running"
    second.finish()
    assert states(hub)["acme/llm"] == "paused"
