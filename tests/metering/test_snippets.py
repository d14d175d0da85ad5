"""What people know from shekel's Hugging Face page runs with another import, and counts right."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest
from huggingface_hub import InferenceClient
from metering_bench import MODEL, Bench, say

from pytest_hfbudget import BudgetExceededError, ConfigError, budget, with_budget

PER_1K = {"input": 0.001, "output": 0.001}
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"


@pytest.fixture
def client(bench: Bench) -> InferenceClient:
    return InferenceClient(token="hf_of_the_tests")


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def used(bench: Bench) -> Decimal:
    """USD of all tokens on the emulator's invoice, at the snippets' price."""
    calls = bench.emulator.client.invoice()["calls"]
    return Decimal(sum(c["prompt_tokens"] + c["completion_tokens"] for c in calls)) / 10**6


def test_a_price_per_1k_tokens_is_all_that_a_block_needs(bench: Bench) -> None:
    with budget(max_usd=1.00, price_per_1k_tokens={"input": 0.001, "output": 0.001}):
        ...


def test_the_basic_block(bench: Bench, client: InferenceClient) -> None:
    with budget(
        max_usd=1.00,
        price_per_1k_tokens={"input": 0.001, "output": 0.001},
    ) as b:
        response = client.chat.completions.create(
            model=LLAMA, messages=ask("What is a token?"), max_tokens=50
        )
        assert response.choices[0].message.content
        assert f"Cost: ${b.spent:.6f}" == f"Cost: ${used(bench):.6f}"
    assert b.spent == used(bench) > 0
    assert b.limit == 1
    assert b.remaining == 1 - b.spent


def test_a_stream_costs_what_it_used(bench: Bench, client: InferenceClient) -> None:
    with budget(max_usd=1.00, price_per_1k_tokens=PER_1K) as b:
        full_text = ""
        for chunk in client.chat.completions.create(
            model=LLAMA, messages=ask("Name three colours."), max_tokens=60, stream=True
        ):
            delta = chunk.choices[0].delta.content
            if delta:
                full_text += delta
    assert full_text
    assert b.spent == used(bench) > 0


def test_nested_blocks_with_names(bench: Bench, client: InferenceClient) -> None:
    with budget(max_usd=5.00, name="pipeline", price_per_1k_tokens=PER_1K) as total:
        with budget(max_usd=1.00, name="step-1", price_per_1k_tokens=PER_1K) as step1:
            client.chat.completions.create(
                model=LLAMA, messages=ask("Shorten this text."), max_tokens=100
            )
    assert (total.name, step1.name) == ("pipeline", "step-1")
    assert total.spent == step1.spent == used(bench) > 0


@pytest.mark.parametrize("cap", [0.10, 0.001])
def test_a_loop_stops_when_the_budget_runs_out(
    bench: Bench, client: InferenceClient, cap: float
) -> None:
    """The page's own cap of ten cents pays for all hundred calls; a tenth of a cent does not."""
    stopped = None
    try:
        with budget(max_usd=cap, price_per_1k_tokens=PER_1K) as b:
            for _ in range(100):
                client.chat.completions.create(
                    model=LLAMA, messages=ask("Look at this."), max_tokens=50
                )
    except BudgetExceededError as e:
        stopped = f"Stopped at ${e.spent:.4f}"
    assert used(bench) <= Decimal(str(cap))
    assert b.spent == used(bench)
    assert (stopped is None) == (bench.sent == 100)


def test_a_budget_that_only_counts(bench: Bench, client: InferenceClient) -> None:
    with budget(price_per_1k_tokens=PER_1K) as b:
        client.chat_completion(model=LLAMA, messages=ask("Hello."), max_tokens=5)
    assert (b.limit, b.remaining) == (None, None)
    assert b.spent == used(bench) > 0


def test_a_budget_that_is_entered_again_adds_up(bench: Bench, client: InferenceClient) -> None:
    session = budget(max_usd=1, name="session", price_per_1k_tokens=PER_1K)
    for _ in range(2):
        with session:
            client.chat_completion(model=LLAMA, messages=ask("Hello."), max_tokens=5)
    assert session.spent == used(bench) > 0


