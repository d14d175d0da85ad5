"""The ledger's counts are the server's own, and those of a recount with the tokenizer."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from pytest_hfbudget import budget

if TYPE_CHECKING:
    from conftest import RealServer, Recount

pytestmark = pytest.mark.real_server

MESSAGES = [
    {"role": "system", "content": "Count every token."},
    {"role": "user", "content": "What does the stream cost? Ça coûte 3 €."},
]
TERMS: dict[str, Any] = {
    "max_usd": 1,
    "price_per_1k_tokens": {"input": 0.001, "output": 0.002},
}
WITH_USAGE: Any = {"include_usage": True}
SAY_NOTHING: Any = {"1": 1000.0}  # token 1 is </s>


def counts(counted: Any) -> tuple[int, int]:
    """Input and output tokens of a charge of the ledger or of a usage of the server."""
    if hasattr(counted, "prompt_tokens"):
        return counted.prompt_tokens, counted.completion_tokens
    return counted.input_tokens, counted.output_tokens


def cost(tokens: tuple[int, int]) -> int:
    """Nano-USD: $0.001 and $0.002 per 1000 tokens are 1000 and 2000 nano-USD a token."""
    return tokens[0] * 1000 + tokens[1] * 2000


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def said(chunks: list[Any]) -> list[tuple[Any, ...]]:
    """What a caller reads in the chunks, whatever becomes of their usage."""
    return [
        (
            len(chunk.choices),
            *((c.delta.role, c.delta.content, c.finish_reason) for c in chunk.choices),
        )
        for chunk in chunks
    ]


def test_a_charge_equals_the_answers_usage_and_a_recount(
    client: InferenceClient, real_server: RealServer, recount: Recount
) -> None:
    with budget(**TERMS) as b:
        answer = client.chat_completion(MESSAGES, model=real_server.model, max_tokens=12)

    (charge,) = b.calls
    text = answer.choices[0].message.content
    assert counts(charge) == counts(answer.usage)
    assert counts(charge) == (recount.prompt(MESSAGES), recount.text(text))
    assert charge.estimated is False


def test_a_charge_costs_its_tokens_to_the_nano_dollar(
    client: InferenceClient, real_server: RealServer, recount: Recount
) -> None:
    with budget(**TERMS) as b:
        client.chat_completion(MESSAGES, model=real_server.model, max_tokens=12)

    (charge,) = b.calls
    assert charge.nano_usd == cost((recount.prompt(MESSAGES), 12))
    assert b.spent == Decimal(charge.nano_usd) / 10**9


def test_the_openai_spelling_of_the_call_is_charged_once(
    client: InferenceClient, real_server: RealServer
) -> None:
    with budget(**TERMS) as b:
        answer = client.chat.completions.create(MESSAGES, model=real_server.model, max_tokens=5)

    (charge,) = b.calls
    assert counts(charge) == counts(answer.usage)


def test_an_end_token_is_charged_though_it_shows_no_text(
    client: InferenceClient, real_server: RealServer, recount: Recount
) -> None:
    with budget(**TERMS) as b:
        client.chat_completion(
            MESSAGES, model=real_server.model, max_tokens=9, logit_bias=SAY_NOTHING
        )

    (charge,) = b.calls
    assert counts(charge) == (recount.prompt(MESSAGES), 1)


def test_a_stream_is_charged_its_usage_though_its_caller_did_not_ask_for_it(
    client: InferenceClient, real_server: RealServer, recount: Recount
) -> None:
    asked: dict[str, Any] = {"model": real_server.model, "max_tokens": 7}
    with budget(**TERMS) as b:
        chunks = list(client.chat_completion(MESSAGES, stream=True, **asked))
    twin = client.chat_completion(MESSAGES, **asked)

    (charge,) = b.calls
    assert counts(charge) == counts(twin.usage)
    assert counts(charge) == (recount.prompt(MESSAGES), recount.text(text_of(chunks)))
    assert charge.nano_usd == cost(counts(twin.usage))
    assert charge.estimated is False


def test_a_metered_stream_gives_its_caller_every_chunk_that_an_unmetered_one_gives(
    client: InferenceClient, real_server: RealServer
) -> None:
    # This server puts the usage on the finish chunk: to swallow that would lose the finish.
    asked: dict[str, Any] = {"model": real_server.model, "max_tokens": 7, "stream": True}
    unmetered = list(client.chat_completion(MESSAGES, **asked))
    with budget(**TERMS):
        metered = list(client.chat_completion(MESSAGES, **asked))

    assert said(metered) == said(unmetered)
    assert metered[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("include", [True, False])
def test_a_stream_whose_caller_set_include_usage_is_charged_the_same(
    client: InferenceClient, real_server: RealServer, recount: Recount, include: bool
) -> None:
    options: Any = {"include_usage": include}
    with budget(**TERMS) as b:
        chunks = list(
            client.chat_completion(
                MESSAGES,
                model=real_server.model,
                max_tokens=7,
                stream=True,
                stream_options=options,
            )
        )

    (charge,) = b.calls
    assert counts(charge) == (recount.prompt(MESSAGES), recount.text(text_of(chunks)))
    assert charge.estimated is False


def test_a_caller_that_asked_for_the_usage_still_reads_it(
    client: InferenceClient, real_server: RealServer
) -> None:
    with budget(**TERMS) as b:
        *_, last = client.chat_completion(
            MESSAGES,
            model=real_server.model,
            max_tokens=7,
            stream=True,
            stream_options=WITH_USAGE,
        )

    (charge,) = b.calls
    assert counts(charge) == counts(last.usage)


def test_a_stream_that_is_closed_early_is_charged_no_less_than_what_was_read(
    client: InferenceClient, real_server: RealServer, recount: Recount
) -> None:
    with budget(**TERMS) as b:
        stream: Any = client.chat_completion(
            MESSAGES, model=real_server.model, max_tokens=500, stream=True
        )
        read = [next(stream) for _ in range(4)]
        stream.close()

    (charge,) = b.calls
    assert charge.estimated is True
    # Money, not tokens: it is unknown how many there were, only what they cost at the most.
    assert charge.nano_usd is not None
    assert charge.nano_usd >= cost((recount.prompt(MESSAGES), recount.text(text_of(read))))


def test_a_call_that_the_server_refuses_costs_nothing(client: InferenceClient) -> None:
    with budget(**TERMS) as b, pytest.raises(HfHubHTTPError):
        client.chat_completion(MESSAGES, model="acme/missing", max_tokens=3)

    assert b.spent == 0


def test_several_calls_add_up_to_the_sum_of_their_usages(
    client: InferenceClient, real_server: RealServer
) -> None:
    with budget(**TERMS) as b:
        answers = [
            client.chat_completion(MESSAGES, model=real_server.model, max_tokens=length)
            for length in (1, 4, 9)
        ]

    assert [counts(charge) for charge in b.calls] == [counts(answer.usage) for answer in answers]
    assert b.spent == Decimal(sum(cost(counts(answer.usage)) for answer in answers)) / 10**9


def test_an_async_charge_equals_the_answers_usage_and_a_recount(
    real_server: RealServer, recount: Recount
) -> None:
    async def ask() -> Any:
        async with AsyncInferenceClient(base_url=f"{real_server.url}/v1") as client:
            return await client.chat_completion(MESSAGES, model=real_server.model, max_tokens=6)

    with budget(**TERMS) as b:
        answer = asyncio.run(ask())

    (charge,) = b.calls
    text = answer.choices[0].message.content
    assert counts(charge) == counts(answer.usage)
    assert counts(charge) == (recount.prompt(MESSAGES), recount.text(text))
    assert charge.nano_usd == cost(counts(answer.usage))
    assert charge.estimated is False


def test_an_async_stream_is_charged_its_usage_though_its_caller_did_not_ask_for_it(
    client: InferenceClient, real_server: RealServer, recount: Recount
) -> None:
    asked: dict[str, Any] = {"model": real_server.model, "max_tokens": 6, "stream": True}

    async def ask() -> list[Any]:
        async with AsyncInferenceClient(base_url=f"{real_server.url}/v1") as async_client:
            stream = await async_client.chat_completion(MESSAGES, **asked)
            return [chunk async for chunk in stream]

    with budget(**TERMS) as b:
        metered = asyncio.run(ask())
    unmetered = list(client.chat_completion(MESSAGES, **asked))

    (charge,) = b.calls
    assert said(metered) == said(unmetered)
    assert counts(charge) == counts(unmetered[-1].usage)
    assert counts(charge) == (recount.prompt(MESSAGES), recount.text(text_of(metered)))
    assert charge.estimated is False


def test_async_calls_at_the_same_time_are_each_charged_their_own_usage(
    real_server: RealServer,
) -> None:
    async def ask() -> list[Any]:
        async with AsyncInferenceClient(base_url=f"{real_server.url}/v1") as client:
            calls = [
                client.chat_completion(MESSAGES, model=real_server.model, max_tokens=length)
                for length in (2, 5, 8)
            ]
            return await asyncio.gather(*calls)

    with budget(**TERMS) as b:
        answers = asyncio.run(ask())

    assert sorted(map(counts, b.calls)) == sorted(counts(answer.usage) for answer in answers)
