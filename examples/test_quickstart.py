"""Paid inference in tests, each under a cap of its own."""

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient

from pytest_hfbudget import BudgetExceededError

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
QUESTION = [{"role": "user", "content": "Explain transformers in one sentence."}]


@pytest.fixture
def client():
    return InferenceClient(model=MODEL)


@pytest.mark.budget(max_usd=0.01)
def test_answer(client):
    answer = client.chat_completion(QUESTION, max_tokens=50)
    assert answer.choices[0].message.content


@pytest.mark.budget(max_usd=0.01)
def test_stream(client):
    stream = client.chat_completion(QUESTION, max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.budget(max_usd=0.01)
def test_async_client():
    import asyncio

    async def ask():
        async with AsyncInferenceClient(model=MODEL) as client:
            return await client.chat_completion(QUESTION, max_tokens=50)

    assert asyncio.run(ask()).choices[0].message.content


@pytest.mark.budget(max_usd=0.000_01, on_exceed="raise")
def test_the_cap_itself(client, hf_budget):
    with pytest.raises(BudgetExceededError):
        client.chat_completion(QUESTION, max_tokens=100_000)
    assert hf_budget.spent == 0
