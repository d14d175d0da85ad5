"""The keeper: a small process that pauses what its owner has leased, when asked or bereaved.

It is started by `spawn`, shares nothing with its owner but one socket, and ends within a
second of its last verified pause.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import socket
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_hfbudget.endpoints import journal, process
from pytest_hfbudget.endpoints.control import ControlPlane
from pytest_hfbudget.endpoints.journal import Journal, Record
from pytest_hfbudget.endpoints.pace import SYSTEM_CLOCK, Clock
from pytest_hfbudget.endpoints.pausing import Pauser
from pytest_hfbudget.endpoints.protocol import (
    Arm,
    Decoder,
    Done,
    Drop,
    Limit,
    Message,
    Pause,
    Ready,
    Receipt,
    Settled,
    Timings,
    Watch,
    Watching,
    encode,
)
from pytest_hfbudget.endpoints.refusal import ControlPlaneError
from pytest_hfbudget.endpoints.transport import Route
from pytest_hfbudget.errors import EndpointError

# For the first message only: an owner that says nothing has died or has given up.
_ARM_S = 30.0
# The wait for the last request of a thread that is stuck where no time-out reaches (DNS).
_GRACE_S = 5.0


@dataclass
class Held:
    """One endpoint in the keeper's care."""

    watch: Watch
    settled: bool = False


