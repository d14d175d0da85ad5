"""Jobs on many machines that share an endpoint over a real Redis server.

Each machine has a state folder of its own, so nothing but the server tells it of the others.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from redis_server import RedisServer, redis_server

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.lease_end import Pauser
from pytest_hfbudget.endpoints.lease_store import PAUSING, EndpointLease
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.reaper_messages import BeginLease
from pytest_hfbudget.endpoints.shared_leases import SERVER_WAIT_S, lease_key
from pytest_hfbudget.shared import PREFIX, SharedConnection

from .conftest import RunProcess, gone, until

__all__ = ["redis_server"]
pytestmark = pytest.mark.slow

Start = Callable[..., RunProcess]
ORIGINAL = {"minReplica": 1, "maxReplica": 2, "scaleToZeroTimeout": None, "measure": None}
EXPIRY_S = 1.0


@pytest.fixture
def settings(settings: EndpointSettings, redis_server: RedisServer) -> EndpointSettings:
    return replace(settings, shared=SharedConnection(redis_server.url, None, "ci", EXPIRY_S))


def asked(hub: EmulatorClient, op: str) -> int:
    return len(hub.log(kind="request", phase="arrived", op=op))


def as_before(plane: ControlPlane) -> bool:
    endpoint = plane.get("acme/llm")
    return endpoint.raw_scaling == ORIGINAL and endpoint.tags == ()


def test_the_first_machine_resumes_and_the_last_one_out_pauses(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane
) -> None:
    first = other_run(run="a", machine="a")
    second = other_run(run="b", machine="b")
    third = other_run(run="c", machine="c")
    assert asked(hub, "resume") == 1
    for leaver in (first, third):
        left = leaver.receipts()["acme/llm"]
        assert left["left_to"] in ("a", "b", "c"), left
        assert gone(leaver.reaper)
    assert asked(hub, "pause") == 0
    last = second.receipts()["acme/llm"]
    assert (last["state"], last["joined"], last["verified"]) == ("paused", "a", True)
    assert gone(second.reaper)
    assert asked(hub, "resume") == asked(hub, "pause") == 1
    assert as_before(plane), "the scaling is that of before the first"


def test_machines_that_begin_at_the_same_time_resume_once(
    hub: EmulatorClient, other_run: Start
) -> None:
    hub.change_endpoint("acme/llm", initializing_s=0.2)
    hub.add_fault("update", delay=0.2)
    runs = [other_run(run=name, machine=name, wait=False) for name in "abc"]
    for run in runs:
        run.reaper = int(run.hear().split()[1])
    assert asked(hub, "resume") == asked(hub, "update") == 1


def test_machines_that_end_at_the_same_time_pause_once(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane
) -> None:
    runs = [other_run(run=name, machine=name) for name in "abcd"]
    threads = [threading.Thread(target=run.receipts) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(gone(run.reaper) for run in runs)
    assert asked(hub, "resume") == asked(hub, "pause") == 1
    assert as_before(plane)


def test_a_machine_that_vanishes_is_not_waited_for(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane
) -> None:
    first, second = other_run(run="a", machine="a"), other_run(run="b", machine="b")
    first.vanish()
    threading.Event().wait(EXPIRY_S * 1.2)  # its lease expires: only time can do that
    last = second.receipts()["acme/llm"]
    assert (last["state"], last["verified"]) == ("paused", True)
    assert gone(second.reaper)
    assert as_before(plane), "the scaling of before the first, which has vanished"


def test_the_next_run_takes_over_what_a_lost_machine_left_with_a_higher_number(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane, redis_server: RedisServer
) -> None:
    other_run(run="a", machine="a").vanish()
    client, key = redis_server.client(), lease_key(f"{hub.url}/v2", "acme/llm")
    before = int(client.hget(key, "fence"))
    threading.Event().wait(EXPIRY_S * 1.2)
    second = other_run(run="b", machine="b")
    assert asked(hub, "resume") == 1, "it runs: nothing is to be resumed"
    assert int(client.hget(key, "fence")) > before
    assert second.receipts()["acme/llm"]["verified"]
    assert gone(second.reaper)
    assert as_before(plane)


def test_a_machine_whose_pauses_get_nowhere_makes_room_for_another_one(
    hub: EmulatorClient, other_run: Start, settings: EndpointSettings
) -> None:
    """It reaches the server, so it could show for its ten minutes that it lives."""
    folder = settings.state_dir / "a"
    told = {**asdict(settings), "state_dir": str(folder), "run": "a", "token": "hf_of_a"}
    first = other_run(run="a", machine="a", RUN_SETTINGS=json.dumps(told))
    hub.configure(switches={"bad_tokens": ["hf_of_a"]})
    first.order("receipts")
    hub.wait_for(op="pause")
    second = other_run(run="b", machine="b")
    assert second.receipts()["acme/llm"]["verified"]
    assert first.process.poll() is None
    (left,) = json.loads(first.hear())
    assert not left["verified"]


def test_a_machine_that_was_taken_for_lost_sends_no_pause_any_more(
    hub: EmulatorClient, plane: ControlPlane, settings: EndpointSettings
) -> None:
    first, second = (
        replace(settings, run=name, state_dir=settings.state_dir / name).lease_store("acme/llm")
        for name in "ab"
    )
    own = EndpointLease("a", "acme/llm", settings.api, os.getpid(), None, os.getpid(), None, 0.0)
    first.put(replace(own, phase=PAUSING))  # it is the last, and about to pause
    assert not first.superseded()
    threading.Event().wait(EXPIRY_S * 1.2)
    second.put(replace(own, run="b"))
    with second.locked(lambda seconds: pytest.fail("nothing is in the way")):
        pass
    pauser = Pauser(plane, BeginLease("acme/llm"), settings.timings, resume_over=True)
    receipt = pauser.run(lambda told: None, superseded=first.superseded)
    assert (receipt.left_to, receipt.verified) == ("b", False)
    assert asked(hub, "pause") == 0


def test_a_job_that_leaves_has_paid_for_the_minutes_until_it_left_not_until_its_last_renewal(
    settings: EndpointSettings,
) -> None:
    first, second = (
        replace(settings, run=name, state_dir=settings.state_dir / name).lease_store("acme/llm")
        for name in "ab"
    )
    own = EndpointLease("a", "acme/llm", settings.api, os.getpid(), None, os.getpid(), None, 0.0)
    minute, before = 0.5, time.monotonic()
    first.put(own)
    begun = time.monotonic()
    threading.Event().wait(0.01)
    second.put(replace(own, run="b"))
    assert not second.pays(minute)[0]
    threading.Event().wait(1.2 * minute)  # in the second "minute"
    first.put(replace(own, phase=PAUSING))
    pays, paid_until = second.pays(minute)
    assert pays
    assert paid_until is not None
    assert before - 0.05 <= paid_until - 2 * minute <= begun + 0.05


def test_a_server_without_its_data_is_told_of_the_leases_again(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane, redis_server: RedisServer
) -> None:
    first, second = other_run(run="a", machine="a"), other_run(run="b", machine="b")
    redis_server.restart()
    client = redis_server.client()
    key = lease_key(f"{hub.url}/v2", "acme/llm")
    assert until(lambda: {"h:a", "h:b"} <= set(client.hkeys(key)))
    assert first.receipts()["acme/llm"]["left_to"] == "b"
    assert second.receipts()["acme/llm"]["verified"]
    assert gone(first.reaper)
    assert gone(second.reaper)
    assert asked(hub, "pause") == 1
    assert as_before(plane)


def test_without_the_server_nothing_is_resumed(
    hub: EmulatorClient, other_run: Start, redis_server: RedisServer
) -> None:
    redis_server.kill()
    run = other_run(wait=False)
    assert run.process.wait(20) != 0
    assert asked(hub, "resume") == 0


def test_the_last_job_pauses_though_the_server_is_gone(
    hub: EmulatorClient, other_run: Start, plane: ControlPlane, redis_server: RedisServer
) -> None:
    run = other_run()
    redis_server.kill()
    assert run.receipts()["acme/llm"]["verified"]
    assert gone(run.reaper)
    assert as_before(plane)


def test_a_job_waits_for_the_server_before_it_pauses_what_others_use(
    hub: EmulatorClient, other_run: Start, redis_server: RedisServer
) -> None:
    first, second = other_run(run="a", machine="a"), other_run(run="b", machine="b")
    client, key = redis_server.client(), lease_key(f"{hub.url}/v2", "acme/llm")
    beat = client.hget(key, "h:a")
    assert until(lambda: client.hget(key, "h:a") != beat), "its reaper has seen the other job"
    redis_server.kill()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    redis_server.start()
    assert gone(first.reaper)
    assert asked(hub, "pause") == 0
    assert second.receipts()["acme/llm"]["verified"]
    assert gone(second.reaper)


def test_the_last_job_pauses_soon_though_the_server_is_full(
    hub: EmulatorClient, other_run: Start, redis_server: RedisServer
) -> None:
    first, second = other_run(run="a", machine="a"), other_run(run="b", machine="b")
    client, key = redis_server.client(), lease_key(f"{hub.url}/v2", "acme/llm")
    beat = client.hget(key, "h:b")
    assert until(lambda: client.hget(key, "h:b") != beat), "its reaper has seen the other job"
    client.config_set("maxmemory", 1)  # it can still be read
    first.receipts()
    began = time.monotonic()
    assert second.receipts()["acme/llm"]["verified"]
    assert time.monotonic() - began < SERVER_WAIT_S / 4
    assert gone(second.reaper)


def test_the_leases_have_the_prefix_and_expire_and_hold_no_secret(
    hub: EmulatorClient, other_run: Start, redis_server: RedisServer
) -> None:
    run = other_run()
    client = redis_server.client()
    (key,) = client.keys()
    assert key.startswith(PREFIX)
    assert 0 < client.ttl(key) <= 7 * 86_400
    assert "hf_the_secret" not in str(client.hgetall(key))
    run.receipts()
    assert gone(run.reaper)
