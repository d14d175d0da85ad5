"""`hfbudget status`: every endpoint of a namespace, once or again and again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from command_line import Shell
from typed_terminal import Terminal


def _row(done: Any, name: str) -> str:
    row: str = next(line for line in done.stdout.splitlines() if line.startswith(name))
    return row


def test_every_page_is_read(hfbudget: Shell) -> None:
    hfbudget.hub.configure(page_limit=3)
    for number in range(10):
        hfbudget.hub.add_endpoint(f"acme/model-{number}")
    done = hfbudget("status", "acme")
    assert done.returncode == 0
    assert [f"acme/model-{number}" in done.stdout for number in range(10)] == [True] * 10


def test_a_running_endpoint_shows_its_price_its_start_and_what_it_has_cost(
    hfbudget: Shell,
) -> None:
    hfbudget.hub.add_endpoint(
        "acme/llm", state="running", instance_type="nvidia-l4", instance_size="x1"
    )
    done = hfbudget("status", "acme")
    row = _row(done, "acme/llm")
    assert "running" in row
    assert "$0.80" in row  # an hour
    assert "$0.01" in row  # its first minute
    assert len(row.split()[3].split(":")) == 3


def test_the_holder_of_a_lease_is_named(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    hfbudget.live_lease("acme/llm", run="abc123")
    assert "abc123" in _row(hfbudget("status", "acme"), "acme/llm")


def test_a_lease_from_elsewhere_is_known_by_its_tag(hfbudget: Shell) -> None:
    tags = ["hfbudget-run-abc123", "hfbudget-until-4000000000"]
    hfbudget.hub.add_endpoint("acme/llm", state="running", tags=tags)
    row = _row(hfbudget("status", "acme"), "acme/llm")
    assert "abc123" in row
    assert "elsewhere, until 2096-10-02" in row


def test_json_has_money_as_strings_and_times_in_utc(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint(
        "acme/llm", state="running", instance_type="nvidia-l4", instance_size="x1"
    )
    hfbudget.hub.add_endpoint("acme/rest")
    hfbudget.dead_lease("acme/llm", run="abc123")
    told = hfbudget.json("status", "acme")
    assert (told["schema"], told["namespace"]) == (1, "acme")
    llm, rest = told["endpoints"]
    assert (llm["name"], llm["state"], llm["usd_per_hour"]) == ("acme/llm", "running", "0.8")
    assert llm["accrued_usd"] == "0.013333334"
    assert llm["since"].endswith("+00:00")
    (lease,) = llm["leases"]
    assert (lease["run"], lease["alive"], lease["until"]) == ("abc123", False, None)
    assert (rest["state"], rest["since"], rest["leases"]) == ("paused", None, [])


@pytest.mark.parametrize("table", ["[tool.pytest.ini_options]", "[tool.pytest]"])
def test_the_namespace_may_come_from_pyproject(hfbudget: Shell, table: str) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    (hfbudget.directory / "pyproject.toml").write_text(f'{table}\nhf_namespace = "acme"\n')
    assert "acme/llm" in hfbudget("status").stdout


def test_the_namespace_may_come_from_the_environment(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    assert "acme/llm" in hfbudget("status", HFBUDGET_NAMESPACE="acme").stdout


def test_without_a_namespace_it_says_what_to_type(hfbudget: Shell) -> None:
    done = hfbudget("status")
    assert done.returncode == 2
    assert "HFBUDGET_NAMESPACE" in done.stderr


def test_a_refused_token_is_one_line(hfbudget: Shell) -> None:
    done = hfbudget("status", "acme", HF_TOKEN="hf_wrong")
    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hf_wrong" not in done.stdout + done.stderr


def test_a_missing_token_is_one_line_that_says_how_to_get_one(hfbudget: Shell) -> None:
    done = hfbudget("status", "acme", HF_TOKEN="")
    assert done.returncode == 1
    assert "hf auth login" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def watching(hfbudget: Shell) -> Iterator[Terminal]:
    """A terminal in which an endpoint is seen to run, until Ctrl-C, which is no failure."""
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    with Terminal() as terminal:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.inner)
        process = hfbudget.start("status", "acme", "--watch", "0.1", **streams)
        terminal.wait_for("running")
        yield terminal
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_watch_redraws_until_ctrl_c_and_that_is_no_failure(hfbudget: Shell) -> None:
    with watching(hfbudget) as terminal:
        hfbudget.hub.change_endpoint("acme/llm", state="paused")
        terminal.wait_for("paused")


def test_watch_goes_on_when_the_server_does_not_answer_once(hfbudget: Shell) -> None:
    with watching(hfbudget) as terminal:
        hfbudget.hub.add_fault("list", status=403, times=3)
        terminal.wait_for("HTTP 403")
        terminal.wait_for("running")


def test_watch_with_json_is_a_line_per_look(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm", state="running")
    process = hfbudget.start("status", "--watch", "0.1", "--json", "acme")
    assert process.stdout
    looks = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [look["endpoints"][0]["state"] for look in looks] == ["running", "running"]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_watch_may_stand_before_the_namespace(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    process = hfbudget.start("status", "--json", "--watch", "acme")
    assert process.stdout
    assert json.loads(process.stdout.readline())["namespace"] == "acme"
