"""Streams: shown as they are, settled once, whatever becomes of them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterable, Iterable
from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError
from pytest_hfbudget.ledger import Charge


def read(chunks: Iterable[Any]) -> str:
    """The text of a stream, by code that knows no chunk without a choice."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def aread(chunks: AsyncIterable[Any]) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


def only(bench: Bench) -> Charge:
    bench.runtime.meter.drain()
    (charge,) = bench.ledger.charges()
    return charge


STYLES = ["on_request", "finish_chunk", "every_chunk"]


@pytest.mark.parametrize("style", STYLES)
def test_a_stream_is_charged_what_the_invoice_says(bench: Bench, style: str) -> None:
    bench.emulator.client.configure(stream_usage=style)
    bench.cap(1)
    client = bench.client()
    assert len(read(client.chat_completion(say(12), max_tokens=50, stream=True)).split()) == 12
    assert bench.spent == bench.billed > 0
    assert not only(bench).estimated


@pytest.mark.parametrize("style", STYLES)
def test_an_async_stream_is_charged_what_the_invoice_says(bench: Bench, style: str) -> None:
    bench.emulator.client.configure(stream_usage=style)
    bench.cap(1)

    async def main() -> str:
        async with bench.async_client() as client:
            return await aread(await client.chat_completion(say(12), max_tokens=50, stream=True))

    assert len(asyncio.run(main()).split()) == 12
    assert bench.spent == bench.billed > 0


def test_usage_that_the_caller_asked_for_is_shown(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client()
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat_completion(say(12), max_tokens=50, stream=True, stream_options=options)
    )
    assert chunks[-1].choices == []
    told = chunks[-1].usage
    assert told is not None
    assert told.completion_tokens == 12
    assert bench.spent == bench.billed


def test_a_server_that_rejects_the_wish_for_usage_is_asked_again_without(bench: Bench) -> None:
    bench.emulator.client.configure(stream_usage="rejects_options")
    bench.cap(1)
    client = bench.client()
    assert read(client.chat_completion(say(12), max_tokens=50, stream=True))
    assert [charge.status for charge in bench.ledger.charges()] == ["400", "200"]
    assert bench.spent >= bench.billed > 0


def test_a_stream_without_usage_is_charged_at_its_upper_bound(bench: Bench) -> None:
    bench.emulator.client.configure(stream_usage="never")
    bench.cap(1)
    client = bench.client()
    read(client.chat_completion(say(12), max_tokens=50, stream=True))
    assert only(bench).estimated
    assert bench.spent >= bench.billed > 0


def test_a_stream_that_is_closed_early_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client()
    stream = client.chat_completion(say(12), max_tokens=50, stream=True)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("closed", True)
    assert bench.spent >= bench.billed
    assert bench.held == 0


def test_a_stream_that_is_left_by_break_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client()
    for _ in client.chat_completion(say(12), max_tokens=50, stream=True):
        break
    gc.collect()
    assert only(bench).estimated
    assert bench.spent >= bench.billed
    assert bench.held == 0


def test_an_unread_stream_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client()
    client.chat_completion(say(12), max_tokens=50, stream=True)
    gc.collect()
    assert only(bench).estimated
    assert bench.spent >= bench.billed
    assert bench.held == 0


def test_an_async_stream_that_is_closed_early_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> None:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(12), max_tokens=50, stream=True)
            await anext(aiter(stream))
            await stream.aclose()

    asyncio.run(main())
    assert only(bench).estimated
    assert bench.spent >= bench.billed
    assert bench.held == 0


def test_a_caller_who_leaves_after_the_last_word_is_charged_exactly(bench: Bench) -> None:
    bench.emulator.client.configure(stream_usage="finish_chunk")
    bench.cap(1)
    client = bench.client()
    for chunk in client.chat_completion(say(12), max_tokens=50, stream=True):
        if chunk.choices[0].finish_reason:
            break
    gc.collect()
    assert not only(bench).estimated
    assert bench.spent == bench.billed


def test_an_error_inside_a_stream_reaches_the_caller_unchanged(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", error_in_stream_after=3)
    client = bench.client()
    with pytest.raises(Exception) as error:  # noqa: PT011 - huggingface_hub's own
        read(client.chat_completion(say(12), max_tokens=50, stream=True))
    assert type(error.value).__module__.startswith("huggingface_hub")
    assert only(bench).status == "error"
    assert bench.spent >= bench.billed
    assert bench.held == 0


def test_a_stream_that_breaks_off_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", cut_stream_after=3)
    client = bench.client()
    with pytest.raises(Exception):  # noqa: B017, PT011 - each HTTP library has its own
        read(client.chat_completion(say(12), max_tokens=50, stream=True))
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("lost", True)
    assert bench.spent >= bench.billed
    assert bench.held == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_stream_that_runs_into_the_caps_limit_is_a_refusal(bench: Bench, style: str) -> None:
    bench.emulator.client.configure(stream_usage=style)
    bench.prices(emulator__chat={"input": 1, "output": 2})
    bench.cap("0.001")
    client = bench.client()
    with pytest.raises(BudgetExceededError, match="was stopped after"):
        read(client.chat_completion(say(4000), stream=True))
    assert 0 < bench.spent <= 1_000_000
    assert not only(bench).estimated
    assert bench.held == 0


def test_nothing_stays_held_by_a_stream_after_its_test(bench: Bench) -> None:
    bench.cap(1)
    bench.running()
    client = bench.client()
    stream = client.chat_completion(say(12), max_tokens=50, stream=True)
    next(iter(stream))
    bench.runtime.meter.settle_open("test_it")
    assert bench.held == 0
    assert bench.spent >= bench.billed
    assert read(stream), "the stream itself can still be read"
    assert len(bench.ledger.charges()) == 1
