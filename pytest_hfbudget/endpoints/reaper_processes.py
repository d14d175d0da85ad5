"""The processes of a reaper: how each is started, and who steps in when one is killed or stopped.

Each is started so that nothing which ends a test run ends it too.

There are two standbys: the first steps in for the reaper; the reserve, which the first starts,
steps in when both are gone. The pytest process can't replace a reaper while a long test runs, or
when it is killed itself. Each standby also holds the reaper's end of the client's channel, but
reads nothing from it while the reaper lives: the reaper passes on each message before it acts on
it. When a process dies, its sockets end. A process that closed its socket but lives has dismissed
the standby, which then ends too, so that there is never a second reaper beside a live one.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

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
from pytest_hfbudget.endpoints.retry import DYING_POLL_S, DYING_S, POLL_S, STOPPED_POLL_S
from pytest_hfbudget.errors import EndpointError

_TO_IMPORT = "_HFBUDGET_TO_IMPORT"  # no setting: only a reaper is given it
_REAPER_MODULE = "pytest_hfbudget.endpoints.reaper"

# Forks once more and lets the first child go: the reaper is then no child of the test run, is
# in a session of its own without a terminal, and no process has to collect it.
# What to import, and from where, is in the environment and not on the command line: `pkill -f
# pytest` is to end the test run and not what pauses after it.
_BOOT = f"""
import importlib, json, os, sys
if os.fork():
    os._exit(0)
role, run, fds, log = sys.argv[1:]
module, *paths = json.loads(os.environ.pop("{_TO_IMPORT}"))
sys.path += paths
importlib.import_module(module).main(role, run, json.loads(fds), log)
"""

# The names of the processes: the reaper, its first standby, and its second, the reserve.
REAPER = "hfbudget-reaper"
STANDBY = "hfbudget-reaper-second"
RESERVE = "hfbudget-reserve"

# What an interpreter and its TLS may need. All else stays behind, the token first of all.
_PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_PASSED_TLS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")

# Something that kills each of them would kill still more of them too.
_MOST_STARTS = 5

Start = Callable[[Sequence[socket.socket]], None]


class SpawnedProcess(Protocol):
    """The edge to the operating system."""

    def __call__(self, end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
        """Start a reaper that talks over ``end`` and writes to ``log``.

        Raises:
            EndpointError: it can't be started.
        """


def spawn_reaper(end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
    """Start a detached reaper; returns when it is no child of this process any more.

    Raises:
        EndpointError: no such system (it needs fork), no process to be had, no log to be written.
    """
    if not hasattr(os, "fork") or not sys.executable:
        raise EndpointError("endpoints need Linux or macOS, and a Python program.")
    _spawn(REAPER, (end,), run, log, timeout_s)


def spawn_standby(
    role: str, ends: Sequence[socket.socket], run: str, log: Path, *, timeout_s: float
) -> None:
    """Start a standby (`STANDBY` or `RESERVE`), which inherits ``ends``, the client's socket first.

    Raises:
        EndpointError: it can't be started.
    """
    _spawn(role, ends, run, log, timeout_s)


def _spawn(name: str, ends: Sequence[socket.socket], run: str, log: Path, timeout_s: float) -> None:
    try:
        _detach(name, [end.fileno() for end in ends], run, log, timeout_s)
    except (OSError, subprocess.SubprocessError) as error:
        raise EndpointError(
            f"the process that would pause endpoints can't be started ({error}), "
            "so nothing is resumed."
        ) from error


def _detach(name: str, fds: list[int], run: str, log: Path, timeout_s: float) -> None:
    argv = [name, run, json.dumps(fds), str(log)]
    to_import = json.dumps([_REAPER_MODULE, *import_paths()])
    with _private(log) as output:
        starter = subprocess.Popen(
            # -I -S: neither PYTHONPATH, nor the working directory, nor site packages with their
            # start-up files; what the reaper imports is named to it.
            [sys.executable, "-I", "-S", "-c", _BOOT, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**_environment(os.environ), _TO_IMPORT: to_import},
            pass_fds=fds,
            start_new_session=True,
        )
    try:
        if starter.wait(timeout_s):
            raise OSError(f"exit status {starter.returncode}; see {log}")
    except subprocess.TimeoutExpired:
        starter.kill()
        starter.wait()
        raise


def _private(log: Path) -> IO[str]:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: environ[name] for name in (*_PASSED, *_PASSED_TLS) if name in environ}
    # GitHub's runner ends every process that has its job's id in the environment.
    return {**kept, "RUNNER_TRACKING_ID": ""}


def import_paths() -> list[str]:
    """The folders from which a reaper imports this package, its HTTP client, and redis-py."""
    from importlib.util import find_spec

    import urllib3

    import pytest_hfbudget

    found = [_parent(pytest_hfbudget.__file__), _parent(urllib3.__file__)]
    if (redis := find_spec("redis")) is not None and redis.origin:
        found.append(_parent(redis.origin))
    return list(dict.fromkeys(found))


def _parent(file: str | None) -> str:
    if file is None:
        raise EndpointError("pytest_hfbudget must be imported from files to start its reaper.")
    return str(Path(file).absolute().parent.parent)


class Standbys:
    """The reaper's side: starts standbys and keeps them informed. It works without any, too."""

    def __init__(
        self,
        start: Start,
        log: Callable[[str], None],
        *,
        known: Iterable[socket.socket] = (),
        more: bool = True,
    ) -> None:
        """``start`` starts a standby with those of `standby_sockets`, or raises EndpointError.

        Args:
            known: the sockets to standbys that are there already.
            more: whether others are to be started.
        """
        self._start_standby, self._log = start, log
        self._starts = 0 if more else _MOST_STARTS
        self._socks = list(known)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """To be polled: readable once a standby is gone."""
        return tuple(self._socks)

    def any_gone(self) -> bool:
        """Whether a standby has ended since the last call."""
        gone = [sock for sock in self._socks if _at_end(sock)]
        for sock in gone:
            self._drop(sock)
        return bool(gone)

    def start(self, messages: Iterable[Message]) -> None:
        """Start new standbys with all that they have to know, and dismiss the old ones."""
        if self._starts == _MOST_STARTS:
            return
        self._starts += 1
        old = self._socks
        ours, theirs = standby_sockets()
        self._socks = list(ours)
        for sock in ours:
            sock.setblocking(False)  # a standby that is stopped must not stop the reaper
        # Sent before they are started: should the reaper be killed now, they still read all of it.
        self.send(Ready(os.getpid()))
        for message in messages:
            self.send(message)
        try:
            self._start_standby(theirs)
        except EndpointError as error:
            self._log(f"the reaper goes on without a standby: {error}")
            for sock in ours:
                self._drop(sock)
            self._socks = old
            return
        finally:
            for sock in theirs:
                sock.close()
        for sock in old:
            sock.close()

    def send(self, message: Message) -> None:
        """Send a message to all standbys; one that does not take it is dismissed."""
        for sock in self.sockets:
            try:
                sock.sendall(encode(message))
            except OSError as error:
                self._log(f"a standby is dismissed: {error}")
                self._drop(sock)

    def dismiss(self) -> None:
        """Have the standbys end: the work is done."""
        self.send(Done())
        for sock in self.sockets:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        sock.close()
        if sock in self._socks:
            self._socks.remove(sock)


