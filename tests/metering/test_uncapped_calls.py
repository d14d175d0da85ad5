"""Calls in which no budget has a say are charged as exactly as the others, and once."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import budget
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.usage import usage_of
from pytest_hfbudget.pricing import FREE, Price

# Newer Pythons warn of a fork beside threads; the emulator's are in this process.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def ask(bench: Bench, tokens: int = 10) -> None:
    bench.client().chat_completion(say(tokens), max_tokens=50)


def booked(bench: Bench) -> tuple[Charge, ...]:
    """What is in the ledger by now, without what was put off."""
    return bench.books.charges()


def test_a_call_is_in_the_ledger_as_soon_as_it_is_answered(bench: Bench) -> None:
    bench.running()
    ask(bench)
    (charge,) = booked(bench)
    assert (charge.test, charge.nano_usd, charge.estimated) == ("test_it", bench.billed, False)


def test_its_time_is_that_of_the_call(bench: Bench) -> None:
    clock = [100.0]
    bench.runtime.meter.clock = lambda: clock[0]
    ask(bench)
    clock[0] = 200.0
    (charge,) = bench.ledger.charges()
    assert charge.seconds == 0.0


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

    bench.book.hook = raises
    ask(bench)
    bench.book.hook = None
    ask(bench)
    assert [charge.nano_usd for charge in booked(bench)] == [None, bench.billed // 2]
    assert "could not be worked out" in caplog.text


def test_an_unreadable_answer_is_counted_and_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(message: object, request: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("of some kind")

    monkeypatch.setattr("pytest_hfbudget.metering.call.usage_of", fails)
    ask(bench, 1)
    ask(bench, 2)
    estimated = [charge.estimated for charge in booked(bench)]
    assert estimated == [True, False]
    assert "could not make sense of an answer" in caplog.text


def test_an_answer_without_usage_is_charged_by_its_question_as_it_was_asked(bench: Bench) -> None:
    bench.emulator.client.configure(usage="never")
    question = [*say(10), {"role": "user", "content": "x" * 5000}]
    bench.client().chat_completion(question, max_tokens=50)
    (before,) = booked(bench)
    question.clear()
    assert bench.ledger.charges() == (before,)
    assert before.input_tokens > 5000


def test_a_call_that_ends_while_its_test_is_settled_is_in_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is there, so the settlement of the test does not wait for that of the call."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(message: Any, request: Any) -> Any:
        if threading.current_thread() is caller:
            asked.set()
            go_on.wait(10)
        return usage_of(message, request)

    bench.running()
    monkeypatch.setattr("pytest_hfbudget.metering.call.usage_of", slow)
    caller = threading.Thread(target=ask, args=(bench,), daemon=True)
    caller.start()
    asked.wait(10)
    bench.runtime.meter.settle_open("test_it")
    assert [(charge.status, charge.nano_usd) for charge in booked(bench)] == [("200", bench.billed)]
    go_on.set()
    caller.join()
    assert len(booked(bench)) == 1


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
