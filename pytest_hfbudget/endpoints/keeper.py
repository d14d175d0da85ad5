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

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.claims import Claim, Claims
from pytest_hfbudget.endpoints.control import ControlPlane
from pytest_hfbudget.endpoints.journal import Journal
from pytest_hfbudget.endpoints.leaving import Leaver, entry
from pytest_hfbudget.endpoints.pace import SYSTEM_CLOCK, Clock
from pytest_hfbudget.endpoints.pausing import Pauser
from pytest_hfbudget.endpoints.protocol import (
    ASKED,
    DEADLINE,
    OWNER_GONE,
    Arm,
    Decoder,
    Done,
    Drop,
    Limit,
    Message,
    Pause,
    Pausing,
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
    claim: Claim
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
        self._start = process.start_time(os.getpid())
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
        self._line.send(Pausing(reason))
        verified = self._pause_all(reason)
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
                    return OWNER_GONE
                if any(key.fileobj is self._line for key, _ in ready):
                    reason = self._read()
                    if reason:
                        return reason
                if self._limit is not None and self._clock.monotonic() >= self._limit:
                    return DEADLINE

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
            log(f"the line is garbled: {error!r}")  # whoever wrote that, a bill may be running
            return OWNER_GONE
        if messages is None:
            return OWNER_GONE
        for message in messages:
            if isinstance(message, Watch):
                self._take(message)
            elif isinstance(message, Settled) and message.endpoint in self._held:
                self._held[message.endpoint].settled = True
            elif isinstance(message, Drop):
                self._drop(message.endpoint)
            elif isinstance(message, Limit):
                self._limit = message.at_mono
            elif isinstance(message, Pause):
                return ASKED
        return None

    def _take(self, watch: Watch) -> None:
        name = watch.endpoint
        known = self._held.get(name)
        claim = self._claim(watch)
        self._held[name] = Held(watch, claim, settled=not watch.waking)
        try:
            self._claims(name).put(claim)
        except EndpointError as error:
            self._line.send(Watching(name, str(error)))
            return
        # A later word about the same endpoint brings its settings; it was reached before.
        if known:
            self._line.send(Watching(name))
            return
        threading.Thread(target=self._reach, args=(name,), daemon=True).start()

    def _claims(self, name: str) -> Claims:
        arm = self._arm
        return Claims(Path(arm.claims), api=arm.api, endpoint=name, run=arm.run)

    def _claim(self, watch: Watch) -> Claim:
        known = self._held.get(watch.endpoint)
        return Claim(
            run=self._arm.run,
            endpoint=watch.endpoint,
            api=self._arm.api,
            owner_pid=self._arm.owner_pid,
            owner_start=self._arm.owner_start,
            keeper_pid=os.getpid(),
            keeper_start=self._start,
            at=known.claim.at if known else self._clock.time(),
            scaling=watch.scaling,
        )

    def _drop(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            self._claims(name).end(held.claim, paused=False)

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

    def _pause_all(self, reason: str) -> bool:
        receipts: queue.SimpleQueue[Receipt] = queue.SimpleQueue()
        for held in self._held.values():
            given = (held, reason, receipts)
            threading.Thread(target=self._pause, args=given, daemon=True).start()
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
            verified = verified and receipt.in_order
        return verified

    def _pause(self, held: Held, reason: str, receipts: queue.SimpleQueue[Receipt]) -> None:
        timings, name = self._arm.timings, held.watch.endpoint
        pauser = Pauser(self._plane, held.watch, timings, settled=held.settled)
        leaver = Leaver(self._claims(name), held.claim, pauser)
        try:
            receipts.put(leaver.run(lambda told: self._record(told, held.claim), reason=reason))
        except Exception as error:  # a bug here must be told, not be waited for
            log(f"{name}: {error!r}")
            receipts.put(leaver.failed(f"{name}: the keeper failed: {error!r}"))

    def _record(self, receipt: Receipt, claim: Claim) -> None:
        try:
            self._journal.write(entry(receipt, claim, at=self._clock.time()))
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
