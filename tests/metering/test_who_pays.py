"""Who is charged: the running test and the blocks around the call, over threads and tasks."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from types import SimpleNamespace

import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget import BudgetExceededError, ConfigError, budget
from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.metering.budget_context import BudgetContext, RunningTest

EIGHT = range(8)


def _call(bench: Bench, tokens: int = 10, limit: int = 20) -> bool:
    """One call; whether it was let through."""
    try:
        bench.client().chat_completion(say(tokens), max_tokens=limit)
    except BudgetExceededError:
        return False
    return True


def test_plain_threads_are_charged_to_the_running_test(bench: Bench) -> None:
    bench.running()
    threads = [threading.Thread(target=_call, args=(bench,)) for _ in EIGHT]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.ledger.total("test:test_it").spent == bench.billed > 0


def test_eight_threads_together_stay_below_the_cap(bench: Bench) -> None:
    bench.cap("0.00006")
    with ThreadPoolExecutor(8) as pool:
        let_through = list(pool.map(lambda _: _call(bench), range(96)))
    assert bench.billed <= 60_000
    assert bench.spent == bench.billed > 0
    assert bench.sent == sum(let_through) < 96


def test_eight_tasks_together_stay_below_the_cap(bench: Bench) -> None:
    bench.cap("0.00006")

    async def call() -> bool:
        async with bench.async_client() as client:
            try:
                await client.chat_completion(say(10), max_tokens=20)
            except BudgetExceededError:
                return False
            return True

    async def main() -> int:
        return sum([sum(await asyncio.gather(*(call() for _ in EIGHT))) for _ in range(12)])

    let_through = asyncio.run(main())
    assert bench.billed <= 60_000
    assert bench.spent == bench.billed > 0
    assert bench.sent == let_through < 96


def test_a_block_counts_what_is_inside_it(bench: Bench) -> None:
    _call(bench)
    with budget(max_usd=1) as block:
        _call(bench)
    assert block.calls_used == 1
    assert int(block.spent * 10**9) * 2 == bench.billed


def test_nested_blocks_are_charged_at_once(bench: Bench) -> None:
    with budget(max_usd=1) as outer, budget(max_usd=1) as inner:
        _call(bench)
        assert outer.spent == inner.spent > 0


def test_a_child_without_a_cap_stays_below_its_parents(bench: Bench) -> None:
    with pytest.raises(BudgetExceededError), budget(max_usd="0.00006", name="parent"), budget():
        while True:
            bench.client().chat_completion(say(10), max_tokens=20)
    assert 0 < bench.billed <= 60_000


def test_a_child_inherits_its_parents_price(bench: Bench) -> None:
    with budget(max_usd=1, price_per_1k_tokens={"input": 1, "output": 1}):
        with budget(max_usd=0.5) as inner:
            _call(bench, limit=11)
    assert inner.spent > 0


def test_blocks_of_one_name_do_not_disturb_each_other(bench: Bench) -> None:
    for _ in range(2):
        with budget(max_usd=1, name="step") as block:
            _call(bench)
        assert block.calls_used == 1


def test_a_block_that_is_entered_again_goes_on_counting(bench: Bench) -> None:
    block = budget(max_usd=1)
    for _ in range(2):
        with block:
            _call(bench)
    assert block.calls_used == 2


def test_sibling_tasks_with_blocks_of_their_own_stay_below_their_parents(bench: Bench) -> None:
    async def child() -> None:
        with budget(max_usd="0.00006", on_exceed="raise"):
            async with bench.async_client() as client:
                await client.chat_completion(say(10), max_tokens=20)

    async def main() -> None:
        async with budget(max_usd="0.00006", name="parent", on_exceed="raise"):
            await asyncio.gather(*(child() for _ in EIGHT), return_exceptions=True)

    asyncio.run(main())
    assert 0 < bench.billed <= 60_000
    assert bench.spent == bench.billed


def test_a_plain_thread_inside_a_block_can_not_escape_its_cap(bench: Bench) -> None:
    with pytest.raises(BudgetExceededError), budget(max_usd="0.00006"):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: _call(bench), range(96)))
    assert 0 < bench.billed <= 60_000


async def inside(opened: asyncio.Event, leave: asyncio.Event) -> budget:
    """A task that is in a block of its own until it may leave."""
    with budget(max_usd=1) as block:
        opened.set()
        await leave.wait()
    return block


def test_a_task_outside_of_a_block_is_not_charged_to_it(bench: Bench) -> None:
    async def main() -> budget:
        opened, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.ensure_future(inside(opened, leave))
        await opened.wait()
        async with bench.async_client() as client:
            await client.chat_completion(say(10), max_tokens=20)
        leave.set()
        return await task

    assert asyncio.run(main()).calls_used == 0
    assert bench.billed > 0


def test_a_swallowed_refusal_is_raised_at_the_end_of_its_block(bench: Bench) -> None:
    with pytest.raises(BudgetExceededError, match="small"), budget(max_usd=0, name="small"):
        assert not _call(bench)


@pytest.mark.parametrize(("on_exceed", "told"), [("fail", ["small"]), ("raise", [])])
def test_a_refusal_that_comes_after_the_end_of_its_block_is_the_tests(
    bench: Bench, on_exceed: str, told: list[str]
) -> None:
    test = bench.running()

    async def call() -> None:
        await asyncio.sleep(0)
        await bench.async_client().chat_completion(say(1), max_tokens=1)

    async def main() -> None:
        with budget(max_usd=0, name="small", on_exceed=on_exceed):
            task = asyncio.create_task(call())
        (swallowed,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(swallowed, BudgetExceededError)

    asyncio.run(main())
    assert bench.sent == 0
    assert [refusal.scope for refusal in test.refusals] == told


def test_on_exceed_raise_leaves_a_refusal_to_the_code_inside(bench: Bench) -> None:
    with budget(max_usd=0, on_exceed="raise"):
        assert not _call(bench)
    assert bench.sent == 0


def test_three_charges_of_a_tenth_fit_into_three_tenths(bench: Bench) -> None:
    with budget(max_usd=0.3, price={"call": 0.1}) as block:
        for _ in range(3):
            bench.client().chat_completion(say(1), max_tokens=1)
    assert block.spent == block.limit


def test_no_more_than_max_calls_are_sent(bench: Bench) -> None:
    with pytest.raises(BudgetExceededError, match="max_calls is 2"), budget(max_calls=2):
        while True:
            bench.client().chat_completion(say(1), max_tokens=1)
    assert bench.sent == 2


def test_an_exhausted_parent_lets_no_child_call(bench: Bench) -> None:
    with budget(max_usd=0, on_exceed="raise"):
        for _ in range(3):
            with budget(max_usd=1, on_exceed="raise"):
                assert not _call(bench)
    assert bench.sent == 0


def test_a_method_taken_before_the_block_is_charged_to_it(bench: Bench) -> None:
    call = bench.client().chat_completion
    with budget(max_usd=1) as block:
        call(say(1), max_tokens=1)
    assert block.calls_used == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_usd": float("nan")},
        {"max_usd": float("inf")},
        {"max_usd": -1},
        {"max_usd": "abc"},
        {"max_usd": True},
        {"max_calls": -1},
        {"max_calls": 1.5},
        {"on_exceed": "ignore"},
        {"scope": "universe"},
        {"price": {"input": float("nan")}},
        {"price": {"input": -1}},
        {"price": {}},
        {"price": {"inputs": 1}},
        {"price_per_1k_tokens": {"input": 1}},
        {"price": {"input": 1}, "price_per_1k_tokens": {"input": 1, "output": 1}},
        {"warn_at": 0.8},
        {"fallback": {"at_pct": 0.8, "model": MODEL}},
    ],
)
def test_an_argument_that_makes_no_sense_is_one_line(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        budget(**arguments)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("budget(")


def test_an_argument_that_does_not_exist_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="max_dollars"):
        budget(max_dollars=1)


def test_a_pooled_thread_that_had_a_block_of_its_own_is_inside_later_ones_too(
    bench: Bench,
) -> None:
    def own() -> None:
        with budget():
            _call(bench)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(own).result()
        with budget(max_calls=0, on_exceed="raise"):
            assert not pool.submit(_call, bench).result()


def test_a_block_inside_itself_keeps_its_cap(bench: Bench) -> None:
    with budget(max_calls=1, on_exceed="raise") as block:
        with block:
            assert _call(bench)
        assert not _call(bench)


def test_blocks_of_sibling_threads_do_not_charge_each_other(bench: Bench) -> None:
    gate = threading.Barrier(2, timeout=20)

    def work(number: int) -> int:
        with budget(max_calls=1, name=f"worker {number}") as block:
            gate.wait()
            _call(bench)
            gate.wait()
            return block.calls_used

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [1, 1]


def _in_a_plain_thread(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def _right_here(work: Callable[[], None]) -> None:
    work()


everywhere = pytest.mark.parametrize("run", [_right_here, _in_a_plain_thread])


@everywhere
def test_an_empty_context_is_inside_the_open_blocks(
    bench: Bench, run: Callable[[Callable[[], None]], None]
) -> None:
    def work() -> None:
        with budget(max_calls=0, on_exceed="raise"):
            assert not Context().run(_call, bench)

    run(work)
    assert bench.sent == 0


def test_a_green_thread_is_inside_the_block_around_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eventlet gives each green thread an empty context, and a number and a `Thread` of its own."""
    running, thread = SimpleNamespace(parent=None), threading.Thread()
    monkeypatch.setitem(sys.modules, "greenlet", SimpleNamespace(getcurrent=lambda: running))
    monkeypatch.setattr(threading, "get_ident", partial(next, itertools.count(1)))
    monkeypatch.setattr(threading, "current_thread", lambda: thread)
    with budget(max_calls=0, on_exceed="raise"):
        running.parent = "the main program"
        assert not Context().run(_call, bench)
    assert bench.sent == 0


