"""litellm.max_budget: one cap for the process. Several processes are what its proxy is for."""

from contextlib import nullcontext

import litellm
from common import API_KEY, CAP, MAX_TOKENS, MODEL, PRICES, QUESTION, ROUTER, join

__all__ = ["ask", "ask_async", "budget", "join", "stream", "worker_budget"]
NAME = f"openai/{MODEL}"
ASK = {
    "model": NAME,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": MAX_TOKENS,
    "api_base": ROUTER,
    "api_key": API_KEY,
}
if PRICES:
    costs = dict(zip(("input_cost_per_token", "output_cost_per_token"), PRICES, strict=True))
    entry = {"litellm_provider": "openai", "mode": "chat", **costs}
    litellm.register_model({NAME: entry, MODEL: entry})

litellm.max_budget = float(CAP)
budget = worker_budget = nullcontext


def ask():
    litellm.completion(**ASK)


def stream():
    list(litellm.completion(**ASK, stream=True))


async def ask_async():
    await litellm.acompletion(**ASK)
