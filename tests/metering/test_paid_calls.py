"""What a call costs, held before it is sent and settled after, against the emulator's invoice."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from metering_bench import MODEL, Bench, routed, say

from pytest_hfbudget import BudgetExceededError, UnpricedCallError, budget


def test_a_call_is_charged_what_the_invoice_says(bench: Bench) -> None:
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    assert bench.spent == bench.billed > 0


def test_the_openai_style_method_is_the_same_call(bench: Bench) -> None:
    bench.cap(1)
    bench.client().chat.completions.create(messages=say(10), max_tokens=50)
    assert bench.spent == bench.billed > 0


def test_an_async_call_is_charged_what_the_invoice_says(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> None:
        async with bench.async_client() as client:
            await client.chat_completion(say(10), max_tokens=50)

    asyncio.run(main())
    assert bench.spent == bench.billed > 0


def test_without_a_cap_calls_are_watched(bench: Bench) -> None:
    bench.client().chat_completion(say(10), max_tokens=50)
    assert bench.spent == bench.billed > 0


def test_without_a_cap_nothing_of_a_request_is_changed(bench: Bench) -> None:
    stream = bench.client()
    for _ in stream.chat_completion(say(3), stream=True):
        pass
    (charge,) = bench.ledger.charges()
    assert charge.estimated, "usage was asked for, though the test had not"


def test_a_call_that_could_break_the_cap_is_never_sent(bench: Bench) -> None:
    bench.cap("0.00001")
    with pytest.raises(BudgetExceededError, match=r"session budget: emulator/chat may cost up to"):
        bench.client().chat_completion(say(10), max_tokens=5000)
    assert (bench.sent, bench.spent) == (0, 0)


def test_what_is_held_for_a_call_is_given_back_with_its_answer(bench: Bench) -> None:
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=5000)
    assert bench.held == 0


def test_every_answer_asked_for_is_held_and_charged(bench: Bench) -> None:
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50, n=3)
    (charge,) = bench.ledger.charges()
    assert charge.output_tokens == 30
    assert bench.spent == bench.billed


def test_the_provider_that_answered_is_the_one_that_is_charged(bench: Bench) -> None:
    bench.emulator.client.configure(routing="pin:novita")
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    (charge,) = bench.ledger.charges()
    assert charge.provider == "novita"
    assert charge.price_source.endswith("emulator/chat:novita")
    assert bench.spent == bench.billed


@routed
def test_where_the_provider_is_unknown_the_most_expensive_is_charged(bench: Bench) -> None:
    bench.emulator.client.configure(routing="pin:novita", provider_header=False)
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    (charge,) = bench.ledger.charges()
    assert charge.price_source.endswith("emulator/chat:together")
    assert bench.spent > bench.billed


@routed
@pytest.mark.parametrize("suffix", ["novita", "groq", "cheapest", "fastest"])
def test_a_suffix_of_the_model_is_understood(bench: Bench, suffix: str) -> None:
    bench.cap(1)
    bench.client(f"{MODEL}:{suffix}").chat_completion(say(10), max_tokens=50)
    assert bench.spent == bench.billed > 0


def test_a_named_provider_is_priced_by_the_models_hub_id(bench: Bench) -> None:
    bench.cap(1)
    bench.client(provider="novita").chat_completion(say(10), max_tokens=50)
    (charge,) = bench.ledger.charges()
    assert (charge.model, charge.provider) == (MODEL, "novita")
    assert bench.spent == bench.billed > 0


def test_the_routers_url_as_base_url_is_priced_by_the_model_in_the_call(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client(model=None, base_url=f"{bench.emulator.router}/v1")  # type: ignore[arg-type]
    client.chat.completions.create(model=f"{MODEL}:groq", messages=say(10), max_tokens=50)
    (charge,) = bench.ledger.charges()
    assert (charge.model, charge.provider) == (MODEL, "groq")
    assert bench.spent == bench.billed > 0


def test_an_unknown_price_under_a_cap_is_refused_with_the_lines_to_add(bench: Bench) -> None:
    bench.cap(1)
    with pytest.raises(UnpricedCallError) as refusal:
        bench.client("acme/unheard-of", provider="groq").chat_completion(say(1), max_tokens=5)
    assert '["acme/unheard-of:groq"]\ninput = ' in str(refusal.value)
    assert bench.sent == 0


def test_an_unknown_price_without_a_cap_is_counted_as_unpriced(bench: Bench) -> None:
    bench.client("acme/unheard-of", provider="groq").chat_completion(say(1), max_tokens=5)
    (charge,) = bench.ledger.charges()
    assert charge.nano_usd is None
    assert charge.price_source == "unpriced"


def test_another_task_under_a_cap_is_refused_without_a_price(bench: Bench) -> None:
    bench.cap(1)
    with pytest.raises(UnpricedCallError, match="text-classification"):
        bench.client("emulator/text-classification", provider="hf-inference").text_classification(
            "good"
        )
    assert bench.sent == 0


def test_another_task_is_charged_by_the_call_where_that_is_its_price(bench: Bench) -> None:
    bench.prices(**{"emulator/text-classification": {"call": 0.002}})
    bench.cap("0.005")
    client = bench.client("emulator/text-classification", provider="hf-inference")
    client.text_classification("good")
    client.text_classification("bad")
    with pytest.raises(BudgetExceededError):
        client.text_classification("ugly")
    assert (bench.sent, bench.spent) == (2, 4_000_000)


def test_a_price_in_the_block_goes_before_every_list(bench: Bench) -> None:
    with budget(max_usd=1, price_per_1k_tokens={"input": 0.001, "output": 0.002}) as block:
        answer = bench.client().chat_completion(say(10), max_tokens=50)
    usage = answer.usage
    nano = usage.prompt_tokens * 1000 + usage.completion_tokens * 2000
    assert block.spent == Decimal(nano) / 10**9


def test_a_call_to_a_leased_endpoint_costs_no_tokens(bench: Bench) -> None:
    url = f"{bench.emulator.url}/endpoint/acme/llm"
    bench.emulator.client.add_endpoint("acme/llm", state="running")
    bench.book.leased[url] = "acme/llm"
    bench.cap(1)
    bench.client(url).chat_completion(say(10), max_tokens=50)
    (charge,) = bench.ledger.charges()
    assert (charge.nano_usd, charge.endpoint) == (0, "acme/llm")
    assert charge.price_source == "uptime of acme/llm"


def test_a_server_of_ones_own_needs_a_price_too(bench: Bench) -> None:
    bench.emulator.client.add_endpoint("acme/llm", state="running")
    bench.cap(1)
    with pytest.raises(UnpricedCallError, match=r"free = true"):
        bench.client(f"{bench.emulator.url}/endpoint/acme/llm").chat_completion(say(1))
    assert bench.sent == 0
