"""What a suite with paid inference looks like under a budget."""

from __future__ import annotations

import pytest
from huggingface_hub import InferenceClient, InferenceEndpoint

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
QUESTION = [{"role": "user", "content": "Name three machine learning frameworks."}]


@pytest.fixture
def client() -> InferenceClient:
    return InferenceClient(model=MODEL)


@pytest.mark.budget(max_usd=0.01)
def test_within_its_cap(client: InferenceClient) -> None:
    answer = client.chat_completion(QUESTION, max_tokens=50)
    assert answer.choices[0].message.content


@pytest.mark.budget(max_usd=0.01)
def test_a_stream(client: InferenceClient) -> None:
    stream = client.chat_completion(QUESTION, max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.budget(max_usd=0.000_01)
def test_that_asks_for_too_much(client: InferenceClient) -> None:
    try:
        client.chat_completion(QUESTION, max_tokens=100_000)
    except Exception:
        print("swallowed")


@pytest.mark.hf_endpoint("demo/llm")
def test_a_dedicated_endpoint(hf_endpoint: InferenceEndpoint) -> None:
    answer = hf_endpoint.client.chat_completion(QUESTION, max_tokens=20)
    assert answer.choices[0].message.content
