"""The reaper: a small process that pauses what a run has leased, when asked or when pytest is gone.

It is started by `spawn_reaper`, shares one socket with the pytest process (the client) and nothing
else, and ends after its last look at what it has paused. The run does not wait for that look.
"""

from __future__ import annotations

import fcntl
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
from typing import TYPE_CHECKING, Protocol, TypeVar

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.final_pause import FinalPause, HeldEndpoint, lease_store_of
from pytest_hfbudget.endpoints.journal import Journal
from pytest_hfbudget.endpoints.lease_store import HeldLease, LeaseStore
from pytest_hfbudget.endpoints.reaper_messages import (
    ASKED,
    CLIENT_GONE,
    DEADLINE,
    Arm,
    Decoder,
    Done,
    Message,
    Pause,
    Ready,
    Receipt,
    Release,
    Settled,
    UptimeLimit,
    Watch,
    Watching,
    encode,
)
from pytest_hfbudget.endpoints.reaper_processes import (
    RESERVE,
    STANDBY,
    Standby,
    Standbys,
    spawn_standby,
    start_reserve,
)
from pytest_hfbudget.endpoints.retry import DYING_POLL_S, DYING_S, FIRST_MESSAGE_S, POLL_S, SPAWN_S
from pytest_hfbudget.endpoints.transport import Route
from pytest_hfbudget.errors import EndpointError, HistoryError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedPlace

# How often a lease is renewed before it would expire, and the longest time between two times.
BEATS, MOST_BEAT_S = 5, 5.0

_STDERR = 2

# So many standbys may step in within so many seconds before there are no more of them.
MOST_IN_VAIN, IN_VAIN_S = 20, 60.0
# Begins the line of the log which tells that; the time on the system's steady clock follows.
STEPPED_IN = "a standby has stepped in at "


