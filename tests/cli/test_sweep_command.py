"""`hfbudget sweep`: what dead runs have left, and nothing else."""

from __future__ import annotations

import os

import pytest
from command_line import Shell

LONG_OVER = ["hfbudget-run-elsewhere", "hfbudget-until-1000000000"]
NOT_OVER_YET = ["hfbudget-run-elsewhere", "hfbudget-until-9000000000"]


@pytest.fixture
def left(hfbudget: Shell) -> Shell:
    """Three endpoints run, the dead run "deadrun" has leased two of them."""
    for name in ("a", "b", "c"):
        hfbudget.hub.add_endpoint(f"acme/{name}", state="running")
    for name in ("a", "b"):
        hfbudget.dead_lease(f"acme/{name}")
    return hfbudget


def test_nothing_left_is_fine_and_needs_no_token(hfbudget: Shell) -> None:
    assert hfbudget("sweep", HF_TOKEN="").returncode == 0


def test_what_a_dead_run_of_this_machine_has_left_is_paused_and_nothing_else(left: Shell) -> None:
    done = left("sweep")
    assert done.returncode == 0
    assert left.states == {"acme/a": "paused", "acme/b": "paused", "acme/c": "running"}
    assert left("sweep").stdout == "dead runs have left nothing to pause\n"
    assert sorted(left.requests("pause")) == ["acme/a", "acme/b"]


def test_a_live_lease_is_left_alone(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running", tags=LONG_OVER)
    hfbudget.live_lease("acme/llm", run="elsewhere")
    done = hfbudget("sweep", "acme")
    assert done.returncode == 0
    assert "run elsewhere" in done.stderr
    assert hfbudget.state("acme/llm") == "running"


def test_what_a_reaper_is_still_at_is_paused_too(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.kept_lease("acme/llm")
    look = hfbudget("sweep", "--dry-run")
    assert f"its reaper (process {os.getpid()}) is still trying to pause it" in look.stdout
    assert hfbudget("sweep").returncode == 0
    assert hfbudget.state("acme/llm") == "paused"


@pytest.mark.slow
def test_what_a_reaper_does_not_get_paused_makes_it_fail(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.kept_lease("acme/llm")
    hfbudget.hub.add_fault("pause", endpoint="acme/llm", times=None, status=403)
    done = hfbudget("sweep")
    assert done.returncode == 1
    assert "acme/llm" in done.stderr


def test_a_dry_run_says_what_it_would_do_and_does_nothing(left: Shell) -> None:
    done = left("sweep", "--dry-run")
    assert done.returncode == 0
    assert "acme/a" in done.stdout
    assert "deadrun" in done.stdout
    assert set(left.states.values()) == {"running"}
    assert not left.requests("pause")


def test_more_than_max_is_told_and_not_touched(left: Shell) -> None:
    done = left("sweep", "--max", "1")
    assert done.returncode == 3
    assert sorted(left.states.values()) == ["paused", "running", "running"]
    assert ": not touched (run deadrun): " in done.stderr


def test_max_that_is_not_reached_changes_nothing(left: Shell) -> None:
    assert left("sweep", "--max", "2").returncode == 0
    assert sorted(left.states.values()) == ["paused", "paused", "running"]


@pytest.mark.slow
def test_one_that_can_not_be_paused_makes_it_fail_and_the_others_are_paused(left: Shell) -> None:
    left.hub.add_fault("pause", endpoint="acme/a", times=None, status=403)
    done = left("sweep")
    assert done.returncode == 1
    assert "hfbudget pause acme/a" in done.stderr
    assert left.state("acme/b") == "paused"


def test_by_tag_what_a_run_on_a_lost_machine_has_left_is_paused(hfbudget: Shell) -> None:
    hfbudget.hub.configure(page_limit=1)
    hfbudget.hub.add_endpoint("acme/over", state="running", tags=LONG_OVER)
    hfbudget.hub.add_endpoint("acme/in-time", state="running", tags=NOT_OVER_YET)
    hfbudget.hub.add_endpoint("acme/untagged", state="running", tags=["team-a"])
    assert hfbudget("sweep", "acme").returncode == 0
    assert hfbudget.requests("pause") == ["acme/over"]


def test_json_tells_what_was_found_and_what_became_of_it(left: Shell) -> None:
    told = left.json("sweep", "--max", "1")
    one, other = told["endpoints"]
    assert (one["run"], one["where"], one["state"]) == ("deadrun", "journal", "paused")
    assert (one["verified"], one["skipped"], one["error"]) == (True, None, None)
    assert (other["verified"], other["state"]) == (False, "running")
    assert "limit of 1" in other["skipped"]


def test_a_list_that_can_not_be_read_does_not_keep_this_machine_from_its_own(left: Shell) -> None:
    left.hub.add_fault("list", times=None, status=403)
    done = left("sweep", "acme")
    assert done.returncode == 1
    assert left.states == {"acme/a": "paused", "acme/b": "paused", "acme/c": "running"}


def test_a_list_that_can_not_be_read_is_a_failure_in_one_line(hfbudget: Shell) -> None:
    done = hfbudget("sweep", "acme", HF_TOKEN="hf_limited")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Manage Inference Endpoints" in done.stderr
