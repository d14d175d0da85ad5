"""Inference Providers by way of the real client: routing, usage, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from pytest_hfbudget.emulator import Emulator, EmulatorClient

HELLO = [{"role": "user", "content": "hello [[tokens=5]]"}]  # 18 bytes: 5 + 7 tokens
PROMPT = 12
MODEL = "emulator/chat"


@pytest.fixture
def chat(emulator: Emulator) -> Callable[..., Any]:
    # Outlives the call: a client that is collected takes its open streams with it.
    client = InferenceClient(base_url=f"{emulator.router}/v1", api_key="hf_tester")

    def ask(model: str = MODEL, **more: Any) -> Any:
        return client.chat_completion(HELLO, model=model, **more)

    return ask


def only_call(control: EmulatorClient) -> dict[str, Any]:
    row: dict[str, Any]
    [row] = control.invoice()["calls"]
    return row


def test_a_chat_is_billed_by_its_usage_and_the_fastest_provider(
    chat: Callable[..., Any], control: EmulatorClient
) -> None:
    answer = chat()
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT, 5)
    row = only_call(control)
    assert (row["provider"], row["nano_usd"], row["billed"]) == ("groq", 1_000, "full")
    assert row["nano_usd"] == PROMPT * 50 + 5 * 80


@pytest.mark.parametrize(
    ("suffix", "provider", "nano"),
    [
        ("", "groq", 1_000),
        (":fastest", "groq", 1_000),
        (":cheapest", "novita", 490),
        (":together", "together", 1_700),
        (":preferred", "novita", 490),
    ],
)
def test_the_suffix_of_the_model_chooses_the_provider(
    chat: Callable[..., Any], control: EmulatorClient, suffix: str, provider: str, nano: int
) -> None:
    control.configure(preferred_providers=["novita", "together"])
    assert chat(MODEL + suffix).model == MODEL
    row = only_call(control)
    assert (row["model"], row["provider"], row["nano_usd"]) == (MODEL, provider, nano)


def test_automatic_routing_can_be_pinned_or_take_turns(
    chat: Callable[..., Any], control: EmulatorClient
) -> None:
    control.configure(routing="pin:together")
    chat()
    control.configure(routing="round_robin")
    for _ in range(3):
        chat()
    used = [row["provider"] for row in control.invoice()["calls"]]
    assert used == ["together", "novita", "groq", "together"]


def test_a_provider_in_error_is_skipped_and_answers_503_when_it_is_named(
    chat: Callable[..., Any], control: EmulatorClient
) -> None:
    model = "meta-llama/Llama-3.3-70B-Instruct"
    with pytest.raises(HfHubHTTPError, match="503"):
        chat(f"{model}:ovhcloud")
    chat(f"{model}:cheapest")
    refused, served = control.invoice()["calls"]
    assert (refused["status"], refused["billed"]) == (503, "none")
    assert served["provider"] == "novita"


def test_a_provider_that_does_not_have_the_model_is_a_bad_request(
    chat: Callable[..., Any],
) -> None:
    with pytest.raises(HfHubHTTPError, match="not supported by cerebras"):
        chat(f"{MODEL}:cerebras")


def test_any_model_is_served_but_an_unknown_one_is_unpriced(
    chat: Callable[..., Any], control: EmulatorClient
) -> None:
    chat("some/model")
    row = only_call(control)
    assert (row["nano_usd"], row["billed"]) == (None, "unpriced")


def test_a_configured_price_is_billed_though_it_is_not_published(
    chat: Callable[..., Any], control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_model("openai/gpt-oss-120b", provider="fireworks-ai", price={"input": "1"})
    chat("openai/gpt-oss-120b:fireworks-ai")
    assert only_call(control)["nano_usd"] == PROMPT * 1_000
    listed = call("GET", "/router/v1/models/openai/gpt-oss-120b").json()
    [offer] = [each for each in listed["providers"] if each["provider"] == "fireworks-ai"]
    assert "pricing" not in offer
    assert offer["context_length"] == 131072


def test_a_free_offer_costs_nothing(chat: Callable[..., Any], control: EmulatorClient) -> None:
    chat("openai/gpt-oss-20b:publicai")
    assert (only_call(control)["nano_usd"], only_call(control)["billed"]) == (0, "full")


def test_the_catalogue_is_public_and_leaves_out_what_is_unknown(call: Callable[..., Any]) -> None:
    listed = call("GET", "/router/v1/models", token=None).json()
    assert listed["object"] == "list"
    by_id = {model["id"]: model for model in listed["data"]}
    assert len(by_id) >= 10
    assert by_id[MODEL]["providers"][0]["pricing"] == {"input": 0.02, "output": 0.05}
    bare = [offer for model in by_id.values() for offer in model["providers"] if len(offer) == 3]
    assert all(set(offer) == {"provider", "status", "is_model_author"} for offer in bare)
    assert bare
    assert call("GET", "/router/v1/models/no/such", token=None).status == 404


def test_the_provider_is_named_by_a_header_unless_it_is_switched_off(
    call: Callable[..., Any], control: EmulatorClient
) -> None:
    body = {"model": MODEL, "messages": HELLO}
    path = "/router/v1/chat/completions"
    assert call("POST", path, body).headers["x-inference-provider"] == "groq"
    control.configure(provider_header=False)
    assert "x-inference-provider" not in call("POST", path, body).headers


def test_every_choice_is_billed(chat: Callable[..., Any], control: EmulatorClient) -> None:
    assert len(chat(n=3).choices) == 3
    assert only_call(control)["completion_tokens"] == 15


def test_usage_can_be_missing_from_a_whole_answer(
    chat: Callable[..., Any], control: EmulatorClient
) -> None:
    control.configure(usage="never")
    assert chat().usage is None
    assert only_call(control)["nano_usd"] == 1_000


# -- streams


def events(stream: Any) -> tuple[str, list[tuple[int, Any]]]:
    """The text, and the usages as (number of choices in their chunk, completion tokens)."""
    text, usages = "", []
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        if chunk.usage is not None:
            usages.append((len(chunk.choices), chunk.usage.completion_tokens))
    return text, usages


ASK = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("style", "options", "usages"),
    [
        ("on_request", {}, []),
        ("on_request", ASK, [(0, 5)]),
        ("finish_chunk", {}, [(1, 5)]),
        ("every_chunk", {}, [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 5)]),
        ("never", ASK, []),
        ("rejects_options", {}, []),
    ],
)
def test_usage_in_a_stream_comes_in_the_style_of_the_provider(
    chat: Callable[..., Any],
    control: EmulatorClient,
    style: str,
    options: dict[str, Any],
    usages: list[tuple[int, int]],
) -> None:
    control.configure(stream_usage=style)
    text, seen = events(chat(stream=True, **options))
    assert (len(text.split()), seen) == (5, usages)
    row = only_call(control)
    assert (row["stream"], row["completion_tokens"], row["nano_usd"]) == (True, 5, 1_000)


def test_a_server_that_rejects_stream_options_bills_nothing(
    chat: Callable[..., Any], control: EmulatorClient
) -> None:
    control.configure(stream_usage="rejects_options")
    with pytest.raises(HfHubHTTPError, match="stream_options"):
        list(chat(stream=True, **ASK))
    assert only_call(control)["billed"] == "none"


def test_a_provider_has_a_style_of_its_own(chat: Callable[..., Any]) -> None:
    _, seen = events(chat("zai-org/GLM-4.6:zai-org", stream=True))
    assert seen == [(1, 5)]


def test_the_asynchronous_client_gets_the_same(emulator: Emulator, control: EmulatorClient) -> None:
    async def both() -> tuple[Any, int]:
        base = f"{emulator.router}/v1"
        async with AsyncInferenceClient(base_url=base, api_key="hf_tester") as client:
            whole = await client.chat_completion(HELLO, model=MODEL)
            stream = await client.chat_completion(HELLO, model=MODEL, stream=True)
            return whole, len([chunk async for chunk in stream])

    whole, chunks = asyncio.run(both())
    assert (whole.usage.completion_tokens, chunks) == (5, 6)
    assert [row["nano_usd"] for row in control.invoice()["calls"]] == [1_000, 1_000]


@pytest.mark.parametrize(("bills", "billed"), [("generated", "generated"), ("full", "full")])
def test_a_stream_that_the_client_drops_is_billed_as_the_switch_says(
    chat: Callable[..., Any], control: EmulatorClient, bills: str, billed: str
) -> None:
    control.configure(chunk_delay_s=0.02, disconnect_bills=bills, natural_tokens=500)
    client_messages = [{"role": "user", "content": "a long story"}]
    client = InferenceClient(base_url=f"{control.url}/router/v1", api_key="hf_tester")
    stream: Any = client.chat_completion(client_messages, model=MODEL, stream=True)
    next(iter(stream))
    stream.close()
    del stream
    if close := getattr(client, "close", None):
        close()
    dropped = control.wait_for(kind="disconnect", op="chat")
    row = only_call(control)
    assert row["billed"] == dropped["billed"] == billed
    expected = range(1, 100) if bills == "generated" else [500]
    assert row["completion_tokens"] in expected
    if bills == "generated":
        assert row["completion_tokens"] == dropped["chunks"]


def test_an_answer_that_the_client_does_not_wait_for_is_billed_in_full(
    emulator: Emulator, control: EmulatorClient
) -> None:
    control.configure(answer_delay_s=30)
    base = f"{emulator.router}/v1"
    client = InferenceClient(base_url=base, api_key="hf_tester", timeout=0.2)
    with pytest.raises(Exception, match=r"timed out|Timeout"):  # each client has its own class
        client.chat_completion(HELLO, model=MODEL)
    assert control.wait_for(kind="disconnect", op="chat")["billed"] == "full"
    assert only_call(control)["nano_usd"] == 1_000


# -- named providers


CHAT_PROVIDERS = [
    "baseten", "cerebras", "cohere", "deepinfra", "featherless-ai", "fireworks-ai", "groq",
    "novita", "nscale", "ovhcloud", "publicai", "scaleway", "together", "zai-org",
]  # fmt: skip


@pytest.mark.parametrize("provider", CHAT_PROVIDERS)
def test_a_named_provider_is_reached_on_the_path_that_the_client_builds(
    hub: Emulator, provider: str
) -> None:
    from huggingface_hub.inference._providers import PROVIDERS

    if provider not in PROVIDERS:
        pytest.skip(f"this huggingface_hub does not know {provider}")
    asked: Any = provider
    client = InferenceClient(provider=asked, api_key="hf_tester")
    hub.client.add_model("org/priced", provider=provider, price={"input": "1", "output": "2"})
    client.chat_completion(HELLO, model="org/priced")
    row = only_call(hub.client)
    assert (row["provider"], row["nano_usd"]) == (provider, PROMPT * 1_000 + 5 * 2_000)


def test_the_client_finds_the_providers_own_name_for_a_model_on_the_hub(hub: Emulator) -> None:
    offer = {"provider": "groq", "provider_id": "llama-8b", "pricing": {"input": 1, "output": 1}}
    hub.client.add_model("org/model", providers=[offer])
    client = InferenceClient(provider="groq", api_key="hf_tester")
    assert client.chat_completion(HELLO, model="org/model").model == "org/model"
    assert hub.client.log(op="chat", phase="arrived")[0]["model"] == "llama-8b"


def test_without_a_base_url_the_client_uses_automatic_routing(hub: Emulator) -> None:
    InferenceClient(api_key="hf_tester").chat_completion(HELLO, model=MODEL)
    assert only_call(hub.client)["billed"] == "full"


def test_hf_inference_is_billed_by_compute_time(hub: Emulator) -> None:
    hub.client.price_providers(hf_inference={"second": "0.00012"})
    hub.client.configure(compute_seconds="10")
    client = InferenceClient(provider="hf-inference", api_key="hf_tester")
    client.chat_completion(HELLO, model="some/llm")
    assert only_call(hub.client)["nano_usd"] == 1_200_000
    path = "/router/hf-inference/models/some/llm/v1/chat/completions"
    assert hub.client.log(op="chat")[0]["path"] == path


def test_a_path_that_the_provider_does_not_have_is_not_found(call: Callable[..., Any]) -> None:
    body = {"model": MODEL, "messages": HELLO}
    assert call("POST", "/router/groq/v1/chat/completions", body).status == 404


def test_deepinfra_tells_the_cost_of_an_answer(
    call: Callable[..., Any], control: EmulatorClient
) -> None:
    body = {
        "model": "deepseek-ai/DeepSeek-V3.1:deepinfra",
        "messages": [{"role": "user", "content": "Hello"}],
    }
    usage = call("POST", "/router/v1/chat/completions", body).json()["usage"]
    assert usage["estimated_cost"] * 10**9 == pytest.approx(control.invoice()["calls_nano_usd"])
    control.configure(cost_in_usage=[])
    assert "estimated_cost" not in call("POST", "/router/v1/chat/completions", body).json()["usage"]
