"""A dedicated Inference Endpoint: resumed before the first test, paused after the last."""

import pytest

# Write the name of your own endpoint here. The emulator plays any that is asked for.
pytestmark = pytest.mark.hf_endpoint("my-org/ci-llm")

QUESTION = [{"role": "user", "content": "Are you up?"}]


def test_it_answers(hf_endpoint):
    answer = hf_endpoint.client.chat_completion(QUESTION, max_tokens=20)
    assert answer.choices[0].message.content


def test_it_is_the_same_one(hf_endpoint):
    assert hf_endpoint.name == "ci-llm"
    assert hf_endpoint.status == "running"


def test_its_tokens_cost_nothing(hf_endpoint, hf_budget):
    hf_endpoint.client.chat_completion(QUESTION, max_tokens=20)
    assert hf_budget.spent == 0  # uptime is what it costs, and that belongs to the session
