"""Ways to ask the same question, and the answer that a mock gives to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from metering_bench import MODEL, Bench, say

Ask = Callable[..., str]

QUESTION = say(10)
LIMIT = 50
UNHEARD = "acme/unheard-of"  # a model without a known price

# What a provider answers: 9 tokens in, 10 out.
USAGE = {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}
ANSWER: dict[str, Any] = {
    "id": "chat-1",
    "object": "chat.completion",
    "created": 1,
    "model": "emulator/chat",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "As recorded."},
        }
    ],
    "usage": USAGE,
}


def whole(bench: Bench, model: str = MODEL) -> str:
    answer = bench.client(model, provider="groq").chat_completion(QUESTION, max_tokens=LIMIT)
    return str(answer.choices[0].message.content)


def stream(bench: Bench, model: str = MODEL) -> str:
    chunks = bench.client(model, provider="groq").chat_completion(
        QUESTION, max_tokens=LIMIT, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def async_whole(bench: Bench, model: str = MODEL) -> str:
    async def main() -> str:
        async with bench.async_client(model, provider="groq") as client:
            answer = await client.chat_completion(QUESTION, max_tokens=LIMIT)
            return str(answer.choices[0].message.content)

    return asyncio.run(main())


def async_stream(bench: Bench, model: str = MODEL) -> str:
    async def main() -> str:
        async with bench.async_client(model, provider="groq") as client:
            chunks = await client.chat_completion(QUESTION, max_tokens=LIMIT, stream=True)
            return "".join(
                [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
            )

    return asyncio.run(main())


SYNC: tuple[Ask, ...] = (whole, stream)
ASYNC: tuple[Ask, ...] = (async_whole, async_stream)
STREAMS = (stream, async_stream)


def as_events(answer: dict[str, Any]) -> str:
    """The same answer as a stream, with its usage in the last chunk but without any choice."""
    (choice,) = answer["choices"]
    chunk = {key: answer[key] for key in ("id", "created", "model")}
    first = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
    chunks = [{**chunk, "choices": [first]}, {**chunk, "choices": [], "usage": answer["usage"]}]
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"


def body_for(ask: Ask) -> bytes:
    """What a mock has to answer to one of these."""
    return (as_events(ANSWER) if ask in STREAMS else json.dumps(ANSWER)).encode()


def charge(bench: Bench) -> Any:
    """The last one."""
    bench.runtime.meter.drain()
    return bench.ledger.charges()[-1]


def assert_free(bench: Bench, *, before: int = 0) -> None:
    """The last call was a replay: at $0, with its tokens, nothing held for it."""
    last = charge(bench)
    assert (last.replayed, last.nano_usd, last.price_source) == (True, 0, "replayed")
    assert last.output_tokens == 10
    assert (bench.spent, bench.held) == (before, 0)
