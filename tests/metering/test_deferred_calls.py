"""Calls in which no budget has a say are accounted for later: exactly, and once."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget import budget
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.deferred import MOST_DEFERRED, SMALL_BYTES
from pytest_hfbudget.pricing import FREE, Price

# Newer Pythons warn of a fork beside threads; the emulator's are in this process.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def ask(bench: Bench, tokens: int = 10) -> None:
    bench.client().chat_completion(say(tokens), max_tokens=50)


def booked(bench: Bench) -> tuple[Charge, ...]:
    """What is in the ledger by now, without asking for the rest."""
    return bench.books.charges()


def test_a_call_is_in_the_ledger_when_its_block_is_asked(bench: Bench) -> None:
    with budget() as b:
        ask(bench)
        assert booked(bench) == ()
        assert b.calls_used == 1
        assert [charge.model for charge in booked(bench)] == [MODEL]


def test_a_call_is_in_the_ledger_when_its_test_is_over(bench: Bench) -> None:
    bench.running()
    ask(bench)
    bench.runtime.meter.settle_open("test_it")
    (charge,) = booked(bench)
    assert (charge.test, charge.nano_usd, charge.estimated) == ("test_it", bench.billed, False)


def test_a_call_belongs_to_the_test_that_made_it_although_another_runs_by_then(
    bench: Bench,
) -> None:
    bench.running()
    ask(bench)
    bench.budgets.test = None
    bench.budgets.where = "after test_it"
    assert [(charge.test, charge.where) for charge in bench.ledger.charges()] == [("test_it", "")]


def test_its_time_is_that_of_the_call(bench: Bench) -> None:
    clock = [100.0]
    bench.runtime.meter.clock = lambda: clock[0]
    ask(bench)
    clock[0] = 200.0
    (charge,) = bench.ledger.charges()
    assert charge.seconds == 0.0


def test_a_capped_call_is_booked_after_those_before_it(bench: Bench) -> None:
    ask(bench, 1)
    with budget(1):
        ask(bench, 2)
    assert [charge.output_tokens for charge in booked(bench)] == [1, 2]


def test_threads_and_tasks_are_charged_exactly(bench: Bench) -> None:
    async def tasks() -> None:
        async with bench.async_client() as client:
            calls = [client.chat_completion(say(n), max_tokens=50) for n in range(1, 9)]
            await asyncio.gather(*calls)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            list(pool.map(lambda n: ask(bench, n), range(1, 17)))
            asyncio.run(tasks())
    assert len(bench.ledger.charges()) == bench.sent == 3 * 24
    assert bench.spent == bench.billed > 0


def test_a_failed_call_is_booked_at_once(bench: Bench) -> None:
    bench.emulator.client.add_fault("chat", status=503, json={"error": "no"})
    with pytest.raises(Exception, match="503"):
        ask(bench)
    assert [(charge.status, charge.nano_usd) for charge in booked(bench)] == [("503", 0)]


def test_a_call_that_its_test_does_not_wait_for_is_booked_once(bench: Bench) -> None:
    bench.running()
    bench.emulator.client.add_fault("chat", hang=0.5)
    thread = threading.Thread(target=ask, args=(bench,))
    thread.start()
    bench.emulator.client.wait_for(op="chat", phase="arrived", timeout=10)
    bench.runtime.meter.settle_open("test_it")
    assert [(charge.status, charge.test) for charge in booked(bench)] == [("closed", "test_it")]
    thread.join()
    assert len(bench.ledger.charges()) == 1


def test_what_is_large_is_not_kept(bench: Bench) -> None:
    long = [{"role": "user", "content": "x" * (SMALL_BYTES + 1)}]
    bench.client().chat_completion(long, max_tokens=5)
    assert len(booked(bench)) == 1
    picture: list[Any] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}
    ]
    bench.client().chat_completion(picture, max_tokens=5)
    assert len(booked(bench)) == 2
    writer = bench.client("emulator/text-generation", provider="hf-inference")
    writer.text_generation("a text", max_new_tokens=5)
    assert len(booked(bench)) == 3


def test_no_more_than_so_many_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_hfbudget.metering.deferred.MOST_DEFERRED", 3)
    for expected in (0, 0, 3, 3):
        ask(bench)
        assert len(booked(bench)) == expected
    assert MOST_DEFERRED <= 1024


def test_a_price_hook_may_look_at_what_is_spent(bench: Bench) -> None:
    seen = []

    def looks(request: object) -> Price:
        seen.append(bench.spent)
        return FREE

    bench.book.hook = looks
    ask(bench)
    ask(bench)
    assert len(bench.ledger.charges()) == 2
    assert seen


def test_a_hook_that_raises_costs_a_call_its_price_and_nothing_else(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(request: object) -> Price:
        raise RuntimeError("of the hook")

    with budget() as b:
        ask(bench)
        bench.book.hook = raises
        assert b.calls_used == 1
        bench.book.hook = None
        ask(bench)
        assert b.calls_used == 2
    assert [charge.nano_usd for charge in booked(bench)] == [None, bench.billed // 2]
    assert "could not be worked out" in caplog.text


def test_an_unreadable_answer_is_counted_and_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(message: object, request: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("of some kind")

    ask(bench, 1)
    ask(bench, 2)
    monkeypatch.setattr("pytest_hfbudget.metering.call.usage_of", fails)
    assert [charge.status for charge in bench.ledger.charges()] == ["closed", "200"]
    assert "could not make sense of an answer" in caplog.text


def test_an_answer_without_usage_is_charged_by_its_question_as_it_was_asked(bench: Bench) -> None:
    bench.emulator.client.configure(usage="never")
    question = [*say(10), {"role": "user", "content": "x" * 5000}]
    bench.client().chat_completion(question, max_tokens=50)
    (before,) = booked(bench)
    question.clear()
    assert bench.ledger.charges() == (before,)
    assert before.input_tokens > 5000


def test_a_call_that_ends_while_its_test_is_settled_is_in_it(bench: Bench) -> None:
    """A settlement waits for those under way."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(request: object) -> None:
        asked.set()
        go_on.wait(10)

    bench.running()
    bench.book.hook = slow
    long = [{"role": "user", "content": "x" * (SMALL_BYTES + 1)}]
    caller = threading.Thread(
        target=lambda: bench.client().chat_completion(long, max_tokens=5), daemon=True
    )
    caller.start()
    asked.wait(10)
    threading.Timer(0.2, go_on.set).start()
    bench.runtime.meter.settle_open("test_it")
    assert [(charge.status, charge.nano_usd) for charge in booked(bench)] == [("200", bench.billed)]
    caller.join()
    assert len(bench.ledger.charges()) == 1


def test_a_ctrl_c_in_the_middle_loses_no_call_and_books_none_twice(bench: Bench) -> None:
    def interrupted(request: object) -> Price:
        bench.book.hook = None
        raise KeyboardInterrupt

    ask(bench, 1)
    ask(bench, 2)
    bench.book.hook = interrupted
    with pytest.raises(KeyboardInterrupt):
        bench.runtime.meter.drain()
    assert [charge.output_tokens for charge in bench.ledger.charges()] == [1, 2]
    assert bench.spent == bench.billed


@forks
def test_a_forked_child_sees_what_its_parent_has_noted(bench: Bench, tmp_path: Path) -> None:
    said = tmp_path / "said"
    bench.runtime.children.export()
    with budget() as b:
        ask(bench)
        if not (child := os.fork()):
            try:
                said.write_text(str(b.calls_used))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert said.read_text() == "1"


@forks
def test_a_fork_leaves_them_to_the_parent(bench: Bench, tmp_path: Path) -> None:
    ask(bench)
    said = tmp_path / "said"
    if not (child := os.fork()):
        try:
            said.write_text(str(len(bench.runtime.meter.deferred.ended)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert said.read_text() == "0"
    assert len(bench.ledger.charges()) == 1
