"""Every end of a stream, of chat and of text generation, sync and async: settled once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget.ledger import Charge

TEXT = "emulator/text-generation"
WORDS = 12


class Kind(NamedTuple):
    """One way to be given a stream: on which model, at which provider, by which call."""

    model: str
    provider: str
    call: Callable[[Any], Any]


def _text(**options: Any) -> Callable[[Any], Any]:
    prompt = f"once [[tokens={WORDS}]]"
    return lambda c: c.text_generation(prompt, max_new_tokens=50, stream=True, **options)


KINDS = [
    pytest.param(
        Kind(
            MODEL,
            "together",
            lambda c: c.chat_completion(say(WORDS), max_tokens=50, stream=True),
        ),
        id="chat",
    ),
    pytest.param(Kind(TEXT, "hf-inference", _text()), id="text"),
    pytest.param(Kind(TEXT, "hf-inference", _text(details=True)), id="details"),
]
each_kind = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("run", ["sync", "async"])

Use = Callable[["Reader"], Any]


class Reader:
    """A stream that is read and closed in the same words, sync or async."""

    def __init__(self, stream: Any, asynchronous: bool) -> None:
        self.stream, self.asynchronous = stream, asynchronous

    async def one(self) -> Any:
        return await anext(self.stream) if self.asynchronous else next(self.stream)

    async def all(self) -> list[Any]:
        if self.asynchronous:
            return [chunk async for chunk in self.stream]
        return list(self.stream)

    async def close(self) -> None:
        if self.asynchronous:
            await self.stream.aclose()
        else:
            self.stream.close()

    async def drop(self) -> None:
        self.stream = None
        gc.collect()
        await asyncio.sleep(0)  # the event loop closes what was collected


def stream(bench: Bench, kind: Kind, run: str, use: Use, **options: Any) -> None:
    """Open a stream, have it used, and leave the client afterwards."""
    row = {"input": "1", "output": "2"}
    bench.emulator.client.add_model(kind.model, provider=kind.provider, price=row)
    bench.prices(**{kind.model: row})
    bench.cap(1)

    async def alone() -> None:
        client = bench.client(kind.model, provider=kind.provider, **options)
        await use(Reader(kind.call(client), asynchronous=False))

    async def asynchronous() -> None:
        async with bench.async_client(kind.model, provider=kind.provider, **options) as client:
            await use(Reader(await kind.call(client), asynchronous=True))

    asyncio.run(alone() if run == "sync" else asynchronous())
    gc.collect()


def only(bench: Bench) -> Charge:
    bench.runtime.meter.drain()
    (sent,) = (e for e in bench.emulator.client.log(phase="arrived") if e["op"] in ("chat", "task"))
    # A client that hangs up may be here sooner than the emulator knows, and bills.
    bench.emulator.client.wait_for(op=sent["op"], phase="answered")
    (charge,) = bench.ledger.charges()
    assert bench.held == 0
    assert bench.spent >= bench.billed > 0
    return charge


@both
@each_kind
def test_a_stream_that_is_read_to_its_end_is_charged_exactly(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        assert len(await reader.all()) >= WORDS

    stream(bench, kind, run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("200", False)
    assert charge.output_tokens == WORDS
    assert bench.spent == bench.billed


@both
@each_kind
def test_a_stream_that_is_closed_is_charged_at_its_hold(bench: Bench, kind: Kind, run: str) -> None:
    async def use(reader: Reader) -> None:
        await reader.one()
        await reader.close()

    stream(bench, kind, run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("closed", True)


@both
@each_kind
def test_a_stream_that_is_dropped_is_charged_at_its_hold(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        await reader.one()
        await reader.drop()

    stream(bench, kind, run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("closed", True)


@both
@each_kind
def test_an_unread_stream_is_charged_at_its_hold(bench: Bench, kind: Kind, run: str) -> None:
    async def use(reader: Reader) -> None:
        await reader.drop()

    stream(bench, kind, run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("closed", True)


@both
@each_kind
def test_an_error_inside_a_stream_is_the_callers_and_is_charged_at_its_hold(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        with pytest.raises(Exception, match="scripted error") as error:
            await reader.all()
        assert type(error.value).__module__.startswith("huggingface_hub")

    bench.emulator.client.add_fault(
        error_in_stream_after=3, path="chat/completions|hf-inference/models"
    )
    stream(bench, kind, run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("error", True)


@both
@each_kind
def test_a_stream_that_breaks_off_is_charged_at_its_hold(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - each HTTP library has its own
            await reader.all()

    bench.emulator.client.add_fault(cut_stream_after=3, path="chat/completions|hf-inference/models")
    stream(bench, kind, run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("lost", True)


@both
@each_kind
def test_a_stream_that_falls_silent_is_charged_at_its_hold(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - each HTTP library has its own
            await reader.all()

    bench.emulator.client.configure(chunk_delay_s=30, disconnect_bills="full")
    stream(bench, kind, run, use, timeout=0.2)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("timeout", True)


@both
@each_kind
def test_a_stream_that_is_left_hangs_up(bench: Bench, kind: Kind, run: str) -> None:
    async def use(reader: Reader) -> None:
        await reader.one()
        await reader.close()
        wait = bench.emulator.client.wait_for
        told = await asyncio.to_thread(wait, kind="disconnect", timeout=10)
        assert told["chunks"] < WORDS

    bench.emulator.client.configure(chunk_delay_s=0.1)
    stream(bench, kind, run, use)
    assert only(bench).status == "closed"


@both
@each_kind
def test_a_stream_that_is_kept_is_settled_with_its_test_and_can_be_read_on(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        await reader.one()
        bench.runtime.meter.settle_open("test_it")
        assert bench.held == 0
        assert len(await reader.all()) >= WORDS - 1

    bench.running()
    stream(bench, kind, run, use)
    assert only(bench).status == "closed"


@both
@each_kind
def test_a_stream_that_tells_no_usage_is_charged_at_its_upper_bound(
    bench: Bench, kind: Kind, run: str
) -> None:
    async def use(reader: Reader) -> None:
        await reader.all()

    bench.emulator.client.configure(stream_usage="never", usage="never")
    stream(bench, kind, run, use)
    assert only(bench).estimated or kind.model == TEXT, "text generation ends with its count"


@both
def test_a_text_generation_stream_without_its_last_event_is_charged_by_its_tokens(
    bench: Bench, run: str
) -> None:
    async def use(reader: Reader) -> None:
        for _ in range(WORDS):
            await reader.one()
        await reader.close()

    stream(bench, Kind(TEXT, "hf-inference", _text()), run, use)
    charge = only(bench)
    assert (charge.status, charge.estimated) == ("closed", False)
    assert charge.output_tokens == WORDS
