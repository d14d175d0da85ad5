"""Why a call has its price: every source's word, what counts, and what that overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pytest_hfbudget.pricing import FREE, CallRequest, Price, UnpricedPolicy, Usage
from pytest_hfbudget.pricing.book import Explanation, PriceBook, price_from_environment
from pytest_hfbudget.pricing.catalogue import Catalogue, Offer
from pytest_hfbudget.pricing.table import PriceTable, parse_price

MODEL = "org/model"


def usd(amount: object) -> Price:
    return parse_price({"input": amount, "output": amount}, "test")


def said(
    table: Mapping[str, object] | None = None,
    *offers: Offer,
    model: str = MODEL,
    provider: str | None = None,
    **more: Any,
) -> Explanation:
    rows = {name: {"input": price, "output": price} for name, price in (table or {}).items()}
    catalogue = Catalogue({MODEL: offers} if offers else {}, read_at=0.0, origin="test")
    book = PriceBook(PriceTable.parse(rows, "t"), lambda: catalogue, **more)
    return book.explain(CallRequest("conversational", model, provider))


def verdicts(told: Explanation) -> list[tuple[str, str]]:
    return [(word.where, word.verdict) for word in told.prices if word.price]


def test_every_source_speaks_and_the_first_counts() -> None:
    told = said(
        {"*": 6, MODEL: 2, f"{MODEL}:p": 1},
        Offer("p", usd(3)),
        provider="p",
        environment=usd(4),
        unpriced=UnpricedPolicy.parse("assume:5/5"),
    )
    assert verdicts(told) == [
        ('t: ["org/model:p"]', "used"),
        ('t: ["org/model"]', "overridden"),
        ('t: ["*"]', "overridden"),
        ("router catalogue of 1970-01-01: org/model:p", "overridden"),
        ("environment: HUGGINGFACE_*_TOKEN_COST", "overridden"),
        ("--hf-unpriced=assume:5/5", "overridden"),
    ]


def test_the_hook_overrides_every_list() -> None:
    told = said({MODEL: 2}, hook=lambda request: usd(1))
    assert verdicts(told)[:2] == [
        ("hook pytest_hfbudget_price", "used"),
        ('t: ["org/model"]', "overridden"),
    ]


@pytest.mark.parametrize(
    "table",
    [
        {},
        {MODEL: 1},
        {f"{MODEL}:p": 1},
        {"model:q": 1, "*": 2},
        {"*:p": 1},
        {"*": 1},
        {"default": 1},
        {f"{MODEL}:x": 1},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("provider", [None, "p", "q"])
@pytest.mark.parametrize(
    "offers", [(), (Offer("p", usd(5)), Offer("q", None), Offer("r", usd(6)))], ids=["no", "yes"]
)
def test_what_is_said_to_count_is_what_a_call_is_quoted(
    table: dict[str, object], provider: str | None, offers: tuple[Offer, ...]
) -> None:
    told = said(table, *offers, provider=provider, environment=usd(9))
    quoted = set(told.quote.options) if told.quote else set()
    assert {(word.price, word.where) for word in told.used} == quoted


def test_a_free_promotion_says_so() -> None:
    told = said({}, Offer("p", FREE), provider="p")
    assert [(word.price, word.why) for word in told.used] == [(FREE, "a free promotion")]


def test_a_provider_that_is_not_live_is_shown_with_the_price_that_does_not_count() -> None:
    told = said({}, Offer("p", usd(1)), Offer("q", usd(9), live=False, status="staging"))
    (word,) = [word for word in told.prices if word.provider == "q"]
    assert (word.price, word.verdict) == (usd(9), "overridden")
    assert word.why.startswith("staging, not live")


def test_a_provider_without_a_price_is_shown_without_one() -> None:
    told = said({}, Offer("p", None), provider="p")
    assert ("lists it without a price", None) in [(word.why, word.price) for word in told.prices]
    assert told.quote is None


@pytest.mark.parametrize(
    ("offers", "provider", "why"),
    [
        ((), None, "does not list this model"),
        ((Offer("p", None),), "q", "does not list q for it"),
    ],
)
def test_a_model_that_is_not_in_the_catalogue_says_so(
    offers: tuple[Offer, ...], provider: str | None, why: str
) -> None:
    assert why in [word.why for word in said({}, *offers, provider=provider).prices]


def test_a_server_is_asked_of_no_catalogue() -> None:
    told = said({"http://h": 1, "http://h/team": 2}, model="http://h/team/v1", environment=usd(3))
    assert verdicts(told) == [('t: ["http://h/team"]', "used"), ('t: ["http://h"]', "overridden")]


# --- the example of the pricing document that the two variables come from


VARIABLES = {
    "HUGGINGFACE_INPUT_TOKEN_COST": "0.000001",
    "HUGGINGFACE_OUTPUT_TOKEN_COST": "0.000003",
}


def test_a_thousand_tokens_in_and_five_hundred_out_cost_a_quarter_of_a_cent() -> None:
    told = said({}, model="openai/gpt-oss-120b", environment=price_from_environment(VARIABLES))
    assert told.quote is not None
    assert told.quote.cost(Usage(1000, 500))[0] == 2_500_000


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("openai/gpt-oss-120b:groq", "gpt-oss-120b", "default"), "openai/gpt-oss-120b:groq"),
        (("gpt-oss-120b", "default"), "gpt-oss-120b"),
        (("default",), "default"),
        (("default", "*"), "*"),
    ],
)
def test_names_are_tried_from_the_exact_one_to_the_default(
    names: tuple[str, ...], counts: str
) -> None:
    environment = price_from_environment(VARIABLES)
    table = dict.fromkeys(names, 7)
    told = said(table, model="openai/gpt-oss-120b", provider="groq", environment=environment)
    assert [word.where for word in told.used] == [f't: ["{counts}"]']


def test_without_a_row_the_variables_count_and_then_the_estimate() -> None:
    policy = UnpricedPolicy.parse("assume:1/1")
    environment = price_from_environment(VARIABLES)
    assert [w.where for w in said({}, environment=environment, unpriced=policy).used] == [
        "environment: HUGGINGFACE_*_TOKEN_COST"
    ]
    assert [w.where for w in said({}, unpriced=policy).used] == ["--hf-unpriced=assume:1/1"]
