"""The sweep: what dead runs left is paused, what a live run uses is not touched."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints import tagged_until
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import Journal, leases, leases_dir, unfinished
from pytest_hfbudget.endpoints.lease_store import read_leases
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.retry import Timings
from pytest_hfbudget.endpoints.sweep import (
    StrayEndpoint,
    SweepExtent,
    SweepOutcome,
    find_local,
    find_tagged,
    sweep,
)
from pytest_hfbudget.locks import SystemClock

from .conftest import Make, Start

QUICK = Timings(
    try_s=0.5, verify_poll_s=0.02, resend_s=0.2, late_resume_s=0.1, deadline_s=1, doubt_s=0.3
)


class LaterClock(SystemClock):
    """The system's clock, with a time of day that the test moves on."""

    later_s = 0.0

    def time(self) -> float:
        return time.time() + self.later_s


Clean = Callable[..., tuple[SweepOutcome, ...]]  # the fixture `clean`


@pytest.fixture
def clean(plane: ControlPlane, settings: EndpointSettings) -> Clean:
    """Finds what is there and sweeps it."""

    def run(namespace: str = "", **options: Any) -> tuple[SweepOutcome, ...]:
        strays: tuple[StrayEndpoint, ...] = find_local(settings.state_dir, api=settings.api)
        if namespace:
            strays += find_tagged(plane, namespace, time.time())
        return sweep(plane, strays, state_dir=settings.state_dir, timings=QUICK, **options)

    return run


def pauses(hub: EmulatorClient) -> list[str]:
    return [each["endpoint"] for each in hub.log(kind="request", phase="arrived", op="pause")]


def tag(plane: ControlPlane, name: str, until: float) -> None:
    plane.update(name, {"tags": ["team-x", "hfbudget-run-far", f"hfbudget-until-{int(until)}"]})


def test_what_a_dead_run_and_its_dead_reaper_left_is_paused_and_put_back(
    hub: EmulatorClient,
    other_run: Start,
    plane: ControlPlane,
    settings: EndpointSettings,
    clean: Clean,
) -> None:
    before = plane.get("acme/llm").raw_scaling
    other_run(run="a").vanish()
    (swept,) = clean()
    assert (swept.name, swept.run, swept.where) == ("acme/llm", "a", "journal")
    assert (swept.state, swept.verified, swept.error, swept.skipped) == ("paused", True, None, None)
    assert "its run died (process " in swept.why
    endpoint = plane.get("acme/llm")
    assert (endpoint.state, endpoint.raw_scaling, endpoint.tags) == ("paused", before, ())
    (lease,) = leases(leases_dir(settings.state_dir))
    assert lease.finished
    assert lease.paused is not None
    assert lease.paused.reason == "swept"
    assert read_leases(settings.lease_dir) == ()
    assert clean() == ()


def test_a_dry_run_looks_and_touches_nothing(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings, clean: Clean
) -> None:
    other_run(run="a").vanish()
    (swept,) = clean(extent=SweepExtent(dry_run=True))
    assert (swept.state, swept.verified, swept.skipped) == ("running", False, None)
    assert pauses(hub) == []
    assert len(unfinished(leases_dir(settings.state_dir))) == 1


def test_no_more_than_the_limit_is_paused(
    hub: EmulatorClient, other_run: Start, clean: Clean
) -> None:
    names = [f"acme/e{number}" for number in range(3)]
    for name in names:
        hub.add_endpoint(name)
    other_run(*names, run="a").vanish()
    swept = clean(extent=SweepExtent(most=2))
    assert [each.verified for each in swept] == [True, True, False]
    assert swept[2].skipped == "beyond the limit of 2"
    assert sorted(pauses(hub)) == names[:2]


def test_what_a_live_run_uses_is_not_found(
    hub: EmulatorClient, lifecycle: Make, clean: Clean
) -> None:
    lifecycle().ensure("acme/llm")
    assert clean("acme") == ()
    assert pauses(hub) == []


def test_what_a_dead_run_left_and_a_live_one_uses_is_that_ones_affair(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, clean: Clean
) -> None:
    other_run(run="dead").vanish()
    run = lifecycle(run="live")
    run.ensure("acme/llm")
    assert clean() == ()
    assert pauses(hub) == []
    assert run.finish()[0].verified


def test_a_reaper_at_work_is_left_to_it(
    hub: EmulatorClient, other_run: Start, clean: Clean
) -> None:
    run = other_run(run="a")
    hub.add_fault("pause", times=None, status=503)
    run.end()
    run.process.wait()
    hub.wait_for(op="pause")
    assert clean() == ()
    hub.clear_faults()
    hub.wait_for(kind="state", state="paused")


def test_what_a_reaper_has_given_up_is_found_while_its_run_lives(
    hub: EmulatorClient, lifecycle: Make, clean: Clean
) -> None:
    run = lifecycle(deadline_s=0.2)
    run.ensure("acme/llm")
    hub.add_fault("pause", times=None, status=503)
    assert not run.finish()[0].verified
    hub.clear_faults()
    (swept,) = clean()
    assert "its pause failed: " in swept.why
    assert swept.verified


def test_leases_of_other_machines_are_passed_over(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings, clean: Clean
) -> None:
    other_run(run="a").vanish()
    for journal in leases_dir(settings.state_dir).glob("*.jsonl"):
        lines = journal.read_text().replace('"host":"', '"host":"not-')
        journal.write_text(lines)
    assert clean() == ()


