"""Prices that would have been right, worked out from what runs were billed."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from pytest_hfbudget.history.bills import BilledRun, Suggestion, suggestions
from pytest_hfbudget.pricing import Price, Usage
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.table import PriceTable, parse_price
from pytest_hfbudget.reporting.bill import Bill, Booked

NAME = "org/model:groq"
LISTED = {"input": "1", "output": "2"}
Call = tuple[int, int, int]  # tokens in, tokens out, cached


def price(**row: object) -> Price:
    return parse_price(row, "here")


def billed(calls: Iterable[Call], truth: Price, *, ledger: int = 1, run: str = "run") -> BilledRun:
    """A run of some calls, billed call by call at the true price."""
    calls = list(calls)
    nano = sum(truth.cost(Usage(given, out, cached)) for given, out, cached in calls)
    bill = Bill(
        *(run, f"hfbudget-{run}", 0.0, ledger, len(calls)),
        model="org/model",
        provider="groq",
        booked=Booked(nano, len(calls)),
    )
    return BilledRun(bill, *(sum(call[i] for call in calls) for i in range(3)))


def suggested(*uses: BilledRun, listed: dict[str, str] | None = None) -> Suggestion:
    book = PriceBook(PriceTable.parse({NAME: LISTED if listed is None else listed}, "prices.toml"))
    (found,) = suggestions(uses, book)
    return found


A, B = [(17, 30, 0), (90, 3, 0)], [(500, 1, 0), (7, 7, 0), (33, 1000, 0)]


def test_prices_that_are_right_stay() -> None:
    found = suggested(billed(A, price(**LISTED)))
    assert (found.right, found.exact, found.name) == (True, True, NAME)
    assert found.source == f'prices.toml: ["{NAME}"]'


def test_one_factor_is_found_to_its_last_digit() -> None:
    truth = price(input="1.5", output="3")
    for uses in ([billed(A, truth)], [billed(A, truth), billed(B, truth)]):
        found = suggested(*uses)
        assert (found.price, found.exact, found.right) == (truth, True, False)


def test_two_rates_are_told_apart_by_runs_that_differ() -> None:
    truth = price(input="1", output="3.25")
    found = suggested(billed(A * 40, truth), billed(B * 40, truth))
    assert (found.price, found.exact) == (truth, True)


def test_a_discount_on_cached_input_is_found() -> None:
    truth = price(input="1", output="2", cached="0.25")
    calls = [(800, 20, 640), (300, 5, 0)]
    found = suggested(billed(calls, truth), billed(A, truth))
    assert found.price == truth


def test_calls_and_images_are_scaled_as_well() -> None:
    found = suggested(billed(A, price(call="0.003")), listed={"call": "0.002"})
    assert found.price == price(call="0.003")
    found = suggested(billed(A, price(call="0.009"), ledger=6 * 10**6), listed={"image": "0.003"})
    assert found.price == price(image="0.009")


def test_runs_that_differ_for_no_reason_give_their_mean_and_say_so() -> None:
    found = suggested(
        billed(A, price(input="2", output="4")), billed(A, price(input="4", output="8"))
    )
    assert not found.exact
    assert found.price == price(input="3", output="6")


def test_without_one_listed_price_there_is_nothing_to_compare() -> None:
    (found,) = suggestions([billed(A, price(**LISTED))], PriceBook())
    assert (found.listed, found.price) == (None, None)
    assert suggested(billed(A, price(**LISTED)), listed={"free": True}).listed is None  # type: ignore[dict-item]


RATES = st.decimals(min_value="0.01", max_value="90", places=3).map(str)
CALLS = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 2000), st.just(0)), min_size=1, max_size=9
)


@given(RATES, RATES, st.lists(CALLS, min_size=1, max_size=4))
def test_whatever_is_suggested_as_exact_gives_the_bills_again(
    rate_in: str, rate_out: str, runs: list[list[Call]]
) -> None:
    uses = [billed(calls, price(input=rate_in, output=rate_out)) for calls in runs]
    found = suggested(*uses)
    assert found.price is not None
    if found.exact:
        assert all(use.fits(found.price) for use in uses)
        for use in uses:
            assert use.bill.booked is not None
            cost = found.price.cost(Usage(use.input_tokens, use.output_tokens))
            assert abs(use.bill.booked.nano_usd - cost) <= use.bill.requests


@given(st.decimals(min_value="0.1", max_value="9", places=2), st.lists(CALLS, min_size=1))
def test_a_factor_on_all_rates_always_gives_an_exact_row(
    factor: object, runs: list[list[Call]]
) -> None:
    truth = price(input=str(factor), output=str(2 * factor))  # type: ignore[operator]
    found = suggested(*(billed(calls, truth) for calls in runs))
    assert found.exact
