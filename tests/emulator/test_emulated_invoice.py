"""The bill's arithmetic against numbers that were worked out by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

pytest.importorskip("starlette")

from pytest_hfbudget.emulator.endpoint_form import short_form
from pytest_hfbudget.emulator.price import Consumed, Price, nano_usd
from pytest_hfbudget.emulator.world import World

# 0.8 USD per hour
L4 = {"namespace": "org", "name": "ci", "compute": {"instanceType": "nvidia-l4"}}


def bill(world: World) -> dict[str, Any]:
    row: dict[str, Any] = world.bill()["endpoints"][0]
    return row


@pytest.mark.parametrize(
    ("price", "used", "nano"),
    [
        ({"input": "0.02", "output": "0.05"}, Consumed(11, 32), 1_820),  # 0.22 + 1.6 micro-USD
        ({"input": "0.05", "output": "0.08"}, Consumed(11, 5), 950),
        ({"input": "0.0375"}, Consumed(1), 38),  # 37.5 is rounded up, once
        ({"input": "0.0375", "output": "0.0375"}, Consumed(1, 1), 75),  # not 38 + 38
        ({"image": "0.003"}, Consumed(images=2), 6_000_000),
        ({"second": "0.00012"}, Consumed(seconds=Fraction(10)), 1_200_000),
        ({"call": "0.01", "input": "1"}, Consumed(1), 10_001_000),
        ({"input": 0.1}, Consumed(3), 300),  # the decimal that it prints as
        ({"input": "0"}, Consumed(10**6), 0),
    ],
)
def test_a_call_costs_its_units_times_their_prices(
    price: dict[str, Any], used: Consumed, nano: int
) -> None:
    assert nano_usd(Price.parse(price), used) == nano


@pytest.mark.parametrize("price", [{}, {"inptu": "1"}, {"input": "-1"}, {"input": "nan"}])
def test_a_price_that_makes_no_sense_is_refused(price: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Price.parse(price)


def test_a_started_minute_is_a_minute(world: World) -> None:
    one = world.add_endpoint({**L4, "initializing_s": 30})
    one.resume()
    world.clock.advance(61)
    one.pause()
    world.clock.advance(3600)
    assert bill(world)["minutes"] == 2
    assert bill(world)["nano_usd"] == 26_666_667  # 0.8 * 2 / 60 USD, rounded up once


def test_each_replica_and_each_start_counts_its_own_minutes(world: World) -> None:
    one = world.add_endpoint(short_form({**L4, "state": "running", "max_replica": 2}))
    world.clock.advance(10)
    one.scale(2)
    world.clock.advance(10)
    one.pause()
    one.resume()
    world.clock.advance(10)
    one.pause()
    assert bill(world)["minutes"] == 3
    assert bill(world)["nano_usd"] == 40_000_000
    assert len(bill(world)["spans"]) == 3


def test_an_endpoint_that_still_runs_is_billed_up_to_now(world: World) -> None:
    world.add_endpoint({**L4, "state": "running"})
    world.clock.advance(59)
    assert bill(world)["minutes"] == 1
    world.clock.advance(2)
    assert bill(world)["minutes"] == 2
    assert bill(world)["spans"][0]["stop"] is None


@pytest.mark.parametrize(("rounding", "minutes"), [("up", 2), ("nearest", 1), ("exact", 1.25)])
def test_minutes_round_as_the_switch_says(world: World, rounding: str, minutes: float) -> None:
    world.change_switches({"minute_rounding": rounding})
    one = world.add_endpoint({**L4, "state": "running"})
    start = one.replicas[0].stages[0].start
    one.replicas[0].stages[0].stop = start + 75_000_000
    assert bill(world)["minutes"] == minutes


def test_a_billing_minute_can_be_short(world: World) -> None:
    world.change_switches({"billing_minute_s": 0.1})
    one = world.add_endpoint({**L4, "state": "running"})
    start = one.replicas[0].stages[0].start
    one.replicas[0].stages[0].stop = start + 1_000_000
    assert bill(world)["minutes"] == 10


@pytest.mark.parametrize(
    ("switch", "form", "stages"),
    [
        ({"bills_pending": True}, {"pending_s": 30}, "pending"),
        ({"bills_failed": True}, {"resume_to": "failed"}, "failed"),
    ],
)
def test_which_states_are_billed_is_a_matter_of_switches(
    world: World, switch: dict[str, Any], form: dict[str, Any], stages: str
) -> None:
    one = world.add_endpoint({**L4, **form})
    one.resume()
    world.clock.advance(1)
    assert one.state == stages
    world.clock.advance(20)
    assert bill(world)["minutes"] == 0
    world.change_switches(switch)
    assert bill(world)["minutes"] == 1


def test_an_update_is_billed_unless_the_switch_says_otherwise(world: World) -> None:
    one = world.add_endpoint({**L4, "state": "running", "updating_s": 600})
    one.apply_update(None)
    world.clock.advance(600)
    assert bill(world)["minutes"] == 10
    world.change_switches({"bills_updating": False})
    assert bill(world)["minutes"] == 0


def test_billing_ends_at_the_acknowledged_pause_or_at_the_paused_state(world: World) -> None:
    one = world.add_endpoint({**L4, "state": "running", "pause_lag_s": 90})
    world.clock.advance(30)
    one.pause()
    world.clock.advance(1000)
    assert bill(world)["minutes"] == 1
    world.change_switches({"billing_stops": "paused_state"})
    assert bill(world)["minutes"] == 2


def test_a_deleted_endpoint_stays_on_the_bill(world: World) -> None:
    one = world.add_endpoint({**L4, "state": "running"})
    world.clock.advance(1)
    world.delete_endpoint(one)
    world.clock.advance(3600)
    assert bill(world)["minutes"] == 1
    assert world.bill()["total_nano_usd"] == 13_333_334


def test_a_call_without_a_known_price_is_no_zero(world: World) -> None:
    call = world.invoice.open("who/knows", "conversational", False, None)
    call.used = Consumed(10, 10)
    call.settle(200, applied=True, broken_off=False)
    assert (call.row()["nano_usd"], call.billed) == (None, "unpriced")
    assert world.bill()["unpriced_calls"] == 1


@pytest.mark.parametrize(
    ("status", "applied", "broken_off", "billed", "nano"),
    [
        (200, True, False, "full", 1_000),
        (200, True, True, "generated", 1_000),
        (302, True, False, "full", 1_000),
        (400, True, False, "none", 0),
        (503, True, False, "none", 0),
        (200, False, False, "none", 0),
        (None, False, False, "none", 0),
    ],
)
def test_only_answers_below_400_that_took_effect_are_billed(
    world: World, status: int | None, applied: bool, broken_off: bool, billed: str, nano: int
) -> None:
    call = world.invoice.open("a/b", "conversational", False, None)
    call.used, call.price = Consumed(1000), Price.parse({"input": "0.001"})
    call.settle(status, applied, broken_off)
    assert (call.billed, call.nano_usd) == (billed, nano)
