"""`hfbudget forecast`: what endpoints will cost, before they do."""

from __future__ import annotations

import pytest
from command_line import Shell

THREE = ("--rate", "0.8", "--rate", "0.8", "--rate", "1.8")


@pytest.mark.parametrize(
    ("hours", "days", "week"), [("2", "5", "34"), ("8", "5", "136"), ("24", "7", "571.2")]
)
def test_the_examples_of_the_cost_guide(hfbudget: Shell, hours: str, days: str, week: str) -> None:
    told = hfbudget.json("forecast", *THREE, "--hours-per-day", hours, "--days-per-week", days)
    assert told["usd"]["week"] == week


def test_a_table_shows_each_and_all_and_what_no_pause_would_cost(hfbudget: Shell) -> None:
    done = hfbudget("forecast", *THREE, "--hours-per-day", "2", "--days-per-week", "5")
    assert done.returncode == 0
    rows = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert rows["all"][-4:] == ["$3.40", "$6.80", "$34.00", "$147.74"]
    assert rows["never paused"][-2:] == ["$571.20", "$2,482.00"]
    assert "730 hours" in done.stdout


def test_json_is_exact_to_the_nano_dollar(hfbudget: Shell) -> None:
    told = hfbudget.json("forecast", "--rate", "0.8", "--hours-per-day", "2")
    assert told["schema"] == 1
    assert told["usd"] == {"hour": "0.8", "day": "1.6", "week": "11.2", "month": "48.666666667"}
    assert told["endpoints"][0]["usd_per_hour"] == "0.8"


def test_scaled_up_replicas_are_paid_for_their_hours(hfbudget: Shell) -> None:
    told = hfbudget.json("forecast", "--rate", "0.5", "--max-replicas", "3", "--scale-up-hours=6")
    assert (told["usd"]["hour"], told["usd"]["month"]) == ("0.75", "547.5")


def test_short_runs_are_billed_by_started_minutes_with_their_cold_start(hfbudget: Shell) -> None:
    runs = ("--runs-per-day", "10", "--minutes-per-run", "1.5", "--cold-start", "5")
    told = hfbudget.json("forecast", "--rate", "0.6", *runs)
    assert told["billed_minutes_per_run"] == 7
    assert told["usd"]["day"] == "0.7"  # 70 minutes
    done = hfbudget("forecast", "--rate", "0.6", *runs, "--idle", "15")
    assert "5 min cold start + 1.5 min run + 15 min idle): 22 started minutes" in done.stdout


# --- endpoints


def test_an_endpoint_is_priced_by_the_hardware_list(hfbudget: Shell) -> None:
    hardware = {"instance_type": "nvidia-l4", "instance_size": "x1"}
    hfbudget.hub.add_endpoint("acme/a", **hardware)
    hfbudget.hub.add_endpoint("acme/b", **hardware)
    hfbudget.hub.add_endpoint("acme/c", instance_type="nvidia-l40s", instance_size="x1")
    names = ("--endpoint", "acme/a", "--endpoint", "acme/b", "--endpoint", "acme/c")
    told = hfbudget.json("forecast", *names, "--hours-per-day", "2", "--days-per-week", "5")
    assert [each["usd_per_hour"] for each in told["endpoints"]] == ["0.8", "0.8", "1.8"]
    assert told["usd"]["week"] == "34"
    assert hfbudget.states == dict.fromkeys(("acme/a", "acme/b", "acme/c"), "paused")


def test_an_endpoint_has_the_replicas_of_its_own_scaling(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/a", min_replica=2, max_replica=4)
    (each,) = hfbudget.json("forecast", "--endpoint", "acme/a")["endpoints"]
    assert (each["min_replicas"], each["max_replicas"]) == (2, 4)


def test_one_that_scales_to_zero_runs_with_one_replica_once_it_is_resumed(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/a", min_replica=0, max_replica=1)
    (each,) = hfbudget.json("forecast", "--endpoint", "acme/a")["endpoints"]
    assert (each["min_replicas"], each["max_replicas"]) == (1, 1)


def test_an_endpoint_that_is_not_there_is_one_line(hfbudget: Shell) -> None:
    done = hfbudget("forecast", "--endpoint", "acme/nowhere")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "acme/nowhere" in line


def test_hardware_without_a_price_is_one_line_that_says_what_to_type(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/a", instance_type="nvidia-l4", instance_size="x1")
    hfbudget.hub.add_fault("provider", status=200, json={"vendors": []})
    done = hfbudget("forecast", "--endpoint", "acme/a")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "nvidia-l4 x1 is on no price list; give its price with --rate" in line


# --- wrong usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "forecast of what? Give --endpoint NAMESPACE/NAME or --rate USD."),
        ("--rate nan", "--rate nan: 'nan' is not a finite amount"),
        ("--rate -1", "--rate -1: '-1' is negative"),
        ("--rate 0", "--rate 0: write a price above 0"),
        ("--rate cheap", "--rate cheap: "),
        ("--rate 1 --hours-per-day inf", "--hours-per-day inf: write a number"),
        ("--rate 1 --hours-per-day 25", "--hours-per-day 25: write a number above 0, up to 24."),
        ("--rate 1 --hours-per-day 1e999999999", "--hours-per-day 1e999999999: write a number"),
        ("--rate 1 --days-per-week 1e-999999999", "--days-per-week 1e-999999999: write a number"),
        ("--rate 1 --days-per-week 8", "--days-per-week 8: write a number above 0, up to 7."),
        (
            "--rate 1 --min-replicas 3 --max-replicas 2",
            "the minimum is 3 replicas, and the maximum is 2. Give --max-replicas of at least 3.",
        ),
        (
            "--rate 1 --min-replicas 0",
            "on how many hours a day it is scaled up. Give these with --scale-up-hours.",
        ),
        ("--rate 1 --scale-up-hours 3", "needs replicas to scale up to"),
        ("--rate 1 --runs-per-day 3", "--runs-per-day and --minutes-per-run go together"),
        ("--rate 1 --cold-start 3", "--runs-per-day and --minutes-per-run go together"),
        (
            "--rate 1 --runs-per-day 3 --minutes-per-run 3 --hours-per-day 2",
            "give one of the two",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(hfbudget: Shell, arguments: str, says: str) -> None:
    done = hfbudget("forecast", *arguments.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line
