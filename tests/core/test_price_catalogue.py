"""The router's catalogue: what its rows mean, what is missing from them, and the copy on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.pricing import FREE, Price
from pytest_hfbudget.pricing.catalogue import Catalogue, CatalogueFile, Offer

ORIGIN = "https://router.example"
MODEL = "org/model"
DAY = 1_760_000_000.0  # 9 October 2025


def offer(provider: str = "p", status: str = "live", **more: Any) -> dict[str, Any]:
    return {"provider": provider, "status": status, **more}


def answer(*offers: object, model: str = MODEL) -> dict[str, Any]:
    """The router's answer about one model."""
    row = {"id": model, "object": "model", "created": 1, "owned_by": "org", "providers": [*offers]}
    return {"object": "list", "data": [row]}


def catalogue(*offers: object) -> Catalogue:
    return Catalogue.parse(answer(*offers), read_at=DAY, origin=ORIGIN)


@pytest.mark.parametrize("name", ["cached_input", "cached", "cache_read", "input_cache_read"])
def test_a_rate_for_cached_input_is_read_where_the_list_has_one(name: str) -> None:
    (found,) = catalogue(offer(pricing={"input": 1, "output": 2, name: 0.1})).of(MODEL)
    assert found.price is not None
    assert found.price.cached == parse_rate("0.1", units=10**6)


@pytest.mark.parametrize("rate", [None, 0, -1, "x", True, float("nan"), [], {}])
def test_a_rate_for_cached_input_that_is_none_leaves_that_of_input(rate: object) -> None:
    (found,) = catalogue(offer(pricing={"input": 1, "output": 2, "cached": rate})).of(MODEL)
    assert found.price is not None
    assert (found.price.input, found.price.cached) == (parse_rate("1", units=10**6), None)


def fetching(*offers: object) -> Callable[[str], bytes]:
    return lambda url: json.dumps(answer(*offers)).encode()


@pytest.fixture
def copy(tmp_path: Path) -> CatalogueFile:
    return CatalogueFile(tmp_path / "cache" / "catalogue.json")


# --- rows


def test_an_offer_is_read_with_its_price_per_million_tokens() -> None:
    listed = offer(
        "novita",
        context_length=131_072,
        pricing={"input": 0.02, "output": 0.05},
        supports_tools=False,
        supports_structured_output=False,
        first_token_latency_ms=480.3,
        throughput=58.2,
        is_model_author=False,
    )
    price = Price(input=parse_rate("0.02", units=10**6), output=parse_rate("0.05", units=10**6))
    assert catalogue(listed).of(MODEL) == (Offer("novita", price, True, 131_072),)


def test_an_offer_may_have_nothing_but_a_provider_and_a_status() -> None:
    assert catalogue(offer("hf-inference")).of(MODEL) == (Offer("hf-inference", None),)


@pytest.mark.parametrize("status", ["error", "staging", "offline", None, 1])
def test_an_offer_that_is_not_live_can_not_be_routed_to(status: Any) -> None:
    assert catalogue(offer(status=status), offer("q")).of(MODEL) == (Offer("q", None),)


def test_an_offer_that_is_marked_free_is_free() -> None:
    (only,) = catalogue(offer(is_free=True, pricing={"input": 0, "output": 0})).of(MODEL)
    assert only.price == FREE


@pytest.mark.parametrize("mark", ["true", 1, None, False])
def test_only_a_clear_mark_makes_an_offer_free(mark: Any) -> None:
    (only,) = catalogue(offer(is_free=mark)).of(MODEL)
    assert only.price is None


@pytest.mark.parametrize(
    "pricing",
    [
        None,
        {},
        0.02,
        {"input": 0.02},
        {"output": 0.05},
        {"input": 0, "output": 0},
        {"input": 0.0, "output": "0"},
        {"input": None, "output": 0.05},
        {"input": True, "output": 0.05},
        {"input": "?", "output": 0.05},
        {"input": -0.02, "output": 0.05},
        {"input": float("nan"), "output": 0.05},
        {"input": float("inf"), "output": 0.05},
    ],
)
def test_what_is_no_whole_price_is_no_price(pricing: object) -> None:
    (only,) = catalogue(offer(pricing=pricing)).of(MODEL)
    assert only.price is None


def test_one_side_of_a_price_may_be_nothing() -> None:
    (only,) = catalogue(offer(pricing={"input": 0.1, "output": 0})).of(MODEL)
    assert only.price == Price(input=10**11, output=0)


@pytest.mark.parametrize("row", [None, "p", 3, [], {}, {"status": "live"}, {"provider": None}])
def test_an_offer_without_a_provider_is_left_out(row: object) -> None:
    assert catalogue(row, offer("q")).of(MODEL) == (Offer("q", None),)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"data": None},
        {"data": {}},
        {"data": [None, "x", []]},
        {"data": [{"id": MODEL}]},
        {"data": [{"id": MODEL, "providers": None}]},
        {"data": [{"id": MODEL, "providers": {}}]},
    ],
)
def test_a_row_that_can_not_be_read_has_no_offers(payload: Mapping[str, Any]) -> None:
    assert Catalogue.parse(payload, read_at=DAY, origin=ORIGIN).of(MODEL) == ()


def test_a_model_that_is_not_listed_has_no_offers() -> None:
    assert catalogue(offer()).of("org/other") == ()


def test_prices_carry_the_day_on_which_they_were_read() -> None:
    assert catalogue().source == "router catalogue of 2025-10-09"


# --- the context


def test_the_longest_context_is_that_of_the_widest_provider() -> None:
    both = catalogue(offer("p", context_length=8192), offer("q", context_length=4096))
    assert both.contexts(MODEL, None).longest == 8192
    assert both.contexts(MODEL, "q").longest == 4096


