"""The reaper: a small process that pauses what a run has leased, when asked or when pytest is gone.

`spawn_reaper` starts it. It shares only one socket with the pytest process (the client). It ends
after its last look at the endpoints that it has paused. The run does not wait for that look.
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
from pytest_hfbudget.endpoints.final_pause import FinalPause, LeasedEndpoint, lease_store_of
from pytest_hfbudget.endpoints.journal import Journal
from pytest_hfbudget.endpoints.lease_store import EndpointLease, LeaseStore
from pytest_hfbudget.endpoints.reaper_messages import (
    ASKED,
    CLIENT_GONE,
    DEADLINE,
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
    Ready,
    ResumeOver,
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
    from pytest_hfbudget.shared import SharedConnection

# A lease is renewed this often within its expiry time, and at least every so many seconds.
BEATS, MOST_BEAT_S = 5, 5.0

_STDERR = 2

# After this many standbys have stepped in within this many seconds, no more are started.
MOST_IN_VAIN, IN_VAIN_S = 20, 60.0
# The log line of a standby that steps in begins so; the time on the system's steady clock follows.
STEPPED_IN = "a standby has stepped in at "


class ClientChannel:
    """The reaper's end of the socket. No method raises if the client is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder, self._lock = sock, Decoder(), threading.Lock()
        sock.settimeout(FIRST_MESSAGE_S)

    def fileno(self) -> int:
        """The file descriptor, for polling."""
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
    """Pauses all endpoints on request, at the deadline, or when the client dies or leaves.

    On request it also pauses a single endpoint that the run no longer needs.
    """

    def __init__(
        self,
        channel: ClientChannel,
        arm: Arm,
        standbys: Standbys,
        *,
        is_standby: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``is_standby``: it replaces a killed reaper, so endpoints may be running already."""
        self._channel, self._arm, self._standbys, self._clock = channel, arm, standbys, clock
        self._leased: dict[str, LeasedEndpoint] = {}
        self._stores: dict[str, LeaseStore] = {}
        self._done: list[LeasedEndpoint] = []
        self._start = process.start_time(os.getpid())
        self._deadline: float | None = None
        self._journal = Journal(Path(arm.journal), existing=is_standby)
        route = Route(ca_file=arm.ca_file, proxy=arm.proxy)
        self._plane = ControlPlane(
            arm.api, arm.token, retry=arm.timings.retry, route=route, agent="reaper"
        )
        self._woken, waking = socket.socketpair()
        self._woken.setblocking(False)
        waking.setblocking(False)

        def wake() -> None:
            with suppress(OSError):  # the socket is full, so the reaper wakes anyway
                waking.send(b".")

        self._pauses = FinalPause(
            arm, self._plane, self._journal, tell=channel.send, log=log, wake=wake, clock=clock
        )

    def run(self, heard: Sequence[Message] = ()) -> bool:
        """Wait for a reason to pause, then pause all endpoints.

        Returns whether each pause was verified, and each endpoint has stayed paused.

        Args:
            heard: the messages that the client sent to the killed reaper before.
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
        verified = self._pauses.pause(self._leased.values(), reason)
        self._standbys.dismiss()
        return self._pauses.look_again() and verified

    def _renew(self, shared: SharedConnection) -> None:
        """Renew the leases that other machines see, until the work of this reaper is done.

        If a pause makes no progress for as long as a lease lasts, the lease is no longer renewed:
        another machine may be able to pause the endpoint.
        """
        began: dict[str, float] = {}
        while True:
            self._clock.sleep(min(shared.expiry_s / BEATS, MOST_BEAT_S))
            for name in list(self._leased):
                now = self._clock.monotonic()
                if not self._pauses.at_work(name):
                    began.pop(name, None)
                elif now - began.setdefault(name, now) > shared.expiry_s:
                    continue
                with suppress(HistoryError):  # if the server stays away, the lease expires
                    self._stores.setdefault(name, self._lease_store(name)).renew()

    def _state(self) -> Iterator[Message]:
        """The messages from which a standby can continue the work of this reaper."""
        yield self._arm
        for leased in self._leased.values():
            yield replace(leased.terms, resuming=not leased.resume_over)
            if self._pauses.at_work(leased.terms.endpoint):
                yield EndLease(leased.terms.endpoint)
        yield PauseDeadline(self._deadline)

    def _wait(self, death: process.DeathWatch) -> str:
        while True:
            own = self._channel, death, self._woken
            watched: tuple[_Pollable, ...] = (*own, *self._standbys.sockets)
            ready = _readable(watched, self._poll_timeout_s(death.period_s))
            # Check for the client's death first: a forked child of the client may still have the
            # socket open, and what the child sends is no message of the client.
            if death.dead():
                return CLIENT_GONE
            if self._channel in ready:
                reason = self._read()
                if reason:
                    return reason
            if self._woken in ready:
                self._collect()
            if self._deadline is not None and self._clock.monotonic() >= self._deadline:
                return DEADLINE
            if self._standbys.any_gone():
                log("a standby was killed")
                self._standbys.start(self._state())

    def _poll_timeout_s(self, period_s: float | None) -> float | None:
        if self._deadline is None:
            return period_s
        left = max(self._deadline - self._clock.monotonic(), 0.0)
        return left if period_s is None else min(left, period_s)

    def _read(self) -> str | None:
        """Act on the client's messages; returns a reason to pause, if there is one."""
        try:
            messages = self._channel.receive()
        except (ValueError, KeyError, TypeError) as error:
            log(f"a message can't be read: {error!r}")  # endpoints may be running, so pause all
            return CLIENT_GONE
        return CLIENT_GONE if messages is None else self._act(messages)

    def _act(self, messages: Iterable[Message]) -> str | None:
        for message in messages:
            self._standbys.send(message)
            if isinstance(message, BeginLease):
                self._take(message)
            elif isinstance(message, ResumeOver) and message.endpoint in self._leased:
                self._leased[message.endpoint].resume_over = True
            elif isinstance(message, PauseDeadline):
                self._deadline = message.at_mono
            elif isinstance(message, EndLease) and message.endpoint in self._leased:
                self._pauses.end_lease(self._leased[message.endpoint])
            elif isinstance(message, PauseReceipt):  # the killed reaper has paused this endpoint
                self._leased.pop(message.endpoint, None)
            elif isinstance(message, Pause):
                return ASKED
        return None

    def _collect(self) -> None:
        """Drop endpoints whose pause before the end of the run is verified."""
        with suppress(OSError):
            self._woken.recv(4096)
        for receipt in self._pauses.collect():
            leased = self._leased.pop(receipt.endpoint, None) if receipt.in_order else None
            if leased is not None:
                self._done.append(leased)
                self._standbys.send(receipt)

    def _take(self, terms: BeginLease) -> None:
        name = terms.endpoint
        known = self._leased.get(name)
        lease = self._new_lease(terms)
        for paused in self._done:
            paused.retaken |= paused.terms.endpoint == name
        self._leased[name] = LeasedEndpoint(terms, lease, resume_over=not terms.resuming)
        try:
            self._lease_store(name).put(lease)
        except EndpointError as error:
            self._channel.send(LeaseAnswer(name, str(error)))
            return
        # A later `BeginLease` of the same endpoint changes the terms; it need not be reached again.
        if known:
            self._channel.send(LeaseAnswer(name))
            return
        try:
            threading.Thread(target=self._reach, args=(terms,), daemon=True).start()
        except RuntimeError as error:  # no thread; the reaper goes on for the other endpoints
            self._channel.send(LeaseAnswer(name, str(error)))

    def _lease_store(self, name: str) -> LeaseStore:
        return lease_store_of(self._arm, name)

    def _new_lease(self, terms: BeginLease) -> EndpointLease:
        known = self._leased.get(terms.endpoint)
        return EndpointLease(
            run=self._arm.run,
            endpoint=terms.endpoint,
            api=self._arm.api,
            owner_pid=self._arm.client_pid,
            owner_start=self._arm.client_start,
            reaper_pid=os.getpid(),
            reaper_start=self._start,
            at=known.lease.at if known else self._clock.time(),
            scaling=terms.scaling,
        )

    def _reach(self, terms: BeginLease) -> None:
        """Check that this process can reach the endpoint, before it is resumed.

        The request also imports modules, resolves names and opens connections, which saves time
        when the pause is urgent.
        """
        retry = replace(self._arm.timings.retry, total_s=self._arm.timings.try_s)
        name, problem = terms.endpoint, None
        try:
            self._plane.with_retry(retry).get(name)
        except ControlPlaneError as error:
            problem = None if error.gone and terms.created else str(error)
        self._channel.send(LeaseAnswer(name, problem))


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
    """Write a line to the reaper's log, its standard error; it is lost if the disk is full."""
    with suppress(OSError):
        os.write(_STDERR, f"{text}\n".encode(errors="replace"))


def _acts_alone(clock: Clock) -> bool:
    """Take the lock of the log; returns False if another reaper of the client has it and lives.

    If a standby is killed right after it has stepped in, its own standbys and older ones may all
    try to step in. The lock lets one of them act. It ends with its process.
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
    """Note in the log that a standby steps in; returns whether it may start standbys of its own.

    It may not if many standbys have stepped in recently: whatever ended them would end more. Once
    no standby is left, the run notices, and pauses by itself.
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
        role: the name of the process: `REAPER`, `STANDBY` or `RESERVE`.
        run: the id of the run.
        fds: the channel to the client; for standbys also the sockets of `standby_sockets`.
        log_path: the file that its standard error goes to.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    process.show_name(role)
    client, *others = (socket.socket(fileno=fd) for fd in fds)
    channel = ClientChannel(client)

    def start(role: str, inherited: Sequence[socket.socket]) -> None:
        spawn_standby(role, (client, *inherited), run, Path(log_path), timeout_s=SPAWN_S)

    started: list[socket.socket] = []
    if role == STANDBY:
        *others, to_reserve = start_reserve(others, partial(start, RESERVE), log)
        started = [to_reserve]
    arm, *heard = (Standby(others).wait() if others else channel.receive()) or [Done()]
    if not isinstance(arm, Arm) or not _acts_alone(SYSTEM_CLOCK):
        return
    more = not others or _step_in(Path(log_path), SYSTEM_CLOCK.monotonic())
    standbys = Standbys(partial(start, STANDBY), log, sockets=started, more=more)
    if Reaper(channel, arm, standbys, is_standby=bool(others)).run(heard):
        with suppress(OSError):
            os.unlink(log_path)  # all went well, and the journal says so too
    # No normal exit, because that would wait for a thread that is stuck in a name look-up.
    os._exit(0)
