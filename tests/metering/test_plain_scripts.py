"""Budgets in a plain script, where there is no run."""

from __future__ import annotations

import os
from decimal import Decimal

import pytest
from huggingface_hub import InferenceClient
from metering_bench import MODEL, say

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.metering.runtime import VARIABLE, runtime

PRICE = {"input": 0.1, "output": 0.5}


@pytest.fixture(autouse=True)
def emulator(one_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    one_emulator.client.reset()
    monkeypatch.setenv("HFBUDGET_ROUTER", one_emulator.router)
    return one_emulator


def asked(block: budget) -> bool:
    """Whether a call inside of a block is let through."""
    client = InferenceClient(base_url=f"{os.environ['HFBUDGET_ROUTER']}/v1", api_key="hf_x")
    with block:
        try:
            client.chat_completion(say(50), model=MODEL, max_tokens=60)
        except BudgetExceededError:
            return False
    return True


def test_a_block_that_is_entered_again_and_again_adds_up(emulator: Emulator) -> None:
    block = budget("0.0001", price=PRICE, on_exceed="raise")
    sent = [asked(block) for _ in range(6)]
    assert sent == sorted(sent, reverse=True)  # none is let through after the first refusal
    assert 1 < sum(sent) < 6
    assert block.calls_used == len(block.calls) == sum(sent)
    assert block.spent <= Decimal("0.0001")
    assert (
        emulator.client.log(kind="request", phase="arrived", op="chat", after=0)[sum(sent) :] == []
    )


def test_max_calls_is_for_all_its_times() -> None:
    block = budget(max_calls=2, on_exceed="raise")
    assert [asked(block) for _ in range(4)] == [True, True, False, False]


def test_a_block_that_was_used_alone_adds_up_inside_of_another() -> None:
    block = budget(max_calls=2, on_exceed="raise")
    assert asked(block)
    with budget(1, price=PRICE):
        assert asked(block)
        assert not asked(block)


def test_a_block_says_what_it_has_had_wherever_that_was() -> None:
    block = budget(1, price=PRICE, name="both")
    asked(block)
    with budget():
        asked(block)
    assert (block.calls_used, len(block.calls)) == (2, 2)
    assert block.limit == 1
    assert block.remaining == 1 - block.spent < 1
    assert block.summary().startswith("both: <$0.0001 of $1.00, 2 calls")


def test_a_block_that_is_kept_keeps_nothing_of_the_others() -> None:
    kept = budget()
    asked(kept)
    for _ in range(3):
        asked(budget())
    with kept:
        ledger = runtime().meter.ledger
        assert isinstance(ledger, Ledger)
        assert len(ledger.charges()) == 1


def test_a_block_is_open_to_children_each_time_it_is_entered() -> None:
    block = budget(1, price=PRICE)
    for _ in range(2):
        with block:
            runtime().children.export()
            assert VARIABLE in os.environ
        assert VARIABLE not in os.environ
