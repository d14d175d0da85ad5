"""Calls of trio's tasks that wait for calls in flight, also where anyio runs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import huggingface_hub
import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError

trio: Any = pytest.importorskip("trio")
anyio: Any = pytest.importorskip("anyio")

pytestmark = pytest.mark.skipif(
    huggingface_hub.__version__.startswith("0."), reason="its async client is one of asyncio"
)

PATIENCE_S = 20
# A call may cost 20 tokens, and costs one: the cap holds one at a time, and pays for many.
PRICE = {"input": 0, "output": 2}
ONE = 40_000
CAP = "0.00006"

Run = Callable[[Callable[[], Awaitable[None]]], None]


def on_trio(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


def on_anyio(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="trio")


def on_anyio_over_asyncio(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="asyncio")


@pytest.fixture(autouse=True)
def _one_at_a_time(bench: Bench) -> None:
    """A session that holds one call at a time."""
    bench.prices(emulator__chat=PRICE)
    bench.cap(CAP)


@pytest.mark.parametrize("run", [on_trio, on_anyio, on_anyio_over_asyncio])
def test_calls_of_eight_tasks_are_all_sent_under_a_cap_that_holds_one_at_a_time(
    bench: Bench, run: Run
) -> None:
    async def main() -> None:
        async with bench.async_client() as client:

            async def ask() -> None:
                assert await client.chat_completion(say(1), max_tokens=20)

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as group:
                    for _ in range(8):
                        group.start_soon(ask)

    run(main)
    assert (bench.sent, bench.held) == (8, 0)


def test_a_task_does_not_wait_for_a_call_of_its_own_thread_that_stands_still(bench: Bench) -> None:
    """A sync call blocks the loop on which the call that is in the way would be answered."""
    bench.emulator.client.add_fault("chat", times=1, hang=1)

    async def main() -> None:
        async with bench.async_client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(in_flight(client))
            await until(lambda: bench.sent)
            with pytest.raises(BudgetExceededError, match="Waiting can't help"):
                bench.client().chat_completion(say(1), max_tokens=20)

    trio.run(main)
    assert (bench.sent, bench.held) == (1, 0)


def test_a_wait_ends_with_a_refusal_when_its_time_is_over(bench: Bench) -> None:
    bench.runtime.meter.hold_wait = 0.05
    bench.emulator.client.add_fault("chat", times=1, hang=1)

    async def main() -> None:
        async with bench.async_client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(in_flight(client))
            await until(lambda: bench.sent)
            with pytest.raises(BudgetExceededError, match=r"within 0.05 s \(hf_hold_wait\)"):
                await client.chat_completion(say(1), max_tokens=20)

    trio.run(main)
    assert (bench.sent, bench.held, bench.books.waiting()) == (1, 0, 0)


def test_a_cancelled_task_leaves_neither_a_place_nor_a_hold(bench: Bench) -> None:
    bench.emulator.client.add_fault("chat", times=1, hang=1)

    async def main() -> None:
        async with bench.async_client() as client, trio.open_nursery() as outer:
            outer.start_soon(in_flight(client))
            await until(lambda: bench.sent)
            async with trio.open_nursery() as inner:
                inner.start_soon(in_flight(client))
                await until(bench.books.waiting)
                inner.cancel_scope.cancel()
            assert bench.books.waiting() == 0

    trio.run(main)
    assert (bench.sent, bench.held) == (1, 0)


def test_a_call_that_is_cancelled_on_its_way_is_charged_as_cancelled(bench: Bench) -> None:
    bench.emulator.client.add_fault("chat", times=1, hang=1)

    async def main() -> None:
        async with bench.async_client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(in_flight(client))
            await until(lambda: bench.sent)
            nursery.cancel_scope.cancel()

    trio.run(main)
    (charge,) = bench.ledger.charges()
    assert (charge.status, charge.nano_usd, bench.held) == ("cancelled", ONE, 0)


def in_flight(client: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: client.chat_completion(say(1), max_tokens=20)


async def until(true: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(true):
            pass
