"""A refusal says what the call would have held, and what that is made of."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from metering_bench import MODEL, Bench, routed, say

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.ledger import Refusal


def refused(bench: Bench, provider: str = "groq", **options: Any) -> BudgetExceededError:
    wanted = {"max_tokens": 50, **options}
    with budget("0.000001", on_exceed="raise"), pytest.raises(BudgetExceededError) as caught:
        bench.client(provider=provider).chat_completion(say(1), **wanted)
    return caught.value


def test_the_details_name_tokens_their_basis_and_the_price(bench: Bench) -> None:
    bench.prices(**{MODEL: {"input": "1", "output": "2"}})
    said = refused(bench).details
    tokens = int(said.split(": ")[1].split()[0])
    about = (tokens - 272) // 4
    usd = (tokens + 100) / 10**6
    assert said == (
        f"at most ${usd:.6f}: {tokens} tokens in (bytes; about {about} after the first answer), "
        "50 out, at groq's price"
    )


def test_a_prompt_that_was_counted_says_so(bench: Bench) -> None:
    with budget(1):
        for _ in range(2):
            bench.client(provider="groq").chat_completion(say(1), max_tokens=50)
    counted = bench.ledger.charges()[0].input_tokens
    assert f": {counted} tokens in (counted), 50 out, " in refused(bench).details


@routed
def test_where_the_router_chooses_the_most_expensive_provider_is_named_and_the_cheapest(
    bench: Bench,
) -> None:
    said = refused(bench, provider="auto").details
    assert "at together's price; emulator/chat:novita would hold $0.0000" in said


def test_they_are_a_line_of_their_own_below_the_sentence(bench: Bench) -> None:
    error = refused(bench)
    assert error.details not in str(error)
    assert "\n" not in error.details
    shown = "".join(traceback.format_exception_only(type(error), error))
    if hasattr(error, "add_note"):  # Python 3.11
        assert shown.endswith(f"\n{error.details}\n")


def test_they_are_reported_with_the_refusal(bench: Bench) -> None:
    error = refused(bench)
    (refusal,) = bench.ledger.refusals()
    assert isinstance(refusal, Refusal)
    assert refusal.details == error.details


def test_a_refusal_for_another_reason_has_none(bench: Bench) -> None:
    with budget(1, on_exceed="raise"), pytest.raises(BudgetExceededError) as caught:
        bench.client("acme/without-a-price", provider="groq").chat_completion(say(1), max_tokens=50)
    assert caught.value.details == ""
