"""The reaper: a small process that pauses what a run has leased, when asked or when pytest is gone.

It is started by `spawn`, shares nothing with its owner but one socket, and ends after its last
look at what it has paused. The run does not wait for that look.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.api_errors import ControlPlaneError
from pytest_hfbudget.endpoints.final_pause import FinalPause, HeldEndpoint
from pytest_hfbudget.endpoints.journal import Journal
from pytest_hfbudget.endpoints.lease_store import HeldLease, LeaseStore
from pytest_hfbudget.endpoints.reaper_messages import (
    ASKED,
    DEADLINE,
    OWNER_GONE,
    Arm,
    Decoder,
    Done,
    Message,
    Pause,
    Ready,
    Settled,
    UptimeLimit,
    Watch,
    Watching,
    encode,
)
from pytest_hfbudget.endpoints.retry import SYSTEM_CLOCK, Clock
from pytest_hfbudget.endpoints.spawn import RESERVE, SECOND, spawn_standby
from pytest_hfbudget.endpoints.standby import Standby, StandbyHandle, with_reserve
from pytest_hfbudget.endpoints.transport import Route
from pytest_hfbudget.errors import EndpointError

# For the first message only: an owner that says nothing has died or has given up.
_ARM_S = 30.0
# The start of a second takes no longer, or goes on without being waited for.
_SPAWN_S = 5.0
_STDERR = 2


class Channel:
    """The reaper's end of the socket. An owner that is gone is no reason to fail."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder, self._lock = sock, Decoder(), threading.Lock()
        sock.settimeout(_ARM_S)

    def fileno(self) -> int:
        """To be polled."""
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


