"""A Ctrl-C wherever Python may notice one: in no place is a call lost, or charged twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.request import Request, urlopen

import pytest
from metering_bench import MODEL, Bench, say

import pytest_hfbudget
from pytest_hfbudget import BudgetExceededError
from pytest_hfbudget.metering.prompts import ALIKE

pytestmark = pytest.mark.slow

OURS = str(Path(pytest_hfbudget.__file__).parent)
# The ledger's own book-keeping: a handful of instructions between one account and the next.
BOOKING = {("ledger.py", "append")}

# Generators of which only the first item is taken.
LEFT_EARLY = ("<genexpr>", "_sources", "_stated", "_listed", "_offers")

# What is entered first when an answer is there.
ANSWERED = ("replay.py", "__exit__")


class Interrupter:
    """Interrupts one entry of a function of the package.

    Args:
        at: which one, counted from `start`; without one, from the first.
        start: the file and the name of a function.
    """

    def __init__(self, at: int, start: tuple[str, str] | None = None) -> None:
        self._left, self._start = at, start
        self.spared = False

    @property
    def came(self) -> bool:
        return self._left <= 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enters)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enters(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        ours = file.startswith(OURS) and "emulator" not in file
        # The closing of a generator is traced like a call; an error in it would go nowhere.
        place = Path(file).name, frame.f_code.co_name
        if event == "call" and ours and place[1] not in LEFT_EARLY:
            if self._start not in (None, place):
                return
            self._start = None
            self._left -= 1
            if not self._left:
                self.spared = place in BOOKING
                if not self.spared:
                    raise KeyboardInterrupt


@pytest.mark.parametrize("cap", [None, 1])
def test_an_answer_is_charged_once_and_exactly_wherever_its_settlement_is_interrupted(
    bench: Bench, cap: int | None
) -> None:
    bench.running(cap)
    at, came = 0, True
    while came:
        at += 1
        calls, spent, billed = len(bench.books.charges()), bench.spent, bench.billed
        interrupter = Interrupter(at, ANSWERED)
        with suppress(KeyboardInterrupt), interrupter.at_work():
            bench.client().chat_completion([*say(5), *say(at)], max_tokens=5)
        bench.runtime.meter.settle_open("test_it")
        assert len(bench.books.charges()) == calls + 1, at
        assert bench.spent - spent == bench.billed - billed > 0, at
        came = interrupter.came
    assert at > 10
    assert bench.held == 0
    # No prompt was sent twice, so no count can have been confirmed.
    assert ALIKE not in {fact.key for fact in bench.runtime.meter.counts.facts}


def test_a_ctrl_c_right_after_an_answer_that_was_cut_off_stays_one(bench: Bench) -> None:
    bench.running("0.00005")
    with pytest.raises(KeyboardInterrupt), Interrupter(1, ANSWERED).at_work():
        bench.client().chat_completion(say(5000))
    assert len(bench.books.refusals()) == 1
    assert bench.spent == bench.billed > 0


def test_what_is_sent_after_a_ctrl_c_is_taken_for_no_part_of_the_call_before(bench: Bench) -> None:
    bench.running(1)
    client = bench.client()
    for _ in range(2):
        with suppress(KeyboardInterrupt), Interrupter(1, ANSWERED).at_work():
            client.chat_completion(say(5), max_tokens=5)
    url = f"{bench.emulator.router}/v1/chat/completions"
    with pytest.raises(
        BudgetExceededError, match="comes from a client that pytest-hfbudget can't read"
    ):
        urlopen(Request(url, b"{}", {"Authorization": "Bearer hf_x"}))
    assert len(bench.books.charges()) == bench.sent == 2


def test_an_interrupted_call_by_the_second_costs_what_it_took(bench: Bench) -> None:
    bench.running()
    now = [0.0]
    bench.runtime.meter.clock = lambda: now[0]
    with suppress(KeyboardInterrupt), Interrupter(1, ANSWERED).at_work():
        bench.client().chat_completion(say(5), max_tokens=5)
    now[0] = 100.0
    bench.runtime.meter.settle_open("test_it")
    assert [charge.seconds for charge in bench.books.charges()] == [0.0]


def test_a_request_of_another_client_is_charged_exactly_too(bench: Bench) -> None:
    httpx = pytest.importorskip("httpx")
    bench.running(1)
    url = f"{bench.emulator.router}/v1/chat/completions"
    asked = {"model": MODEL, "messages": say(3), "max_tokens": 500}
    interrupter = Interrupter(1, ("call.py", "answered"))
    with suppress(KeyboardInterrupt), interrupter.at_work():
        httpx.post(url, json=asked, headers={"authorization": "Bearer hf_x"})
    assert interrupter.came
    bench.runtime.meter.settle_open("test_it")
    assert bench.spent == bench.billed > 0


def test_an_interrupted_call_below_a_cap_holds_nothing_and_is_never_undercharged(
    bench: Bench,
) -> None:
    bench.cap(1)
    at, came = 0, True
    while came:
        at += 1
        calls, spent, billed = len(bench.books.charges()), bench.spent, bench.billed
        interrupter = Interrupter(at)
        with suppress(KeyboardInterrupt), interrupter.at_work():
            bench.client().chat_completion(say(5), max_tokens=5)
        bench.runtime.meter.settle_all()
        assert bench.held == 0, at
        assert len(bench.books.charges()) <= calls + 1, at
        assert bench.spent - spent >= bench.billed - billed, at
        came = interrupter.came
    assert at > 60
