"""A suite that uses Pydantic AI, and does not mention this plugin."""

import asyncio
from contextlib import suppress

import pytest
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.models.huggingface import HuggingFaceModel
from pydantic_ai.providers.huggingface import HuggingFaceProvider

QUESTION = "Say something. [[tokens=20]]"
STEPS = 6


@pytest.fixture
def agent() -> Agent:
    model = HuggingFaceModel("emulator/chat", provider=HuggingFaceProvider(provider_name="groq"))
    return Agent(model, model_settings={"max_tokens": 50})


def test_answer(agent):
    assert agent.run_sync(QUESTION).output


def test_async_answers_at_a_time(agent):
    async def ask():
        return await asyncio.gather(*(agent.run(QUESTION) for _ in range(4)))

    assert len(asyncio.run(ask())) == 4


def test_stream(agent):
    async def read():
        async with agent.run_stream(QUESTION) as result:
            return [text async for text in result.stream_text(delta=True)]

    assert "".join(asyncio.run(read()))


def test_agent(agent):
    asked = []

    @agent.tool_plain(retries=STEPS)
    def look() -> str:
        asked.append("look")
        return "There is more to see."

    @agent.output_validator
    def never_content(output: str) -> str:
        if len(asked) < STEPS:
            raise ModelRetry("Look again. [[tool=look]]")
        return output

    agent.run_sync("Look around. [[tool=look]]", retries=STEPS)
    assert len(asked) == STEPS


def test_swallowing(agent):
    with suppress(Exception):  # no answer is no reason for this test to fail
        agent.run_sync(QUESTION)