class Line:
    """The keeper's end of the socket. An owner that is gone is no reason to fail."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder, self._lock = sock, Decoder(), threading.Lock()
        sock.settimeout(_ARM_S)

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    def receive(self) -> list[Message] | None:
        """What has come in; None at the end of the line."""
        try:
            data = self._sock.recv(65536)
        except OSError:
            return None
        return self._decoder.feed(data) if data else None

    def send(self, message: Message) -> None:
        """Tell the owner, if there still is one."""
        try:
            with self._lock:
                self._sock.sendall(encode(message))
        except OSError as error:
            log(f"the owner can't be told of {type(message).__name__.lower()}: {error}")


class Keeper:
    """Waits for a request to pause, the owner's death, the end of the line or of a time limit."""

    def __init__(self, line: Line, arm: Arm, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._line, self._arm, self._clock = line, arm, clock
        self._held: dict[str, Held] = {}
        self._limit: float | None = None
        self._journal = Journal(Path(arm.journal))
        route = Route(ca_file=arm.ca_file, proxy=arm.proxy)
        self._plane = ControlPlane(
            arm.api, arm.token, pace=arm.timings.pace, route=route, agent="keeper"
        )

    def run(self) -> bool:
        """Keep watch, then pause all; whether every pause was verified."""
        death = process.watch(self._arm.owner_pid, self._arm.owner_start)
        self._line.send(Ready(os.getpid()))
        reason = self._wait(death)
        death.close()
        if self._held:
            log(f"{reason}: pausing {', '.join(self._held)}")
        verified = self._pause_all()
        self._line.send(Done())
        return verified

    def _wait(self, death: process.DeathWatch) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(self._line, selectors.EVENT_READ)
            if death.fileno() >= 0:
                selector.register(death.fileno(), selectors.EVENT_READ)
            while True:
                ready = selector.select(self._patience(death.period_s))
                # The death is looked at first: a child that the owner forked may hold the
                # socket open, and what it says there is not the owner's word.
                if death.dead():
                    return "the owner has died"
                if any(key.fileobj is self._line for key, _ in ready):
                    reason = self._read()
                    if reason:
                        return reason
                if self._limit is not None and self._clock.monotonic() >= self._limit:
                    return "the time that may be paid for is over"

    def _patience(self, period_s: float | None) -> float | None:
        if self._limit is None:
            return period_s
        left = max(self._limit - self._clock.monotonic(), 0.0)
        return left if period_s is None else min(left, period_s)

    def _read(self) -> str | None:
        """Act on what the owner said; a reason to pause, if there is one."""
        try:
            messages = self._line.receive()
        except (ValueError, KeyError, TypeError) as error:
            return f"the line is garbled ({error!r})"  # whoever wrote that, a bill may be running
        if messages is None:
            return "the line has ended"
        for message in messages:
            if isinstance(message, Watch):
                self._take(message)
            elif isinstance(message, Settled) and message.endpoint in self._held:
                self._held[message.endpoint].settled = True
            elif isinstance(message, Drop):
                self._held.pop(message.endpoint, None)
            elif isinstance(message, Limit):
                self._limit = message.at_mono
            elif isinstance(message, Pause):
                return "asked to"
        return None

    def _take(self, watch: Watch) -> None:
        known = watch.endpoint in self._held
        # A second word about the same endpoint brings its settings, not a new resume.
        if known:
            self._held[watch.endpoint].watch = watch
            self._line.send(Watching(watch.endpoint))
            return
        self._held[watch.endpoint] = Held(watch)
        threading.Thread(target=self._reach, args=(watch.endpoint,), daemon=True).start()

    def _reach(self, name: str) -> None:
        """Prove that this process can reach the endpoint, before anything is resumed.

        It also loads, resolves and connects all that the pause will need in a hurry.
        """
        pace = replace(self._arm.timings.pace, total_s=self._arm.timings.try_s)
        try:
            self._plane.with_pace(pace).get(name)
        except ControlPlaneError as error:
            self._line.send(Watching(name, str(error)))
        else:
            self._line.send(Watching(name))

    def _pause_all(self) -> bool:
        receipts: queue.SimpleQueue[Receipt] = queue.SimpleQueue()
        for held in self._held.values():
            pauser = Pauser(self._plane, held.watch, self._arm.timings, settled=held.settled)
            threading.Thread(target=self._pause, args=(pauser, receipts), daemon=True).start()
        ends = self._clock.monotonic() + _most_s(self._arm.timings)
        verified = True
        for _ in self._held:
            try:
                receipt = receipts.get(timeout=max(ends - self._clock.monotonic(), 0.0))
            except queue.Empty:
                log("a pause did not come to an end in time")
                return False
            log(f"{receipt.endpoint}: {receipt.error or receipt.state}")
            self._line.send(receipt)
            verified = verified and receipt.verified
        return verified

    def _pause(self, pauser: Pauser, receipts: queue.SimpleQueue[Receipt]) -> None:
        try:
            receipts.put(pauser.run(self._record))
        except Exception as error:  # a bug here must be told, not be waited for
            log(f"{pauser.endpoint}: {error!r}")
            receipts.put(pauser.failed(f"{pauser.endpoint}: the keeper failed: {error!r}"))

    def _record(self, receipt: Receipt) -> None:
        try:
            self._journal.write(
                Record(
                    kind=journal.PAUSED,
                    run=self._arm.run,
                    endpoint=receipt.endpoint,
                    api=self._arm.api,
                    at=self._clock.time(),
                    owner_pid=self._arm.owner_pid,
                    owner_start=self._arm.owner_start,
                    state=receipt.state,
                    verified=receipt.verified,
                    error=receipt.error,
                )
            )
        except EndpointError as error:  # a full disk; the pause itself is done
            log(str(error))


def _most_s(timings: Timings) -> float:
    return timings.deadline_s + timings.settle_s + 2 * timings.try_s + _GRACE_S


def log(text: str) -> None:
    """One line into the keeper's log, which is its standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(fd: int, log_path: str) -> None:
    """The keeper's whole life; called by the boot line of `spawn`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    line = Line(socket.socket(fileno=fd))
    messages = line.receive()
    if not messages or not isinstance(messages[0], Arm):
        return
    if Keeper(line, messages[0]).run():
        os.unlink(log_path)  # it only says that all went well, and the journal says so too
    # Not an ordinary exit: a thread that is stuck in a name look-up must not keep this alive.
    os._exit(0)
