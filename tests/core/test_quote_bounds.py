"""The bound before a call: nothing that the call can use costs more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_hfbudget.money import ATTO_PER_NANO
from pytest_hfbudget.pricing import (
    CALL_SECONDS,
    FREE,
    CallRequest,
    Price,
    Quote,
    UnboundedCallError,
    Usage,
    split_model,
)

quick = settings(max_examples=100, deadline=None, database=None)

TASKS = ("conversational", "text-generation", "feature-extraction", "text-to-image")
OTHERS = ("automatic-speech-recognition", "text-to-speech", "text-to-video", "summarization")

rates = st.integers(0, 10**15)
maybe = st.none() | rates
any_price = st.builds(
    Price, input=maybe, output=maybe, cached=maybe, call=maybe, image=maybe, second=maybe
) | st.just(FREE)
token_prices = st.builds(Price, input=rates, output=rates, cached=maybe, call=maybe)
any_request = st.builds(
    CallRequest,
    task=st.sampled_from(TASKS + OTHERS),
    model=st.just("org/model"),
    input_bound=st.integers(0, 10**6),
    n=st.integers(1, 4),
    timeout=st.none() | st.floats(0.001, 1000),
)


def request(task: str = "conversational", **more: Any) -> CallRequest:
    return CallRequest(task=task, model="org/model", **{"input_bound": 1000, **more})


def quote_of(*prices: Price) -> Quote:
    return Quote(tuple((price, f"source {n}") for n, price in enumerate(prices)))


@st.composite
def usage_within(draw: st.DrawFn, asked: CallRequest, output: int) -> Usage:
    """Anything that a request of this bound can come to use."""
    tokens_in = draw(st.integers(0, asked.input_bound))
    # A stream's time-out limits each pause, not the whole call.
    longest = CALL_SECONDS if asked.stream else asked.timeout or CALL_SECONDS
    return Usage(
        input_tokens=tokens_in,
        output_tokens=draw(st.integers(0, output * asked.n)) if asked.generates else 0,
        cached_tokens=draw(st.integers(0, tokens_in)),
        images=draw(st.integers(0, asked.n)) if asked.task.endswith("to-image") else 0,
        microseconds=draw(st.integers(0, int(longest * 10**6))),
    )


@quick
@given(st.data(), any_request, st.lists(any_price, min_size=1, max_size=4), st.integers(0, 10**5))
def test_no_call_costs_more_than_its_bound_at_any_provider(
    data: st.DataObject, asked: CallRequest, prices: list[Price], output: int
) -> None:
    quote = quote_of(*prices)
    try:
        most = quote.most(asked, output)
    except UnboundedCallError:
        assume(False)
    used = data.draw(usage_within(asked, output))
    cost, source = quote.cost(used)
    assert cost <= most
    assert all(price.cost(used) <= cost for price in prices)
    assert source in {f"source {n}" for n, price in enumerate(prices) if price.cost(used) == cost}


@quick
@given(
    st.lists(token_prices, min_size=1, max_size=4),
    st.integers(0, 10**9),
    st.integers(0, 10**6),
    st.integers(1, 4),
)
def test_the_output_that_an_amount_pays_for_is_the_most_that_it_pays_for(
    prices: list[Price], amount: int, input_bound: int, n: int
) -> None:
    quote, asked = quote_of(*prices), request(input_bound=input_bound, n=n)
    limit = quote.affordable_output(asked, amount)
    if limit is None:
        assert not any(price.output for price in prices)
    elif quote.most(asked, 0) <= amount:
        assert quote.most(asked, limit) <= amount < quote.most(asked, limit + 1)
    else:
        assert limit == 0


@pytest.mark.parametrize("price", [FREE, Price(call=1), Price(input=1, output=0)])
def test_output_that_costs_nothing_needs_no_limit(price: Price) -> None:
    assert quote_of(price).affordable_output(request(), 1) is None


def test_where_the_input_is_too_expensive_no_output_is_paid_for() -> None:
    quote = quote_of(Price(input=ATTO_PER_NANO, output=0), Price(input=0, output=1))
    assert quote.affordable_output(request(input_bound=10), 9) == 0


def test_the_limit_holds_for_the_most_expensive_of_several() -> None:
    cheap, expensive = (Price(input=0, output=rate * ATTO_PER_NANO) for rate in (1, 10))
    assert quote_of(cheap, expensive, FREE).affordable_output(request(), 100) == 10


def test_answers_that_were_asked_for_together_share_what_there_is() -> None:
    price = Price(input=0, output=ATTO_PER_NANO)
    assert quote_of(price).affordable_output(request(n=3), 100) == 33


def test_cached_input_that_a_table_makes_more_expensive_counts_in_the_bound() -> None:
    price = Price(input=ATTO_PER_NANO, output=0, cached=5 * ATTO_PER_NANO)
    assert quote_of(price).most(request(input_bound=10), 0) == 50


def test_cached_input_is_never_a_discount_before_the_call() -> None:
    price = Price(input=5 * ATTO_PER_NANO, output=0, cached=ATTO_PER_NANO)
    assert quote_of(price).most(request(input_bound=10), 0) == 50


@pytest.mark.parametrize(
    ("task", "price"),
    [
        ("conversational", Price(image=1)),
        ("conversational", Price(second=0)),
        ("conversational", Price(input=1)),
        ("conversational", Price(output=1)),
        ("text-generation", Price(input=1)),
        ("text-generation", Price(output=1, cached=1)),
        ("feature-extraction", Price(output=1)),
        ("feature-extraction", Price(image=1)),
        ("text-to-image", Price(input=1, output=1)),
        ("text-to-image", Price(second=0)),
        ("text-to-speech", Price(input=1, output=1)),
        ("automatic-speech-recognition", Price(input=1)),
        ("text-to-video", Price(image=1)),
    ],
)
def test_a_price_that_says_nothing_about_a_task_does_not_bound_it(task: str, price: Price) -> None:
    with pytest.raises(UnboundedCallError, match=f"org/model does not bound a {task} call"):
        quote_of(price).most(request(task), 1)


@pytest.mark.parametrize(
    ("task", "price"),
    [
        ("conversational", Price(input=1, output=1)),
        ("conversational", Price(call=1)),
        ("conversational", Price(input=1, output=1, second=0)),
        ("feature-extraction", Price(input=1)),
        ("text-to-image", Price(image=1)),
        ("text-to-image", Price(call=1)),
        ("text-to-speech", Price(call=1)),
        ("text-to-speech", FREE),
    ],
)
def test_a_price_that_covers_a_task_bounds_it(task: str, price: Price) -> None:
    assert quote_of(price).most(request(task), 1) == (0 if price.free else 1)


def test_one_price_that_bounds_nothing_leaves_the_whole_quote_without_a_bound() -> None:
    with pytest.raises(UnboundedCallError):
        quote_of(Price(call=1), Price(input=1)).most(request("text-to-speech"), 1)


CENT_A_SECOND = Price(second=ATTO_PER_NANO * 10**7)


@pytest.mark.parametrize(
    ("asked", "price", "seconds"),
    [
        (request(), CENT_A_SECOND, CALL_SECONDS),
        (request(timeout=20.0), CENT_A_SECOND, 20),
        (request(timeout=0.5), CENT_A_SECOND, 0.5),
        (request(), replace(CENT_A_SECOND, longest=7 * 10**6), 7),
        (request(timeout=20.0), replace(CENT_A_SECOND, longest=7 * 10**6), 7),
        (request(timeout=2.0), replace(CENT_A_SECOND, longest=7 * 10**6), 2),
        (request(timeout=2.0, stream=True), CENT_A_SECOND, CALL_SECONDS),
        (request("automatic-speech-recognition"), CENT_A_SECOND, CALL_SECONDS),
    ],
)
def test_a_price_by_the_second_is_bound_by_the_time_that_a_call_may_take(
    asked: CallRequest, price: Price, seconds: float
) -> None:
    assert quote_of(price).most(asked, 1) == seconds * 10**7


def test_seconds_are_paid_before_output_is() -> None:
    price = replace(CENT_A_SECOND, input=0, output=ATTO_PER_NANO)
    assert quote_of(price).affordable_output(request(timeout=1.0), 10**7 + 5) == 5


@quick
@given(
    st.lists(token_prices, min_size=1, max_size=4),
    st.integers(0, 4000),
    st.integers(1, 3000),
    st.integers(1, 4),
    st.data(),
)
def test_nothing_that_fits_into_the_context_costs_more_than_a_full_one(
    prices: list[Price], input_bound: int, context: int, n: int, data: st.DataObject
) -> None:
    quote, asked = quote_of(*prices), request(input_bound=input_bound, n=n)
    prompt = data.draw(st.integers(0, min(input_bound, context)))
    cached = data.draw(st.integers(0, prompt))
    used = Usage(prompt, n * (context - prompt), cached_tokens=cached)
    assert quote.cost(used)[0] <= quote.most_within(asked, context)


def test_a_quote_is_free_only_if_every_price_is() -> None:
    assert quote_of(FREE, FREE).free
    assert not quote_of(FREE, Price(call=0)).free


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/model", ("org/model", None)),
        ("org/model:novita", ("org/model", "novita")),
        ("org/model:fastest", ("org/model", None)),
        ("org/model:cheapest", ("org/model", None)),
        ("http://localhost:8080", ("http://localhost:8080", None)),
    ],
)
def test_a_provider_is_split_from_the_name_of_a_model(
    name: str, expected: tuple[str, str | None]
) -> None:
    assert split_model(name) == expected
