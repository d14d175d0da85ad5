"""What endpoints will cost: Hugging Face's formula, exact to the nano-dollar."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_hfbudget.endpoints.uptime import Forecast, Machine, Runs, Schedule, forecast
from pytest_hfbudget.money import parse_rate, parse_usd


def machine(rate: str, least: int = 1, most: int = 1) -> Machine:
    return Machine(rate, parse_rate(rate), least, most)


def schedule(hours: object, days: object, scale_up: object = 0) -> Schedule:
    return Schedule(*(Fraction(str(number)) for number in (hours, days, scale_up)))


THREE = [machine("0.8"), machine("0.8"), machine("1.8")]


@pytest.mark.parametrize(
    ("hours", "days", "week"), [(2, 5, "34.00"), (8, 5, "136.00"), (24, 7, "571.20")]
)
def test_the_examples_of_the_cost_guide(hours: int, days: int, week: str) -> None:
    assert forecast(THREE, schedule(hours, days)).week == parse_usd(week)


def test_the_example_of_hugging_face_with_scale_up() -> None:
    # One T4 always, two more for 15 minutes of every hour: "$0.75/h", "$547.5/month".
    cost = forecast([machine("0.5", 1, 3)], schedule(24, 7, 6))
    assert (cost.hour, cost.month) == (parse_usd("0.75"), parse_usd("547.5"))


def test_the_example_of_hugging_face_without_scale_up() -> None:
    assert forecast([machine("0.067")], schedule(24, 7)).hour == parse_usd("0.067")


def test_each_of_the_fewest_replicas_is_paid_for() -> None:
    assert forecast([machine("0.8", 3, 3)], schedule(2, 5)).day == parse_usd("4.8")


def test_with_no_replica_that_always_runs_only_the_scaled_up_hours_cost() -> None:
    assert forecast([machine("0.8", 0, 2)], schedule(24, 7, 1)).day == parse_usd("1.6")


def test_a_forecast_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="minimum of 0 replicas"):
        forecast([machine("0.8", 0, 1)], schedule(24, 7))


def test_a_month_is_the_twelfth_part_of_a_year() -> None:
    year = 12 * forecast([machine("1")], schedule(24, 7)).month
    assert year == parse_usd(24 * 365)


def test_what_is_no_whole_nano_dollar_is_rounded_up_once() -> None:
    cost = forecast([machine("0.8"), machine("0.8")], schedule(Fraction(7, 60), 5))
    assert cost == Forecast(
        hour=1_600_000_000, day=186_666_667, week=933_333_334, month=4_055_555_556
    )


@given(st.lists(st.integers(1, 10**20), min_size=1, max_size=4), st.fractions(0.01, 24))
def test_several_cost_what_each_costs(rates: list[int], hours: Fraction) -> None:
    machines = [Machine(str(rate), rate) for rate in rates]
    plan = Schedule(hours, Fraction(5))
    apart = sum(forecast([one], plan).week for one in machines)
    together = forecast(machines, plan).week
    assert together <= apart < together + len(machines)  # each is rounded up by itself


@pytest.mark.parametrize(
    ("hours", "days", "scale_up", "says"),
    [
        (0, 7, 0, "--hours-per-day 0: write a number above 0, up to 24"),
        (25, 7, 0, "--hours-per-day 25: write a number above 0, up to 24"),
        (24, 0, 0, "--days-per-week 0: write a number above 0, up to 7"),
        (24, 8, 0, "--days-per-week 8: write a number above 0, up to 7"),
        (24, 7, 25, "--scale-up-hours 25: write a number from 0 to 24"),
        (24, 7, -1, "--scale-up-hours -1: write a number from 0 to 24"),
    ],
)
def test_a_day_has_24_hours_and_a_week_7_days(
    hours: int, days: int, scale_up: int, says: str
) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        schedule(hours, days, scale_up)


@pytest.mark.parametrize(("least", "most"), [(2, 1), (-1, 1), (0, 0)])
def test_replicas_that_make_no_sense_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="replicas"):
        machine("0.8", least, most)


# --- short runs


def test_a_part_of_a_minute_costs_a_whole_one_and_the_cold_start_counts() -> None:
    runs = Runs(10, minutes=Fraction(3, 2), cold_start=Fraction(5))
    assert (runs.billed_minutes, runs.hours) == (7, Fraction(70, 60))


def test_a_run_without_length_costs_a_minute() -> None:
    assert Runs(1, minutes=Fraction(0)).billed_minutes == 1


def test_waiting_for_the_scale_to_zero_is_billed() -> None:
    paused = Runs(10, Fraction(1), Fraction(4))
    scaled = Runs(10, Fraction(1), Fraction(4), idle=Fraction(15))
    assert scaled.hours == 4 * paused.hours


def test_runs_that_follow_one_another_all_day_cost_no_more_than_a_day() -> None:
    assert Runs(500, Fraction(10)).hours == 24
