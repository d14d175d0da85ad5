"""A control plane that answers oddly for a while: the pause and its bill come out right."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints import ControlPlane, EndpointSettings, Lifecycle
from pytest_hfbudget.endpoints.claims import claims_dir, read_claims
from pytest_hfbudget.endpoints.hardware import price_per_hour
from pytest_hfbudget.endpoints.state import Endpoint

from .conftest import seconds_of, until

pytestmark = pytest.mark.slow

Make = Callable[..., Lifecycle]


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
    assert receipt.minutes >= 1
    assert receipt.estimated


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
    assert receipt.estimated
    assert receipt.minutes <= 2  # as many as it may have replicas; three more ran before


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


def test_a_second_that_fell_behind_is_no_second_keeper(
    hub: EmulatorClient, run: Lifecycle, settings: EndpointSettings
) -> None:
    """It has heard of a limit that is long past, and not of what became of it."""
    (second,) = until(lambda: seconds_of(settings.state_dir, settings.run))
    os.kill(second, signal.SIGSTOP)
    for number in range(600):
        run.pause_after(2 + number / 1000)
    run.pause_after(None)
    os.kill(second, signal.SIGCONT)
    assert until(lambda: second not in seconds_of(settings.state_dir, settings.run))
    assert run.paused_early() == {}
    assert not run.keeper_lost
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
    assert read_claims(claims_dir(settings.state_dir)) == ()
