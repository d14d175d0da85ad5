"""A suite that uses the openai SDK, and does not mention this plugin."""

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


@pytest.fixture
def client():
    with openai.OpenAI(base_url=URL, api_key="hf_user") as one:
        yield one


def asynchronously(use):
    async def main():
        async with openai.AsyncOpenAI(base_url=URL, api_key="hf_user") as one:
            return await use(one)

    return asyncio.run(main())


def test_answer(client):
    assert client.chat.completions.create(**ASK).choices[0].message.content


def test_answer_again(client):
    assert client.chat.completions.create(**ASK).choices[0].message.content


@pytest.fixture
def asked():
    """What asks by an async client that is there before the test; in a loop of its own."""
    loop = asyncio.new_event_loop()
    one = openai.AsyncOpenAI(base_url=URL, api_key="hf_user")
    yield lambda: loop.run_until_complete(one.chat.completions.create(**ASK))
    loop.run_until_complete(one.close())
    loop.close()


def test_async_answer(asked):
    assert asked().choices[0].message.content


def test_async_answer_again(asked):
    assert asked().choices[0].message.content


def test_stream(client):
    chunks = client.chat.completions.create(**ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_async_answers_at_a_time():
    async def use(one):
        return await asyncio.gather(*(one.chat.completions.create(**ASK) for _ in range(4)))

    assert len(asynchronously(use)) == 4


def test_async_stream():
    async def use(one):
        chunks = await one.chat.completions.create(**ASK, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asynchronously(use)


def test_raw_answer(client):
    raw = client.chat.completions.with_raw_response.create(**ASK)
    assert raw.headers
    assert raw.parse().choices[0].message.content


def test_streamed_raw_answer(client):
    with client.chat.completions.with_streaming_response.create(**ASK) as raw:
        assert "".join(raw.iter_lines())


def test_parsed_answer(client):
    from pydantic import BaseModel

    class Answer(BaseModel):
        answer: str

    completions = getattr(client.chat.completions, "parse", None)
    parse = completions or client.beta.chat.completions.parse
    assert parse(**ASK, response_format=Answer).choices[0].message.parsed.answer


@pytest.mark.parametrize("stream", [False, True])
def test_response(client, stream):
    answer = client.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=50, stream=stream
    )
    assert list(answer)[-1].response.output_text if stream else answer.output_text


def test_completion(client):
    assert client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=50).choices[0].text


def test_embeddings(client):
    assert client.embeddings.create(model=MODEL, input=[QUESTION, QUESTION]).data


def test_agent(client):
    messages = []
    for _ in range(STEPS):
        messages.append({"role": "user", "content": "Look around. [[tool=look]]"})
        answer = client.chat.completions.create(**{**ASK, "messages": messages}, tools=[TOOL])
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "There is more."})
    assert len(messages) == 3 * STEPS


def test_swallowing(client):
    with suppress(Exception):  # no answer is no reason for this test to fail
        client.chat.completions.create(**ASK)