def test_another_control_planes_endpoint_is_not_paused_with_this_token(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane, settings: EndpointSettings
) -> None:
    other_run(run="a").vanish()
    strays = [replace(each, api="http://elsewhere/v2") for each in find_local(settings.state_dir)]
    (swept,) = sweep(plane, strays, state_dir=settings.state_dir)
    assert swept.skipped == "it belongs to another control plane, http://elsewhere/v2"
    assert find_local(settings.state_dir, api="http://elsewhere/v2") == ()
    assert pauses(hub) == []


def test_a_pause_that_fails_is_told_with_what_to_do(
    hub: EmulatorClient, other_run: Start, clean: Clean
) -> None:
    other_run(run="a").vanish()
    hub.add_fault("pause", times=None, status=503)
    (swept,) = clean()
    assert not swept.verified
    assert swept.error is not None
    assert "`hfbudget pause acme/llm`" in swept.error


def test_several_dead_runs_of_one_endpoint_are_one_stray(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings, clean: Clean
) -> None:
    runs = [other_run(run="a"), other_run(run="b")]
    for run in runs:
        run.vanish()
    (swept,) = clean()
    assert swept.verified
    assert len(pauses(hub)) == 1
    assert unfinished(leases_dir(settings.state_dir)) == ()


# -- by tag, from any machine


def test_by_tag_only_runs_whose_latest_end_is_over_are_found(
    hub: EmulatorClient, plane: ControlPlane, clean: Clean
) -> None:
    hub.configure(page_limit=2)
    for number in range(4):
        hub.add_endpoint(f"acme/e{number}", state="running")
    now = time.time()
    tag(plane, "acme/e1", now - 5)
    tag(plane, "acme/e2", now + 60)
    plane.update("acme/e3", {"tags": ["hfbudget-until-1", "hfbudget-run"]})  # no run's
    (swept,) = clean("acme")
    assert (swept.name, swept.run, swept.where) == ("acme/e1", "far", "tag")
    assert swept.verified
    assert pauses(hub) == ["acme/e1"]
    assert plane.get("acme/e1").tags == ("team-x",)


def test_a_tagged_endpoint_of_a_live_run_of_this_machine_is_not_touched(
    hub: EmulatorClient, lifecycle: Make, plane: ControlPlane, clean: Clean
) -> None:
    run = lifecycle(run="live")
    run.ensure("acme/llm")
    tag(plane, "acme/llm", 1)
    (swept,) = clean("acme")
    assert swept.skipped == f"run live (process {os.getpid()}) uses it"
    assert pauses(hub) == []


def test_a_lease_that_was_renewed_since_it_was_listed_is_respected(
    hub: EmulatorClient, plane: ControlPlane, settings: EndpointSettings
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    tag(plane, "acme/llm", 1)
    strays = find_tagged(plane, "acme", time.time())
    tag(plane, "acme/llm", time.time() + 60)
    (swept,) = sweep(plane, strays, state_dir=settings.state_dir)
    assert swept.skipped == "its lease was renewed"
    assert pauses(hub) == []


def test_a_run_renews_its_tags_before_they_are_over(lifecycle: Make, plane: ControlPlane) -> None:
    clock = LaterClock()
    run = lifecycle(max_run_s=60, clock=clock)
    run.ensure("acme/llm")
    first = plane.get("acme/llm").tags
    run.tend()
    assert plane.get("acme/llm").tags == first
    clock.later_s = 55
    run.tend()
    renewed = plane.get("acme/llm").tags
    assert (tagged_until(renewed) or 0) >= (tagged_until(first) or 0) + 54
    assert renewed[0] == first[0]
    (receipt,) = run.finish()
    assert receipt.warnings == ()


# -- races


def test_a_sweep_in_a_loop_never_pauses_under_a_live_run(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, clean: Clean
) -> None:
    other_run(run="dead").vanish()
    over = threading.Event()
    seen: list[SweepOutcome] = []

    def loop() -> None:
        while not over.is_set():
            seen.extend(clean("acme"))

    sweeper = threading.Thread(target=loop)
    sweeper.start()
    try:
        for number in range(3):
            run = lifecycle(run=f"live-{number}")
            begun = hub.last()
            assert run.ensure("acme/llm").state == "running"
            up = hub.last()
            hub.wait_for(op="list", after=hub.wait_for(op="list", after=up)["seq"])
            asked = hub.log(after=up, kind="request", phase="arrived", op="pause")
            assert asked == [], "it was paused under a live run"
            assert begun < up
            assert run.finish()[0].verified
    finally:
        over.set()
        sweeper.join()
    assert not [each for each in seen if each.error]


def test_a_line_that_names_no_endpoint_does_not_stop_the_sweep(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings, clean: Clean
) -> None:
    other_run(run="a").vanish()
    (lease,) = unfinished(leases_dir(settings.state_dir))
    odd = replace(lease.intent, run="odd", endpoint="../llm")
    Journal.of("odd", leases_dir(settings.state_dir)).write(odd)
    by_name = {each.name: each for each in clean()}
    assert by_name["acme/llm"].verified
    assert "does not name an endpoint" in (by_name["../llm"].skipped or "")
