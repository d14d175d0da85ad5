"""HuggingFaceModel as Pydantic AI's own suite tests it: ten recorded interactions, and fakes."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from huggingface_hub import AsyncInferenceClient, ChatCompletionOutput
from pydantic_ai import Agent, ImageUrl, ModelRetry, ThinkingPart
from pydantic_ai.models.huggingface import HuggingFaceModel
from pydantic_ai.providers.huggingface import HuggingFaceProvider

pytestmark = pytest.mark.anyio

QWEN = "Qwen/Qwen2.5-72B-Instruct"


def recorded(name: str = QWEN) -> HuggingFaceModel:
    provider = HuggingFaceProvider(provider_name="nebius", api_key="hf_token")
    return HuggingFaceModel(name, provider=provider)


def said(text: str) -> ChatCompletionOutput:
    message = {"role": "assistant", "content": text}
    return ChatCompletionOutput.parse_obj_as_instance(
        {
            "id": "123",
            "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
            "created": 1704067200,
            "model": "hf-model",
            "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
        }
    )


@dataclass
class FakeClient:
    """In the place of an AsyncInferenceClient: it answers from a list."""

    answers: list[ChatCompletionOutput]
    asked: list[dict[str, Any]] = field(default_factory=list)
    model: str = "hf-model"

    @property
    def chat(self) -> Any:
        return SimpleNamespace(completions=SimpleNamespace(create=self.create))

    async def create(self, **kwargs: Any) -> ChatCompletionOutput:
        self.asked.append(kwargs)
        return self.answers[len(self.asked) - 1]


def faked(client: Any) -> HuggingFaceModel:
    return HuggingFaceModel("hf-model", provider=HuggingFaceProvider(hf_client=client, api_key="x"))


@pytest.mark.vcr
async def test_simple_completion(allow_model_requests):
    result = await Agent(recorded()).run("hello")
    assert result.output == "Hello! How can I help you?"
    response = result.all_messages()[-1]
    assert (response.usage.input_tokens, response.usage.output_tokens) == (30, 8)
    assert response.provider_details["finish_reason"] == "stop"


@pytest.mark.vcr
async def test_usage_of_a_run(allow_model_requests):
    result = await Agent(recorded()).run("Hello")
    usage = result.usage
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (1, 31, 9)


@pytest.mark.vcr
async def test_stream(allow_model_requests):
    async with Agent(recorded()).run_stream("Count to three.") as result:
        assert "".join([text async for text in result.stream_text(delta=True)]) == "one two three"


@pytest.mark.vcr
async def test_tool_that_asks_for_another_try(allow_model_requests):
    agent = Agent(recorded(), retries=2)
    asked = []

    @agent.tool_plain
    async def get_location(loc_name: str) -> str:
        asked.append(loc_name)
        if loc_name != "London":
            raise ModelRetry("Wrong location, please try again")
        return '{"lat": 51, "lng": 0}'

    result = await agent.run("Where is London?")
    assert asked == ["Lodnon", "London"]
    assert result.output == "London is at latitude 51."


@pytest.mark.vcr
async def test_tool_in_a_stream(allow_model_requests):
    agent = Agent(recorded())

    @agent.tool_plain
    async def get_capital(country: str) -> str:
        return {"France": "Paris"}[country]

    async with agent.run_stream("What is the capital of France?") as result:
        assert await result.get_output() == "It is Paris."


@pytest.mark.vcr
async def test_image_url_input(allow_model_requests):
    picture = ImageUrl(url="https://example.com/potato.jpg")
    result = await Agent(recorded("Qwen/Qwen2.5-VL-72B-Instruct")).run(["What is this?", picture])
    assert result.output == "A potato."


@pytest.mark.vcr
async def test_thinking(allow_model_requests):
    result = await Agent(recorded("Qwen/Qwen3-235B-A22B")).run("How do I cross the street?")
    thought, answer = result.all_messages()[-1].parts
    assert isinstance(thought, ThinkingPart)
    assert answer.content.strip() == "Look both ways."


async def test_fake_client(allow_model_requests):
    client = FakeClient([said("world"), said("again")])
    agent = Agent(faked(client))
    first = await agent.run("hello")
    second = await agent.run("hello", message_history=first.all_messages())
    assert (first.output, second.output) == ("world", "again")
    assert [len(each["messages"]) for each in client.asked] == [1, 3]


async def test_mocked_client(allow_model_requests):
    client = MagicMock(spec=AsyncInferenceClient, model="hf-model", chat=MagicMock())
    client.chat.completions.create = AsyncMock(return_value=said("world"))
    assert (await Agent(faked(client)).run("hello")).output == "world"
    client.chat.completions.create.assert_awaited_once()


async def test_a_request_that_was_not_allowed():
    with pytest.raises(RuntimeError, match="not allowed"):
        await Agent(recorded()).run("hello")


@pytest.mark.skip(reason="needs a provider that reads documents")
async def test_document_url_input():
    raise NotImplementedError


@pytest.mark.xfail(reason="the fake has one answer only", raises=IndexError, strict=True)
async def test_more_questions_than_answers(allow_model_requests):
    agent = Agent(faked(FakeClient([said("world")])))
    await agent.run("hello")
    await agent.run("hello")
