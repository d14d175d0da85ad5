"""What a namespace runs, since when, at what cost, and whose it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_hfbudget.cli.status import EndpointStatus, LeaseOwner, overview
from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.uptime import parse_time

from .conftest import Make, Start

Show = Callable[..., dict[str, EndpointStatus]]  # the fixture `show`


@pytest.fixture
def show(plane: ControlPlane, settings: EndpointSettings) -> Show:
    """The overview of "acme", by name."""

    def run(now: float | None = None) -> dict[str, EndpointStatus]:
        found = overview(plane, "acme", state_dir=settings.state_dir, now=now)
        return {one.name: one for one in found}

    return run


def started(plane: ControlPlane, name: str) -> float:
    times = [parse_time(one["status"]["startedAt"]) for one in plane.replicas(name)]
    return min(time.timestamp() for time in times if time)


def test_all_pages_are_shown(hub: EmulatorClient, show: Show) -> None:
    hub.configure(page_limit=3)
    for number in range(10):
        hub.add_endpoint(f"acme/e{number}")
    hub.add_endpoint("others/x")
    found = show()
    assert len(found) == 11
    assert found["acme/e9"] == EndpointStatus(
        "acme/e9", "paused", nano_per_hour=33_000_000, accrued_nano=0
    )


def test_what_runs_has_cost_every_started_minute_of_each_replica(
    hub: EmulatorClient, plane: ControlPlane, show: Show
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    hub.change_endpoint("acme/llm", replicas=2)
    at = started(plane, "acme/llm")
    found = show(at + 90)["acme/llm"]
    assert (found.state, found.replicas, found.since) == ("running", 2, at)
    assert found.nano_per_hour == 66_000_000
    assert found.accrued_nano == 4 * 550_000


def test_without_the_replicas_times_it_counts_from_its_last_change(
    hub: EmulatorClient, plane: ControlPlane, show: Show
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    hub.add_fault("replicas", times=None, status=403)
    changed = parse_time(plane.get("acme/llm").updated_at)
    assert changed is not None
    found = show(changed.timestamp() + 61)["acme/llm"]
    assert (found.since, found.replicas) == (changed.timestamp(), 1)
    assert found.accrued_nano == 2 * 550_000


def test_an_unknown_price_is_not_zero(hub: EmulatorClient, show: Show) -> None:
    hub.change_endpoint("acme/llm", state="running")
    hub.add_fault("provider", times=None, status=404)
    found = show()["acme/llm"]
    assert (found.nano_per_hour, found.accrued_nano) == (None, None)
    assert found.since is not None


def test_the_runs_that_use_it_are_named(lifecycle: Make, other_run: Start, show: Show) -> None:
    other = other_run(run="b")
    lifecycle(run="a").ensure("acme/llm")
    host = os.uname().nodename
    holders = show()["acme/llm"].owners
    mine = LeaseOwner("a", os.getpid(), host, True)
    assert set(holders) == {mine, LeaseOwner("b", other.process.pid, host, True)}
    other.vanish()
    assert show()["acme/llm"].owners == (mine, LeaseOwner("b", other.process.pid, host, False))


def test_a_run_of_another_machine_is_known_by_its_tag(
    plane: ControlPlane, show: Show, settings: EndpointSettings, tmp_path: Path
) -> None:
    plane.update("acme/llm", {"tags": ["x", "hfbudget-run-far", "hfbudget-until-12"]})
    assert show()["acme/llm"].owners == (LeaseOwner("far", until=12.0),)