@everywhere
def test_an_empty_context_is_inside_the_blocks_of_an_empty_context(
    bench: Bench, run: Callable[[Callable[[], None]], None]
) -> None:
    def work() -> None:
        with budget(max_calls=0, on_exceed="raise"):
            assert not Context().run(_call, bench)

    run(lambda: Context().run(work))
    assert bench.sent == 0


@everywhere
def test_a_thread_started_from_an_empty_context_is_inside_the_block_around_it(
    bench: Bench, run: Callable[[Callable[[], None]], None]
) -> None:
    def start() -> None:
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(_call, bench).result()

    with budget(max_calls=0, on_exceed="raise"):
        run(lambda: Context().run(start))
    assert bench.sent == 0


@everywhere
def test_a_task_with_an_empty_context_is_inside_the_block_around_it(
    bench: Bench, run: Callable[[Callable[[], None]], None]
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("a task can't be given a context")

    async def call() -> None:
        with pytest.raises(BudgetExceededError):
            async with bench.async_client() as client:
                await client.chat_completion(say(10), max_tokens=20)

    async def main() -> None:
        with budget(max_calls=0, on_exceed="raise"):
            await asyncio.get_running_loop().create_task(call(), context=Context())

    run(lambda: asyncio.run(main()))
    assert bench.sent == 0


@everywhere
def test_an_empty_context_of_a_task_is_inside_the_block_that_this_task_has_opened(
    bench: Bench, run: Callable[[Callable[[], None]], None]
) -> None:
    async def opening() -> None:
        await asyncio.sleep(0)
        with budget(max_calls=0, on_exceed="raise"):
            assert not Context().run(_call, bench)

    async def main() -> None:
        task = asyncio.ensure_future(opening())
        with budget():  # it is seen here, before it opens its own
            await task

    run(lambda: asyncio.run(main()))
    assert bench.sent == 0


def test_a_block_that_is_over_encloses_no_empty_context(bench: Bench) -> None:
    with budget(max_calls=0):
        pass
    assert Context().run(_call, bench)


def test_an_empty_context_that_opens_a_block_leaves_it_again(bench: Bench) -> None:
    def work() -> None:
        with budget(max_calls=0):
            pass
        assert _call(bench)

    Context().run(work)
    assert bench.budgets.open_blocks() == ()


def test_sibling_tasks_in_a_plain_thread_are_not_charged_to_each_others_blocks(
    bench: Bench,
) -> None:
    async def one(gate: asyncio.Event) -> int:
        with budget(max_calls=1, on_exceed="raise") as block:
            await gate.wait()
            async with bench.async_client() as client:
                await client.chat_completion(say(10), max_tokens=20)
            return block.calls_used

    async def main() -> list[int]:
        gate = asyncio.Event()
        both = [asyncio.ensure_future(one(gate)) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*both)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, main()).result() == [1, 1]


