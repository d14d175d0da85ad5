"""The reaper's standbys: processes that step in at once when the reaper is killed or stopped.

There are two of them. The second steps in for the reaper; the reserve, which the second starts,
steps in when both are gone. A run may be inside one long test, or be killed itself, before it
could replace a reaper. Each standby has the reaper's end of the line too, but reads nothing from
it while the reaper lives: what the reaper hears, it passes on before it acts. The death of a
process is the end of the sockets to it. A process that closed its socket but lives has let the
standby go: there is to be no second reaper beside one that lives.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.reaper_messages import (
    Arm,
    Decoder,
    Done,
    Message,
    Ready,
    UptimeLimit,
    encode,
)
from pytest_hfbudget.endpoints.retry import DYING_POLL_S, DYING_S, STOPPED_POLL_S
from pytest_hfbudget.errors import EndpointError

# Whatever kills one after the other will not be outlasted by starting still more of them.
_MOST_STARTS = 5

Start = Callable[[Sequence[socket.socket]], None]


class StandbyHandle:
    """The reaper's side. Without standbys the reaper goes on alone."""

    def __init__(
        self, start: Start, log: Callable[[str], None], *, known: Iterable[socket.socket] = ()
    ) -> None:
        """``start`` starts a second that talks over the ends of `pairs`, or raises EndpointError.

        Args:
            known: the sockets to standbys that are there already.
        """
        self._start, self._log = start, log
        self._starts = 0
        self._socks = list(known)

    @property
    def ends(self) -> tuple[socket.socket, ...]:
        """To be polled: readable once a standby is gone."""
        return tuple(self._socks)

    def thinned(self) -> bool:
        """Whether a standby has gone since this was last asked."""
        gone = [sock for sock in self._socks if _at_end(sock)]
        for sock in gone:
            self._part(sock)
        return bool(gone)

    def engage(self, standing: Iterable[Message]) -> None:
        """Have new ones, tell them how things stand, and let the old ones go."""
        if self._starts == _MOST_STARTS:
            return
        self._starts += 1
        old = self._socks
        ours, theirs = pairs()
        self._socks = list(ours)
        for sock in ours:
            sock.setblocking(False)  # a standby that is stopped must not stop the reaper
        # Before they are there: should the reaper be killed now, they find all when they come.
        self.tell(Ready(os.getpid()))
        for message in standing:
            self.tell(message)
        try:
            self._start(theirs)
        except EndpointError as error:
            self._log(f"the reaper goes on without a second: {error}")
            for sock in ours:
                self._part(sock)
            self._socks = old
            return
        finally:
            for sock in theirs:
                sock.close()
        for sock in old:
            sock.close()

    def tell(self, message: Message) -> None:
        """Pass on what was heard."""
        for sock in self.ends:
            try:
                sock.sendall(encode(message))
            except OSError as error:
                self._log(f"the reaper lets a standby go: {error}")
                self._part(sock)

    def dismiss(self) -> None:
        """Let them go: the work is done."""
        self.tell(Done())
        for sock in self.ends:
            self._part(sock)

    def _part(self, sock: socket.socket) -> None:
        sock.close()
        if sock in self._socks:
            self._socks.remove(sock)


def pairs() -> tuple[tuple[socket.socket, ...], tuple[socket.socket, ...]]:
    """The reaper's ends, to its second and to its reserve; and what the second is started with.

    The latter: its own end, the reserve's, and both ends of the line between these two.
    """
    (to_second, second), (to_reserve, reserve), between = _pair(), _pair(), _pair()
    return (to_second, to_reserve), (second, reserve, *between)


def with_reserve(
    ends: Sequence[socket.socket], start: Start, log: Callable[[str], None]
) -> tuple[socket.socket, socket.socket]:
    """Start a second's own reserve; what stays with the second: its lines to reaper and reserve.

    Args:
        ends: what the second was started with, see `pairs`.
    """
    reaper, reserve, to_reserve, to_second = ends
    to_reserve.sendall(encode(Ready(os.getpid())))
    try:
        start((reserve, to_second))
    except EndpointError as error:  # the reaper notices, and starts others
        log(f"the second has no reserve: {error}")
    reserve.close()
    to_second.close()
    to_reserve.setblocking(False)
    return reaper, to_reserve


class _Ahead:
    """A process that a standby would step in for."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock, self._decoder = sock, Decoder()
        self._pid = 0
        self._start: str | None = None
        self._stopped = process.StoppedWatch()
        self.ended = False

    def read(self) -> list[Message]:
        """What it has said; sets `ended` at the end of the line."""
        heard = list[Message]()
        while not self.ended:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            for message in self._decoder.feed(data):
                if isinstance(message, Ready):
                    self._pid, self._start = message.pid, process.start_time(message.pid)
                else:
                    heard.append(message)
        return heard

    def lives(self) -> bool:
        """Whether it still runs, after the end of its line."""
        ends = time.monotonic() + DYING_S
        while (lives := process.alive(self._pid, self._start)) and time.monotonic() < ends:
            threading.Event().wait(DYING_POLL_S)
        return lives

    def end_if_stopped(self) -> None:
        """End it if it has to act now, and has been stopped for a while."""
        self._stopped.end_if_stopped(self._pid, self._start)


class Standby:
    """The standby's side: waits until it has to act, or is not needed any more."""

    def __init__(self, ahead: Iterable[socket.socket]) -> None:
        """``ahead`` are the lines to the processes that come first, the reaper's before all."""
        self._ahead = [_Ahead(sock) for sock in ahead]
        self._heard = list[Message]()
        self._client: process.DeathWatch | None = None
        self._limit: float | None = None

    def wait(self) -> list[Message]:
        """What the reaper had heard; nothing if it has done its work, or goes on."""
        dead = set[_Ahead]()
        while True:
            for one in self._ahead:
                self._take(one.read())
                if one.ended and one not in dead:
                    if one.lives():
                        return []
                    dead.add(one)
            if any(isinstance(message, Done) for message in self._heard):
                return []
            if len(dead) == len(self._ahead):
                return self._heard
            needed = bool(dead) or self._orphaned() or self._too_late()
            self._poll(needed)
            if needed:
                for one in self._ahead:
                    one.end_if_stopped()

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, Arm) and self._client is None:
                self._client = process.watch(message.client_pid, message.client_start)
            if isinstance(
                message, UptimeLimit
            ):  # moved with each call of a run; the last one counts
                self._heard = [each for each in self._heard if not isinstance(each, UptimeLimit)]
                self._limit = message.at_mono
            self._heard.append(message)

    def _orphaned(self) -> bool:
        return self._client is not None and self._client.dead()

    def _too_late(self) -> bool:
        return self._limit is not None and self._limit <= time.monotonic()

    def _poll(self, needed: bool) -> None:
        poll = select.poll()
        for one in self._ahead:
            if not one.ended:
                poll.register(one.sock, select.POLLIN)
        waits = [STOPPED_POLL_S] if needed else []
        if self._client is not None and not needed:
            if self._client.fileno() >= 0:
                poll.register(self._client.fileno(), select.POLLIN)
            if self._client.period_s is not None:
                waits.append(self._client.period_s)
        if self._limit is not None and not needed:
            waits.append(max(self._limit - time.monotonic(), 0.0))
        poll.poll(math.ceil(min(waits) * 1000) if waits else None)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _at_end(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
