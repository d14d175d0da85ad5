"""What tests owe while they run. The seconds are given; no test waits for them."""

from __future__ import annotations

import pytest

from pytest_hfbudget.endpoints.lifecycle_types import EndpointSummary, UptimeCost
from pytest_hfbudget.endpoints.uptime import UptimeWindow
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.plugin.uptime_booking import Key, UptimeSharing

A, B = Scope("test:a", "a", 100), Scope("test:b", "b")
CLASS = Scope("class:T", "T")


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.open(Scope(SESSION, "session budget"))
    return ledger


@pytest.fixture
def sharing(ledger: Ledger) -> UptimeSharing:
    """A second on ns/llm costs 10 nano-USD, one on ns/other 1."""
    sharing = UptimeSharing(ledger, minute_s=60.0)
    sharing.price("ns/llm", 600)
    sharing.price("ns/other", 60)
    return sharing


def receipt(nano_usd: int, window: UptimeWindow, name: str = "ns/llm") -> EndpointSummary:
    return EndpointSummary(
        name, "paused", True, 0.0, 0.0, True, UptimeCost(1, nano_usd, window=window), None, False
    )


def test_a_test_owes_each_second_that_it_is_on_an_endpoint(
    sharing: UptimeSharing, ledger: Ledger
) -> None:
    sharing.begin(Key("ns/llm", "a"), [A], now=5.0)
    sharing.accrue(now=8.0)
    assert ledger.total("test:a").spent == 30
    sharing.accrue(now=8.01)
    assert ledger.total("test:a").spent == 31  # what has begun is owed
    sharing.end("a", now=9.0)
    sharing.accrue(now=99.0)
    assert sharing.owed_by("a") == ledger.total("test:a").spent == 40


def test_tests_that_are_there_at_one_time_split_each_second(sharing: UptimeSharing) -> None:
    sharing.begin(Key("ns/llm", "a"), [A], now=0.0, worker="gw0")
    sharing.begin(Key("ns/llm", "b"), [B], now=2.0, worker="gw1")
    sharing.end("a", now=6.0, worker="gw0")
    sharing.end("b", now=7.0, worker="gw1")
    assert (sharing.owed_by("a"), sharing.owed_by("b")) == (20 + 20, 20 + 10)


def test_endpoints_are_owed_each_by_itself(sharing: UptimeSharing) -> None:
    sharing.begin(Key("ns/llm", "a"), [A], now=0.0)
    sharing.begin(Key("ns/other", "a"), [A], now=0.0)
    sharing.accrue(now=3.0)
    assert sharing.owed_by("a") == 30 + 3


def test_a_share_is_booked_to_all_budgets_of_the_test_but_not_to_the_session_again(
    sharing: UptimeSharing, ledger: Ledger
) -> None:
    sharing.begin(Key("ns/llm", "a"), [CLASS, A], now=0.0)
    sharing.end("a", now=1.0)
    sharing.begin(Key("ns/llm", "b"), [CLASS, B], now=1.0)
    sharing.end("b", now=3.0)
    spent = [ledger.total(key).spent for key in ("class:T", "test:a", "test:b", SESSION)]
    assert spent == [30, 10, 20, 0]


@pytest.mark.parametrize("nano_usd", [30, 90])
def test_the_end_corrects_what_was_booked(
    sharing: UptimeSharing, ledger: Ledger, nano_usd: int
) -> None:
    sharing.begin(Key("ns/llm", "a"), [A], now=0.0)
    sharing.end("a", now=4.0)
    shares = sharing.settle([receipt(nano_usd, UptimeWindow(0.0, 6.0))])["ns/llm"]
    assert (shares.tests, shares.idle) == ({"a": nano_usd * 4 // 6}, nano_usd * 2 // 6)
    assert ledger.total("test:a").spent == sharing.owed_by("a") == shares.tests["a"]


def test_a_test_that_is_still_there_at_the_end_has_its_share(sharing: UptimeSharing) -> None:
    sharing.begin(Key("ns/llm", "a"), [A], now=2.0)
    shares = sharing.settle([receipt(60, UptimeWindow(0.0, 6.0))])["ns/llm"]
    assert (shares.tests, shares.idle) == ({"a": 40}, 20)


def test_a_worker_ends_only_its_own_runs_of_a_test(sharing: UptimeSharing) -> None:
    sharing.begin(Key("ns/llm", "a"), [A], now=0.0, worker="gw0")
    sharing.begin(Key("ns/llm", "a"), [A], now=0.0, worker="gw1")
    sharing.end("a", now=1.0, worker="gw0")
    sharing.accrue(now=2.0)
    assert sharing.owed_by("a") == 20
    sharing.end("a", now=3.0)
    sharing.accrue(now=9.0)
    assert sharing.owed_by("a") == 30


def test_without_a_known_price_nothing_is_owed(sharing: UptimeSharing, ledger: Ledger) -> None:
    sharing.begin(Key("ns/unpriced", "a"), [A], now=0.0)
    sharing.end("a", now=9.0)
    assert ledger.total("test:a").spent == 0
