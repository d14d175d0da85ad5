"""Waiting for calls in flight: a thread blocks, a task lets other tasks run."""

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

# How often a caller that waits looks for streams that were garbage-collected: nothing reports them.
LOOK_EVERY_S = 0.1
# The longest wait for an answer that the ledger has sent already.
ANSWER_S = 5.0
# An event loop schedules the end of a generator, begins it, and closes the response inside of it.
TURNS = 5


class HoldWait:
    """A call that waits in the ledger's queue, for at most so many seconds.

    If its caller is interrupted or cancelled, it leaves the queue, and a granted hold is released.

    Args:
        look: called every `LOOK_EVERY_S`: it settles what may end the wait.
    """

    # Kept here, because a test may replace the function in ``time``.
    _now = staticmethod(time.monotonic)

    def __init__(
        self, ledger: LedgerLike, waiting: WaitingHold, seconds: float, look: Callable[[], None]
    ) -> None:
        self._ledger, self._waiting, self._seconds = ledger, waiting, seconds
        self._since, self._look = self._now(), look
        self._until = self._since + seconds

    @property
    def waited(self) -> float:
        """Seconds since the wait began."""
        return self._now() - self._since

    @off_loop()
    def block(self) -> None:
        """Wait, and block this thread."""
        with self._in_queue():
            while self._goes_on():
                futures.wait([self._waiting.answer], self._slice())

    async def suspend(self) -> None:
        """Wait, while other tasks run."""
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
        """The hold that was granted.

        Raises:
            BudgetExceededError: too much was spent meanwhile, or the wait took too long.
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
    """Let the event loop run until it has ended generators that were dropped."""
    if trio_task() is not None:
        for _ in range(TURNS):
            await sys.modules["trio"].lowlevel.checkpoint()
    elif asyncio._get_running_loop() is not None:
        for _ in range(TURNS):
            await asyncio.sleep(0)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """The result of a function that blocks for long; meanwhile other tasks run."""
    if trio_task() is not None:
        result: T = await sys.modules["trio"].to_thread.run_sync(work, *arguments)
        return result
    if asyncio._get_running_loop() is not None:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)
