"""Waiting for calls in flight: a thread stands still, a task lets the others go on."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.ledger import Hold, LedgerLike, WaitingHold
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.budget_context import trio_task

T = TypeVar("T")

# Nothing reports a stream that is garbage-collected, so a caller that waits looks for one.
LOOK_EVERY_S = 0.1
# The ledger has answered already; its answer has only to come through.
ANSWER_S = 5.0
# A loop schedules the end of a generator, begins it, and closes the response inside of it.
TURNS = 5


class HoldWait:
    """A call's place in the ledger's queue, for so many seconds.

    A caller that is interrupted or cancelled leaves it, and gives back what was granted meanwhile.

    Args:
        look: called every `LOOK_EVERY_S`, because it may end the wait.
    """

    # Its own, also in a test that has replaced the function of ``time``.
    _now = staticmethod(time.monotonic)

    def __init__(
        self, ledger: LedgerLike, waiting: WaitingHold, seconds: float, look: Callable[[], None]
    ) -> None:
        self._ledger, self._waiting, self._seconds = ledger, waiting, seconds
        self._since, self._look = self._now(), look
        self._until = self._since + seconds

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return self._now() - self._since

    @off_loop()
    def block(self) -> None:
        """Wait, and this thread with it."""
        with self._in_queue():
            while self._goes_on():
                futures.wait([self._waiting.answer], self._slice())

    async def suspend(self) -> None:
        """Wait, while other tasks go on."""
        with self._in_queue():
            await (self._suspend_trio() if trio_task() else self._suspend_asyncio())

    async def _suspend_asyncio(self) -> None:
        answer = asyncio.wrap_future(self._waiting.answer)
        try:
            while self._goes_on():
                await asyncio.wait([answer], timeout=self._slice())
        finally:
            answer.cancel() or answer.exception()  # or asyncio logs an error that was never read

    async def _suspend_trio(self) -> None:
        trio = sys.modules["trio"]
        came, token = trio.Event(), trio.lowlevel.current_trio_token()

        def wake(answer: object) -> None:
            with suppress(trio.RunFinishedError):  # the task has left, and its loop is over
                token.run_sync_soon(came.set)

        self._waiting.answer.add_done_callback(wake)
        while self._goes_on():
            with trio.move_on_after(self._slice()):
                await came.wait()

    @off_loop()
    def hold(self) -> Hold:
        """The hold that came of it.

        Raises:
            BudgetExceededError: something was spent meanwhile, or it took too long.
        """
        with self._in_queue():
            answer = self._waiting.answer
            came = None if answer.done() else self._ledger.give_up(self._waiting.id, self._seconds)
            return came or answer.result(ANSWER_S)

    def _goes_on(self) -> bool:
        self._look()
        return not self._waiting.answer.done() and self._now() < self._until

    def _slice(self) -> float:
        return max(min(LOOK_EVERY_S, self._until - self._now()), 0.0)

    @contextmanager
    def _in_queue(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(HFBudgetError):  # a ledger that is gone keeps no queue
                self._ledger.leave(self._waiting.id)
            raise


async def let_the_loop_turn() -> None:
    """Leave the loop the turns in which it ends a generator that was dropped."""
    if trio_task() is not None:
        for _ in range(TURNS):
            await sys.modules["trio"].lowlevel.checkpoint()
    elif asyncio._get_running_loop() is not None:
        for _ in range(TURNS):
            await asyncio.sleep(0)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What a function returns that blocks for long, while other tasks go on."""
    if trio_task() is not None:
        result: T = await sys.modules["trio"].to_thread.run_sync(work, *arguments)
        return result
    if asyncio._get_running_loop() is not None:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)
