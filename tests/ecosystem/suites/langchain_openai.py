"""A suite that uses LangChain's ChatOpenAI, and does not mention this plugin."""

import asyncio

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

QUESTION = "Say something. [[tokens=20]]"
STEPS = 12
# LangChain keeps one async client for all models of a process, and its connections belong to the
# first event loop that has used it: `asyncio.run` in two tests fails, with or without plugins.
LOOP = asyncio.new_event_loop()


@tool
def look() -> str:
    """Look again."""
    return "There is more to see."


@pytest.fixture
def model() -> ChatOpenAI:
    return ChatOpenAI(
        model="emulator/chat:groq",
        base_url="https://router.huggingface.co/v1",
        api_key="hf_user",
        max_tokens=50,
    )


def test_answer(model):
    assert model.invoke(QUESTION).content


def test_answer_again(model):
    assert model.invoke(QUESTION).content


def test_async_answer(model):
    assert LOOP.run_until_complete(model.ainvoke(QUESTION)).content


def test_batch_in_threads(model):
    assert len(model.batch([QUESTION] * 4)) == 4


def test_stream(model):
    assert "".join(chunk.content for chunk in model.stream(QUESTION))


def test_async_stream(model):
    async def read():
        return [chunk.content async for chunk in model.astream(QUESTION)]

    assert "".join(LOOP.run_until_complete(read()))


def test_agent(model):
    bound = model.bind_tools([look])
    messages = []
    for _ in range(STEPS):
        messages.append(HumanMessage("Look around. [[tool=look]]"))
        answer = bound.invoke(messages)
        messages.append(answer)
        messages += [look.invoke(call) for call in answer.tool_calls]
    assert len(messages) == 3 * STEPS


def test_swallowing(model):
    otherwise = RunnableLambda(lambda _: "no answer")
    assert model.with_fallbacks([otherwise]).invoke(QUESTION)
