"""The limit that a cap sets where the caller set none: never felt, unless it cuts an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError
from pytest_hfbudget.pricing.catalogue import Catalogue

PRICING = {"input": "0.01", "output": "0.1"}
# Pays for most of the 8192 tokens of the model's context, not for all of them.
MOST_OF_IT = "0.0008"


def ways(bench: Bench) -> list[str]:
    """The statuses of all calls that were sent, in order."""
    return [charge.status for charge in bench.ledger.charges()]


def dear(bench: Bench) -> Any:
    """The emulated model at its most expensive provider, named: old clients choose another."""
    return bench.client(provider="together")


def long_question(tokens: int, answer: int = 10) -> list[dict[str, str]]:
    """A question of about so many tokens, four bytes each."""
    return [{"role": "user", "content": f"[[tokens={answer}]]" + "word" * tokens}]


def alone(bench: Bench, context: int) -> None:
    """A model that one provider serves, with this context."""
    offer = {"provider": "novita", "pricing": PRICING, "context_length": context}
    bench.emulator.client.add_model("acme/small", providers=[offer])
    listed = {"data": [{"id": "acme/small", "providers": [{**offer, "status": "live"}]}]}
    bench.know(Catalogue.parse(listed, read_at=0.0, origin="the test"))


def unlisted(bench: Bench, context: int) -> None:
    """The same, but without a known context length."""
    alone(bench, context)
    bench.know(Catalogue())
    bench.prices(acme__small=PRICING)


def small(bench: Bench) -> Any:
    return bench.client("acme/small", provider="novita")


def test_a_cap_that_pays_for_the_whole_context_sets_no_limit(bench: Bench) -> None:
    """One that only took no limit would refuse this one: the server takes none."""
    bench.emulator.client.configure(limit_names="none")
    bench.cap(1)
    dear(bench).chat_completion(say(10))
    assert ways(bench) == ["200"]
    assert bench.spent == bench.billed > 0


def test_prompt_and_answer_share_the_context_that_is_held(bench: Bench) -> None:
    """At $0.1 a million, 1000 tokens cost $0.0001: a full context, whatever the question."""
    alone(bench, 1000)
    bench.emulator.client.configure(limit_names="none")
    bench.cap("0.0001")
    small(bench).chat_completion(long_question(100))
    assert ways(bench) == ["200"]


@pytest.mark.parametrize("tokens", [1, 900, 2000, 4000, 6000, 8000])
def test_a_prompt_of_any_length_is_answered_under_a_cap(bench: Bench, tokens: int) -> None:
    alone(bench, 8192)
    bench.cap(MOST_OF_IT)
    small(bench).chat_completion(long_question(tokens))
    assert set(ways(bench)[:-1]) <= {"400"}
    assert ways(bench)[-1] == "200"
    assert 0 < bench.spent == bench.billed <= 800_000


@pytest.mark.parametrize("context", [256, 2048, 4096])
def test_an_unknown_context_is_found_by_asking(bench: Bench, context: int) -> None:
    unlisted(bench, context)
    bench.cap(1)
    answer = small(bench).chat_completion(say(10))
    assert answer.choices[0].finish_reason == "stop"
    assert ways(bench)[-1] == "200"
    assert bench.spent == bench.billed > 0


def test_a_prompt_that_is_too_long_by_itself_gets_the_servers_own_error(bench: Bench) -> None:
    alone(bench, 8192)
    bench.cap(MOST_OF_IT)
    with pytest.raises(Exception, match="maximum context length"):
        small(bench).chat_completion(long_question(9000))
    assert set(ways(bench)) == {"400"}
    assert (bench.spent, bench.held) == (0, 0)


def test_a_server_that_wants_the_limit_by_its_other_name_gets_that(bench: Bench) -> None:
    bench.emulator.client.configure(limit_names="max_completion_tokens")
    bench.cap(MOST_OF_IT)
    answer = dear(bench).chat_completion(say(10))
    assert answer.choices[0].finish_reason == "stop"
    assert ways(bench) == ["400", "200"]
    assert bench.spent == bench.billed > 0


def test_the_other_name_still_holds_the_cap(bench: Bench) -> None:
    bench.emulator.client.configure(limit_names="max_completion_tokens")
    bench.prices(emulator__chat={"input": 1, "output": 2})
    bench.cap("0.001")
    with pytest.raises(BudgetExceededError, match="was stopped after"):
        dear(bench).chat_completion(say(4000))
    assert 0 < bench.spent <= 1_000_000


def test_an_async_stream_finds_both_of_the_servers_wishes(bench: Bench) -> None:
    bench.emulator.client.configure(
        limit_names="max_completion_tokens", stream_usage="rejects_options"
    )
    bench.cap(MOST_OF_IT)

    async def main() -> int:
        async with bench.async_client(provider="together") as client:
            stream = await client.chat_completion(say(10), stream=True)
            return len([chunk async for chunk in stream])

    assert asyncio.run(main()) > 10
    assert sorted(ways(bench)) == ["200", "400", "400"]
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_a_server_that_takes_no_limit_is_asked_only_if_the_cap_pays_for_its_context(
    bench: Bench,
) -> None:
    bench.emulator.client.configure(limit_names="none")
    bench.cap(MOST_OF_IT)
    with pytest.raises(BudgetExceededError, match="may cost up to"):
        dear(bench).chat_completion(say(4000))
    assert set(ways(bench)) == {"400"}
    assert (bench.spent, bench.billed, bench.held) == (0, 0, 0)


def test_a_server_that_takes_no_limit_and_has_no_known_end_is_refused(bench: Bench) -> None:
    unlisted(bench, 4096)
    bench.emulator.client.configure(limit_names="none")
    bench.cap(1)
    said = "takes no limit on its output under the names .*, so no cap .* Pass max_new_tokens or "
    with pytest.raises(BudgetExceededError, match=said):
        small(bench).chat_completion(say(10))
    assert (bench.spent, bench.billed, bench.held) == (0, 0, 0)


def test_a_callers_own_limit_that_a_server_refuses_is_left_to_the_caller(bench: Bench) -> None:
    bench.emulator.client.configure(limit_names="max_completion_tokens")
    bench.cap(1)
    with pytest.raises(Exception, match="Unsupported parameter"):
        dear(bench).chat_completion(say(10), max_tokens=20)
    assert ways(bench) == ["400"]


def test_a_callers_limit_by_the_other_name_is_its_bound(bench: Bench) -> None:
    bench.emulator.client.configure(limit_names="max_completion_tokens")
    bench.cap(1)
    answer = dear(bench).chat_completion(say(100), extra_body={"max_completion_tokens": 20})
    assert answer.choices[0].finish_reason == "length"
    assert ways(bench) == ["200"]
    assert bench.spent == bench.billed > 0


def test_text_generation_gets_its_limit_where_it_looks_for_it(bench: Bench) -> None:
    bench.prices(**{"emulator/text-generation": {"input": 1, "output": 2}})
    bench.cap("0.001")
    client = bench.client("emulator/text-generation", provider="hf-inference")
    assert client.text_generation("once [[tokens=10]]")
    assert bench.held == 0
    with pytest.raises(BudgetExceededError, match="was stopped after"):
        client.text_generation("once [[tokens=4000]]", details=True)
    assert bench.spent <= 1_000_000


def test_a_text_generation_stream_that_runs_into_the_caps_limit_is_a_refusal(bench: Bench) -> None:
    bench.prices(**{"emulator/text-generation": {"input": 1, "output": 2}})
    bench.cap("0.001")
    client = bench.client("emulator/text-generation", provider="hf-inference")
    with pytest.raises(BudgetExceededError, match="was stopped after"):
        list(client.text_generation("once [[tokens=4000]]", stream=True))
    assert 0 < bench.spent <= 1_000_000


def test_a_prompt_near_the_end_of_the_context_of_text_generation_is_answered(bench: Bench) -> None:
    bench.prices(**{"emulator/text-generation": {"input": 1, "output": 2}})
    bench.cap("0.05")
    client = bench.client("emulator/text-generation", provider="hf-inference")
    assert client.text_generation("[[tokens=10]]" + "word" * 8000)
    assert ways(bench)[-1] == "200"
    assert set(ways(bench)[:-1]) <= {"400"}


def test_seconds_set_no_limit_on_the_output(bench: Bench) -> None:
    bench.emulator.client.configure(limit_names="none")
    bench.prices(emulator__chat={"second": "0.00001"})
    bench.cap("0.01")
    dear(bench).chat_completion(say(10))
    assert ways(bench) == ["200"]
