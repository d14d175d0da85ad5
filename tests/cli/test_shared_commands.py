"""`status --shared`, `sweep --shared` and `report --shared`, over a real Redis server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import Shell
from redis_server import RedisServer, redis_server

from pytest_hfbudget.endpoints.lease_store import EndpointLease
from pytest_hfbudget.endpoints.shared_leases import SharedLeaseStore, lease_key
from pytest_hfbudget.history import RUN, BudgetWindow
from pytest_hfbudget.history.shared_store import JobNames, RedisStore
from pytest_hfbudget.shared import SharedAddress, SharedConnection, SharedServer

__all__ = ["redis_server"]

ORIGINAL = {"minReplica": 0, "maxReplica": 3, "scaleToZeroTimeout": None}
TAGS = ["hfbudget-run-lost", "hfbudget-until-9000000000"]


@pytest.fixture
def shared(hfbudget: Shell, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("HFBUDGET_SHARED", redis_server.url)
    return hfbudget


def lease(shell: Shell, server: RedisServer, folder: Path, *, lost: bool) -> None:
    """A lease of a job on another machine, which has been heard of just now, or long ago."""
    api, place = f"{shell.hub.url}/v2", SharedConnection(server.url, None, "ci-7", 30.0)
    store = SharedLeaseStore(folder, api=api, endpoint="acme/llm", run="lost", place=place)
    own = EndpointLease("lost", "acme/llm", api, os.getpid(), None, os.getpid(), None, 0.0)
    store.put(EndpointLease(**{**vars(own), "scaling": ORIGINAL}))
    store.resumed(ORIGINAL)
    if lost:
        client, key = server.client(), lease_key(api, "acme/llm")
        told = json.loads(client.hget(key, "h:lost"))
        client.hset(key, "h:lost", json.dumps({**told, "beat": told["beat"] - 60_000}))


def test_status_shows_who_holds_what(
    shared: Shell, redis_server: RedisServer, tmp_path: Path
) -> None:
    lease(shared, redis_server, tmp_path / "elsewhere", lost=False)
    window = BudgetWindow(RUN, 10**9)
    server = SharedServer(SharedAddress(redis_server.url))
    store = RedisStore(server, JobNames("job1", "ci-7", ""), (window,), expiry_s=30)
    store.begin((window,), 0)
    told = json.loads(shared("status", "--shared", "--json").stdout)
    (held,) = told["leases"]
    assert (held["endpoint"], held["job"], held["run"]) == ("acme/llm", "lost", "ci-7")
    assert (held["phase"], held["live"]) == ("holding", True)
    (share,) = told["advances"]
    assert (share["budget"], share["job"], share["spent_usd"]) == ("run:ci-7", "job1", "0")
    assert "acme/llm" in shared("status", "--shared", redis_server.url).stdout


def test_sweep_pauses_what_a_lost_machine_has_left_and_restores_its_scaling(
    shared: Shell, redis_server: RedisServer, tmp_path: Path
) -> None:
    shared.hub.add_endpoint("acme/llm", state="running", tags=TAGS)
    lease(shared, redis_server, tmp_path / "elsewhere", lost=True)
    look = shared("sweep", "--dry-run", "--shared")
    assert "acme/llm: would be paused, nothing was heard of its job" in look.stdout
    done = shared("sweep", "--shared", redis_server.url)
    assert done.returncode == 0, done
    assert shared.state("acme/llm") == "paused"
    assert shared("sweep", "--shared").stdout == "dead runs have left nothing to pause\n"


def test_sweep_leaves_alone_what_a_job_of_another_machine_uses(
    shared: Shell, redis_server: RedisServer, tmp_path: Path
) -> None:
    shared.hub.add_endpoint("acme/llm", state="running", tags=TAGS)
    shared.dead_lease("acme/llm")  # a job of this machine has died, another one goes on
    lease(shared, redis_server, tmp_path / "elsewhere", lost=False)
    done = shared("sweep")
    assert done.returncode == 0
    assert "acme/llm: not touched (run deadrun): run lost" in done.stderr
    assert shared.state("acme/llm") == "running"


def test_a_command_without_a_server_says_what_to_set(hfbudget: Shell) -> None:
    done = hfbudget("status", "--shared")
    assert done.returncode == 2
    assert "--shared: which server? Name its URL, or set HFBUDGET_SHARED." in done.stderr
    done = hfbudget("sweep", "--shared=redis://:s3cret@host")
    assert done.returncode == 2
    assert "HFBUDGET_SHARED_PASSWORD" in done.stderr
    assert "s3cret" not in done.stderr
