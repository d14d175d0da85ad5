"""The emulator's clock and its timers, on a hand-moved monotonic clock."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from pytest_hfbudget.emulator.clock import Clock, parse_rfc3339, rfc3339


class Monotonic:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


def test_time_goes_on_with_the_monotonic_clock(monotonic: Monotonic) -> None:
    clock = Clock(monotonic)
    before = clock.now()
    monotonic.ns += 1_500_000_000
    assert clock.now() - before == 1_500_000


def test_timers_run_in_order_each_at_the_moment_it_was_due(monotonic: Monotonic) -> None:
    clock, ran = Clock(monotonic), []
    start = clock.now()
    clock.after(2, lambda: ran.append(("late", clock.now() - start)))
    clock.after(1, lambda: ran.append(("early", clock.now() - start)))
    clock.advance(10)
    assert ran == [("early", 1_000_000), ("late", 2_000_000)]
    assert clock.now() - start == 10_000_000


def test_a_timer_that_a_timer_sets_counts_from_that_timers_moment(monotonic: Monotonic) -> None:
    clock, ran = Clock(monotonic), []
    start = clock.now()

    def again() -> None:
        clock.after(1, lambda: ran.append(clock.now() - start))

    clock.after(1, again)
    clock.advance(5)
    assert ran == [2_000_000]


def test_a_cancelled_timer_does_not_run(monotonic: Monotonic) -> None:
    clock, ran = Clock(monotonic), []
    clock.after(1, lambda: ran.append("ran")).cancel()
    assert clock.seconds_to_next() is None
    clock.advance(5)
    assert ran == []


def test_the_next_timer_is_announced(monotonic: Monotonic) -> None:
    clock = Clock(monotonic)
    clock.after(3, lambda: None)
    monotonic.ns += 1_000_000_000
    assert clock.seconds_to_next() == 2.0


def test_timestamps_have_six_decimals_and_survive_a_round_trip() -> None:
    assert rfc3339(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"
    assert parse_rfc3339("2023-11-14T23:13:20.000001+01:00") == 1_700_000_000_000_001


def test_a_timestamp_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        parse_rfc3339("2023-11-14T22:13:20")
