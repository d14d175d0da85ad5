"""warn_at and fallback: what happens when a part of a budget is used up."""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from metering_bench import MODEL, Bench, routed, say

from pytest_hfbudget import BudgetExceededError, ConfigError, HFBudgetWarning, budget

CHEAP = "acme/cheap"
PRICE = {"call": 0.001}  # so that every call is a tenth of a cent


@pytest.fixture
def cheap(bench: Bench) -> Bench:
    """A bench with a second model, by the same provider."""
    bench.emulator.client.add_model(CHEAP, provider="groq", price={"input": "0.1", "output": "0.1"})
    bench.prices(acme__cheap={"input": 0.1, "output": 0.1})
    return bench


def call(bench: Bench, **options: Any) -> Any:
    return bench.client(provider="groq", **options).chat_completion(say(10), max_tokens=20)


def models(bench: Bench) -> list[str]:
    """What the emulator was asked for."""
    return [call["model"] for call in bench.emulator.client.invoice()["calls"]]


def test_a_warning_says_once_that_a_part_of_the_cap_is_spent(bench: Bench) -> None:
    with pytest.warns(HFBudgetWarning, match=r"step: \$0.008 of \$0.01 spent") as raised:
        with budget(max_usd=0.01, warn_at=0.8, name="step", price=PRICE):
            for _ in range(10):
                call(bench)
    assert len(raised) == 1


def test_below_the_part_nothing_is_said(bench: Bench) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with budget(max_usd=0.01, warn_at=0.8, price=PRICE):
            for _ in range(7):
                call(bench)


def test_a_part_of_the_calls_counts_too(bench: Bench) -> None:
    with pytest.warns(HFBudgetWarning, match="2 of 4 calls made"):
        with budget(max_calls=4, warn_at=0.5):
            call(bench)
            call(bench)


def test_a_warning_that_is_an_error_loses_neither_the_answer_nor_the_charge(bench: Bench) -> None:
    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HFBudgetWarning), budget(max_usd=0.01, warn_at=0.1, price=PRICE) as b:
            answers += [call(bench), call(bench)]
    assert len(answers) == 2
    assert b.spent == Decimal("0.002")


def test_a_warning_does_not_hide_the_error_that_leaves_the_block(bench: Bench) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError), budget(max_usd=0.01, warn_at=0.1, price=PRICE):
            call(bench)
            raise ZeroDivisionError


def test_eight_threads_are_warned_once(bench: Bench) -> None:
    with pytest.warns(HFBudgetWarning) as raised:
        with budget(max_usd=0.064, warn_at=0.5, price=PRICE):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: call(bench), range(64)))
    assert len(raised) == 1


def test_each_of_nested_blocks_has_a_warning_of_its_own(bench: Bench) -> None:
    with pytest.warns(HFBudgetWarning) as raised:
        with budget(max_usd=0.02, warn_at=0.1, name="outer", price=PRICE):
            with budget(max_usd=0.01, warn_at=0.2, name="inner"):
                call(bench)
                call(bench)
    assert sorted(str(w.message).partition(":")[0] for w in raised) == ["inner", "outer"]


def test_from_a_part_of_the_cap_on_calls_go_to_the_cheaper_model(cheap: Bench) -> None:
    with budget(max_usd=0.0001, fallback={"at_pct": 0.3, "model": CHEAP}) as b:
        while not b.model_switched:
            call(cheap)
    first, *_, last = b.calls
    assert (first.model, first.instead_of) == (MODEL, "")
    assert (last.model, last.instead_of) == (CHEAP, MODEL)
    assert models(cheap)[-1] == CHEAP
    assert cheap.spent == cheap.billed
    assert b.switched_at_usd is not None
    assert b.switched_at_usd >= Decimal("0.00003")
    assert b.fallback_spent == b.spent - b.switched_at_usd > 0


@routed
def test_the_router_is_asked_for_the_cheaper_model(cheap: Bench) -> None:
    with budget(max_usd=1, fallback={"at_pct": 0, "model": f"{CHEAP}:groq"}) as b:
        cheap.client().chat_completion(say(10), max_tokens=20)
    assert [(c.model, c.provider, c.instead_of) for c in b.calls] == [(CHEAP, "groq", MODEL)]


def test_a_stream_of_the_async_client_is_swapped_too(cheap: Bench) -> None:
    async def main() -> None:
        client = cheap.async_client(provider="groq")
        async with client:
            stream = await client.chat_completion(say(10), max_tokens=20, stream=True)
            async for _ in stream:
                pass

    async def capped() -> budget:
        async with budget(max_usd=1, fallback={"at_pct": 0, "model": CHEAP}) as b:
            await main()
        return b

    assert asyncio.run(capped()).model_switched
    assert models(cheap) == [CHEAP]


