"""A suite that lets the openai SDK send by aiohttp, and does not mention this plugin."""

import asyncio
from contextlib import suppress

import openai
import pytest

URL = "https://router.huggingface.co/v1"
MODEL = "emulator/chat:groq"
QUESTION = "Say something. [[tokens=20]]"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 50}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
STEPS = 12


def asynchronously(use):
    async def main():
        own = openai.DefaultAioHttpClient()
        async with openai.AsyncOpenAI(base_url=URL, api_key="hf_user", http_client=own) as one:
            return await use(one)

    return asyncio.run(main())


async def create(one):
    return await one.chat.completions.create(**ASK)


@pytest.fixture
def asked():
    """What asks by a client that is there before the test; in a loop of its own."""
    loop = asyncio.new_event_loop()

    async def made():
        own = openai.DefaultAioHttpClient()
        return openai.AsyncOpenAI(base_url=URL, api_key="hf_user", http_client=own)

    one = loop.run_until_complete(made())
    yield lambda: loop.run_until_complete(create(one))
    loop.run_until_complete(one.close())
    loop.close()


def test_answer(asked):
    assert asked().choices[0].message.content


def test_answer_again(asked):
    assert asked().choices[0].message.content


def test_answers_at_a_time():
    async def use(one):
        return await asyncio.gather(*(create(one) for _ in range(4)))

    assert len(asynchronously(use)) == 4


def test_stream():
    async def use(one):
        chunks = await one.chat.completions.create(**ASK, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asynchronously(use)


def test_agent():
    async def use(one):
        messages = []
        for _ in range(STEPS):
            messages.append({"role": "user", "content": "Look around. [[tool=look]]"})
            asked = {**ASK, "messages": messages, "tools": [TOOL]}
            message = (await one.chat.completions.create(**asked)).choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls:
                told = {"role": "tool", "tool_call_id": call.id, "content": "There is more."}
                messages.append(told)
        return messages

    assert len(asynchronously(use)) == 3 * STEPS


def test_swallowing():
    with suppress(Exception):  # no answer is no reason for this test to fail
        asynchronously(create)
