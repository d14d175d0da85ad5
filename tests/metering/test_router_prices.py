"""Prices of routed calls, by the emulator's invoice: who may answer is held, who did is charged."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import urlopen

import pytest
from metering_bench import Bench, routed, say

from pytest_hfbudget.errors import BudgetExceededError, UnpricedCallError
from pytest_hfbudget.pricing.catalogue import Catalogue

MODEL = "acme/model"


def offer(provider: str, usd: str | None = None, **more: Any) -> dict[str, Any]:
    pricing = {"pricing": {"input": usd, "output": usd}} if usd else {}
    return {"provider": provider, "context_length": 8192, **pricing, **more}


def listed(bench: Bench, *offers: dict[str, Any]) -> None:
    """Have the router list a model with these offers, and the run read it."""
    bench.emulator.client.add_model(MODEL, providers=list(offers))
    reread(bench)


def reread(bench: Bench) -> None:
    with urlopen(f"{bench.emulator.router}/v1/models") as answer:
        models = json.load(answer)
    bench.know(Catalogue.parse(models, read_at=0.0, origin="emulator"))


def ask(bench: Bench, suffix: str = "") -> None:
    bench.client(f"{MODEL}{suffix}").chat_completion(say(10), max_tokens=50)


@routed
@pytest.mark.parametrize(
    ("suffix", "answers"),
    [("", "groq"), (":fastest", "groq"), (":cheapest", "novita"), (":preferred", "together")],
)
def test_the_provider_that_the_router_chooses_is_charged_to_the_nano_dollar(
    bench: Bench, suffix: str, answers: str
) -> None:
    listed(
        bench,
        offer("novita", "0.1", throughput=10),
        offer("groq", "0.7", throughput=900),
        offer("together", "0.3", throughput=20),
    )
    bench.emulator.client.configure(preferred_providers=["together", "novita"])
    bench.cap(1)
    ask(bench, suffix)
    (charge,) = bench.ledger.charges()
    assert (charge.provider, charge.estimated) == (answers, False)
    assert bench.spent == bench.billed > 0
    assert bench.held == 0


@routed
def test_a_cap_holds_the_price_of_the_most_expensive_live_provider(bench: Bench) -> None:
    listed(bench, offer("novita", "0.1", throughput=900), offer("groq", "1000"))
    bench.cap("0.01")
    with pytest.raises(BudgetExceededError, match=r"may cost up to \$0\."):  # over the cap
        ask(bench)
    assert bench.sent == 0
    ask(bench, ":novita")
    assert bench.spent == bench.billed > 0


@routed
def test_a_dear_provider_that_is_down_is_not_held_for(bench: Bench) -> None:
    listed(bench, offer("novita", "0.1"), offer("groq", "1000", status="error"))
    bench.cap("0.01")
    ask(bench)
    assert bench.spent == bench.billed > 0


@routed
def test_a_provider_without_a_price_that_answers_is_charged_as_the_most_expensive(
    bench: Bench,
) -> None:
    listed(bench, offer("novita", "0.1"), offer("groq", "0.7"), offer("cerebras", throughput=999))
    bench.cap(1)
    ask(bench)
    (charge,) = bench.ledger.charges()
    assert (charge.provider, charge.estimated) == ("cerebras", True)
    assert charge.price_source.endswith("acme/model:groq")
    assert bench.spent > 0


@routed
def test_a_provider_without_a_price_is_refused_under_a_cap_where_it_is_named(bench: Bench) -> None:
    listed(bench, offer("novita", "0.1"), offer("cerebras"))
    bench.cap(1)
    with pytest.raises(UnpricedCallError, match="acme/model:cerebras"):
        ask(bench, ":cerebras")
    assert bench.sent == 0


@routed
def test_a_free_promotion_costs_nothing(bench: Bench) -> None:
    listed(bench, offer("publicai", "0", is_free=True))
    bench.cap(0)
    ask(bench)
    (charge,) = bench.ledger.charges()
    assert (charge.nano_usd, bench.billed) == (0, 0)
    assert charge.price_source == "router catalogue of 1970-01-01: acme/model:publicai"


@routed
def test_a_free_promotion_does_not_make_the_others_free(bench: Bench) -> None:
    listed(bench, offer("publicai", "0", is_free=True, throughput=1), offer("groq", "0.7"))
    bench.emulator.client.configure(routing="pin:groq")
    bench.cap(0)
    with pytest.raises(BudgetExceededError, match="may cost up to"):
        ask(bench)
    assert bench.sent == 0


@routed
def test_a_price_of_nothing_that_is_no_promotion_is_a_gap(bench: Bench) -> None:
    listed(bench, offer("groq", "0"))
    bench.cap(1)
    with pytest.raises(UnpricedCallError, match="no known price"):
        ask(bench)
    assert bench.sent == 0


@routed
def test_a_promotion_that_has_ended_costs_what_is_listed_then(bench: Bench) -> None:
    listed(bench, offer("publicai", "0", is_free=True))
    listed(bench, offer("publicai", "0.4"))
    bench.cap(1)
    ask(bench)
    assert bench.spent == bench.billed > 0


@routed
def test_a_model_that_has_vanished_from_the_catalogue_is_refused_under_a_cap(
    bench: Bench,
) -> None:
    listed(bench, offer("groq", "0.7"))
    bench.emulator.client.reset()
    reread(bench)
    bench.cap(1)
    with pytest.raises(UnpricedCallError, match="acme/model has no known price"):
        ask(bench)
    assert bench.sent == 0


@routed
def test_a_provider_that_went_from_live_to_staging_is_not_trusted_with_its_price(
    bench: Bench,
) -> None:
    listed(bench, offer("groq", "0.7"), offer("novita", "0.1"))
    bench.cap(1)
    ask(bench, ":groq")
    listed(bench, offer("groq", "0.7", status="staging"), offer("novita", "0.1"))
    with pytest.raises(UnpricedCallError, match="acme/model:groq"):
        ask(bench, ":groq")
    assert bench.sent == 1
    assert bench.spent == bench.billed > 0