def test_the_shortest_context_is_that_of_the_narrowest_provider() -> None:
    both = catalogue(offer("p", context_length=8192), offer("q", context_length=4096))
    assert both.contexts(MODEL, None).shortest == 4096
    assert both.contexts(MODEL, "p").shortest == 8192


NO_LENGTHS = (None, 0, -1, True, "8192", 8192.0)


@pytest.mark.parametrize("length", NO_LENGTHS)
def test_the_longest_context_is_unknown_where_one_provider_does_not_name_it(
    length: object,
) -> None:
    both = catalogue(offer("p", context_length=8192), offer("q", context_length=length))
    assert both.contexts(MODEL, None).longest is None
    assert both.contexts(MODEL, "p").longest == 8192


@pytest.mark.parametrize("length", NO_LENGTHS)
def test_the_shortest_context_is_that_of_those_who_name_it(length: object) -> None:
    both = catalogue(offer("p", context_length=8192), offer("q", context_length=length))
    assert both.contexts(MODEL, None).shortest == 8192
    assert both.contexts(MODEL, "q").shortest is None


def test_the_context_of_a_provider_that_is_not_live_does_not_count() -> None:
    both = catalogue(offer("p", context_length=1000), offer("q", "error", context_length=9000))
    assert both.contexts(MODEL, None).longest == 1000


def test_the_context_without_offers_is_unknown() -> None:
    known = catalogue(offer("p", context_length=1000))
    assert known.contexts(MODEL, "q").longest is None
    assert known.contexts(MODEL, "q").shortest is None


# --- the copy on disk


def test_what_was_read_from_the_router_is_kept(copy: CatalogueFile) -> None:
    fresh = copy.refresh(ORIGIN, fetching(offer("q", is_free=True)), DAY)
    assert copy.load(ORIGIN) == fresh
    assert fresh.of(MODEL) == (Offer("q", FREE),)
    assert (fresh.read_at, fresh.origin) == (DAY, ORIGIN)


def test_the_router_is_asked_for_its_models(copy: CatalogueFile) -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return b'{"data": []}'

    copy.refresh(ORIGIN + "/", fetch, DAY)
    assert asked == [f"{ORIGIN}/v1/models"]


def test_nothing_is_left_beside_the_copy(copy: CatalogueFile) -> None:
    copy.refresh(ORIGIN, fetching(offer()), DAY)
    copy.refresh(ORIGIN, fetching(offer()), DAY + 1)
    assert list(copy.path.parent.iterdir()) == [copy.path]


def test_a_reader_during_a_refresh_gets_a_whole_copy(copy: CatalogueFile) -> None:
    copy.refresh(ORIGIN, fetching(offer("old")), DAY)
    with copy.path.open("rb") as opened:
        copy.refresh(ORIGIN, fetching(offer("new")), DAY)
        assert json.load(opened)["models"] == answer(offer("old"))


def test_the_copy_of_another_router_is_not_used(copy: CatalogueFile) -> None:
    copy.refresh(ORIGIN, fetching(offer()), DAY)
    assert copy.load("https://elsewhere.example") is None


@pytest.mark.parametrize(
    "reply", [b"", b"<html>", b"\xff", b"[]", b'"x"', b'{"data": {}}', b"[" * 100_000]
)
def test_an_answer_that_is_no_catalogue_leaves_the_copy_as_it_is(
    copy: CatalogueFile, reply: bytes
) -> None:
    kept = copy.refresh(ORIGIN, fetching(offer()), DAY)
    with pytest.raises(ValueError, match=r"Expecting value|decode byte|list of models|too deeply"):
        copy.refresh(ORIGIN, lambda url: reply, DAY + 1)
    assert copy.load(ORIGIN) == kept


def test_a_failed_fetch_leaves_the_copy_as_it_is(copy: CatalogueFile) -> None:
    def fetch(url: str) -> bytes:
        raise OSError("no network")

    kept = copy.refresh(ORIGIN, fetching(offer()), DAY)
    with pytest.raises(OSError, match="no network"):
        copy.refresh(ORIGIN, fetch, DAY + 1)
    assert copy.load(ORIGIN) == kept


def test_no_copy_is_no_catalogue(copy: CatalogueFile) -> None:
    assert copy.load(ORIGIN) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[1]",
        b"{}",
        b'{"origin": "https://router.example"}',
        b'{"origin": "https://router.example", "read_at": 1}',
        b'{"origin": "https://router.example", "read_at": null, "models": {}}',
        b'{"origin": "https://router.example", "read_at": "soon", "models": {}}',
        b'{"origin": "https://router.example", "read_at": NaN, "models": {}}',
        b'{"origin": "https://router.example", "read_at": Infinity, "models": {}}',
        b'{"origin": "https://router.example", "read_at": 1e300, "models": {}}',
        b'{"origin": "https://router.example", "read_at": 1%s, "models": {}}' % (b"0" * 400),
        b'{"origin": "https://router.example", "read_at": 1, "models": []}',
        b'{"origin": "https://router.example", "read_at": 1, "models": "x"}',
        b'{"origin": "https://router.example", "read_at": 1, "models": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_copy_is_no_copy(copy: CatalogueFile, damage: bytes) -> None:
    copy.path.parent.mkdir()
    copy.path.write_bytes(damage)
    assert copy.load(ORIGIN) is None


def test_a_copy_that_is_no_file_is_no_copy(copy: CatalogueFile) -> None:
    copy.path.mkdir(parents=True)
    assert copy.load(ORIGIN) is None
