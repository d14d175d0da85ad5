"""Calls without a cap: recorded while they are made, accounted for after they have ended.

Nothing depends on what such a call has cost before it is read, so its caller does not wait
for that. Its price, its usage and its entry in the ledger are worked out at the end of the test,
and before anything is read. That also makes these calls exact where a signal handler or a Ctrl-C
interrupts the accounting: it is done again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.locks import inside
from pytest_hfbudget.metering.request import OutgoingCall
from pytest_hfbudget.metering.usage import UNREADABLE_ANSWER, has_usage

logger = logging.getLogger("pytest_hfbudget")

T = TypeVar("T")

# So many calls are kept, each with a question and an answer of at most this size.
MOST_DEFERRED = 1024
SMALL_BYTES = 16_384

UNANSWERED = object()


class SentCall(Protocol):
    """A call that holds something, as far as its settlement is concerned."""

    draft: Charge
    seconds: float | None

    @property
    def taken(self) -> bool:
        """Whether its booking has begun."""

    def sent_again(self) -> None:
        """Charge what was sent before, and hold what is sent once more."""

    def headers(self, headers: Mapping[str, str]) -> None:
        """Take in the headers of a response."""

    def answered(self, body: object) -> None:
        """Settle a complete answer."""

    def failed(self, error: BaseException) -> None:
        """Settle a call that raised."""

    def close(self) -> None:
        """Charge a call that was left before its end."""

    def book_interrupted(self) -> None:
        """Book a call whose settlement was cut short, unless it got through."""

    def disown(self) -> None:
        """Settle nothing, because another process does."""


class DeferredCall:
    """One call, from when it is sent: entered while it is posted.

    Args:
        begin: makes the call, held and ready to be settled; None if it can't be metered.
        clock: that of ``outgoing.started``, in seconds.

    Attributes:
        seconds: how long it took, once it has ended.
        error: what it failed with, if it did.
    """

    __slots__ = (
        "_begin",
        "_body",
        "_call",
        "_calls",
        "_clock",
        "_headers",
        "_sent",
        "error",
        "outgoing",
        "seconds",
    )

    def __init__(
        self,
        calls: DeferredCalls,
        outgoing: OutgoingCall,
        begin: Callable[[], SentCall | None],
        clock: Callable[[], float],
    ) -> None:
        self.outgoing = outgoing
        self.seconds: float | None = None
        self.error: BaseException | None = None
        self._calls, self._begin, self._clock = calls, begin, clock
        self._body: object = UNANSWERED
        self._headers: Mapping[str, str] | None = None
        self._call: SentCall | None = None
        self._sent = 1

    def __enter__(self) -> None:
        self._calls.open(self)
        self.outgoing.watch.on_headers = self._take_headers
        self.outgoing.watch.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.error = error
        self.outgoing.watch.__exit__(kind, error, traceback)
        self.seconds = self._clock() - self.outgoing.started
        self._calls.close(self)

    def answered(self, body: T) -> T:
        """Take the answer in, and return it."""
        self._body = body
        return body

    def may_wait(self) -> bool:
        """Whether what has to be kept for it is small, and holds all that will be needed.

        An answer without usage is charged by its question, which is the caller's own object and
        may have changed by then.
        """
        body, payload = self._body, self.outgoing.parameters.json
        if self.error is not None or not isinstance(body, bytes) or len(body) > SMALL_BYTES:
            return False
        messages = payload.get("messages") if isinstance(payload, dict) else None
        return isinstance(messages, list) and _is_small(messages) and has_usage(body)

    def account(self) -> None:
        """Enter it into the ledger: what was answered, how it failed, or that it has not ended.

        A second time counts for nothing, so an interrupted accounting is just done again.
        """
        if self._call is not None and self._call.taken:
            self._call.book_interrupted()
            return
        if self._call is None:
            self._call = self._begin()
        call = self._call
        if call is None:
            return
        while self._sent < self.outgoing.watch.posts:
            self._sent += 1
            call.sent_again()
        call.seconds = self.seconds
        if self._headers is not None:
            call.headers(self._headers)
        if self.error is not None:
            call.failed(self.error)
        elif self._body is UNANSWERED:
            call.close()
        else:
            call.answered(self._body)

    def give_up(self) -> None:
        """Enter it without its answer, which can't be read."""
        if self._call is not None:
            self._call.close()

    def _take_headers(self, headers: Mapping[str, str]) -> None:
        self._headers = headers


class DeferredCalls:
    """The deferred calls of a process: those in flight, and those that wait for their accounting.

    Attributes:
        ended: the calls that wait for their accounting.
        later: steps in the ledger that wait for `Meter.drain`: those of a signal handler which has
            interrupted the ledger, and of streams that were garbage-collected, because the
            collector may run while a lock of the plugin is held.
        lock: held during the accounting: a thread that reads meanwhile waits for its end.
    """

    def __init__(self) -> None:
        self._open: dict[int, DeferredCall] = {}
        self.ended: deque[DeferredCall] = deque()
        self.later: deque[Callable[[], None]] = deque()
        self.lock = threading.RLock()
        self._accounting = False

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._open or self.ended or self.later)

    def open(self, call: DeferredCall) -> None:
        """Add a call that is being sent."""
        self._open[id(call)] = call

    def close(self, call: DeferredCall) -> None:
        """Take note that a call was answered, or has failed."""
        if id(call) not in self._open:
            return  # its test was over before, and has accounted for it
        # At each moment it is in one of the two: wherever a Ctrl-C comes, it is not lost.
        self.ended.append(call)
        self._open.pop(id(call), None)
        if isinstance(call.error, GeneratorExit):
            return  # the collector may run while a lock of the plugin is held
        if len(self.ended) >= MOST_DEFERRED or not call.may_wait():
            self.account()

    def account(self) -> None:
        """Enter all calls that have ended into the ledger."""
        if not self.ended or inside():
            return  # the interrupted code does it, or the next occasion
        with self.lock:
            if self._accounting:
                return  # it is this very thread: a price hook reads what was spent
            self._accounting = True
            try:
                while self.ended:
                    self._enter(self.ended[0])
                    self.ended.popleft()  # not before: a Ctrl-C in between must not lose it
            finally:
                self._accounting = False

    def leave(self, test: str | None = None, *, every: bool = False) -> None:
        """Enter the calls in flight of a test, which it does not wait for; or all of them."""
        for key, call in tuple(self._open.items()):
            running = call.outgoing.budgets.test
            if every or (running.id if running else None) == test:
                self.ended.append(call)
                self._open.pop(key, None)
        self.account()

    def disown(self) -> None:
        """Forget all of them: they belong to the parent, whose copy this process is."""
        self._open, self.ended, self.later = {}, deque(), deque()
        self.lock, self._accounting = threading.RLock(), False

    def _enter(self, call: DeferredCall) -> None:
        try:
            call.account()
        except Exception:  # not what interrupts: the call stays the first in line
            logger.exception(UNREADABLE_ANSWER)
            call.give_up()


def _is_small(messages: list[object]) -> bool:
    size = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            return False  # images, as a rule
        size += len(content)
    return size <= SMALL_BYTES
