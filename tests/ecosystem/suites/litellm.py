"""A suite that uses litellm, and does not mention this plugin."""

import asyncio
from contextlib import suppress

import litellm
import pytest

URL = "https://router.huggingface.co/v1"
QUESTION = "Say something. [[tokens=20]]"
MESSAGES = [{"role": "user", "content": QUESTION}]
COMMON = {"messages": MESSAGES, "max_tokens": 50, "api_key": "hf_user"}
AS_OPENAI = {"model": "openai/emulator/chat:groq", "api_base": URL, **COMMON}
AS_HUGGINGFACE = {"model": "huggingface/emulator/chat:groq", "api_base": URL, **COMMON}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
STEPS = 12
LOOP = asyncio.new_event_loop()  # litellm keeps an async client for each

both = pytest.mark.parametrize("ask", [AS_OPENAI, AS_HUGGINGFACE], ids=["openai", "huggingface"])


def test_answer():
    assert litellm.completion(**AS_OPENAI).choices[0].message.content


def test_answer_again():
    assert litellm.completion(**AS_OPENAI).choices[0].message.content


def test_answer_of_huggingface():
    assert litellm.completion(**AS_HUGGINGFACE).choices[0].message.content


def test_answer_of_huggingface_again():
    assert litellm.completion(**AS_HUGGINGFACE).choices[0].message.content


@both
def test_async_answer(ask):
    assert LOOP.run_until_complete(litellm.acompletion(**ask)).choices[0].message.content


@both
def test_async_answer_again(ask):
    assert LOOP.run_until_complete(litellm.acompletion(**ask)).choices[0].message.content


@both
def test_stream(ask):
    chunks = litellm.completion(**ask, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@both
def test_async_answers_at_a_time(ask):
    async def main():
        return await asyncio.gather(*(litellm.acompletion(**ask) for _ in range(4)))

    assert len(asyncio.run(main())) == 4


@both
def test_async_stream(ask):
    async def main():
        chunks = await litellm.acompletion(**ask, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(main())


def test_agent():
    messages = []
    for _ in range(STEPS):
        messages.append({"role": "user", "content": "Look around. [[tool=look]]"})
        answer = litellm.completion(**{**AS_OPENAI, "messages": messages}, tools=[TOOL])
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "There is more."})
    assert len(messages) == 3 * STEPS


def test_swallowing():
    with suppress(Exception):  # no answer is no reason for this test to fail
        litellm.completion(**AS_OPENAI)
