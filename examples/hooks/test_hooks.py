"""What the hooks in conftest.py were told: each test looks at what the ones before have done."""

import pytest
from huggingface_hub import InferenceClient

from pytest_hfbudget import BudgetExceededError

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
QUESTION = [{"role": "user", "content": "Explain transformers in one sentence."}]


@pytest.mark.budget(max_usd=0.01)
def test_a_call():
    assert InferenceClient(model=MODEL).chat_completion(QUESTION, max_tokens=50)


def test_its_charge_was_told(record):
    assert record.charged[MODEL] > 0


@pytest.mark.budget(max_usd=0, on_exceed="raise")
def test_a_refusal():
    with pytest.raises(BudgetExceededError):
        InferenceClient(model=MODEL).chat_completion(QUESTION, max_tokens=50)


def test_the_refusal_was_told(record):
    (test, scope), *_ = [r for r in record.refused if "test_hooks.py::test_a_refusal" in r[0]]
    assert test == scope


@pytest.mark.hf_endpoint("my-org/ci-llm")
def test_an_endpoint(hf_endpoint):
    assert hf_endpoint.client.chat_completion(QUESTION, max_tokens=20)


def test_the_endpoint_was_told(record):
    assert "my-org/ci-llm: ready" in record.endpoints
