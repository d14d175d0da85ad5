"""`hfbudget pause`: by name, what is leased, or everything."""

from __future__ import annotations

import pytest
from command_line import TOKEN, Shell
from typed_terminal import Terminal

from pytest_hfbudget.endpoints.api import ControlPlane


def test_many_are_asked_for_before_any_is_waited_for(hfbudget: Shell) -> None:
    names = [f"acme/model-{number}" for number in range(4)]
    for name in names:
        hfbudget.hub.add_endpoint(name, state="running", pause_lag_s=0.5)
    done = hfbudget("pause", *names)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{name}: paused, verified" for name in names]
    asked = hfbudget.hub.log(kind="request", phase="arrived", op="pause")
    happened = hfbudget.hub.log(kind="state", state="paused")
    assert asked[3]["seq"] < happened[-1]["seq"] - 3


@pytest.mark.slow
def test_one_that_is_not_verified_makes_it_fail_and_the_others_are_paused(hfbudget: Shell) -> None:
    for name in ("acme/a", "acme/b"):
        hfbudget.hub.add_endpoint(name, state="running")
    hfbudget.hub.add_fault("pause", endpoint="acme/a", times=None, status=403)
    done = hfbudget("pause", "acme/a", "acme/b")
    assert done.returncode == 1
    assert done.stdout == "acme/b: paused, verified\n"
    assert "hfbudget pause acme/a" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_name_without_its_namespace_gets_the_default_one(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    assert hfbudget("pause", "llm", HFBUDGET_NAMESPACE="acme").returncode == 0
    assert hfbudget.state("acme/llm") == "paused"


def test_a_name_that_is_none_is_an_error(hfbudget: Shell) -> None:
    done = hfbudget("pause", "acme/lllm")
    assert done.returncode == 1
    assert 'there is no endpoint "acme/lllm"' in done.stderr


@pytest.mark.slow
def test_one_that_was_deleted_costs_nothing_any_more(hfbudget: Shell) -> None:
    hfbudget.dead_lease("acme/deleted")
    done = hfbudget("pause", "acme/deleted")
    assert (done.returncode, done.stdout) == (0, "acme/deleted: gone, verified\n")


@pytest.mark.parametrize("arguments", [(), ("--leased", "acme/llm"), ("--leased", "--all")])
def test_what_to_pause_is_said_in_one_way(hfbudget: Shell, arguments: tuple[str, ...]) -> None:
    done = hfbudget("pause", *arguments)
    assert done.returncode == 2
    assert "--leased" in done.stderr


def test_the_lease_of_a_live_run_is_respected_and_the_run_is_named(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.live_lease("acme/llm", run="abc123")
    done = hfbudget("pause", "acme/llm")
    assert done.returncode == 1
    assert "abc123" in done.stderr
    assert "hfbudget pause --force acme/llm" in done.stderr
    assert hfbudget.state("acme/llm") == "running"


def test_the_tag_of_a_run_elsewhere_that_is_not_over_is_respected(hfbudget: Shell) -> None:
    tags = ["hfbudget-run-abc123", "hfbudget-until-9000000000"]
    hfbudget.hub.add_endpoint("acme/llm", state="running", tags=tags)
    done = hfbudget("pause", "acme/llm")
    assert done.returncode == 1
    assert "abc123" in done.stderr
    assert hfbudget("pause", "--force", "acme/llm").returncode == 0
    assert hfbudget.state("acme/llm") == "paused"


def test_force_pauses_under_a_live_run(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.live_lease("acme/llm")
    assert hfbudget("pause", "--force", "acme/llm").returncode == 0
    assert hfbudget.state("acme/llm") == "paused"


def test_leased_pauses_what_a_dead_run_has_left_and_closes_its_lease(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.hub.add_endpoint("acme/other", state="running")
    hfbudget.dead_lease("acme/llm")
    assert hfbudget("pause", "--leased").stdout == "acme/llm: paused, verified\n"
    assert hfbudget.states == {"acme/llm": "paused", "acme/other": "running"}
    assert hfbudget("pause", "--leased").stdout == "nothing to pause\n"


def test_leased_pauses_what_a_reaper_is_still_at(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.kept_lease("acme/llm")
    done = hfbudget("pause", "--leased")
    assert done.returncode == 0
    assert "acme/llm: paused, verified" in done.stdout
    assert hfbudget.state("acme/llm") == "paused"


def test_what_the_dead_run_has_changed_is_put_back(hfbudget: Shell) -> None:
    scaling = {"minReplica": 1, "maxReplica": 2, "scaleToZeroTimeout": None, "measure": None}
    tags = ["team-a", "hfbudget-run-deadrun", "hfbudget-until-9000000000"]
    hfbudget.hub.add_endpoint("acme/llm", state="running", tags=tags, scale_to_zero_timeout=15)
    hfbudget.dead_lease("acme/llm", scaling=scaling)
    assert hfbudget("pause", "acme/llm").returncode == 0
    now = ControlPlane(hfbudget.api, TOKEN).get("acme/llm")
    assert (now.state, now.tags, now.raw_scaling) == ("paused", ("team-a",), scaling)


def test_all_without_a_terminal_to_ask_at_is_refused(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    done = hfbudget("pause", "--all", "acme")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert hfbudget.state("acme/llm") == "running"


def test_all_with_yes_pauses_everything_that_is_awake(hfbudget: Shell) -> None:
    hfbudget.hub.configure(page_limit=2)
    for number, state in enumerate(("running", "paused", "scaledToZero", "failed", "running")):
        hfbudget.hub.add_endpoint(f"acme/model-{number}", state=state)
    assert hfbudget("pause", "--all", "--yes", "acme").returncode == 0
    assert set(hfbudget.states.values()) == {"paused"}
    assert "acme/model-1" not in hfbudget.requests("pause")


@pytest.mark.parametrize(("answer", "code", "state"), [("n", 1, "running"), ("y", 0, "paused")])
def test_all_asks_at_a_terminal(hfbudget: Shell, answer: str, code: int, state: str) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    with Terminal() as terminal:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.inner)
        process = hfbudget.start("pause", "--all", "acme", **streams)
        terminal.wait_for("Pause")
        assert "acme/llm" in terminal.seen
        terminal.type(answer)
        assert process.wait(20) == code
    assert hfbudget.state("acme/llm") == state


def test_json_has_a_receipt_for_each(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.hub.add_endpoint("acme/busy", state="running")
    hfbudget.live_lease("acme/busy", run="abc123")
    llm, busy = hfbudget.json("pause", "acme/llm", "acme/busy")["endpoints"]
    assert (llm["name"], llm["state"], llm["verified"]) == ("acme/llm", "paused", True)
    assert (busy["name"], busy["verified"]) == ("acme/busy", False)
    assert "abc123" in busy["error"]
