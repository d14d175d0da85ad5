"""Limits and numbers of answers that are not plain integers, and prompts that hide their size."""

from __future__ import annotations

from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.emulator.chat import prompt_tokens as counted_by_the_emulator
from pytest_hfbudget.metering.prompt_size import input_bound
from pytest_hfbudget.metering.request import AskedModel, describe
from pytest_hfbudget.pricing.catalogue import Catalogue

PRICE = {"emulator__chat": {"input": 1, "output": 2}}
COMPLETIONS = "https://router.huggingface.co/v1/completions"


class Parameters:
    """What huggingface_hub is about to post."""

    def __init__(self, task: str, json: dict[str, Any]) -> None:
        self.url, self.task, self.model = "http://localhost/x", task, "m"
        self.json, self.data = json, None
        self.headers: dict[str, str] = {}


def described(task: str, **payload: Any) -> Any:
    return describe(Parameters(task, payload), routers=(), asked=AskedModel("m"), stream=False)


@pytest.mark.parametrize(
    ("given", "meant"), [(400.0, 400), ("400", 400), (2.5, 3), ("2.5", 3), (True, 1), (" 7 ", 7)]
)
def test_a_number_of_answers_is_read_leniently_and_upwards(given: object, meant: int) -> None:
    assert described("conversational", n=given).n == meant


@pytest.mark.parametrize(("given", "meant"), [(5000.0, 5000), ("5000", 5000), (0.5, 1)])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_new_tokens"])
def test_a_limit_is_read_leniently_and_upwards(name: str, given: object, meant: int) -> None:
    assert described("conversational", **{name: given}).max_output == meant


@pytest.mark.parametrize("given", [0, -1, 0.0, "0"])
def test_a_limit_of_nothing_is_no_limit(given: object) -> None:
    assert described("conversational", max_tokens=given).max_output is None


@pytest.mark.parametrize(
    "name", ["num_images", "num_images_per_prompt", "max_images", "batch_size", "samples"]
)
@pytest.mark.parametrize("given", [40, 40.0, "40"])
def test_each_name_for_a_number_of_images_counts(name: str, given: object) -> None:
    assert described("text-to-image", parameters={name: given}).n == 40


def test_images_of_a_batch_are_multiplied() -> None:
    assert described("text-to-image", parameters={"batch_size": 4, "num_images": "3"}).n == 12


@pytest.mark.parametrize("given", ["NaN", "many", [4], {"a": 1}])
def test_what_can_not_be_read_is_refused_under_a_cap(bench: Bench, given: object) -> None:
    bench.prices(**PRICE)
    bench.cap(1)
    with pytest.raises(BudgetExceededError, match="is not a number"):
        bench.client().chat_completion(say(1), max_tokens=5, extra_body={"n": given})
    assert (bench.sent, bench.held) == (0, 0)
    assert bench.ledger.total("session").refused == 1


@pytest.mark.parametrize("given", [float("nan"), float("inf")])
def test_nan_and_infinity_are_never_guessed_at(given: float) -> None:
    assert "is not a number" in described("conversational", n=given).unreadable


@pytest.mark.parametrize("given", ["400", 400.0])
def test_many_answers_under_another_guise_are_held(bench: Bench, given: object) -> None:
    bench.prices(**PRICE)
    bench.cap("0.001")
    with pytest.raises(BudgetExceededError):
        bench.client().chat_completion(say(50), max_tokens=50, extra_body={"n": given})
    assert bench.sent == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_nothing_is_replaced_by_what_the_cap_pays_for(bench: Bench, name: str) -> None:
    bench.emulator.client.configure(zero_limit="none")
    bench.prices(**PRICE)
    bench.cap("0.001")
    with pytest.raises(BudgetExceededError, match=r"was stopped after \d+ tokens"):
        bench.client().chat_completion(say(4000), extra_body={name: 0})
    assert 0 < bench.billed <= bench.spent <= 1_000_000


@pytest.mark.parametrize("none", [0, -1, "0"])
def test_a_limit_of_nothing_beside_another_limit_is_refused_under_a_cap(
    bench: Bench, none: object
) -> None:
    bench.emulator.client.configure(zero_limit="none")
    bench.prices(**PRICE)
    bench.cap("0.001")
    with pytest.raises(BudgetExceededError, match="contradict each other"):
        bench.client().chat_completion(
            say(4000), max_tokens=5, extra_body={"max_completion_tokens": none}
        )
    assert (bench.sent, bench.held) == (0, 0)


def test_an_empty_list_in_a_tool_takes_room_in_a_prompt() -> None:
    tools = [{"type": "function", "function": {"parameters": {"enum": [[]] * 1000}}}]
    assert input_bound({"messages": [], "tools": tools}) > 4000


