"""What a provider says that an answer costs (`usage.estimated_cost`), against list prices."""

from __future__ import annotations

from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import budget
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.settlement import TOLD
from pytest_hfbudget.metering.usage import parse_cost
from pytest_hfbudget.reporting import Report
from pytest_hfbudget.reporting.terminal import summary

MODEL = "acme/told"
PROVIDER = "novita"  # deepinfra is the one that does, but older clients do not know it
LISTED = {"input": "1", "output": "2"}


@pytest.fixture
def client(bench: Bench) -> Any:
    """A client of a provider that bills another price than the project's table says."""
    bill(bench, {"input": "0.5", "output": "1"})
    bench.prices(**{MODEL: LISTED})
    return bench.client(MODEL, provider=PROVIDER)


def bill(bench: Bench, price: dict[str, str]) -> None:
    providers = [{"provider": PROVIDER, "price": price}]
    bench.emulator.client.configure(cost_in_usage=[PROVIDER])
    bench.emulator.client.add_model(MODEL, task="text-generation", providers=providers)


def only(bench: Bench) -> Charge:
    (charge,) = bench.ledger.charges()
    return charge


@pytest.mark.parametrize("style", ["finish_chunk", "on_request", "every_chunk", "whole"])
@pytest.mark.parametrize("cap", [None, "0.01"])
def test_it_wins_over_list_prices_and_says_so(
    bench: Bench, client: Any, style: str, cap: str | None
) -> None:
    if cap:
        bench.cap(cap)
    stream = style != "whole"
    if stream:
        bench.emulator.client.configure(stream_usage=style)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = client.chat_completion(say(10), max_tokens=50, stream=stream, **options)
    if stream:
        list(answer)
    assert bench.spent == bench.billed > 0
    assert (only(bench).price_source, only(bench).estimated) == (TOLD, False)


def test_without_a_list_price_it_is_the_price(bench: Bench) -> None:
    bill(bench, {"input": "0.5", "output": "1"})
    bench.client(MODEL, provider=PROVIDER).chat_completion(say(10), max_tokens=50)
    assert only(bench).nano_usd == bench.billed > 0


def test_a_price_that_a_budget_states_counts_all_the_same(bench: Bench, client: Any) -> None:
    with budget(price=LISTED) as block:
        client.chat_completion(say(10), max_tokens=50)
    assert int(block.spent * 10**9) == 2 * bench.billed
    assert "budget(price" in only(bench).price_source


def test_a_server_of_ones_own_stays_free(bench: Bench, client: Any) -> None:
    bench.prices(**{MODEL: {"free": True}})
    client.chat_completion(say(10), max_tokens=50)
    assert only(bench).nano_usd == 0


def test_a_provider_that_tells_none_is_charged_by_its_list_price(bench: Bench, client: Any) -> None:
    bench.emulator.client.configure(cost_in_usage=[])
    client.chat_completion(say(10), max_tokens=50)
    assert only(bench).nano_usd == 2 * bench.billed


def test_more_than_was_held_is_charged_and_named(bench: Bench, client: Any) -> None:
    bill(bench, {"input": "1000", "output": "1000"})
    bench.cap("0.01")
    client.chat_completion(say(10), max_tokens=50)
    assert only(bench).nano_usd == bench.billed > 10**7
    assert only(bench).over > 0
    report = Report.of(bench.books, 10**7, {})
    assert any("the provider itself says so" in line.text for line in summary(report))


def test_a_stream_that_is_left_early_is_not_exact_by_what_it_told_so_far(
    bench: Bench, client: Any
) -> None:
    bench.emulator.client.configure(stream_usage="every_chunk", disconnect_bills="full")
    bench.cap("0.01")
    stream = client.chat_completion(say(10), max_tokens=50, stream=True)
    next(stream)
    stream.close()
    assert only(bench).estimated
    assert bench.spent >= bench.billed


@pytest.mark.parametrize(
    ("usd", "nano_usd"),
    [
        (0.0000034, 3400),
        (1, 10**9),
        (0.00000000011, 1),
        (0, None),
        (0.0, None),
        (-0.0, None),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
        (10**400, None),
        (True, None),
        ("0.1", None),
        ({"usd": 1}, None),
        ([], None),
    ],
)
def test_only_an_amount_above_zero_counts(usd: object, nano_usd: int | None) -> None:
    assert parse_cost(usd) == nano_usd
