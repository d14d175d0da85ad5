"""The keeper's second: a process that steps in at once when the keeper is killed.

A run could replace a killed keeper only between two tests, and may itself be killed before that.
The second has the keeper's end of the line too, but reads nothing from it while the keeper lives:
what the keeper hears, it passes on before it acts. To each of the two, the other's death is the
end of the socket between them; but one that fell behind was only let go, and there is to be no
second keeper beside one that lives.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.protocol import Decoder, Done, Limit, Message, Ready, encode
from pytest_hfbudget.errors import EndpointError

# Whatever kills one after the other will not be outlasted by starting still more of them.
_MOST_STARTS = 5
# A process that was killed closes its sockets a moment before it is gone.
_DYING_S = 2.0
_LOOK_S = 0.001

Start = Callable[[socket.socket], None]


class Second:
    """The keeper's side. Without a second the keeper goes on alone."""

    def __init__(self, start: Start, log: Callable[[str], None]) -> None:
        """``start`` starts a process that talks over the socket, or raises `EndpointError`."""
        self._start, self._log = start, log
        self._starts = 0
        self._sock: socket.socket | None = None

    def fileno(self) -> int:
        """Readable once the second is gone; -1 where there is none."""
        return self._sock.fileno() if self._sock else -1

    def engage(self, standing: Iterable[Message]) -> None:
        """Have a new one, and tell it how things stand."""
        self._part()
        if self._starts == _MOST_STARTS:
            return
        self._starts += 1
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)  # one that is stopped must not stop the keeper
        with theirs:
            # Before it is there: should the keeper be killed now, it finds all when it comes.
            self.tell(Ready(os.getpid()))
            for message in standing:
                self.tell(message)
            try:
                self._start(theirs)
            except EndpointError as error:
                self._lose(error)

    def tell(self, message: Message) -> None:
        """Pass on what was heard."""
        if self._sock is not None:
            try:
                self._sock.sendall(encode(message))
            except OSError as error:
                self._lose(error)

    def dismiss(self) -> None:
        """Let it go: the work is done."""
        self.tell(Done())
        self._part()

    def _lose(self, error: Exception) -> None:
        self._log(f"the keeper goes on without a second: {error}")
        self._part()

    def _part(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def stand_by(keeper: socket.socket) -> list[Message]:
    """Wait for the keeper's end. What it had heard; nothing if it has done its work, or lives."""
    decoder, heard = Decoder(), list[Message]()
    pid, start = 0, None
    with suppress(OSError):
        while data := keeper.recv(65536):
            for message in decoder.feed(data):
                if isinstance(message, Ready):
                    pid, start = message.pid, process.start_time(message.pid)
                    continue
                if isinstance(message, Limit):  # moved with each call of a run; the last one counts
                    heard = [each for each in heard if not isinstance(each, Limit)]
                heard.append(message)
    if any(isinstance(message, Done) for message in heard) or _lives(pid, start):
        return []
    return heard


def _lives(pid: int, start: str | None) -> bool:
    ends = time.monotonic() + _DYING_S
    while (lives := process.alive(pid, start)) and time.monotonic() < ends:
        threading.Event().wait(_LOOK_S)
    return lives