@pytest.mark.parametrize("part", [{"image_url": {"url": "https://x"}}, {"image": "https://x"}])
def test_an_image_without_a_type_is_an_image(part: dict[str, Any]) -> None:
    message = {"role": "user", "content": [part]}
    assert input_bound({"messages": [message]}) > 16_384


def test_a_catalogue_with_a_short_context_does_not_shorten_the_prompt(bench: Bench) -> None:
    offer = {
        "provider": "groq",
        "status": "live",
        "context_length": 16,
        "pricing": {"input": 1, "output": 1},
    }
    payload = {"data": [{"id": "emulator/chat", "providers": [offer]}]}
    bench.know(Catalogue.parse(payload, read_at=0.0, origin="x"))
    bench.prices(**PRICE)
    bench.cap("0.0005")
    with pytest.raises(BudgetExceededError):
        bench.client().chat_completion([{"role": "user", "content": "long " * 400}], max_tokens=5)
    assert bench.sent == 0


def test_an_answer_that_may_hide_its_reasoning_is_charged_at_its_limit(bench: Bench) -> None:
    bench.emulator.client.configure(usage="never")
    bench.prices(**PRICE)
    bench.cap(1)
    bench.client().chat_completion(say(1), max_tokens=1000)
    (charge,) = bench.ledger.charges()
    assert charge.output_tokens == 1000
    assert charge.estimated


def test_reasoning_beside_the_completion_is_added_where_there_is_no_total(bench: Bench) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "completion_tokens_details": {"reasoning_tokens": 300},
    }
    message = {"role": "assistant", "content": "yes"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    bench.emulator.client.add_fault(
        "chat",
        status=200,
        applied=True,
        json={"id": "1", "created": 1, "model": "m", "choices": [choice], "usage": usage},
    )
    bench.prices(**PRICE)
    bench.cap(1)
    bench.client().chat_completion(say(1), max_tokens=1000)
    (charge,) = bench.ledger.charges()
    assert (charge.output_tokens, charge.estimated) == (305, True)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "schema",
    [
        {"deep": [nested(300) for _ in range(30)]},
        {"properties": {chr(0x4E00 + at): {} for at in range(5000)}},
        {"enum": [10**290] * 300},
        {"anyOf": [{chr(0x4E00 + at): "" for at in range(50)}] * 100},
    ],
    ids=["deep", "wide", "long numbers", "keys of objects in a list"],
)
def test_a_tool_is_bounded_with_its_structure(schema: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    body = {"messages": say(1), "tools": tools}
    assert counted_by_the_emulator(body) <= input_bound(body)


@pytest.mark.parametrize("task", ["text-generation", "text-to-image"])
def test_each_prompt_of_a_list_is_answered(task: str) -> None:
    assert described(task, prompt=["a", "b", "c"], n=2).n == 6
    assert described(task, prompt=[[1, 2], [3, 4]]).n == 2
    assert described(task, prompt=[1, 2, 3]).n == 1


def test_a_list_of_prompts_is_held_for_all_its_answers(bench: Bench) -> None:
    httpx = pytest.importorskip("httpx")
    body = {"model": "emulator/chat:groq", "prompt": ["[[tokens=50]]"] * 40, "max_tokens": 50}
    bench.prices(**PRICE)
    with pytest.raises(BudgetExceededError), budget("0.003"):
        httpx.post(COMPLETIONS, json=body)
    assert bench.sent == 0
    bench.cap(1)
    httpx.post(COMPLETIONS, json=body, headers={"authorization": "Bearer hf_of_the_tests"})
    (charge,) = bench.ledger.charges()
    assert (charge.output_tokens, charge.over) == (2000, 0)


@pytest.mark.parametrize(
    "payload",
    [
        {"input": "Hi", "tools": [{"type": "mcp", "server_url": "https://example.org"}]},
        {"input": "Hi", "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"messages": say(1), "tools": [{"type": "browser_search"}]},
        {"messages": say(1), "web_search_options": {}},
        {"messages": say(1), "plugins": [{"id": "web"}]},
    ],
)
def test_what_lets_the_service_add_to_the_prompt_is_refused_under_a_cap(
    bench: Bench, payload: dict[str, Any]
) -> None:
    """Each run of such a tool makes another prompt, of what it has found."""
    httpx = pytest.importorskip("httpx")
    path = "chat/completions" if "messages" in payload else "responses"
    limit = "max_tokens" if "messages" in payload else "max_output_tokens"
    body = {"model": "emulator/chat:groq", limit: 9, **payload}
    bench.cap(1)
    with pytest.raises(BudgetExceededError, match="no cap can hold the call"):
        httpx.post(f"https://router.huggingface.co/v1/{path}", json=body)
    assert (bench.sent, bench.held) == (0, 0)
