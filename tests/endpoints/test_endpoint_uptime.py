"""What running costs; every expected figure is worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_hfbudget.endpoints import Endpoint
from pytest_hfbudget.endpoints.uptime import (
    Uptime,
    at_most,
    cost,
    earlier_replicas,
    from_replicas,
    parse_time,
    started_minutes,
)
from pytest_hfbudget.endpoints.uptime_meter import price_per_hour
from pytest_hfbudget.money import parse_rate

L4 = parse_rate("0.8")  # USD per hour, in atto-USD


def replica(id: str, start: str | None, stop: str | None = None) -> dict[str, Any]:
    day = "2026-11-01T10:"
    times = {"startedAt": start and day + start, "stoppedAt": stop and day + stop}
    return {"id": id, "status": {name: value for name, value in times.items() if value}}


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(0, 1), (0.001, 1), (60, 1), (60.000001, 2), (119.9, 2), (3600, 60)]
)
def test_a_minute_that_has_begun_counts(seconds: float, minutes: int) -> None:
    assert started_minutes(seconds) == minutes


def test_the_billing_minute_can_be_short() -> None:
    assert started_minutes(0.25, 0.1) == 3


def test_the_sum_is_rounded_up_to_the_nano_dollar_once() -> None:
    # 0.8 / 60 = 0.013333333... USD a minute: 13_333_333.33 nano; three minutes are exactly 0.04.
    assert cost(L4, 1) == 13_333_334
    assert cost(L4, 3) == 40_000_000
    assert cost(L4, 60) == 800_000_000


def test_replicas_are_rounded_each_by_itself() -> None:
    # Spans of 61 s, 59 s and 60 s: 2 + 1 + 1 minutes, of 0.8 / 60 USD each.
    replicas = [
        replica("a", "00:00Z", "01:01Z"),
        replica("b", "00:00Z", "00:59Z"),
        replica("c", "05:00.500Z", "06:00.500Z"),
    ]
    up = from_replicas(replicas, window_s=400, earlier={}, atto_per_hour=L4)
    assert up == Uptime(4, 53_333_334, False)


def test_a_replica_without_an_end_counts_for_the_whole_window() -> None:
    replicas = [replica("a", "00:00Z"), replica("b", None), replica("c", "00:00Z", "00:30Z")]
    up = from_replicas(replicas, window_s=121, earlier={}, atto_per_hour=L4)
    assert up == Uptime(3 + 3 + 1, 93_333_334, True)


def test_replicas_that_had_stopped_before_do_not_count() -> None:
    old, running = replica("old", "00:00Z", "01:00Z"), replica("running", "00:00Z")
    earlier = earlier_replicas([old, running])
    stopped = replica("running", "00:00Z", "59:00Z")
    up = from_replicas([old, stopped], window_s=90, earlier=earlier, atto_per_hour=L4)
    assert up == Uptime(2, 26_666_667, True)


def test_the_same_replica_started_anew_counts() -> None:
    old, new = replica("llm-0", "00:00Z", "01:00Z"), replica("llm-0", "10:00Z", "10:10Z")
    up = from_replicas([new], window_s=90, earlier=earlier_replicas([old]), atto_per_hour=L4)
    assert up == Uptime(1, 13_333_334, False)


def test_without_any_replica_there_is_no_answer_but_an_upper_bound() -> None:
    assert from_replicas([], window_s=90, earlier={}, atto_per_hour=L4) is None
    assert at_most(stretches_s=[90], replicas=3, atto_per_hour=L4) == Uptime(6, 80_000_000, True)


def test_an_unknown_price_leaves_the_minutes() -> None:
    assert at_most(stretches_s=[90], replicas=1, atto_per_hour=None) == Uptime(2, 0, True)


def test_the_price_is_found_by_vendor_region_type_and_size() -> None:
    computes = [
        {"instanceType": "nvidia-l4", "instanceSize": "x1", "pricePerHour": 0.8},
        {"instanceType": "nvidia-l4", "instanceSize": "x4", "pricePerHour": 3.8},
        {"instanceType": "nvidia-t4", "instanceSize": "x1", "pricePerHour": None},
    ]
    hardware = {
        "vendors": [
            {"name": "gcp", "regions": [{"name": "us-east-1", "computes": [computes[1]]}]},
            {"name": "aws", "regions": [{"name": "us-east-1", "computes": computes}, {}]},
        ]
    }

    def priced(vendor: str, region: str, type_: str, size: str) -> int | None:
        endpoint = Endpoint("acme", "llm", "paused", "", "", vendor, region, type_, size)
        return price_per_hour(hardware, endpoint)

    assert priced("aws", "us-east-1", "nvidia-l4", "x1") == 800_000_000_000_000_000
    assert priced("aws", "us-east-1", "nvidia-l4", "x4") == 3_800_000_000_000_000_000
    assert priced("aws", "us-east-1", "nvidia-t4", "x1") is None
    assert priced("aws", "eu-west-1", "nvidia-l4", "x1") is None
    assert price_per_hour({}, Endpoint("acme", "llm", "paused")) is None


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1, 0, True, "free", None])
def test_a_price_that_is_none_is_unknown_and_not_free(price: object) -> None:
    compute = {"instanceType": "nvidia-l4", "instanceSize": "x1", "pricePerHour": price}
    region = {"name": "us-east-1", "computes": [compute]}
    hardware = {"vendors": [{"name": "aws", "regions": [region]}]}
    endpoint = Endpoint("acme", "llm", "paused", "", "", "aws", "us-east-1", "nvidia-l4", "x1")
    assert price_per_hour(hardware, endpoint) is None


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-11-01T10:00:00Z", 0),
        ("2026-11-01T10:00:00.5z", 500_000),
        ("2026-11-01T11:00:00.123456789+01:00", 123_456),
        ("2026-11-01T10:00:00", 0),
    ],
)
def test_times_are_read_as_servers_write_them(text: str, micros: int) -> None:
    parsed = parse_time(text)
    assert parsed is not None
    assert (parsed.timestamp(), parsed.microsecond) == (1793527200 + micros / 1e6, micros)


@pytest.mark.parametrize("value", [None, 7, "", "soon"])
def test_what_is_no_time_is_none(value: object) -> None:
    assert parse_time(value) is None
