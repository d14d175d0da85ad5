"""Calls in which no budget has a say: noted while they are made, accounted for afterwards.

Nothing depends on what such a call has cost before somebody looks, so its caller is not kept
waiting for it. Its price, its usage and its entry in the ledger are worked out at the end of the
test, and before anything is read.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from pytest_hfbudget.ledger.locks import inside
from pytest_hfbudget.metering.request import OutgoingCall
from pytest_hfbudget.metering.usage import has_usage

if TYPE_CHECKING:
    from pytest_hfbudget.metering.call import Call

logger = logging.getLogger("pytest_hfbudget")

T = TypeVar("T")

# What is kept meanwhile: so many calls, each with a question and an answer of at most this size.
MOST_NOTES = 1024
SMALL_BYTES = 16_384

# Makes the call of a sending, held and ready to be settled; None if nobody understands it.
Begin = Callable[[OutgoingCall], "Call | None"]

UNANSWERED = object()

NONSENSE = "hfbudget could not make sense of an answer"


class DeferredCall:
    """One call, from when it is sent: entered while it is posted.

    Attributes:
        sending: what is known of it.
        seconds: how long it took, once it is over.
        error: what it failed with, if it did.
    """

    __slots__ = ("_body", "_call", "_headers", "_notes", "_sent", "error", "seconds", "sending")

    def __init__(self, notes: DeferredCalls, sending: OutgoingCall) -> None:
        self.sending = sending
        self.seconds: float | None = None
        self.error: BaseException | None = None
        self._notes = notes
        self._body: object = UNANSWERED
        self._headers: Mapping[str, str] | None = None
        self._call: Call | None = None
        self._sent = 1

    def __enter__(self) -> None:
        self._notes.open(self)
        way = self.sending.way
        way.passage.heard = self._heard
        way.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.error = error
        self.sending.way.__exit__(kind, error, traceback)
        self._notes.close(self)

    def answered(self, body: T) -> T:
        """Take the answer in, and pass it on."""
        self._body = body
        return body

    def may_wait(self) -> bool:
        """Whether what has to be kept for it is small, and says all that will be asked of it.

        An answer without usage is charged by its question, and that is the caller's own object:
        it may be another one by then.
        """
        body, payload = self._body, self.sending.parameters.json
        if self.error is not None or not isinstance(body, bytes) or len(body) > SMALL_BYTES:
            return False
        messages = payload.get("messages") if isinstance(payload, dict) else None
        return isinstance(messages, list) and _is_small(messages) and has_usage(body)

    def account(self, begin: Begin) -> None:
        """Enter it into the ledger: what was answered, how it failed, or that it is not over.

        A second time counts for nothing, so one that was interrupted is just done again.
        """
        if self._call is not None and self._call.taken:
            self._call.book_interrupted()
            return
        if self._call is None:
            self._call = begin(self.sending)
        call = self._call
        if call is None:
            return
        while self._sent < self.sending.way.passage.posts:
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
        """Enter it without what was answered, of which nobody can make sense."""
        if self._call is not None:
            self._call.close()

    def _heard(self, headers: Mapping[str, str]) -> None:
        self._headers = headers


class DeferredCalls:
    """The calls of a process that are under way or wait to be accounted for.

    Args:
        begin: makes the call of a sending.
        clock: that of the sendings.

    Attributes:
        lock: held while notes are accounted for: who reads meanwhile waits for those that are at
            it.
    """

    def __init__(self, begin: Begin, clock: Callable[[], float]) -> None:
        self._begin, self._clock = begin, clock
        self._open: dict[int, DeferredCall] = {}
        self._over: deque[DeferredCall] = deque()
        self.lock = threading.RLock()
        self._at_it = False

    def open(self, note: DeferredCall) -> None:
        """One is being sent."""
        self._open[id(note)] = note

    def close(self, note: DeferredCall) -> None:
        """One is answered, or has failed."""
        note.seconds = self._clock() - note.sending.started
        if id(note) not in self._open:
            return  # its test was over before, and has accounted for it
        # At each moment it is in one of the two: wherever a Ctrl-C comes, it is not lost.
        self._over.append(note)
        self._open.pop(id(note), None)
        if isinstance(note.error, GeneratorExit):
            return  # the collector may be at work, inside of any of our own locks
        if len(self._over) >= MOST_NOTES or not note.may_wait():
            self.account()

    def account(self) -> None:
        """Enter all that are over into the ledger."""
        if not self._over or inside():
            return  # by whom is interrupted, or at the next occasion
        with self.lock:
            if self._at_it:
                return  # it is this very thread: a hook that is asked for a price looks
            self._at_it = True
            try:
                while self._over:
                    self._enter(self._over[0])
                    self._over.popleft()  # not before: a Ctrl-C in between must not lose it
            finally:
                self._at_it = False

    def leave(self, test: str | None = None, *, every: bool = False) -> None:
        """Enter those of a test that are under way, which it does not wait for; or every one."""
        for key, note in tuple(self._open.items()):
            running = note.sending.around.test
            if every or (running.id if running else None) == test:
                self._over.append(note)
                self._open.pop(key, None)
        self.account()

    def disown(self) -> None:
        """Forget them all: they are another process's, whose copy this is."""
        self._open, self._over = {}, deque()
        self.lock, self._at_it = threading.RLock(), False

    def _enter(self, note: DeferredCall) -> None:
        try:
            note.account(self._begin)
        except Exception:  # not what interrupts: the note stays first in line
            logger.exception(NONSENSE)
            note.give_up()


def _is_small(messages: list[object]) -> bool:
    size = 0
    for message in messages:
        said = message.get("content") if isinstance(message, dict) else None
        if not isinstance(said, str):
            return False  # images, as a rule
        size += len(said)
    return size <= SMALL_BYTES
