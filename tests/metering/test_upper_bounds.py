"""Where an answer does not tell all that it costs, what is charged is never less than the bill."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from metering_bench import MODEL, Bench, routed, say

from pytest_hfbudget.ledger import Charge


def only(bench: Bench) -> Charge:
    bench.runtime.meter.drain()
    (charge,) = bench.ledger.charges()
    return charge


def left_after(bench: Bench, chunks: int, **options: Any) -> None:
    """Leave a stream that tells its usage in every chunk, at a server that bills all of it."""
    bench.emulator.client.configure(stream_usage="every_chunk", disconnect_bills="full")
    stream: Any = bench.client().chat_completion(say(12), max_tokens=50, stream=True, **options)
    for _ in range(chunks):
        next(stream)
    stream.close()


def test_usage_that_still_grows_says_nothing_of_what_is_billed(bench: Bench) -> None:
    bench.cap(1)
    left_after(bench, 2)
    assert (only(bench).status, only(bench).estimated) == ("closed", True)
    assert bench.spent >= bench.billed > 0


@pytest.mark.parametrize("capped", [True, False])
def test_usage_that_is_told_before_the_answer_is_written_is_not_final(
    bench: Bench, capped: bool
) -> None:
    bench.emulator.client.configure(stream_usage="first_chunk")
    if capped:
        bench.cap(1)
    assert list(bench.client().chat_completion(say(12), max_tokens=50, stream=True))
    assert only(bench).estimated
    assert bench.spent >= bench.billed > 0


def test_usage_is_not_final_before_all_answers_are_written(bench: Bench) -> None:
    bench.cap(1)
    left_after(bench, 13, extra_body={"n": 2})  # the first answer with its end
    assert only(bench).estimated
    assert bench.spent >= bench.billed > 0


def test_usage_is_final_once_all_answers_are_written(bench: Bench) -> None:
    bench.cap(1)
    left_after(bench, 26, extra_body={"n": 2})
    assert not only(bench).estimated
    assert bench.spent == bench.billed > 0


def test_an_answer_without_usage_may_have_been_cached_where_that_is_the_dearer(
    bench: Bench,
) -> None:
    row = {"input": "0.0000001", "output": "1", "cached": "15"}
    bench.emulator.client.add_model(MODEL, provider="groq", price=row)
    bench.emulator.client.configure(usage="never", cached_tokens=10)
    bench.prices(**{MODEL: row})
    bench.cap(1)
    bench.client(provider="groq").chat_completion(say(1), max_tokens=5)
    assert only(bench).estimated
    assert bench.spent >= bench.billed > 0


@routed
def test_the_highest_price_is_an_estimate_where_the_provider_is_unknown(bench: Bench) -> None:
    bench.emulator.client.configure(routing="pin:novita", provider_header=False)
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    assert only(bench).estimated
    assert bench.spent > bench.billed


@routed
def test_a_price_that_all_providers_share_is_no_estimate(bench: Bench) -> None:
    row = {"input": "1", "output": "2"}
    for provider in ("novita", "groq", "together"):
        bench.emulator.client.add_model(MODEL, provider=provider, price=row)
    bench.emulator.client.configure(provider_header=False)
    bench.prices(**{MODEL: row})
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    assert not only(bench).estimated
    assert bench.spent == bench.billed > 0


STREAMED = pytest.mark.parametrize("stream", [False, True])


@STREAMED
def test_an_unreadable_answer_may_have_cost_all_that_was_held(bench: Bench, stream: bool) -> None:
    bench.prices(**{MODEL: {"input": "0.0000001", "output": "1"}})
    bench.emulator.client.add_model(
        MODEL, provider="groq", price={"input": "0.0000001", "output": "1"}
    )
    bench.emulator.client.add_fault("chat", garbage=True)
    bench.cap(1)
    with suppress(ValueError):  # a stream of it shows nothing at all
        client = bench.client(provider="groq")
        list(client.chat_completion(say(200), max_tokens=200, stream=stream))
    assert only(bench).estimated
    assert bench.spent >= bench.billed > 0


def test_an_unreadable_async_stream_may_have_cost_all_that_was_held(
    bench: Bench,
) -> None:
    bench.emulator.client.add_fault("chat", garbage=True)
    bench.cap(1)

    async def main() -> list[Any]:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(100), max_tokens=200, stream=True)
            return [chunk async for chunk in stream]

    assert asyncio.run(main()) == []
    assert (only(bench).status, only(bench).estimated) == ("lost", True)
    assert bench.spent >= bench.billed > 0


def test_a_schema_may_name_several_types(bench: Bench) -> None:
    """JSON Schema allows a list where a message has the word for an image."""
    parameters = {"type": "object", "properties": {"at": {"type": ["string", "null"]}}}
    function = {"name": "look", "parameters": parameters}
    tool: Any = {"type": "function", "function": function}
    bench.cap(1)
    bench.client().chat_completion(say(1), tools=[tool], max_tokens=5)
    assert only(bench).nano_usd == bench.billed > 0
