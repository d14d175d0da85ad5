"""What a ledger remembers of its calls, and how much room that takes."""

from __future__ import annotations

import tracemalloc
from enum import Enum

import pytest

from pytest_hfbudget.ledger import Charge, Scope
from pytest_hfbudget.ledger.ledger import PACK, Charges, Ledger


class Model(str, Enum):
    LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def charge(number: int) -> Charge:
    return Charge(
        test="test_it.py::test_it",
        task="conversational",
        model="meta-llama/Llama-3.1-8B-Instruct",
        provider="novita" if number % 2 else None,
        input_tokens=1000 + number % 500,
        output_tokens=number % 300,
        nano_usd=10_000 + number,
        price_source="prices.toml",
        status="200",
        estimated=False,
        seconds=round(0.1 + number / 1e6, 6),
        scopes=("session", "test:test_it.py::test_it"),
    )


@pytest.mark.parametrize("count", [0, 1, PACK - 1, PACK, PACK + 1, 3 * PACK + 7])
def test_charges_come_back_as_they_went_in(count: int) -> None:
    kept = Charges()
    for number in range(count):
        kept.append(charge(number))
    assert list(kept) == [charge(number) for number in range(count)]


def test_what_goes_through_a_ledger_in_thousands_is_all_there() -> None:
    ledger = Ledger()
    for key in charge(0).scopes:
        ledger.open(Scope(key, key))
    given = [charge(number) for number in range(2 * PACK + 1)]
    for one in given:
        ledger.settle(ledger.hold(one.scopes, 0, 0, one).id, one)
    assert ledger.charges() == ledger.charges_in("session") == tuple(given)


def test_a_model_may_be_named_by_an_enum() -> None:
    kept = Charges()
    for _ in range(PACK):
        kept.append(charge(0)._replace(model=Model.LLAMA))
    assert set(kept) == {charge(0)}


def test_ten_thousand_charges_take_less_than_half_a_megabyte() -> None:
    kept, charges = Charges(), [charge(number) for number in range(10 * PACK)]
    tracemalloc.start()
    try:
        for one in charges:
            kept.append(one)
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