def test_a_thread_of_a_context_that_is_in_no_block_is_not_charged_to_one(bench: Bench) -> None:
    bench.budgets.know_this_context()

    async def main() -> budget:
        opened, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.ensure_future(inside(opened, leave))
        await opened.wait()
        await asyncio.to_thread(_call, bench)
        leave.set()
        return await task

    assert asyncio.run(main()).calls_used == 0


def test_a_refusal_behind_another_error_is_handed_to_the_test(bench: Bench) -> None:
    test = bench.running()
    with pytest.raises(ValueError, match="of its own"):
        with budget(max_usd=0):
            _call(bench)
            raise ValueError("an error of its own")
    assert len(test.refusals) == 1


class Flickering(BudgetContext):
    """A context whose test begins and ends while it is looked at, as another thread may have it."""

    @property
    def test(self) -> RunningTest | None:
        self.looks += 1
        return TEST if self.looks % 2 else None

    @test.setter
    def test(self, value: RunningTest | None) -> None:
        self.looks = 0


TEST = RunningTest("test_it", (Scope("test:test_it", "test_it", 1),))


def test_what_is_around_a_call_is_of_one_moment() -> None:
    budgets = Flickering()
    for _ in range(8):
        active = budgets.active()
        assert (active.test is TEST) == active.capped == ("test:test_it" in active.keys)


def test_a_test_that_runs_twice_is_another_one_each_time() -> None:
    budgets = BudgetContext()
    for _ in range(2):
        budgets.test = RunningTest("test_it")
        assert budgets.active().test is budgets.test


def test_a_block_whose_end_is_interrupted_is_left(bench: Bench) -> None:
    ctrl_c = [KeyboardInterrupt]

    def interrupted() -> None:
        if ctrl_c:
            raise ctrl_c.pop()

    with pytest.raises(KeyboardInterrupt), budget("0.00001"):
        bench.runtime.meter.later.append(interrupted)
    assert bench.budgets.open_blocks() == ()
    assert _call(bench)
