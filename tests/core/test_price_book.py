"""The price book: every place is asked in order, and the router's freedom is paid for before."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.pricing import CallRequest, Price, Quote, UnpricedPolicy, Usage
from pytest_hfbudget.pricing.book import PriceBook, price_from_environment, toml_hint
from pytest_hfbudget.pricing.catalogue import Catalogue, Offer
from pytest_hfbudget.pricing.table import PriceTable, parse_price

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODEL = "org/model"
INPUT, OUTPUT = "HUGGINGFACE_INPUT_TOKEN_COST", "HUGGINGFACE_OUTPUT_TOKEN_COST"


def tokens(input_usd: object, output_usd: object | None = None) -> Price:
    """USD per 1M tokens."""
    return parse_price({"input": input_usd, "output": output_usd or input_usd}, "test")


def request(provider: str | None = None, **more: Any) -> CallRequest:
    values = {"task": "conversational", "model": MODEL, "input_bound": 100, "max_output": 50}
    return CallRequest(**{**values, "provider": provider, **more})


def listing(*offers: Offer) -> Catalogue:
    return Catalogue({MODEL: offers}, read_at=0.0, origin="test")


def rows(**priced: object) -> PriceTable:
    """Rows by name; a number is USD per 1M tokens, both ways."""
    written = {name: {"input": usd, "output": usd} for name, usd in priced.items()}
    return PriceTable.parse(written, "t")


def book(table: Mapping[str, object] | None = None, *offers: Offer, **more: Any) -> PriceBook:
    catalogue = listing(*offers)
    return PriceBook(rows(**(table or {})), lambda: catalogue, **more)


def sources(quote: Quote | None) -> list[str]:
    return sorted({source for _, source in quote.options}) if quote else []


# --- the order


EXPLICIT = Quote.of(tokens(1), "marker")
HOOK = "hook pytest_hfbudget_price"
TABLE = 't: ["org/model"]'
CATALOGUE = "router catalogue of 1970-01-01: org/model:p"
ENVIRONMENT = "environment: HUGGINGFACE_*_TOKEN_COST"
POLICY = "--hf-unpriced=assume:6/6"


@pytest.mark.parametrize(
    ("missing", "expected"),
    [(0, "marker"), (1, HOOK), (2, TABLE), (3, CATALOGUE), (4, ENVIRONMENT), (5, POLICY), (6, "")],
)
@pytest.mark.parametrize("provider", ["p", None])
def test_the_first_place_that_has_a_price_wins(
    provider: str | None, missing: int, expected: str
) -> None:
    known = PriceBook(
        hook=(lambda request: tokens(2)) if missing < 2 else None,
        table=rows(**{MODEL: 3}) if missing < 3 else PriceTable(),
        load_catalogue=lambda: listing(Offer("p", tokens(4) if missing < 4 else None)),
        environment=tokens(5) if missing < 5 else None,
        unpriced=UnpricedPolicy.parse("assume:6/6" if missing < 6 else "refuse"),
    )
    quote = known.quote(request(provider), EXPLICIT if missing < 1 else None)
    assert sources(quote) == [expected] * bool(expected)


def test_a_hook_that_has_no_answer_is_passed_over() -> None:
    known = book({MODEL: 3}, hook=lambda request: None)
    assert sources(known.quote(request())) == [TABLE]


def test_a_hook_sees_the_request() -> None:
    seen: list[CallRequest] = []
    book(hook=seen.append).quote(request("p"))
    assert seen == [request("p")]


def test_a_free_price_is_a_price() -> None:
    quote = book({}, hook=lambda request: Price(free=True)).quote(request())
    assert quote is not None
    assert quote.free


def test_the_catalogue_is_loaded_once_and_only_when_it_is_asked() -> None:
    loads: list[None] = []

    def load() -> Catalogue:
        loads.append(None)
        return listing()

    known = PriceBook(rows(**{MODEL: 1}), load)
    known.quote(request("p"))
    assert not loads
    known.quote(request())
    known.quote(request())
    assert len(loads) == 1


def test_the_policy_of_free_is_named_as_the_source() -> None:
    quote = book(unpriced=UnpricedPolicy.parse("free")).quote(request())
    assert sources(quote) == ["--hf-unpriced=free"]
    assert quote is not None
    assert quote.free


@pytest.mark.parametrize("text", ["", "Free", "assume", "assume:1", "assume:1/2/3", "assume:a/b"])
def test_an_unknown_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--hf-unpriced={text}: "):
        UnpricedPolicy.parse(text)


# --- servers and endpoints


def test_a_server_gets_no_price_of_the_environment() -> None:
    known = book(environment=tokens(5))
    assert known.quote(request(model="http://localhost:8080", url="http://localhost:8080")) is None


def test_a_server_gets_the_price_of_its_row() -> None:
    known = book({"http://localhost:80": 1, "http://localhost:8080": 2, "*": 3})
    quote = known.quote(request(model="http://localhost:8080/v1"))
    assert sources(quote) == ['t: ["http://localhost:8080"]']


def test_a_call_to_a_leased_endpoint_costs_its_uptime_only() -> None:
    known = book({"*": 1}, hook=lambda request: tokens(2), leased={"https://e.example": "acme/e"})
    for url in ("https://e.example", "https://e.example/v1/chat/completions"):
        quote = known.quote(request(url=url, model=url), EXPLICIT)
        assert sources(quote) == ["uptime of acme/e"]
        assert quote is not None
        assert quote.free


@pytest.mark.parametrize("url", ["https://e.example:8080/v1", "https://e.examples/v1", ""])
def test_a_call_to_something_else_is_not_taken_for_a_leased_endpoint(url: str) -> None:
    known = book(leased={"https://e.example": "acme/e", "": "without a URL yet"})
    assert known.quote(request(url=url)) is None


# --- the router chooses


def most(quote: Quote | None, asked: CallRequest) -> int:
    assert quote is not None
    return quote.most(asked, asked.max_output or 0)


def test_a_call_that_anyone_may_answer_is_bounded_by_the_most_expensive() -> None:
    known = book({}, Offer("p", tokens(1, 20)), Offer("q", tokens(5, 2)), Offer("r", None))
    auto = known.quote(request())
    assert most(auto, request()) == 100 * 1_000 + 50 * 20_000  # p: expensive answers
    assert most(auto, request(max_output=1)) == 100 * 5_000 + 1 * 2_000  # q: expensive input


def test_a_provider_that_is_not_live_does_not_count() -> None:
    known = book({}, Offer("p", tokens(1)), Offer("q", tokens(99), live=False))
    assert sources(known.quote(request())) == [CATALOGUE]
    assert known.quote(request("q")) is None


def test_a_call_is_settled_at_the_provider_that_answered() -> None:
    known = book({}, Offer("p", tokens(1)), Offer("q", tokens(2)))
    used = Usage(input_tokens=10)
    quotes = {provider: known.quote(request(provider)) for provider in ("p", "q")}
    assert {key: quote.cost(used)[0] for key, quote in quotes.items() if quote} == {
        "p": 10_000,
        "q": 20_000,
    }


def test_a_provider_that_is_not_listed_has_no_price() -> None:
    assert book({}, Offer("p", tokens(1))).quote(request("q")) is None


TABLES: list[dict[str, object]] = [
    {"org/model": 1, "org/model:p": 9},
    {"org/model": 9, "org/model:p": 1},
    {"model": 1, "model:p": 9},
    {"model": 1, "org/model:q": 9},
    {"*": 1, "org/model:p": 9},
    {"*": 1, "*:p": 9},
    {"org/model": 1, "*:p": 9},
    {"org/model:p": 9, "*:q": 20},
    {"*:p": 9},
    {"*:q": 9, "*": 1},
]


@pytest.mark.parametrize("table", TABLES, ids=" ".join)
@pytest.mark.parametrize(
    "offers", [(), (Offer("p", tokens(5)), Offer("q", tokens(6)))], ids=["unlisted", "listed"]
)
@pytest.mark.parametrize("provider", ["p", "q"])
def test_no_provider_that_may_answer_is_more_expensive_than_what_was_held(
    table: dict[str, object], offers: tuple[Offer, ...], provider: str
) -> None:
    known = book(table, *offers)
    held = known.quote(request())
    settled = known.quote(request(provider))
    if held is not None and settled is not None:
        assert most(settled, request()) <= most(held, request())


def test_a_row_of_the_model_itself_is_the_price_at_any_provider() -> None:
    known = book({"org/model": 1}, Offer("p", tokens(9)))
    assert sources(known.quote(request())) == sources(known.quote(request("p"))) == [TABLE]


def test_a_row_of_one_provider_leaves_the_others_at_their_listed_price() -> None:
    known = book({"org/model:q": 1}, Offer("p", tokens(9)), Offer("q", tokens(5)))
    assert sources(known.quote(request())) == [CATALOGUE, 't: ["org/model:q"]']


def test_a_row_that_names_the_model_counts_though_its_provider_is_not_listed() -> None:
    known = book({"org/model:p": 9}, Offer("q", tokens(1)))
    assert most(known.quote(request()), request()) == most(known.quote(request("p")), request())


def test_a_row_of_a_provider_that_does_not_serve_the_model_does_not_count() -> None:
    known = book({"*:elsewhere": 99}, Offer("p", tokens(1)))
    assert sources(known.quote(request())) == [CATALOGUE]


# --- the environment


@pytest.mark.parametrize("environ", [{}, {INPUT: ""}, {INPUT: "", OUTPUT: ""}])
def test_an_environment_that_says_nothing_has_no_price(environ: dict[str, str]) -> None:
    assert price_from_environment(environ) is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({INPUT: "0.000002", OUTPUT: "0.000005"}, tokens(2, 5)),
        ({INPUT: "0.000002"}, tokens(2, 3)),
        ({OUTPUT: "5e-6", INPUT: ""}, tokens(1, 5)),
        ({INPUT: "0", OUTPUT: "0"}, Price(input=0, output=0)),
    ],
)
def test_the_environment_names_usd_per_single_token(
    environ: dict[str, str], expected: Price
) -> None:
    assert price_from_environment(environ) == expected


@pytest.mark.parametrize("name", [INPUT, OUTPUT])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "cheap", "1e13"])
def test_a_wrong_price_in_the_environment_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: '{value}' is "):
        price_from_environment({name: value})


# --- the hint


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request("novita"),
        request(task="text-generation"),
        request("hf-inference", task="feature-extraction", max_output=None),
        request("fal-ai", task="text-to-image", max_output=None),
        request("fal-ai", task="image-to-image", max_output=None),
        request("hf-inference", task="automatic-speech-recognition", max_output=None),
        request("fal-ai", task="text-to-video", max_output=None),
        request(model="gpt2"),
        request(model='od"d\\name\twith:colon'),
        request(model="http://localhost:8080/v1/chat/completions"),
        request(model="https://a.example"),
    ],
    ids=lambda asked: f"{asked.model} {asked.task}",
)
def test_the_hint_gives_the_request_a_price_that_bounds_it(asked: CallRequest) -> None:
    hint = toml_hint(asked)
    known = PriceBook(PriceTable.parse(tomllib.loads(hint.replace("0.00", "0.25")), "pasted"))
    quote = known.quote(asked)
    assert quote is not None
    assert quote.free or quote.most(asked, asked.max_output or 0) >= parse_rate("0.25") // 10**16