class Channel:
    """The reaper's end of the socket. No method raises when the client is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder, self._lock = sock, Decoder(), threading.Lock()
        sock.settimeout(FIRST_MESSAGE_S)

    def fileno(self) -> int:
        """To be polled."""
        return self._sock.fileno()

    def receive(self) -> list[Message] | None:
        """The messages that have arrived; None at the end of the channel."""
        try:
            data = self._sock.recv(65536)
        except OSError:
            return None
        return self._decoder.feed(data) if data else None

    def send(self, message: Message) -> None:
        """Send to the client, if it still runs."""
        try:
            with self._lock:
                self._sock.sendall(encode(message))
        except OSError as error:
            log(f"the client did not get the message {type(message).__name__.lower()}: {error}")


class Reaper:
    """Pauses on request, when the client dies or closes the channel, and at a time limit.

    On request it also pauses single endpoints that the run is done with.
    """

    def __init__(
        self,
        channel: Channel,
        arm: Arm,
        standbys: Standbys,
        *,
        stands_in: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``stands_in``: it replaces a reaper that was killed, and endpoints may run already."""
        self._channel, self._arm, self._standbys, self._clock = channel, arm, standbys, clock
        self._held: dict[str, HeldEndpoint] = {}
        self._stores: dict[str, LeaseStore] = {}
        self._done: list[HeldEndpoint] = []
        self._start = process.start_time(os.getpid())
        self._limit: float | None = None
        self._journal = Journal(Path(arm.journal), known=stands_in)
        route = Route(ca_file=arm.ca_file, proxy=arm.proxy)
        self._plane = ControlPlane(
            arm.api, arm.token, retry=arm.timings.retry, route=route, agent="reaper"
        )
        self._woken, waking = socket.socketpair()
        self._woken.setblocking(False)
        waking.setblocking(False)

        def wake() -> None:
            with suppress(OSError):  # full: it is awake, or will be
                waking.send(b".")

        self._pauses = FinalPause(
            arm, self._plane, self._journal, tell=channel.send, log=log, wake=wake, clock=clock
        )

    def run(self, heard: Sequence[Message] = ()) -> bool:
        """Wait for a reason to pause, then pause all; whether each pause was verified and held.

        Args:
            heard: what the client sent to the reaper that this one stands in for.
        """
        if self._arm.shared is not None:
            threading.Thread(target=self._renew, args=(self._arm.shared,), daemon=True).start()
        death = process.watch(self._arm.client_pid, self._arm.client_start)
        reason = self._act(heard)
        if reason is None:
            self._standbys.start(self._state())
        self._channel.send(Ready(os.getpid()))
        reason = reason or self._wait(death)
        death.close()
        verified = self._pauses.pause(self._held.values(), reason)
        self._standbys.dismiss()
        return self._pauses.look_again() and verified

    def _renew(self, shared: SharedPlace) -> None:
        """Show the jobs of other machines that this one lives, until its work is done.

        Where a pause has got nowhere for as long as a lease lasts, another machine may be able to.
        """
        began: dict[str, float] = {}
        while True:
            self._clock.sleep(min(shared.expiry_s / BEATS, MOST_BEAT_S))
            for name in list(self._held):
                now = self._clock.monotonic()
                if not self._pauses.at_work(name):
                    began.pop(name, None)
                elif now - began.setdefault(name, now) > shared.expiry_s:
                    continue
                with suppress(HistoryError):  # its lease expires, should that go on
                    self._stores.setdefault(name, self._lease_store(name)).renew()

    def _state(self) -> Iterator[Message]:
        """All that a standby has to know."""
        yield self._arm
        for held in self._held.values():
            yield replace(held.watch, resuming=not held.settled)
            if self._pauses.at_work(held.watch.endpoint):
                yield Release(held.watch.endpoint)
        yield UptimeLimit(self._limit)

    def _wait(self, death: process.DeathWatch) -> str:
        while True:
            own = self._channel, death, self._woken
            watched: tuple[_Pollable, ...] = (*own, *self._standbys.sockets)
            ready = _readable(watched, self._poll_timeout_s(death.period_s))
            # The death is looked at first: a child that the client forked may hold the
            # socket open, and what it sends is no message of the client.
            if death.dead():
                return CLIENT_GONE
            if self._channel in ready:
                reason = self._read()
                if reason:
                    return reason
            if self._woken in ready:
                self._collect()
            if self._limit is not None and self._clock.monotonic() >= self._limit:
                return DEADLINE
            if self._standbys.any_gone():
                log("a standby was killed")
                self._standbys.start(self._state())

    def _poll_timeout_s(self, period_s: float | None) -> float | None:
        if self._limit is None:
            return period_s
        left = max(self._limit - self._clock.monotonic(), 0.0)
        return left if period_s is None else min(left, period_s)

    def _read(self) -> str | None:
        """Act on the client's messages; returns a reason to pause, if there is one."""
        try:
            messages = self._channel.receive()
        except (ValueError, KeyError, TypeError) as error:
            log(f"a message can't be read: {error!r}")  # an endpoint may be running all the same
            return CLIENT_GONE
        return CLIENT_GONE if messages is None else self._act(messages)

    def _act(self, messages: Iterable[Message]) -> str | None:
        for message in messages:
            self._standbys.send(message)
            if isinstance(message, Watch):
                self._take(message)
            elif isinstance(message, Settled) and message.endpoint in self._held:
                self._held[message.endpoint].settled = True
            elif isinstance(message, UptimeLimit):
                self._limit = message.at_mono
            elif isinstance(message, Release) and message.endpoint in self._held:
                self._pauses.release(self._held[message.endpoint])
            elif isinstance(message, Receipt):  # of the reaper that this one stands in for
                self._held.pop(message.endpoint, None)
            elif isinstance(message, Pause):
                return ASKED
        return None

    def _collect(self) -> None:
        """Forget what has been paused before the run's end."""
        with suppress(OSError):
            self._woken.recv(4096)
        for receipt in self._pauses.collect():
            held = self._held.pop(receipt.endpoint, None) if receipt.in_order else None
            if held is not None:
                self._done.append(held)
                self._standbys.send(receipt)

    def _take(self, watch: Watch) -> None:
        name = watch.endpoint
        known = self._held.get(name)
        lease = self._new_lease(watch)
        for paused in self._done:
            paused.retaken |= paused.watch.endpoint == name
        self._held[name] = HeldEndpoint(watch, lease, settled=not watch.resuming)
        try:
            self._lease_store(name).put(lease)
        except EndpointError as error:
            self._channel.send(Watching(name, str(error)))
            return
        # A later message about the same endpoint brings its settings; it was reached before.
        if known:
            self._channel.send(Watching(name))
            return
        try:
            threading.Thread(target=self._reach, args=(watch,), daemon=True).start()
        except RuntimeError as error:  # it goes on for the other endpoints
            self._channel.send(Watching(name, str(error)))

    def _lease_store(self, name: str) -> LeaseStore:
        return lease_store_of(self._arm, name)

    def _new_lease(self, watch: Watch) -> HeldLease:
        known = self._held.get(watch.endpoint)
        return HeldLease(
            run=self._arm.run,
            endpoint=watch.endpoint,
            api=self._arm.api,
            owner_pid=self._arm.client_pid,
            owner_start=self._arm.client_start,
            reaper_pid=os.getpid(),
            reaper_start=self._start,
            at=known.lease.at if known else self._clock.time(),
            scaling=watch.scaling,
        )

    def _reach(self, watch: Watch) -> None:
        """Prove that this process can reach the endpoint, before anything is resumed.

        It also loads, resolves and connects all that the pause will need in a hurry.
        """
        retry = replace(self._arm.timings.retry, total_s=self._arm.timings.try_s)
        name, problem = watch.endpoint, None
        try:
            self._plane.with_retry(retry).get(name)
        except ControlPlaneError as error:
            problem = None if error.gone and watch.created else str(error)
        self._channel.send(Watching(name, problem))


