"""A suite that uses smolagents with OpenAI's API, and does not mention this plugin."""

import pytest
from smolagents import LiteLLMModel, OpenAIModel, ToolCallingAgent, tool
from smolagents.utils import AgentError

MESSAGES = [{"role": "user", "content": "Say something. [[tokens=20]]"}]
STEPS = 12
URL = "https://router.huggingface.co/v1"


@tool
def look() -> str:
    """Look again."""
    return "There is more to see. [[tool=look]]"


@pytest.fixture
def model() -> OpenAIModel:
    return OpenAIModel("emulator/chat:groq", api_base=URL, api_key="hf_user", max_tokens=50)


@pytest.fixture
def lite() -> LiteLLMModel:
    return LiteLLMModel("openai/emulator/chat:groq", api_base=URL, api_key="hf_user", max_tokens=50)


def test_answer(model):
    assert model.generate(MESSAGES).content


def test_answer_again(model):
    assert model.generate(MESSAGES).content


def test_answer_by_litellm(lite):
    assert lite.generate(MESSAGES).content


def test_stream(model):
    assert "".join(delta.content or "" for delta in model.generate_stream(MESSAGES))


def test_stream_by_litellm(lite):
    assert "".join(delta.content or "" for delta in lite.generate_stream(MESSAGES))


def test_agent(model):
    agent = ToolCallingAgent(tools=[look], model=model, max_steps=STEPS)
    assert agent.run("Look around. [[tool=look]]")


def test_swallowing(model):
    try:
        agent = ToolCallingAgent(tools=[look], model=model, max_steps=2)
        agent.run("Look around. [[tool=look]]")
    except AgentError:
        pass  # an agent that failed is no reason for this test to fail
