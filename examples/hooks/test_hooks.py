"""What the hooks in conftest.py were told: the second half looks at what the first has done."""

import pytest
from huggingface_hub import InferenceClient

from pytest_hfbudget import BudgetExceededError

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SIMILAR = "sentence-transformers/all-MiniLM-L6-v2"
QUESTION = [{"role": "user", "content": "Explain transformers in one sentence."}]


@pytest.mark.budget(max_usd=0.01)
def test_a_call_at_the_price_of_the_hook(hf_budget):
    client = InferenceClient(model=SIMILAR, provider="hf-inference")
    assert client.sentence_similarity("A sentence.", other_sentences=["Another one."])
    assert f"{hf_budget.spent}" == "0.0001"


@pytest.mark.budget(max_usd=0, on_exceed="raise")
def test_a_refusal():
    with pytest.raises(BudgetExceededError):
        InferenceClient(model=MODEL).chat_completion(QUESTION, max_tokens=50)


@pytest.mark.hf_endpoint("my-org/ci-llm")
def test_an_endpoint(hf_endpoint):
    assert hf_endpoint.client.chat_completion(QUESTION, max_tokens=20)


def test_a_charge_is_told_when_its_test_has_ended(told):
    assert told.nano_usd[SIMILAR] > 0


def test_so_is_a_refusal(told):
    assert any("test_a_refusal: " in refused for refused in told.refused)


def test_so_is_what_happens_to_endpoints(told):
    assert "my-org/ci-llm: ready" in told.endpoints
