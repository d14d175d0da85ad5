"""SpendLimits of pydantic-ai-harness, with the stricter of its two ways with unknown prices."""

import asyncio
from contextlib import nullcontext
from decimal import Decimal

from common import API_KEY, CAP, MAX_TOKENS, MODEL, NAME, PRICES, QUESTION, ROUTER, SHARED, join
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai_harness import SpendLimits
from pydantic_ai_harness.spend import Budget, InMemorySpendStore, RedisSpendStore
from redis.asyncio import Redis

__all__ = ["ask", "ask_async", "budget", "join", "stream", "worker_budget"]
budget = worker_budget = nullcontext


def price(response):
    """The price of an answer; None, which is unknown, when it does not say its usage."""
    if not PRICES or not response.usage.output_tokens:
        return None
    of_prompt, of_answer = map(Decimal, map(repr, PRICES))
    return response.usage.input_tokens * of_prompt + response.usage.output_tokens * of_answer


class RedisOfEachCall:
    """A connection for each operation, since each run of an agent has an event loop of its own."""

    async def hgetall(self, name):
        async with Redis.from_url(SHARED) as redis:
            return await redis.hgetall(name)

    async def eval(self, script, numkeys, *keys_and_args):
        async with Redis.from_url(SHARED) as redis:
            return await redis.eval(script, numkeys, *keys_and_args)


limits = SpendLimits(
    budgets=[Budget(usd=Decimal(CAP), window="day", name=NAME)],
    store=RedisSpendStore(RedisOfEachCall()) if SHARED else InMemorySpendStore(),
    price=price,
    on_unpriced="raise",
)


def agent():
    provider = OpenAIProvider(base_url=ROUTER, api_key=API_KEY)
    model = OpenAIChatModel(MODEL, provider=provider)
    return Agent(model, model_settings={"max_tokens": MAX_TOKENS}, capabilities=[limits])


async def ask_async():
    await agent().run(QUESTION)


def ask():
    asyncio.run(ask_async())


def stream():
    async def read():
        async with agent().run_stream(QUESTION) as result:
            return [text async for text in result.stream_text(delta=True)]

    asyncio.run(read())
