"""A suite that uses smolagents, and does not mention this plugin."""

import pytest
from smolagents import InferenceClientModel, ToolCallingAgent, tool
from smolagents.utils import AgentError

MESSAGES = [{"role": "user", "content": "Say something. [[tokens=20]]"}]
STEPS = 12


@tool
def look() -> str:
    """Look again."""
    return "There is more to see. [[tool=look]]"


@pytest.fixture
def model() -> InferenceClientModel:
    return InferenceClientModel("emulator/chat", provider="groq", max_tokens=50)


def test_answer(model):
    assert model.generate(MESSAGES).content


def test_answer_with_a_provider_chosen_by_the_router():
    assert InferenceClientModel("emulator/chat", max_tokens=50).generate(MESSAGES).content


def test_stream(model):
    assert "".join(delta.content or "" for delta in model.generate_stream(MESSAGES))


def test_agent(model):
    agent = ToolCallingAgent(tools=[look], model=model, max_steps=STEPS)
    assert agent.run("Look around. [[tool=look]]")


def test_swallowing(model):
    try:
        agent = ToolCallingAgent(tools=[look], model=model, max_steps=2)
        agent.run("Look around. [[tool=look]]")
    except AgentError:
        pass  # an agent that failed is no reason for this test to fail