def standby_sockets() -> tuple[tuple[socket.socket, ...], tuple[socket.socket, ...]]:
    """The reaper's sockets to the standby and to the reserve; and those the standby starts with.

    The latter: its own end, the reserve's end, and both ends of a channel between these two.
    """
    (to_standby, standby), (to_reserve, reserve), between = _pair(), _pair(), _pair()
    return (to_standby, to_reserve), (standby, reserve, *between)


def start_reserve(
    ends: Sequence[socket.socket], start: Start, log: Callable[[str], None]
) -> tuple[socket.socket, socket.socket]:
    """Start the reserve; returns the standby's channels to the reaper and to the reserve.

    Args:
        ends: what the standby was started with, see `standby_sockets`.
    """
    reaper, reserve, to_reserve, to_standby = ends
    to_reserve.sendall(encode(Ready(os.getpid())))
    try:
        start((reserve, to_standby))
    except EndpointError as error:  # the reaper notices, and starts others
        log(f"the standby has no reserve: {error}")
    reserve.close()
    to_standby.close()
    to_reserve.setblocking(False)
    return reaper, to_reserve


class _Predecessor:
    """A process that a standby would step in for."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock, self._decoder = sock, Decoder()
        self._pid = 0
        self._start: str | None = None
        self._stopped = process.StoppedWatch()
        self.ended = False

    def read(self) -> list[Message]:
        """The messages that have arrived; sets `ended` at the end of the channel."""
        messages = list[Message]()
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
                    messages.append(message)
        return messages

    def lives(self) -> bool:
        """Whether it still runs, after the end of its channel."""
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
        """``ahead`` are the channels to the processes before it, the reaper first."""
        self._ahead = [_Predecessor(sock) for sock in ahead]
        self._messages = list[Message]()
        self._client: process.DeathWatch | None = None
        self._limit: float | None = None

    def wait(self) -> list[Message]:
        """The messages that the reaper had; empty if the reaper has done its work, or goes on."""
        dead = set[_Predecessor]()
        while True:
            for one in self._ahead:
                self._take(one.read())
                if one.ended and one not in dead:
                    if one.lives():
                        return []
                    dead.add(one)
            if any(isinstance(message, Done) for message in self._messages):
                return []
            if len(dead) == len(self._ahead):
                return self._messages
            needed = bool(dead) or self._client_gone() or self._too_late()
            self._poll(needed)
            if needed:
                for one in self._ahead:
                    one.end_if_stopped()

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, Arm) and self._client is None:
                self._client = process.watch(message.client_pid, message.client_start)
            if isinstance(message, UptimeLimit):  # moved with each call of a run; the last counts
                before = self._messages
                self._messages = [one for one in before if not isinstance(one, UptimeLimit)]
                self._limit = message.at_mono
            self._messages.append(message)

    def _client_gone(self) -> bool:
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
        poll.poll(math.ceil(min(*waits, POLL_S) * 1000) if waits else None)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _at_end(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