class Reaper:
    """Waits for a request to pause, the owner's death, the end of the line or of a time limit."""

    def __init__(
        self,
        line: Channel,
        arm: Arm,
        second: StandbyHandle,
        *,
        stands_in: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``stands_in`` for a reaper that was killed: endpoints are in its care already."""
        self._line, self._arm, self._second, self._clock = line, arm, second, clock
        self._held: dict[str, HeldEndpoint] = {}
        self._start = process.start_time(os.getpid())
        self._limit: float | None = None
        self._journal = Journal(Path(arm.journal), known=stands_in)
        route = Route(ca_file=arm.ca_file, proxy=arm.proxy)
        self._plane = ControlPlane(
            arm.api, arm.token, pace=arm.timings.pace, route=route, agent="reaper"
        )

    def run(self, heard: Sequence[Message] = ()) -> bool:
        """Keep watch, then pause all; whether every pause was verified, and has held.

        Args:
            heard: what the owner said to the reaper that this one stands in for.
        """
        death = process.watch(self._arm.owner_pid, self._arm.owner_start)
        reason = self._act(heard)
        if reason is None:
            self._second.engage(self._standing())
        self._line.send(Ready(os.getpid()))
        reason = reason or self._wait(death)
        death.close()
        ending = FinalPause(
            self._arm, self._plane, self._journal, tell=self._line.send, log=log, clock=self._clock
        )
        verified = ending.pause(self._held.values(), reason)
        self._second.dismiss()
        return ending.look_again() and verified

    def _standing(self) -> Iterator[Message]:
        """All that another reaper has to know."""
        yield self._arm
        for held in self._held.values():
            yield replace(held.watch, waking=not held.settled)
        yield UptimeLimit(self._limit)

    def _wait(self, death: process.DeathWatch) -> str:
        while True:
            watched: tuple[_Pollable, ...] = (self._line, death, *self._second.ends)
            ready = _readable(watched, self._patience(death.period_s))
            # The death is looked at first: a child that the owner forked may hold the
            # socket open, and what it says there is not the owner's word.
            if death.dead():
                return OWNER_GONE
            if self._line in ready:
                reason = self._read()
                if reason:
                    return reason
            if self._limit is not None and self._clock.monotonic() >= self._limit:
                return DEADLINE
            if self._second.thinned():
                log("a standby was killed")
                self._second.engage(self._standing())

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
            log(f"the channel is garbled: {error!r}")  # an endpoint may be running all the same
            return OWNER_GONE
        return OWNER_GONE if messages is None else self._act(messages)

    def _act(self, messages: Iterable[Message]) -> str | None:
        for message in messages:
            self._second.tell(message)
            if isinstance(message, Watch):
                self._take(message)
            elif isinstance(message, Settled) and message.endpoint in self._held:
                self._held[message.endpoint].settled = True
            elif isinstance(message, UptimeLimit):
                self._limit = message.at_mono
            elif isinstance(message, Pause):
                return ASKED
        return None

    def _take(self, watch: Watch) -> None:
        name = watch.endpoint
        known = self._held.get(name)
        claim = self._claim(watch)
        self._held[name] = HeldEndpoint(watch, claim, settled=not watch.waking)
        try:
            self._claims(name).put(claim)
        except EndpointError as error:
            self._line.send(Watching(name, str(error)))
            return
        # A later word about the same endpoint brings its settings; it was reached before.
        if known:
            self._line.send(Watching(name))
            return
        try:
            threading.Thread(target=self._reach, args=(name,), daemon=True).start()
        except RuntimeError as error:  # others are in this process's care: it goes on
            self._line.send(Watching(name, str(error)))

    def _claims(self, name: str) -> LeaseStore:
        arm = self._arm
        return LeaseStore(Path(arm.claims), api=arm.api, endpoint=name, run=arm.run)

    def _claim(self, watch: Watch) -> HeldLease:
        known = self._held.get(watch.endpoint)
        return HeldLease(
            run=self._arm.run,
            endpoint=watch.endpoint,
            api=self._arm.api,
            owner_pid=self._arm.owner_pid,
            owner_start=self._arm.owner_start,
            reaper_pid=os.getpid(),
            reaper_start=self._start,
            at=known.claim.at if known else self._clock.time(),
            scaling=watch.scaling,
        )

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


class _Pollable(Protocol):
    def fileno(self) -> int: ...


T = TypeVar("T", bound=_Pollable)


def _readable(things: Sequence[T], timeout_s: float | None) -> list[T]:
    by_fd = {thing.fileno(): thing for thing in things}
    poll = select.poll()
    for fd in by_fd:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
    return [by_fd[fd] for fd, _ in poll.poll(timeout_ms)]


def log(text: str) -> None:
    """One line into the reaper's log, which is its standard error; lost where the disk is full."""
    with suppress(OSError):
        os.write(_STDERR, f"{text}\n".encode(errors="replace"))


def main(role: str, run: str, fds: Sequence[int], log_path: str) -> None:
    """The whole life of a reaper, its second or its reserve; called by the boot line of `spawn`.

    Args:
        role: the name of the process.
        run: the run whose endpoints it is there for.
        fds: the line to the owner; for standbys also what `second.pairs` has made for them.
        log_path: where its standard error goes.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    process.show_name(role)
    line, *others = (socket.socket(fileno=fd) for fd in fds)
    ends = Channel(line)

    def start(role: str, inherited: Sequence[socket.socket]) -> None:
        spawn_standby(role, (line, *inherited), run, Path(log_path), timeout_s=_SPAWN_S)

    known: list[socket.socket] = []
    if role == SECOND:
        *others, to_reserve = with_reserve(others, partial(start, RESERVE), log)
        known = [to_reserve]
    arm, *heard = (Standby(others).wait() if others else ends.receive()) or [Done()]
    if not isinstance(arm, Arm):
        return
    second = StandbyHandle(partial(start, SECOND), log, known=known)
    if Reaper(ends, arm, second, stands_in=bool(others)).run(heard):
        with suppress(OSError):
            os.unlink(log_path)  # it only says that all went well, and the journal says so too
    # Not an ordinary exit: a thread that is stuck in a name look-up must not keep this alive.
    os._exit(0)
