"""Calls in which no budget has a say: noted while they are made, accounted for afterwards.

Nothing depends on what such a call has cost before somebody looks, so its caller is not kept
waiting for it. Its price, its usage and its entry in the ledger are worked out at the end of the
test, and before anything is read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from pytest_hfbudget.metering.sending import Sending

if TYPE_CHECKING:
    from pytest_hfbudget.metering.call import Call

T = TypeVar("T")

# What is kept meanwhile: so many calls, each with a question and an answer of at most this size.
MOST_NOTES = 1024
SMALL_BYTES = 16_384

# Makes the call of a sending, held and ready to be settled; None if nobody understands it.
Begin = Callable[[Sending], "Call | None"]


class Note:
    """One call, from when it is sent: entered while it is posted.

    Attributes:
        sending: what is known of it.
        seconds: how long it took, once it is over.
    """

    __slots__ = ("_body", "_call", "_headers", "_notes", "seconds", "sending")

    def __init__(self, notes: Notes, sending: Sending) -> None:
        self.sending = sending
        self.seconds: float | None = None
        self._notes = notes
        self._body: object = None
        self._headers: Mapping[str, str] | None = None
        self._call: Call | None = None

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
        self.sending.way.__exit__(kind, error, traceback)
        self._notes.close(self, error)

    def answered(self, body: T) -> T:
        """Take the answer in, and pass it on."""
        self._body = body
        return body

    def may_wait(self) -> bool:
        """Whether what has to be kept for it is small."""
        body, payload = self._body, self.sending.parameters.json
        if not isinstance(body, bytes) or len(body) > SMALL_BYTES or not isinstance(payload, dict):
            return False
        messages = payload.get("messages")
        return isinstance(messages, list) and _is_small(messages)

    def account(self, begin: Begin, error: BaseException | None = None) -> None:
        """Enter it into the ledger, once: what was answered, or how it failed."""
        call = self._begun(begin)
        if call is None:
            return
        if error is None:
            call.answered(self._body)
        else:
            call.failed(error)

    def leave(self, begin: Begin) -> None:
        """Enter it as a call that nobody waits for any more."""
        if (call := self._begun(begin)) is not None:
            call.close()

    def _begun(self, begin: Begin) -> Call | None:
        if self._call is None:
            self._call = begin(self.sending)
            if self._call is not None:
                self._call.seconds = self.seconds
                if self._headers is not None:
                    self._call.headers(self._headers)
        return self._call

    def _heard(self, headers: Mapping[str, str]) -> None:
        self._headers = headers


class Notes:
    """The calls of a process that are under way or wait to be accounted for.

    Args:
        begin: makes the call of a sending.
        clock: that of the sendings.
    """

    def __init__(self, begin: Begin, clock: Callable[[], float]) -> None:
        self._begin, self._clock = begin, clock
        self._open: dict[int, Note] = {}
        self._over: deque[Note] = deque()
        # Held while notes are accounted for: who reads meanwhile waits for those that are at it.
        self._lock = threading.RLock()
        self._at_it = False

    def open(self, note: Note) -> None:
        """One is being sent."""
        self._open[id(note)] = note

    def close(self, note: Note, error: BaseException | None) -> None:
        """One is answered, or has failed."""
        note.seconds = self._clock() - note.sending.started
        if self._open.pop(id(note), None) is None:
            return  # its test was over before, and has accounted for it
        if error is not None or not note.may_wait():
            note.account(self._begin, error)
            return
        self._over.append(note)
        if len(self._over) >= MOST_NOTES:
            self.account()

    def account(self) -> None:
        """Enter all that are over into the ledger."""
        if not self._over:
            return
        with self._lock:
            if self._at_it:
                return  # it is this very thread: a hook that is asked for a price looks
            self._at_it = True
            try:
                while self._over:
                    self._over[0].account(self._begin)
                    # Not before: a Ctrl-C in between must not lose it. No second time counts.
                    self._over.popleft()
            finally:
                self._at_it = False

    def leave(self, test: str | None = None, *, every: bool = False) -> None:
        """Enter those of a test that are under way, which it does not wait for; or every one."""
        for key, note in tuple(self._open.items()):
            running = note.sending.around.test
            of_it = every or (running.id if running else None) == test
            if of_it and self._open.pop(key, None) is not None:
                note.leave(self._begin)

    def disown(self) -> None:
        """Forget them all: they are another process's, whose copy this is."""
        self._open, self._over = {}, deque()
        self._lock, self._at_it = threading.RLock(), False


def _is_small(messages: list[object]) -> bool:
    size = 0
    for message in messages:
        said = message.get("content") if isinstance(message, dict) else None
        if not isinstance(said, str):
            return False  # images, as a rule
        size += len(said)
    return size <= SMALL_BYTES