class _Pollable(Protocol):
    def fileno(self) -> int: ...


T = TypeVar("T", bound=_Pollable)


def _readable(things: Sequence[T], timeout_s: float | None) -> list[T]:
    by_fd = {thing.fileno(): thing for thing in things}
    poll = select.poll()
    for fd in by_fd:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    timeout_ms = None if timeout_s is None else math.ceil(min(timeout_s, POLL_S) * 1000)
    return [by_fd[fd] for fd, _ in poll.poll(timeout_ms)]


def log(text: str) -> None:
    """One line into the reaper's log, which is its standard error; lost where the disk is full."""
    with suppress(OSError):
        os.write(_STDERR, f"{text}\n".encode(errors="replace"))


def _acts_alone(clock: Clock) -> bool:
    """Whether no other reaper of the client acts, nor is dying; from now on this one does.

    Where a standby is killed that has just stepped in, its own standbys and those before it may all
    find that it is their turn. Each process has opened the log by itself, so the lock on it ends
    with the process.
    """
    ends = clock.monotonic() + DYING_S
    while clock.monotonic() < ends:
        try:
            fcntl.flock(_STDERR, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            clock.sleep(DYING_POLL_S)
        except OSError:
            return True  # a file system without locks
        else:
            return True
    return False


def _step_in(log_file: Path, now: float) -> bool:
    """Note in the log that a standby steps in; whether it is to have standbys of its own.

    Something that ends each of them, or a failure that each of them meets, would end more of them
    as well. Once none is left, the run notices, and pauses by itself.
    """
    with suppress(OSError, ValueError):
        known = [line for line in log_file.read_text().splitlines() if line.startswith(STEPPED_IN)]
        recent = [line for line in known if now - float(line[len(STEPPED_IN) :]) < IN_VAIN_S]
        if len(recent) >= MOST_IN_VAIN:
            log(
                f"{len(recent)} standbys have stepped in within {IN_VAIN_S:.0f} s, so no more start"
            )
            return False
    log(f"{STEPPED_IN}{now:.3f}")
    return True


def main(role: str, run: str, fds: Sequence[int], log_path: str) -> None:
    """Run a reaper, or one of its two standbys; called by the boot code of `reaper_processes`.

    Args:
        role: the name of the process.
        run: the run whose endpoints it is there for.
        fds: the channel to the client; for standbys also the sockets of `standby_sockets`.
        log_path: where its standard error goes.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    process.show_name(role)
    client, *others = (socket.socket(fileno=fd) for fd in fds)
    channel = Channel(client)

    def start(role: str, inherited: Sequence[socket.socket]) -> None:
        spawn_standby(role, (client, *inherited), run, Path(log_path), timeout_s=SPAWN_S)

    known: list[socket.socket] = []
    if role == STANDBY:
        *others, to_reserve = start_reserve(others, partial(start, RESERVE), log)
        known = [to_reserve]
    arm, *heard = (Standby(others).wait() if others else channel.receive()) or [Done()]
    if not isinstance(arm, Arm) or not _acts_alone(SYSTEM_CLOCK):
        return
    more = not others or _step_in(Path(log_path), SYSTEM_CLOCK.monotonic())
    standbys = Standbys(partial(start, STANDBY), log, known=known, more=more)
    if Reaper(channel, arm, standbys, stands_in=bool(others)).run(heard):
        with suppress(OSError):
            os.unlink(log_path)  # it only says that all went well, and the journal says so too
    # Not an ordinary exit: a thread that is stuck in a name look-up must not keep this alive.
    os._exit(0)
