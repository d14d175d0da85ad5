"""A Ctrl-C wherever Python may notice one: in no place is a call lost, or charged twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest
from metering_bench import Bench, say

import pytest_hfbudget
from pytest_hfbudget.metering.deferred import SMALL_BYTES

pytestmark = pytest.mark.slow

OURS = str(Path(pytest_hfbudget.__file__).parent)
# The ledger's own book-keeping: a handful of instructions between one account and the next.
BOOKING = {("ledger.py", "append")}

# Generators of which only the first item is taken.
LEFT_EARLY = ("<genexpr>", "_sources", "_stated", "_listed", "_offers")

LARGE = [{"role": "user", "content": "x" * (SMALL_BYTES + 1)}]


class Interrupter:
    """Interrupts one entry of a function of the package, counted from its start."""

    def __init__(self, at: int) -> None:
        self._left = at
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
        if event == "call" and ours and frame.f_code.co_name not in LEFT_EARLY:
            self._left -= 1
            if not self._left:
                self.spared = (Path(file).name, frame.f_code.co_name) in BOOKING
                if not self.spared:
                    raise KeyboardInterrupt


def deferred(bench: Bench, interrupter: Interrupter) -> None:
    """A call that is accounted for later, and is interrupted there."""
    bench.client().chat_completion(say(5), max_tokens=5)
    with interrupter.at_work():
        bench.runtime.meter.drain()


def large(bench: Bench, interrupter: Interrupter) -> None:
    """One that is accounted for when it ends, and is interrupted there."""
    meter, stack, looks = bench.runtime.meter, ExitStack(), iter(range(2))
    clock = meter.clock

    def ends() -> float:
        if next(looks, None) == 1:  # the first look is at its start
            stack.enter_context(interrupter.at_work())
        return clock()

    with stack:
        meter.clock = ends
        stack.callback(setattr, meter, "clock", clock)
        bench.client().chat_completion(LARGE, max_tokens=5)


@pytest.mark.parametrize("ask", [deferred, large])
def test_an_interrupted_call_is_charged_once_and_exactly(
    bench: Bench, ask: Callable[[Bench, Interrupter], None]
) -> None:
    at, came = 0, True
    while came:
        at += 1
        calls, spent, billed = len(bench.books.charges()), bench.spent, bench.billed
        interrupter = Interrupter(at)
        with suppress(KeyboardInterrupt):
            ask(bench, interrupter)
        bench.runtime.meter.settle_all()
        assert len(bench.books.charges()) == calls + 1, at
        assert bench.spent - spent == bench.billed - billed > 0, at
        came = interrupter.came
    assert at > 60
    assert bench.held == 0


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
