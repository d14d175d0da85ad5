"""The settlement table: what is charged when a call does not simply succeed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from metering_bench import MODEL, Bench, routed, say

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.pricing import Price

PRICE = {"emulator__chat": {"input": 1, "output": 2}}


def _charge(bench: Bench) -> Any:
    bench.runtime.meter.drain()
    (charge,) = bench.ledger.charges()
    return charge


@pytest.mark.parametrize("status", [402, 429, 500, 503])
def test_an_error_status_costs_nothing_but_is_counted(bench: Bench, status: int) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", status=status, json={"error": "no"})
    with pytest.raises(Exception, match=str(status)):
        bench.client().chat_completion(say(1), max_tokens=5)
    assert (_charge(bench).status, bench.spent, bench.held) == (str(status), 0, 0)


@pytest.mark.parametrize("status", [402, 503])
def test_an_error_status_of_an_async_call_costs_nothing(bench: Bench, status: int) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", status=status, json={"error": "no"})

    async def main() -> None:
        async with bench.async_client() as client:
            await client.chat_completion(say(1), max_tokens=5)

    with pytest.raises(Exception, match=str(status)):
        asyncio.run(main())
    assert (_charge(bench).status, bench.spent, bench.held) == (str(status), 0, 0)


def test_a_refused_connection_costs_nothing(bench: Bench, free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    bench.prices(**{url: {"input": 1, "output": 1}})
    bench.cap(1)
    with pytest.raises(Exception, match=r"(?i)refused|connect"):
        bench.client(url).chat_completion(say(1), max_tokens=5)
    assert (_charge(bench).status, bench.spent, bench.held) == ("refused", 0, 0)


def test_a_connection_that_is_refused_to_an_async_call_costs_nothing(
    bench: Bench, free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}"
    bench.prices(**{url: {"input": 1, "output": 1}})
    bench.cap(1)

    async def main() -> None:
        async with bench.async_client(url) as client:
            await client.chat_completion(say(1), max_tokens=5)

    with pytest.raises(Exception, match=r"(?i)refused|connect"):
        asyncio.run(main())
    assert (_charge(bench).status, bench.spent, bench.held) == ("refused", 0, 0)


def test_a_lost_answer_is_charged_at_its_hold(bench: Bench) -> None:
    bench.prices(**PRICE)
    bench.cap(1)
    bench.emulator.client.add_fault("chat", reset="after")
    with pytest.raises(Exception):  # noqa: B017, PT011 - each HTTP library has its own
        bench.client().chat_completion(say(10), max_tokens=50)
    charge = _charge(bench)
    assert (charge.status, charge.estimated) == ("lost", True)
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_a_call_that_timed_out_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.configure(answer_delay_s=5)
    with pytest.raises(Exception, match=r"(?i)time"):
        bench.client(timeout=0.2).chat_completion(say(10), max_tokens=50)
    charge = _charge(bench)
    assert (charge.status, charge.estimated) == ("timeout", True)
    assert bench.spent > 0
    assert bench.held == 0


def test_a_cancelled_call_is_charged_at_its_hold(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.configure(answer_delay_s=5)

    async def main() -> None:
        async with bench.async_client() as client:
            call = asyncio.ensure_future(client.chat_completion(say(10), max_tokens=50))
            after = bench.emulator.client.wait_for
            await asyncio.to_thread(after, op="chat", timeout=10)
            call.cancel()
            await call

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    charge = _charge(bench)
    assert (charge.status, charge.estimated) == ("cancelled", True)
    assert (bench.spent > 0, bench.held) == (True, 0)


def test_an_answer_without_usage_is_charged_at_its_upper_bound(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.configure(usage="never")
    bench.client().chat_completion(say(10), max_tokens=50)
    assert _charge(bench).estimated
    assert bench.spent >= bench.billed > 0


def test_an_answer_that_is_no_json_is_charged_at_its_upper_bound(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", garbage=True)
    with pytest.raises(Exception):  # noqa: B017, PT011 - what huggingface_hub makes of it
        bench.client().chat_completion(say(10), max_tokens=50)
    assert _charge(bench).estimated
    assert bench.spent > 0


def test_a_call_without_a_limit_gets_the_one_that_the_cap_pays_for(bench: Bench) -> None:
    bench.prices(**PRICE)
    bench.cap("0.01")
    answer = bench.client().chat_completion(say(10))
    assert answer.choices[0].finish_reason == "stop"
    assert bench.held == 0
    assert bench.spent > 0


def test_an_answer_that_runs_into_the_caps_limit_is_a_refusal(bench: Bench) -> None:
    bench.prices(**PRICE)
    bench.cap("0.001")
    with pytest.raises(BudgetExceededError, match=r"was stopped after \d+ tokens"):
        bench.client().chat_completion(say(4000))
    assert 0 < bench.spent <= 1_000_000
    assert bench.ledger.total("session").refused == 1


def test_an_answer_that_runs_into_its_own_limit_is_no_refusal(bench: Bench) -> None:
    bench.cap("0.01")
    answer = bench.client().chat_completion(say(4000), max_tokens=20)
    assert answer.choices[0].finish_reason == "length"
    assert bench.spent == bench.billed


def test_the_plugins_limit_never_makes_a_server_refuse(bench: Bench) -> None:
    """A limit which, with the prompt, is longer than the context is answered with a 400."""
    bench.cap("0.0008")  # less than 8192 tokens of context cost, more than most of them
    bench.client(MODEL).chat_completion(say(10))
    assert bench.sent == 1


def test_a_retry_is_a_call_of_its_own(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", status=503, json={"error": "busy"})
    client = bench.client()
    with pytest.raises(Exception, match="503"):
        client.chat_completion(say(1), max_tokens=5)
    client.chat_completion(say(1), max_tokens=5)
    assert [charge.status for charge in bench.ledger.charges()] == ["503", "200"]
    assert bench.spent == bench.billed


def test_an_earlier_error_says_nothing_about_the_call_made_in_answer_to_it(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", status=429, json={"error": "busy"})
    bench.emulator.client.add_fault("chat", delay=1.5)
    try:
        bench.client().chat_completion(say(1), max_tokens=5)
    except Exception:
        with pytest.raises(Exception, match=r"(?i)time"):
            bench.client(timeout=0.3).chat_completion(say(1), max_tokens=5)
    assert [charge.status for charge in bench.ledger.charges()] == ["429", "timeout"]
    assert bench.spent > 0


def test_of_several_limits_in_one_call_the_highest_is_held(bench: Bench) -> None:
    bench.prices(emulator__chat={"input": 1, "output": 100})
    bench.cap("0.02")
    with pytest.raises(BudgetExceededError):
        bench.client().chat_completion(
            say(500), max_tokens=2, extra_body={"max_completion_tokens": 500}
        )
    assert bench.sent == 0


@routed
def test_a_hook_that_raises_never_loses_a_charge(bench: Bench) -> None:
    def hook(request: Any) -> Price | None:
        if request.provider == "groq":
            raise RuntimeError("a bug of another library")
        return None

    bench.book.hook = hook
    bench.emulator.client.configure(routing="pin:groq")
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    assert _charge(bench).estimated
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_a_hook_that_raises_does_not_fail_a_call_without_a_cap(bench: Bench) -> None:
    def hook(request: Any) -> Price | None:
        raise RuntimeError("a bug of another library")

    bench.book.hook = hook
    assert bench.client().chat_completion(say(10), max_tokens=50)


def test_a_cap_on_calls_alone_needs_no_price_and_sets_no_limit(bench: Bench) -> None:
    with budget(max_calls=1) as block:
        answer = bench.client("acme/unheard-of", provider="groq").chat_completion(say(9000))
    assert answer.choices[0].finish_reason == "length"
    assert block.calls_used == 1


def test_what_is_still_open_at_the_end_is_charged(bench: Bench) -> None:
    bench.cap(1)
    client = bench.client()
    stream = client.chat_completion(say(12), max_tokens=50, stream=True)
    next(iter(stream))
    bench.runtime.meter.settle_all()
    assert bench.held == 0
    assert bench.spent >= bench.billed


def test_a_ctrl_c_in_the_middle_of_a_settlement_loses_no_charge(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(hold: int, charge: Any) -> None:
        raise KeyboardInterrupt

    bench.cap(1)
    client = bench.client()
    with monkeypatch.context() as patch:
        patch.setattr(bench.ledger, "settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.chat_completion(say(10), max_tokens=50)
    bench.runtime.meter.settle_all()
    assert bench.held == 0
    assert bench.spent >= bench.billed > 0
