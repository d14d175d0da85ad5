"""Calls that wait for calls in flight: threads, tasks, and what ends a wait early."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError
from pytest_hfbudget.ledger import Caller, Charge, Hold, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.metering.budget_context import current_caller

PATIENCE_S = 20
# A call may cost 20 tokens, and costs one: the cap holds one at a time, and pays for many.
PRICE = {"input": 0, "output": 2}
ONE = 40_000
CAP = "0.00006"


class WatchedLedger(Ledger):
    """A ledger that tells when a call begins to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = threading.Semaphore(0)

    def hold_or_queue(
        self,
        keys: Sequence[str],
        least: int,
        most: int | None,
        draft: Charge,
        caller: Caller | None = None,
    ) -> Hold | WaitingHold:
        answer = super().hold_or_queue(keys, least, most, draft, caller)
        if isinstance(answer, WaitingHold):
            self.joined.release()
        return answer


@pytest.fixture
def ledger(bench: Bench) -> WatchedLedger:
    """A ledger whose session holds one call at a time."""
    watched = WatchedLedger()
    bench.books = bench.runtime.meter.ledger = watched
    bench.prices(emulator__chat=PRICE)
    bench.cap(CAP)
    return watched


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as opened:
        yield opened


def call(bench: Bench, tokens: int = 1) -> str:
    answer = bench.client().chat_completion(say(tokens), max_tokens=20)
    return str(answer.choices[0].message.content)


class OpenStream:
    """A stream that holds more than half of the session until it is read, or dropped."""

    def __init__(self, bench: Bench) -> None:
        self._client = bench.client()  # which closes its streams when it is collected
        self._chunks = self._client.chat_completion(say(1), max_tokens=20, stream=True)

    def read(self) -> None:
        for _ in self._chunks:
            pass

    def drop(self) -> None:
        del self._chunks
        gc.collect()


# --- threads


