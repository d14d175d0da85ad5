"""A suite that uses llama-index, and does not mention this plugin."""

import asyncio
from contextlib import suppress

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.huggingface_api import HuggingFaceInferenceAPI
from llama_index.llms.openai_like import OpenAILike

QUESTION = "Say something. [[tokens=20]]"
MESSAGES = [ChatMessage(role="user", content=QUESTION)]
STEPS = 12


@pytest.fixture
def like() -> OpenAILike:
    model = OpenAILike(
        model="emulator/chat:groq",
        api_base="https://router.huggingface.co/v1",
        api_key="hf_user",
        is_chat_model=True,
        max_tokens=50,
    )
    model._get_client()  # it reads certificates, which takes its time
    return model


@pytest.fixture
def hub() -> HuggingFaceInferenceAPI:
    return HuggingFaceInferenceAPI(
        model_name="emulator/chat",
        provider="groq",
        token="hf_user",
        task="conversational",
        num_output=50,
    )


def test_answer(like):
    assert like.chat(MESSAGES).message.content


def test_answer_again(like):
    assert like.chat(MESSAGES).message.content


def test_completion(like):
    assert like.complete(QUESTION).text


def test_async_answers_at_a_time(like):
    async def main():
        return await asyncio.gather(*(like.achat(MESSAGES) for _ in range(4)))

    assert len(asyncio.run(main())) == 4


def test_stream(like):
    assert "".join(part.delta or "" for part in like.stream_chat(MESSAGES))


def test_async_stream(like):
    async def main():
        return [part.delta or "" async for part in await like.astream_chat(MESSAGES)]

    assert "".join(asyncio.run(main()))


def test_answer_of_hub(hub):
    assert hub.chat(MESSAGES).message.content


def test_stream_of_hub(hub):
    assert "".join(part.delta or "" for part in hub.stream_chat(MESSAGES))


def test_agent(like):
    messages = []
    for _ in range(STEPS):
        messages.append(ChatMessage(role="user", content=QUESTION))
        messages.append(like.chat(messages).message)
    assert len(messages) == 2 * STEPS


def test_swallowing(like):
    with suppress(Exception):  # no answer is no reason for this test to fail
        like.chat(MESSAGES)
