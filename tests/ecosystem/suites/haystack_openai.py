"""A suite that uses Haystack's OpenAI generator, and does not mention this plugin."""

import asyncio
from contextlib import suppress

import pytest
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack.utils import Secret

QUESTION = [ChatMessage.from_user("Say something. [[tokens=20]]")]
STEPS = 12


@tool
def look() -> str:
    """Look again."""
    return "There is more to see."


@pytest.fixture
def generator() -> OpenAIChatGenerator:
    return OpenAIChatGenerator(
        api_key=Secret.from_token("hf_user"),
        api_base_url="https://router.huggingface.co/v1",
        model="emulator/chat:groq",
        generation_kwargs={"max_tokens": 50},
    )


def test_answer(generator):
    generator.warm_up()
    assert generator.run(QUESTION)["replies"][0].text


def test_answer_again(generator):
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
    agent = Agent(chat_generator=generator, tools=[look])
    messages, steps = [], 0
    while steps < STEPS:  # each question is answered by a call of the tool, and then by words
        asked = ChatMessage.from_user("Look around. [[tool=look]]")
        told = agent.run([*messages, asked])
        messages, steps = told["messages"], steps + told["step_count"]
    assert steps == STEPS


def test_swallowing(generator):
    pipeline = Pipeline()
    pipeline.add_component("llm", generator)
    with suppress(Exception):  # no answer is no reason for this test to fail
        pipeline.run({"llm": {"messages": QUESTION}})
