"""Who owes an endpoint's uptime; every expected figure is worked out by hand."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pytest_hfbudget.endpoints.uptime import UptimeWindow, UseInterval
from pytest_hfbudget.endpoints.uptime_meter import EndpointUse, Shares, apportion, share_out

MINUTE = UptimeWindow(start=100.0, stop=160.0)


def test_one_test_pays_for_its_time_and_the_rest_is_idle() -> None:
    assert share_out(60, MINUTE, [EndpointUse("a", 110, 125)]) == Shares({"a": 15}, idle=45)


def test_tests_that_run_at_one_time_split_it() -> None:
    # a alone 10 s, a and b 10 s, b alone 20 s, unused 20 s
    uses = [EndpointUse("a", 100, 120), EndpointUse("b", 110, 140)]
    assert share_out(60, MINUTE, uses) == Shares({"a": 15, "b": 25}, idle=20)


def test_no_test_pays_for_the_cold_start() -> None:
    window = MINUTE._replace(cold=(UseInterval(100, 112),))
    shares = share_out(60, window, [EndpointUse("a", 100, 130)])
    assert shares == Shares({"a": 18}, idle=30, cold_start=12)


def test_an_endpoint_that_is_brought_back_has_two_cold_starts() -> None:
    window = MINUTE._replace(cold=(UseInterval(100, 105), UseInterval(120, 130)))
    shares = share_out(60, window, [EndpointUse("a", 100, 160)])
    assert shares == Shares({"a": 45}, idle=0, cold_start=15)


def test_the_minute_that_a_pause_cut_short_is_idle_to_its_end() -> None:
    window = UptimeWindow(start=0, stop=15, paid_until=60)
    assert share_out(600, window, [EndpointUse("a", 5, 15)]) == Shares({"a": 100}, idle=500)


def test_what_a_test_did_after_the_pause_was_not_on_the_endpoint() -> None:
    assert share_out(60, MINUTE, [EndpointUse("a", 130, 500)]) == Shares({"a": 30}, idle=30)
    assert share_out(60, MINUTE, [EndpointUse("a", 0, 50)]) == Shares({"a": 0}, idle=60)


def test_a_test_that_never_ended_was_on_it_until_the_pause() -> None:
    assert share_out(60, MINUTE, [EndpointUse("a", 140)]) == Shares({"a": 20}, idle=40)


def test_two_runs_of_one_test_have_one_share() -> None:
    uses = [EndpointUse("a", 100, 110), EndpointUse("b", 110, 120), EndpointUse("a", 120, 140)]
    assert share_out(60, MINUTE, uses) == Shares({"a": 30, "b": 10}, idle=20)


def test_a_test_that_is_there_twice_at_one_time_counts_once() -> None:
    uses = [EndpointUse("a", 100, 120), EndpointUse("a", 110, 130), EndpointUse("b", 100, 130)]
    assert share_out(60, MINUTE, uses) == Shares({"a": 15, "b": 15}, idle=30)


def test_a_window_without_length_is_idle() -> None:
    assert share_out(7, UptimeWindow(5, 5), [EndpointUse("a", 5, 5)]) == Shares({"a": 0}, idle=7)


def test_what_can_not_be_divided_goes_to_the_largest_remainders() -> None:
    assert apportion(10, [Fraction(1)] * 3) == [4, 3, 3]
    assert apportion(10, [Fraction(1), Fraction(5)]) == [2, 8]  # 1.67 and 8.33
    assert apportion(1, [Fraction(0), Fraction(1)]) == [0, 1]
    assert apportion(0, [Fraction(0), Fraction(0)]) == [0, 0]


SECONDS = st.floats(0, 1000, allow_nan=False)
STRETCHES = st.builds(lambda a, b: UseInterval(min(a, b), max(a, b)), SECONDS, SECONDS)
USES = st.builds(EndpointUse, st.sampled_from("abcdef"), SECONDS, st.none() | SECONDS)


@given(st.integers(0, 10**15), STRETCHES, st.lists(STRETCHES, max_size=2), st.lists(USES), SECONDS)
def test_shares_idle_and_cold_start_add_up_to_the_cost(
    nano: int, span: UseInterval, cold: list[UseInterval], uses: list[EndpointUse], rest: float
) -> None:
    window = UptimeWindow(span.start, span.stop, tuple(cold), span.stop + rest)
    shares = share_out(nano, window, uses)
    parts = [*shares.tests.values(), shares.idle, shares.cold_start]
    assert sum(parts) == nano
    assert min(parts) >= 0
    assert set(shares.tests) == {use.test for use in uses}


@given(st.integers(0, 10**15), st.lists(st.fractions(0, 10**6), min_size=1))
def test_no_part_is_off_by_a_whole_nano_dollar(whole: int, weights: list[Fraction]) -> None:
    total = sum(weights)
    parts = apportion(whole, weights)
    assert sum(parts) == whole
    if total:
        exact = [whole * weight / total for weight in weights]
        assert all(abs(part - value) < 1 for part, value in zip(parts, exact, strict=True))