def test_the_cap_holds_for_the_cheaper_model_as_well(cheap: Bench) -> None:
    with pytest.raises(BudgetExceededError):
        with budget(max_usd="0.0001", fallback={"at_pct": 0, "model": CHEAP}):
            while True:
                call(cheap)
    assert 0 < cheap.billed <= 100_000


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("acme/unheard-of", "acme/unheard-of"),
        (f"{CHEAP}:together", "goes to groq, not to together"),
    ],
)
def test_a_call_that_can_not_be_swapped_is_sent_as_it_is_with_one_warning(
    cheap: Bench, model: str, why: str
) -> None:
    with pytest.warns(HFBudgetWarning, match=why) as raised:
        with budget(max_usd=1, fallback={"at_pct": 0, "model": model}) as b:
            call(cheap)
            call(cheap)
    assert len(raised) == 1
    assert models(cheap) == [MODEL, MODEL]
    assert not b.model_switched


def test_a_cheaper_model_without_a_price_is_not_sent_to(bench: Bench) -> None:
    price = {"input": "1", "output": "1"}  # on the bill, in no list
    bench.emulator.client.add_model("acme/new", provider="groq", price=price)
    with pytest.warns(HFBudgetWarning, match="acme/new has no known price"):
        with budget(max_usd=1, fallback={"at_pct": 0, "model": "acme/new"}):
            call(bench)
    assert models(bench) == [MODEL]


def test_a_server_of_its_own_serves_what_it_serves(cheap: Bench) -> None:
    cheap.prices(**{cheap.emulator.url: {"free": True}})
    url = f"{cheap.emulator.url}/nowhere"
    with pytest.warns(HFBudgetWarning, match="chooses the model itself"):
        with budget(max_usd=1, fallback={"at_pct": 0, "model": CHEAP}):
            with pytest.raises(Exception, match="404"):
                cheap.client(model=url).chat_completion(say(10), max_tokens=20)


@pytest.mark.parametrize(
    "arguments",
    [
        {"warn_at": 80},
        {"warn_at": -0.1},
        {"warn_at": float("nan")},
        {"warn_at": True},
        {"warn_at": "most"},
        {"fallback": "acme/cheap"},
        {"fallback": {"model": CHEAP}},
        {"fallback": {"at_pct": 80, "model": CHEAP}},
        {"fallback": {"at_pct": 0.8, "model": ""}},
        {"fallback": {"at_pct": 0.8, "model": "http://localhost"}},
        {"fallback": {"at_pct": 0.8, "model": CHEAP, "price": 1}},
    ],
)
def test_an_argument_that_makes_no_sense_is_one_line(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^budget\([^\n]*write [^\n]*$"):
        budget(max_usd=1, **arguments)


@pytest.mark.parametrize("argument", [{"warn_at": 1}, {"fallback": {"at_pct": 1, "model": CHEAP}}])
def test_a_part_of_no_limit_makes_no_sense(argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give max_usd or max_calls"):
        budget(**argument)


@pytest.mark.parametrize("part", [0.8, Decimal("0.8"), Fraction(4, 5)])
def test_a_part_is_as_exact_as_it_is_written(bench: Bench, part: object) -> None:
    with pytest.warns(HFBudgetWarning, match=r"\$0.004 of \$0.005 spent"):
        with budget(max_usd=0.005, warn_at=part, price=PRICE):
            for _ in range(4):
                call(bench)


@pytest.mark.parametrize("most", [0, 1, 5])
def test_max_calls_is_exact_over_threads(bench: Bench, most: int) -> None:
    def let_through(_: int) -> bool:
        try:
            call(bench)
        except BudgetExceededError:
            return False
        return True

    with budget(max_calls=most, on_exceed="raise") as b, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(let_through, range(32))) == most
    assert (bench.sent, b.calls_used, b.calls_remaining) == (most, most, 0)


def test_max_calls_counts_calls_that_failed_and_streams(bench: Bench) -> None:
    bench.emulator.client.add_fault("chat", status=500, json={"error": "down"})
    with budget(max_calls=2, on_exceed="raise"):
        with pytest.raises(Exception, match="500"):
            call(bench)
        client = bench.client()
        list(client.chat_completion(say(3), max_tokens=20, stream=True))
        with pytest.raises(BudgetExceededError, match="max_calls is 2"):
            call(bench)
    assert bench.sent == 2