def test_a_summary_is_by_model(bench: Bench, client: InferenceClient) -> None:
    with budget(max_usd=1, name="step", price_per_1k_tokens=PER_1K) as b:
        client.chat_completion(model=LLAMA, messages=ask("Hello."), max_tokens=5)
        client.chat_completion(model=MODEL, messages=say(3), max_tokens=5)
    first, *lines = b.summary().splitlines()
    assert first.startswith("step: <$0.0001")
    assert first.endswith(" of $1.00, 2 calls")
    assert [line.split()[0] for line in lines] == [LLAMA, MODEL]


def test_the_data_of_a_summary_adds_up(bench: Bench, client: InferenceClient) -> None:
    with budget(max_usd=1, price_per_1k_tokens=PER_1K) as b:
        for _ in range(2):
            client.chat_completion(model=LLAMA, messages=ask("Hello."), max_tokens=5)
    data = b.summary_data()
    assert data["total_spent"] == used(bench) == data["by_model"][LLAMA]["cost"]
    assert data["total_calls"] == data["by_model"][LLAMA]["calls"] == len(data["calls"]) == 2
    assert (data["limit"], data["model_switched"], data["fallback_model"]) == (1, False, None)


def test_a_decorated_function_has_a_budget_for_each_call(bench: Bench) -> None:
    @with_budget(max_calls=1)
    def summarise(text: str) -> str:
        """Shorten a text."""
        return str(bench.client().chat_completion(ask(text), max_tokens=5))

    assert [bool(summarise(text)) for text in ("one", "two")] == [True, True]
    assert (summarise.__name__, summarise.__doc__) == ("summarise", "Shorten a text.")


def test_a_decorated_function_is_capped(bench: Bench) -> None:
    @with_budget(max_usd=0)
    def summarise() -> object:
        return bench.client().chat_completion(say(3), max_tokens=5)

    with pytest.raises(BudgetExceededError, match="summarise: "):
        summarise()
    assert bench.sent == 0


def test_a_decorated_coroutine_is_capped(bench: Bench) -> None:
    @with_budget(max_usd=0)
    async def summarise() -> object:
        async with bench.async_client() as client:
            return await client.chat_completion(say(3), max_tokens=5)

    assert inspect.iscoroutinefunction(summarise)
    with pytest.raises(BudgetExceededError):
        asyncio.run(summarise())


def test_a_decorated_generator_is_capped_while_it_runs_and_no_other_code_is(bench: Bench) -> None:
    @with_budget(max_calls=2)
    def answers() -> Iterator[object]:
        while True:
            yield bench.client().chat_completion(say(3), max_tokens=5)

    steps = answers()
    for _ in range(2):
        next(steps)
        bench.client().chat_completion(say(3), max_tokens=5)  # not the generator's
    with pytest.raises(BudgetExceededError):
        next(steps)
    assert bench.sent == 4


def test_a_decorated_async_generator_is_capped(bench: Bench) -> None:
    @with_budget(max_calls=2)
    async def answers() -> AsyncIterator[object]:
        async with bench.async_client() as client:
            while True:
                yield await client.chat_completion(say(3), max_tokens=5)

    async def main() -> int:
        return len([answer async for answer in answers()])

    with pytest.raises(BudgetExceededError):
        asyncio.run(main())
    assert bench.sent == 2


def test_a_bad_argument_is_found_where_the_function_is_decorated() -> None:
    with pytest.raises(ConfigError):
        with_budget(max_usd="a lot")


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_decorated_generator_is_its_own(fails: bool) -> None:
    @with_budget(max_usd=1)
    def steps() -> Iterator[int]:
        yield 1
        if fails:
            raise ZeroDivisionError
        yield 2

    if fails:
        with pytest.raises(ZeroDivisionError):
            list(steps())
    else:
        assert list(steps()) == [1, 2]
