"""The side of the pytest process, or of `hfbudget run`, in the talk with its reaper."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# By name, as all that tests like to replace: this runs beside them.
from select import POLLIN, poll

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.reaper_messages import (
    Arm,
    Decoder,
    Done,
    Message,
    Pause,
    Pausing,
    Ready,
    Receipt,
    Release,
    Settled,
    UptimeLimit,
    Watch,
    Watching,
    encode,
)
from pytest_hfbudget.endpoints.reaper_processes import SpawnedProcess, spawn_reaper
from pytest_hfbudget.endpoints.retry import READ_S, SEND_S
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock


class _Channel:
    """This process's end of the socket. A test may close descriptors that are not its own.

    The number may then be that of another file, so the socket is let go without closing it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder, self._sending = sock, Decoder(), threading.Lock()
        self._inode = os.fstat(sock.fileno()).st_ino
        sock.settimeout(SEND_S)

    def intact(self) -> bool:
        """Whether the descriptor is still the socket's."""
        with suppress(OSError):
            if os.fstat(self._sock.fileno()).st_ino == self._inode:
                return True
        self._sock.detach()
        return False

    def send(self, message: Message) -> None:
        """Raises OSError when the reaper has closed its end, or takes in nothing."""
        with self._sending:
            self._sock.sendall(encode(message))

    def readable(self, timeout_s: float) -> bool:
        """Whether something arrives in time."""
        ready = poll()
        ready.register(self._sock, POLLIN)
        return bool(ready.poll(timeout_s * 1000))

    def receive(self) -> list[Message] | None:
        """The messages that have arrived; None at the end of the channel."""
        try:
            data = self._sock.recv(65536)
        except OSError:
            return None
        return self._decoder.feed(data) if data else None

    def close(self) -> None:
        """Close this end."""
        self._sock.close()


