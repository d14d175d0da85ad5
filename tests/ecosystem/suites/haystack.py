"""A suite that uses Haystack, and does not mention this plugin."""

import asyncio
from contextlib import suppress

import pytest
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack_integrations.components.generators.huggingface_api import (
    HuggingFaceAPIChatGenerator,
)

QUESTION = [ChatMessage.from_user("Say something. [[tokens=20]]")]
STEPS = 12


@tool
def look() -> str:
    """Look again."""
    return "There is more to see. [[tool=look]]"


@pytest.fixture
def generator() -> HuggingFaceAPIChatGenerator:
    return HuggingFaceAPIChatGenerator(
        api_type="serverless_inference_api",
        api_params={"model": "emulator/chat", "provider": "groq"},
        generation_kwargs={"max_tokens": 50},
    )


def test_answer(generator):
    generator.warm_up()
    assert generator.run(QUESTION)["replies"][0].text


def test_async_answer(generator):
    generator.warm_up()
    assert asyncio.run(generator.run_async(QUESTION))["replies"][0].text


def test_pipeline(generator):
    pipeline = Pipeline()
    pipeline.add_component("llm", generator)
    assert pipeline.run({"llm": {"messages": QUESTION}})["llm"]["replies"][0].text


def test_stream(generator):
    generator.warm_up()
    chunks = []
    generator.run(QUESTION, streaming_callback=chunks.append)
    assert "".join(chunk.content for chunk in chunks)


def test_async_stream(generator):
    generator.warm_up()
    chunks = []

    async def collect(chunk):
        chunks.append(chunk)

    asyncio.run(generator.run_async(QUESTION, streaming_callback=collect))
    assert "".join(chunk.content for chunk in chunks)


def test_agent(generator):
    agent = Agent(chat_generator=generator, tools=[look], max_agent_steps=STEPS)
    assert agent.run([ChatMessage.from_user("Look around. [[tool=look]]")])["step_count"] == STEPS


def test_swallowing(generator):
    pipeline = Pipeline()
    pipeline.add_component("llm", generator)
    with suppress(Exception):  # no answer is no reason for this test to fail
        pipeline.run({"llm": {"messages": QUESTION}})
