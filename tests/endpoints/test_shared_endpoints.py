"""Two runs on one machine that share an endpoint: one resume, and the last one out pauses."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget import __version__
from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import leases, leases_dir, unfinished
from pytest_hfbudget.endpoints.lease_store import (
    OVER,
    PAUSING,
    EndpointLease,
    LeaseStore,
    file_lock,
    prune_leases,
    read_leases,
)
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.process import ProcessHost, start_time
from pytest_hfbudget.errors import EndpointError

from .conftest import Make, Start, gone, until

pytestmark = pytest.mark.slow

ORIGINAL = {"minReplica": 1, "maxReplica": 2, "scaleToZeroTimeout": None, "measure": None}


def asked(hub: EmulatorClient, op: str) -> int:
    return len(hub.log(kind="request", phase="arrived", op=op))


def as_before(plane: ControlPlane) -> bool:
    endpoint = plane.get("acme/llm")
    return endpoint.raw_scaling == ORIGINAL and endpoint.tags == ()


def test_the_second_run_joins_and_the_last_one_out_pauses(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane, settings: EndpointSettings
) -> None:
    first, second = other_run(run="a"), other_run(run="b")
    assert asked(hub, "resume") == 1
    left = first.receipts()["acme/llm"]
    assert (left["state"], left["left_to"], left["verified"]) == ("left to run b", "b", False)
    assert (left["error"], left["reason"], left["cost"]["minutes"]) == (None, "asked", 1)
    assert gone(first.reaper)
    assert asked(hub, "pause") == 0
    last = second.receipts()["acme/llm"]
    assert (last["state"], last["joined"], last["verified"]) == ("paused", "a", True)
    assert not last["resumed"]
    assert last["cost"]["minutes"] > 0, "each run pays for its own span"
    assert gone(second.reaper)
    assert asked(hub, "resume") == asked(hub, "pause") == 1
    assert as_before(plane)
    ends = [lease.paused for lease in leases(leases_dir(settings.state_dir))]
    assert {end.run: end.kind for end in ends if end} == {"a": "left", "b": "paused"}
    assert read_leases(settings.lease_dir) == ()


def test_runs_that_begin_at_the_same_time_resume_once(
    hub: EmulatorClient, other_run: Start
) -> None:
    hub.change_endpoint("acme/llm", initializing_s=0.2)
    hub.add_fault("update", delay=0.2)
    runs = [other_run(run=name, wait=False) for name in "abc"]
    for run in runs:
        run.reaper = int(run.hear().split()[1])
    assert asked(hub, "resume") == asked(hub, "update") == 1
    receipts = [run.receipts()["acme/llm"] for run in runs]
    assert [receipt["verified"] for receipt in receipts] == [False, False, True]
    assert asked(hub, "pause") == 1


def test_a_killed_run_leaves_the_endpoint_to_the_other(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    first = other_run(run="a")
    second = lifecycle(run="b")
    second.ensure("acme/llm")
    first.end()
    assert gone(first.reaper)
    assert asked(hub, "pause") == 0
    (receipt,) = second.finish()
    assert receipt.verified
    assert as_before(plane)


def test_a_joined_run_that_is_killed_does_not_pause_under_the_first(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    first = lifecycle(run="a")
    first.ensure("acme/llm")
    second = other_run(run="b")
    second.end()
    assert gone(second.reaper)
    assert asked(hub, "pause") == 0
    assert first.finish()[0].verified
    assert as_before(plane)


def test_when_all_runs_are_killed_it_is_paused(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane, settings: EndpointSettings
) -> None:
    runs = [other_run(run="a"), other_run(run="b")]
    for run in runs:
        run.end()
    for run in runs:
        assert gone(run.reaper)
    assert hub.log(kind="state", endpoint="acme/llm")[-1]["state"] == "paused"
    assert as_before(plane)
    assert unfinished(leases_dir(settings.state_dir)) == ()
    assert read_leases(settings.lease_dir) == ()


def test_a_run_that_vanished_with_its_reaper_is_cleaned_up_after_by_the_last(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    first = other_run(run="a")
    second = lifecycle(run="b")
    second.ensure("acme/llm")
    first.vanish()
    assert asked(hub, "pause") == 0
    assert second.finish()[0].verified
    assert as_before(plane)


def test_the_next_run_takes_over_what_a_vanished_one_left_running(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    other_run(run="a").vanish()
    run = lifecycle(run="b")
    run.ensure("acme/llm")
    (receipt,) = run.finish()
    assert (receipt.verified, receipt.joined, receipt.found_running) == (True, None, True)
    assert asked(hub, "resume") == 1
    assert as_before(plane)


def test_a_forked_child_does_not_keep_a_dead_runs_lease_alive(
    hub: EmulatorClient, other_run: Start, lifecycle: Make
) -> None:
    first = other_run(run="a")
    child = int(first.tell("fork"))
    try:
        first.vanish()
        run = lifecycle(run="b")
        run.ensure("acme/llm")
        assert run.finish()[0].verified
        assert asked(hub, "pause") == 1
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stopped_run_still_has_its_endpoint(
    hub: EmulatorClient, other_run: Start, lifecycle: Make
) -> None:
    first = other_run(run="a")
    first.end(signal.SIGSTOP)
    run = lifecycle(run="b")
    run.ensure("acme/llm")
    assert run.finish()[0].left_to == "a"
    assert asked(hub, "pause") == 0
    first.end(signal.SIGKILL)
    hub.wait_for(kind="state", state="paused")


def test_a_run_that_comes_during_the_pause_waits_for_it_and_resumes(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    hub.change_endpoint("acme/llm", pause_lag_s=0.4)
    first = other_run(run="a")
    first.end()
    hub.wait_for(op="pause")
    run = lifecycle(run="b")
    assert run.ensure("acme/llm").state == "running"
    states = [each["state"] for each in hub.log(kind="state", endpoint="acme/llm")]
    assert states.count("paused") == 1, "it was paused under the second run"
    assert asked(hub, "resume") == 2
    assert run.finish()[0].verified
    assert as_before(plane)


def test_a_kill_in_the_middle_of_a_resume_lets_the_next_run_go_on(
    hub: EmulatorClient, other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    hub.add_fault("resume", delay=0.6)
    first = other_run(run="a", wait=False)
    sent = hub.wait_for(op="resume")
    second = lifecycle(run="b")
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(second.ensure, "acme/llm")
        agent = f"pytest-hfbudget/{__version__} (reaper)"
        hub.wait_for(op="get", agent=agent, after=sent["seq"])  # its claim is put by now
        first.end()
        assert coming.result().state == "running"
    assert second.finish()[0].verified
    assert hub.log(kind="state", endpoint="acme/llm")[-1]["state"] == "paused"
    assert as_before(plane)


def test_keeping_it_running_does_not_hold_for_what_another_run_has_resumed(
    other_run: Start, lifecycle: Make
) -> None:
    first = other_run(run="a")
    run = lifecycle(run="b")
    run.ensure("acme/llm", keep_running=True)
    assert first.receipts()["acme/llm"]["left_to"] == "b"
    (receipt,) = run.finish()
    assert receipt.verified
    assert not receipt.kept


def test_the_cap_of_one_run_does_not_pause_under_another(
    hub: EmulatorClient, other_run: Start, lifecycle: Make
) -> None:
    other_run(run="a")
    run = lifecycle(run="b")
    run.ensure("acme/llm")
    run.pause_after(0)
    assert until(run.paused_early)
    (receipt,) = run.finish()
    assert (receipt.left_to, receipt.reason, receipt.in_order) == ("a", "deadline", True)
    assert asked(hub, "pause") == 0


def test_what_only_the_first_run_resumed_is_tagged_until_the_last_has_left(
    other_run: Start, lifecycle: Make, plane: ControlPlane
) -> None:
    first = other_run(run="a")
    run = lifecycle(run="b")
    run.ensure("acme/llm")
    first.receipts()
    assert plane.get("acme/llm").tags[0] == "hfbudget-run-a"
    run.finish()
    assert plane.get("acme/llm").tags == ()


# -- the leases themselves


def held_lease(settings: EndpointSettings, run: str, **changes: Any) -> EndpointLease:
    pid, start = os.getpid(), start_time(os.getpid())
    plain = EndpointLease(run, "acme/llm", settings.api, pid, start, pid, start, at=1.0)
    return replace(plain, **changes)


def store(settings: EndpointSettings, run: str, *, api: str | None = None) -> LeaseStore:
    return LeaseStore(settings.lease_dir, api=api or settings.api, endpoint="acme/llm", run=run)


def test_a_claim_counts_while_its_owner_lives(settings: EndpointSettings) -> None:
    mine = store(settings, "mine")
    assert mine.successor() is None
    store(settings, "a").put(held_lease(settings, "a", owner_start="1"))
    assert mine.successor() is None
    store(settings, "b").put(held_lease(settings, "b", place=ProcessHost(host="elsewhere")))
    assert mine.successor() is None
    store(settings, "c").put(held_lease(settings, "c", phase=OVER))
    assert mine.successor() is None
    store(settings, "d").put(held_lease(settings, "d"))
    found = mine.successor()
    assert found is not None
    assert found.run == "d"
    assert store(settings, "d").successor() is None, "its own lease is no successor"


def test_endpoints_of_another_control_plane_are_others(settings: EndpointSettings) -> None:
    store(settings, "a", api="http://elsewhere/v2").put(held_lease(settings, "a"))
    assert store(settings, "b").others() == ()


def test_a_pause_is_only_waited_for_while_a_process_does_it(settings: EndpointSettings) -> None:
    mine = store(settings, "mine")
    store(settings, "a").put(held_lease(settings, "a", phase=PAUSING))
    assert mine.pauser() is not None
    store(settings, "a").put(held_lease(settings, "a", phase=PAUSING, reaper_start="1"))
    assert mine.pauser() is None


def test_a_verified_pause_takes_what_the_dead_left_with_it(settings: EndpointSettings) -> None:
    store(settings, "dead").put(held_lease(settings, "dead", owner_start="1", reaper_start="1"))
    store(settings, "over").put(held_lease(settings, "over", phase=OVER))
    mine = held_lease(settings, "mine", owner_start="1", phase=PAUSING, scaling={"minReplica": 1})
    store(settings, "mine").put(mine)
    store(settings, "mine").end(mine, paused=False)
    assert len(read_leases(settings.lease_dir)) == 3
    store(settings, "mine").end(mine, paused=True)
    assert read_leases(settings.lease_dir) == ()


def test_garbage_among_the_claims_is_passed_over(settings: EndpointSettings) -> None:
    store(settings, "a").put(held_lease(settings, "a"))
    (path,) = settings.lease_dir.iterdir()
    for number, content in enumerate((b"", b"\xff{", b"[]", b'{"run": 1}', b'{"news": 1}')):
        path.with_name(path.name.replace(".a.", f".{number}.")).write_bytes(content)
    assert [each.run for each in store(settings, "b").others()] == ["a"]


def test_a_lost_turn_of_a_thread_is_not_a_second_one(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def go() -> None:
        with file_lock(tmp_path / "x.lock", wait=threading.Event().wait, ready=lambda: True):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            threading.Event().wait(0.01)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(go) for _ in range(4)]:
            each.result()
    assert most == [1]


def test_a_turn_that_does_not_come_can_be_given_up(tmp_path: Path) -> None:
    def enough(seconds: float) -> None:
        raise EndpointError("enough")

    with file_lock(tmp_path / "x.lock", wait=enough, ready=lambda: True):
        with pytest.raises(EndpointError, match="enough"):
            with file_lock(tmp_path / "x.lock", wait=enough, ready=lambda: True):
                pass
    with pytest.raises(EndpointError, match="enough"):
        with file_lock(tmp_path / "x.lock", wait=enough, ready=lambda: False):
            pass


def test_only_old_claims_that_count_no_more_are_removed(settings: EndpointSettings) -> None:
    store(settings, "live").put(held_lease(settings, "live"))
    store(settings, "dead").put(held_lease(settings, "dead", owner_start="1", reaper_start="1"))
    (settings.lease_dir / "torn.draft").write_text("{")
    prune_leases(settings.lease_dir, before=0)
    assert len(list(settings.lease_dir.iterdir())) == 3
    prune_leases(settings.lease_dir, before=time.time() + 60)
    assert [each.run for each in read_leases(settings.lease_dir)] == ["live"]
    assert len(list(settings.lease_dir.iterdir())) == 1
