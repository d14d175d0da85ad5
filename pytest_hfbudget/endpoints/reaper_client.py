"""The client of a reaper, used by the pytest process and by `hfbudget run`."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Imported by name: a test may replace the attributes of the module.
from select import POLLIN, poll

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.reaper_messages import (
    Arm,
    BeginLease,
    Decoder,
    Done,
    EndLease,
    LeaseAnswer,
    Message,
    Pause,
    PauseDeadline,
    PauseReceipt,
    Pausing,
    Ready,
    ResumeOver,
    encode,
)
from pytest_hfbudget.endpoints.reaper_processes import SpawnedProcess, spawn_reaper
from pytest_hfbudget.endpoints.retry import READ_S, SEND_S
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock


class _ReaperChannel:
    """This process's end of the socket.

    A test may close descriptors that are not its own, and the number may then belong to another
    file. In that case the socket object is detached and not closed.
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
        """Send a message; raises OSError if the reaper has closed its end, or does not read."""
        with self._sending:
            self._sock.sendall(encode(message))

    def readable(self, timeout_s: float) -> bool:
        """Whether something arrives within ``timeout_s``."""
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

    It has no thread of its own, because Python warns about each ``os.fork`` in a process with
    threads, and the suite under test may fork.

    Attributes:
        pid: the process id of the reaper at the other end; None before it is ready.
        successions: how often a standby has stepped in for a killed reaper.
    """

    def __init__(self, sock: socket.socket, log: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._channel, self._log, self._clock = _ReaperChannel(sock), log, clock
        self._reading = threading.Lock()
        self._answers: dict[str, LeaseAnswer] = {}
        self._receipts: dict[str, PauseReceipt] = {}
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
            EndpointError: it was not ready within ``timeout_s``, so nothing may be resumed.
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

    def begin_lease(self, terms: BeginLease, *, timeout_s: float) -> None:
        """Have the reaper pause an endpoint at the end; returns once the reaper has confirmed it.

        Raises:
            EndpointError: the reaper is lost, silent, or can't reach the endpoint.
        """
        self._answers.pop(terms.endpoint, None)
        self._receipts.pop(terms.endpoint, None)
        self._send(terms)
        self._until(lambda: terms.endpoint in self._answers, timeout_s)
        answer = self._answers.get(terms.endpoint)
        if answer is None:
            raise EndpointError(self._silence(timeout_s))
        if answer.error:
            raise EndpointError(
                f"{terms.endpoint} is not resumed, because the process that would pause it "
                f"is not ready: {answer.error}"
            )

    def resume_over(self, name: str) -> None:
        """Tell the reaper that no resume of this endpoint is under way any more."""
        self._try_send(ResumeOver(name))

    def end_lease(self, name: str) -> None:
        """Have an endpoint paused now, without waiting; its receipt comes later."""
        self._try_send(EndLease(name))

    def set_deadline(self, at_mono: float | None) -> None:
        """Have all paused at this time of the system's steady clock; None: only at the end."""
        self._try_send(PauseDeadline(at_mono))

    def request_pause(self) -> bool:
        """Have the reaper pause all now, without waiting; returns whether the message was sent."""
        return self._try_send(Pause())

    def pause(self, timeout_s: float) -> tuple[PauseReceipt, ...]:
        """Have all paused, and wait; returns the receipts that came within ``timeout_s``."""
        self.request_pause()
        self._until(lambda: self._done, timeout_s)
        return self.receipts()

    def receipts(self) -> tuple[PauseReceipt, ...]:
        """The receipts that have come so far."""
        self._pump(0.0)
        return tuple(self._receipts.values())

    @property
    def reason(self) -> str:
        """Why the reaper has begun to pause all; empty if it has not."""
        self._pump(0.0)
        return self._reason

    @property
    def lost(self) -> bool:
        """Whether the reaper and its standbys are gone, and have not done their work."""
        self._pump(0.0)
        return self._ended and not self._done

    def end_if_stopped(self) -> None:
        """Kill a reaper that stays stopped, so that its standby steps in. Call it repeatedly."""
        if self.pid is not None and not self._ended:
            self._stopped.end_if_stopped(self.pid, self._start)

    def close(self) -> None:
        """Close the channel. A reaper that still watches endpoints then pauses them."""
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
        """Keep the last message of each kind, to repeat it to a standby that steps in."""
        name = getattr(message, "endpoint", "")
        if isinstance(message, BeginLease):
            self._forget(name)
        if not isinstance(message, Arm):
            self._sent[type(message), name] = message

    def _forget(self, name: str) -> None:
        for kind in (BeginLease, ResumeOver, EndLease):
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
            # A reaper closes the channel when it is done. Read its last messages first.
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
        """Handle the messages that arrive within ``timeout_s``; returns whether any did."""
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
            self._handle(message)

    def _handle(self, message: Message) -> None:
        if isinstance(message, Ready):
            self._stale = self.pid is not None
            self.successions += self._stale
            self.pid, self._start = message.pid, process.start_time(message.pid)
        elif isinstance(message, LeaseAnswer):
            self._answers[message.endpoint] = message
        elif isinstance(message, Pausing):
            self._reason = message.reason
        elif isinstance(message, PauseReceipt):
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