def test_a_thread_waits_for_what_another_one_holds(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    stream = OpenStream(bench)
    waiting = pool.submit(call, bench)
    assert ledger.joined.acquire(timeout=PATIENCE_S)
    assert bench.sent == 1
    stream.read()
    assert waiting.result(PATIENCE_S)
    assert (bench.sent, bench.held, bench.spent) == (2, 0, ONE // 10)


def test_calls_of_eight_threads_are_all_sent_under_a_cap_that_holds_one_at_a_time(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    calls = [pool.submit(call, bench) for _ in range(8)]
    assert all(each.result(PATIENCE_S) for each in calls)
    assert (bench.sent, bench.held) == (8, 0)
    assert ledger.waiting() == 0


def test_a_thread_does_not_wait_for_a_stream_of_its_own(
    bench: Bench, ledger: WatchedLedger
) -> None:
    stream = OpenStream(bench)
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        call(bench)
    assert not ledger.joined.acquire(blocking=False)
    stream.read()
    assert bench.held == 0


def test_two_threads_with_a_stream_each_do_not_wait_for_each_other(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    bench.cap("0.0001")  # holds two at a time
    opened = threading.Barrier(2, timeout=PATIENCE_S)

    def work() -> str:
        stream = OpenStream(bench)
        opened.wait()
        try:
            call(bench)
        except BudgetExceededError as error:
            return str(error)
        finally:
            stream.read()
        return "sent"

    outcomes = [pool.submit(work) for _ in range(2)]
    refused, sent = sorted((o.result(PATIENCE_S) for o in outcomes), key="sent".__eq__)
    assert "Waiting can't help" in refused
    assert sent == "sent"
    assert (bench.sent, bench.held, bench.spent) == (3, 0, 3 * ONE // 20)


def test_a_wait_ends_when_the_stream_in_the_way_is_garbage_collected(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    stream = OpenStream(bench)
    waiting = pool.submit(call, bench)
    assert ledger.joined.acquire(timeout=PATIENCE_S)
    stream.drop()  # charged in full, so that nothing is left for the other
    with pytest.raises(BudgetExceededError, match=r"\(\$\S+ spent\)"):
        waiting.result(PATIENCE_S)


def test_a_wait_ends_when_the_test_that_holds_what_is_in_the_way_is_over(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    bench.running()
    stream = OpenStream(bench)
    waiting = pool.submit(call, bench)
    assert ledger.joined.acquire(timeout=PATIENCE_S)
    bench.runtime.meter.settle_open("test_it")  # charged in full
    with pytest.raises(BudgetExceededError, match=r"\(\$\S+ spent\)"):
        waiting.result(PATIENCE_S)
    stream.read()


def test_a_refusal_that_came_too_late_for_its_test_is_not_blamed_on_the_next(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    first = bench.running()
    stream = OpenStream(bench)
    waiting = pool.submit(call, bench)
    assert ledger.joined.acquire(timeout=PATIENCE_S)
    second = bench.running(1)
    bench.runtime.meter.settle_open("test_it")
    assert isinstance(waiting.exception(PATIENCE_S), BudgetExceededError)
    assert (first.refusals, second.refusals) == ([], [])
    assert len(bench.budgets.unowned) == 1
    stream.read()


# --- how long


def test_patience_ends_with_a_refusal_that_the_test_answers_for(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    test = bench.running()
    bench.runtime.meter.hold_wait = 0.05
    stream = OpenStream(bench)
    error = pool.submit(call, bench).exception(PATIENCE_S)
    assert "within 0.05 s (hf_hold_wait)" in str(error)
    assert test.refusals == [error]
    assert bench.sent == 1
    assert ledger.waiting() == 0
    stream.read()


def test_patience_ends_in_a_test_that_freezes_time_as_well(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.runtime.meter.hold_wait = 0.05
    stream = OpenStream(bench)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    with pytest.raises(BudgetExceededError, match="hf_hold_wait"):
        pool.submit(call, bench).result(PATIENCE_S)
    assert ledger.waiting() == 0
    stream.read()


def test_a_call_that_may_not_wait_is_refused_at_once(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    bench.runtime.meter.hold_wait = 0
    stream = OpenStream(bench)
    with pytest.raises(BudgetExceededError, match="held for calls in flight"):
        pool.submit(call, bench).result(PATIENCE_S)
    assert not ledger.joined.acquire(blocking=False)
    stream.read()


# --- interrupted


def test_a_ctrl_c_while_waiting_leaves_neither_a_place_nor_a_hold(
    bench: Bench, ledger: WatchedLedger, pool: ThreadPoolExecutor
) -> None:
    stream = pool.submit(OpenStream, bench).result(PATIENCE_S)

    def interrupt() -> None:
        assert ledger.joined.acquire(timeout=PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(bench)
    assert ledger.waiting() == 0
    pool.submit(stream.read).result(PATIENCE_S)
    assert (bench.sent, bench.held) == (1, 0)


# --- tasks


def test_a_task_waits_while_other_tasks_go_on(bench: Bench, ledger: WatchedLedger) -> None:
    async def main() -> None:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(1), max_tokens=20, stream=True)
            waiting = asyncio.ensure_future(client.chat_completion(say(1), max_tokens=20))
            # This task reads the stream on the same loop, which therefore must not stand still.
            while not ledger.joined.acquire(blocking=False):
                await asyncio.sleep(0)
            async for _ in stream:
                pass
            assert await waiting

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert (bench.sent, bench.held, bench.spent) == (2, 0, ONE // 10)


def test_calls_of_eight_tasks_are_all_sent_under_a_cap_that_holds_one_at_a_time(
    bench: Bench, ledger: WatchedLedger
) -> None:
    async def main() -> None:
        async with bench.async_client() as client:
            await asyncio.gather(*(client.chat_completion(say(1), max_tokens=20) for _ in range(8)))

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert (bench.sent, bench.held) == (8, 0)


def test_a_task_does_not_wait_for_a_stream_of_its_own(bench: Bench, ledger: WatchedLedger) -> None:
    async def main() -> None:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(1), max_tokens=20, stream=True)
            with pytest.raises(BudgetExceededError, match="Waiting can't help"):
                await client.chat_completion(say(1), max_tokens=20)
            async for _ in stream:
                pass

    asyncio.run(main())
    assert bench.sent == 1


def test_a_stream_that_a_task_has_dropped_is_not_in_the_way_of_its_next_call(
    bench: Bench, ledger: WatchedLedger
) -> None:
    """The loop ends a dropped generator at its next turns, which such a call leaves it."""
    bench.emulator.client.configure(stream_usage="every_chunk")

    async def main() -> None:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(1), max_tokens=20, stream=True)
            while not (await stream.__anext__()).choices[0].finish_reason:
                pass
            del stream
            gc.collect()
            assert await client.chat_completion(say(1), max_tokens=20)

    asyncio.run(main())
    assert (bench.sent, bench.held) == (2, 0)


def test_a_call_that_blocks_the_loop_does_not_wait_for_a_task_of_it(
    bench: Bench, ledger: WatchedLedger
) -> None:
    async def main() -> None:
        async with bench.async_client() as client:

            async def open_stream() -> Any:
                return await client.chat_completion(say(1), max_tokens=20, stream=True)

            stream = await asyncio.ensure_future(open_stream())
            with pytest.raises(BudgetExceededError, match="Waiting can't help"):
                call(bench)
            async for _ in stream:
                pass

    asyncio.run(main())
    assert bench.sent == 1


def test_a_task_that_is_cancelled_while_waiting_leaves_neither_a_place_nor_a_hold(
    bench: Bench, ledger: WatchedLedger
) -> None:
    async def main() -> None:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(1), max_tokens=20, stream=True)
            waiting = asyncio.ensure_future(client.chat_completion(say(1), max_tokens=20))
            while not ledger.joined.acquire(blocking=False):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert ledger.waiting() == 0
            async for _ in stream:
                pass

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert (bench.sent, bench.held) == (1, 0)


def test_a_task_that_is_refused_while_waiting_leaves_nothing_for_asyncio_to_log(
    bench: Bench, ledger: WatchedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    bench.runtime.meter.hold_wait = 0.05

    async def main() -> None:
        async with bench.async_client() as client:
            stream = await client.chat_completion(say(1), max_tokens=20, stream=True)
            other = asyncio.ensure_future(client.chat_completion(say(1), max_tokens=20))
            with pytest.raises(BudgetExceededError, match="hf_hold_wait"):
                await other
            async for _ in stream:
                pass
        gc.collect()

    asyncio.run(main())
    assert not [record for record in caplog.records if record.name == "asyncio"]


# --- who is who


def test_the_same_task_is_the_same_caller_and_another_one_is_another() -> None:
    async def who() -> tuple[Caller | None, Caller | None]:
        return current_caller(blocking=False), current_caller(blocking=False)

    async def main() -> set[Caller | None]:
        both = [await asyncio.ensure_future(who()) for _ in range(3)]
        assert all(first == again for first, again in both)
        return {first for first, _ in both}

    assert len(asyncio.run(main())) == 3


def test_a_coroutine_without_asyncio_can_not_wait() -> None:
    async def who() -> Caller | None:
        return current_caller(blocking=False)

    with pytest.raises(StopIteration) as ended:
        who().send(None)
    assert ended.value.value is None
