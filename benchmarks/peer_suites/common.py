"""What every tool is given: the model, the question, the cap; and the calls of the openai SDK."""

import os
from pathlib import Path

import openai

CAP = os.environ["PEERS_CAP"]  # USD
MODEL = os.environ["PEERS_MODEL"]
QUESTION = os.environ["PEERS_QUESTION"]
MAX_TOKENS = int(os.environ["PEERS_MAX_TOKENS"])
ROUTER = os.environ["PEERS_ROUTER"]
API_KEY = "hf_peers"
# USD per token of prompt and answer; none where the price is to be unknown.
PRICES = [float(usd) / 1e6 for usd in os.environ["PEERS_PRICES"].split()]
# A Redis database where several processes are to share the cap, and what this run calls its cap.
SHARED = os.environ["PEERS_REDIS"] if os.environ["PEERS_SEVERAL"] else ""
REDIS = os.environ["PEERS_REDIS"]
NAME = Path.cwd().name

_ASK = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": MAX_TOKENS}


def ask():
    with openai.OpenAI(base_url=ROUTER, api_key=API_KEY) as client:
        client.chat.completions.create(model=MODEL, **_ASK)


def stream():
    with openai.OpenAI(base_url=ROUTER, api_key=API_KEY) as client:
        list(client.chat.completions.create(model=MODEL, stream=True, **_ASK))


async def ask_async():
    async with openai.AsyncOpenAI(base_url=ROUTER, api_key=API_KEY) as client:
        await client.chat.completions.create(model=MODEL, **_ASK)


def join():
    """What a child process does first; most tools need nothing."""