class ReaperClient:
    """The pytest process's channel to one reaper. Safe to share between threads.

    It has no thread of its own: in a process with threads every ``os.fork`` of a test would
    be warned about, and this runs inside other people's test suites.

    Attributes:
        pid: of the reaper at the other end.
        successions: how often a standby has stepped in for one that was killed.
    """

    def __init__(self, sock: socket.socket, log: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._channel, self._log, self._clock = _Channel(sock), log, clock
        self._reading = threading.Lock()
        self._watching: dict[str, Watching] = {}
        self._receipts: dict[str, Receipt] = {}
        self._reason = ""
        self._ended = self._done = self._stale = False
        self._sent: dict[tuple[type[Message], str], Message] = {}
        self.pid: int | None = None
        self._start: str | None = None
        self._stopped = process.StoppedWatch()
        self.successions = 0

    @classmethod
    def start(
        cls,
        arm: Arm,
        *,
        log: Path,
        timeout_s: float = 10.0,
        spawn: SpawnedProcess = spawn_reaper,
        clock: Clock = SYSTEM_CLOCK,
    ) -> ReaperClient:
        """Start a reaper and wait until it watches this process.

        Raises:
            EndpointError: not within ``timeout_s``; nothing may be resumed then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        client = cls(ours, log, clock=clock)
        try:
            with theirs:
                spawn(theirs, arm.run, log, timeout_s=timeout_s)
            client._arm(arm, timeout_s)
        except BaseException:
            client.close()
            raise
        return client

    def watch(self, watch: Watch, *, timeout_s: float) -> None:
        """Have the reaper pause an endpoint at the end; returns once the reaper has promised it.

        Raises:
            EndpointError: the reaper is lost, silent, or can't reach the endpoint.
        """
        self._watching.pop(watch.endpoint, None)
        self._receipts.pop(watch.endpoint, None)
        self._send(watch)
        self._until(lambda: watch.endpoint in self._watching, timeout_s)
        answer = self._watching.get(watch.endpoint)
        if answer is None:
            raise EndpointError(self._silence(timeout_s))
        if answer.error:
            raise EndpointError(
                f"{watch.endpoint} is not resumed, because the process that would pause it "
                f"is not ready: {answer.error}"
            )

    def settled(self, name: str) -> None:
        """No resume of this endpoint is under way (any more)."""
        self._try_send(Settled(name))

    def release(self, name: str) -> None:
        """Have one paused now, without waiting; its receipt comes later."""
        self._try_send(Release(name))

    def limit(self, at_mono: float | None) -> None:
        """Have all paused at this moment of the system's steady clock; None: at the end only."""
        self._try_send(UptimeLimit(at_mono))

    def ask(self) -> bool:
        """Have the reaper pause all now, without waiting; returns whether the message was sent."""
        return self._try_send(Pause())

    def pause(self, timeout_s: float) -> tuple[Receipt, ...]:
        """Have all paused, and wait; a receipt that is missing came not in time."""
        self.ask()
        self._until(lambda: self._done, timeout_s)
        return self.receipts()

    def receipts(self) -> tuple[Receipt, ...]:
        """Those that have come so far."""
        self._pump(0.0)
        return tuple(self._receipts.values())

    @property
    def reason(self) -> str:
        """Why the reaper pauses, from the moment that it began; empty before."""
        self._pump(0.0)
        return self._reason

    @property
    def lost(self) -> bool:
        """Whether the reaper and its standbys have gone without having done their work."""
        self._pump(0.0)
        return self._ended and not self._done

    def end_if_stopped(self) -> None:
        """End a reaper that stays stopped, to be called again and again: its standby steps in."""
        if self.pid is not None and not self._ended:
            self._stopped.end_if_stopped(self.pid, self._start)

    def close(self) -> None:
        """Close the channel; a reaper that still has work takes that as a request to do it."""
        self._ended = True
        if self._intact():
            self._channel.close()

    def _arm(self, arm: Arm, timeout_s: float) -> None:
        self._send(arm)
        if not self._until(lambda: self.pid is not None, timeout_s):
            raise EndpointError(self._silence(timeout_s))

    def _send(self, message: Message) -> None:
        if not self._try_send(message):
            raise EndpointError("the process that pauses endpoints is gone. " + self._hint())

    def _try_send(self, message: Message) -> bool:
        self._keep(message)
        return self._send_now(message)

    def _keep(self, message: Message) -> None:
        """Keep the last message of each kind: a standby that steps in may have missed it."""
        name = getattr(message, "endpoint", "")
        if isinstance(message, Watch):
            self._forget(name)
        if not isinstance(message, Arm):
            self._sent[type(message), name] = message

    def _forget(self, name: str) -> None:
        for kind in (Watch, Settled, Release):
            self._sent.pop((kind, name), None)

    def _send_again(self) -> None:
        self._stale = False
        for message in list(self._sent.values()):
            if not self._send_now(message):
                return

    def _send_now(self, message: Message) -> bool:
        if not self._intact():
            return False
        try:
            self._channel.send(message)
        except OSError:
            # A reaper that is done closes the channel; its last messages are still unread.
            while self._pump(0.0):
                pass
            self._ended = True
            return False
        return True

    def _intact(self) -> bool:
        intact = self._channel.intact()
        self._ended = self._ended or not intact
        return intact

    def _until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        ends = self._clock.monotonic() + timeout_s
        while not true():
            left = ends - self._clock.monotonic()
            if left <= 0 or self._ended or self._done:
                return False
            self.end_if_stopped()
            self._pump(min(left, READ_S))
        return True

    def _pump(self, timeout_s: float) -> bool:
        """Take in what comes; whether anything did."""
        with self._reading:
            if self._ended or self._done or not self._intact():
                return False
            if not self._channel.readable(timeout_s):
                return False
            self._take_in()
        if self._stale:
            self._send_again()
        return True

    def _take_in(self) -> None:
        messages = self._channel.receive()
        self._ended = self._ended or messages is None
        for message in messages or ():
            self._file(message)

    def _file(self, message: Message) -> None:
        if isinstance(message, Ready):
            self._stale = self.pid is not None
            self.successions += self._stale
            self.pid, self._start = message.pid, process.start_time(message.pid)
        elif isinstance(message, Watching):
            self._watching[message.endpoint] = message
        elif isinstance(message, Pausing):
            self._reason = message.reason
        elif isinstance(message, Receipt):
            self._receipts[message.endpoint] = message
            if message.in_order:
                self._forget(message.endpoint)
        elif isinstance(message, Done):
            self._done = True

    def _silence(self, timeout_s: float) -> str:
        what = (
            "has ended" if self._ended or self._done else f"has not answered within {timeout_s:g} s"
        )
        return (
            f"the process that would pause endpoints {what}, so nothing is resumed. {self._hint()}"
        )

    def _hint(self) -> str:
        try:
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
        except OSError:
            last = ""
        return f"The end of its log: {last}" if last else f"Its log: {self._log}"
