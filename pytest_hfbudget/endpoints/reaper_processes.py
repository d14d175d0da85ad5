"""Starts the reaper and its standbys, which step in when it is killed or stopped.

Each process is started so that whatever ends a test run does not end it.

There are two standbys. The first one steps in for the reaper. The reserve, which the first one
starts, steps in when both are gone. The pytest process can't replace a reaper while a long test
runs, or when it is killed itself.

Each standby also has the reaper's end of the client's channel. It reads nothing from it while the
reaper lives: the reaper passes on each message before it acts on it. When a process dies, its
sockets are closed. If a process closes its socket but lives, it has dismissed the standby, which
then ends. So there is never a second reaper beside a live one.
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
    PauseDeadline,
    Ready,
    encode,
)
from pytest_hfbudget.endpoints.retry import DYING_POLL_S, DYING_S, POLL_S, STOPPED_POLL_S
from pytest_hfbudget.errors import EndpointError

_TO_IMPORT = "_HFBUDGET_TO_IMPORT"  # an environment variable, but no setting of the user
_REAPER_MODULE = "pytest_hfbudget.endpoints.reaper"

# Forks once more and ends the first child. The reaper then is no child of the test run, is in a
# session of its own without a terminal, and no process has to wait for it.
# What to import is in the environment, not on the command line: a `pkill -f pytest` is to end the
# test run, but not the reaper.
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

# The variables that Python and TLS may need. No others are passed on, above all not the token.
_PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_PASSED_TLS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")

# How often a reaper starts standbys: whatever has killed five pairs would kill more.
_MOST_STARTS = 5

StartStandby = Callable[[Sequence[socket.socket]], None]


class SpawnedProcess(Protocol):
    """Starts a reaper process; tests may replace it."""

    def __call__(self, end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
        """Start a reaper that talks over ``end`` and writes to ``log``.

        Raises:
            EndpointError: it can't be started.
        """


def spawn_reaper(end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
    """Start a detached reaper; returns once it is no child of this process any more.

    Raises:
        EndpointError: the system has no fork, or refuses the process or its log.
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
            # -I -S: no PYTHONPATH, no working directory, and no site packages with their start-up
            # files. `_TO_IMPORT` names what the reaper imports.
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
    # GitHub's runner kills every process that has the job's id in this variable.
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
    """The reaper's side: starts standbys, and sends them each message. It also works without."""

    def __init__(
        self,
        start: StartStandby,
        log: Callable[[str], None],
        *,
        sockets: Iterable[socket.socket] = (),
        more: bool = True,
    ) -> None:
        """Start nothing yet.

        Args:
            start: starts a standby with its sockets of `standby_sockets`; raises EndpointError.
            sockets: the sockets to standbys that run already.
            more: whether new standbys may be started.
        """
        self._start_standby, self._log = start, log
        self._starts = 0 if more else _MOST_STARTS
        self._socks = list(sockets)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets to the standbys, for polling: readable once a standby is gone."""
        return tuple(self._socks)

    def any_gone(self) -> bool:
        """Whether a standby has ended since the last call."""
        gone = [sock for sock in self._socks if _at_end(sock)]
        for sock in gone:
            self._drop(sock)
        return bool(gone)

    def start(self, messages: Iterable[Message]) -> None:
        """Start new standbys, send them these messages, and dismiss the old standbys."""
        if self._starts == _MOST_STARTS:
            return
        self._starts += 1
        old = self._socks
        ours, theirs = standby_sockets()
        self._socks = list(ours)
        for sock in ours:
            sock.setblocking(False)  # a stopped standby must not block the reaper
        # Send before the start: if the reaper is killed now, the standbys still read everything.
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
        """Send a message to all standbys; dismiss one whose socket does not accept it."""
        for sock in self.sockets:
            try:
                sock.sendall(encode(message))
            except OSError as error:
                self._log(f"a standby is dismissed: {error}")
                self._drop(sock)

    def dismiss(self) -> None:
        """Tell the standbys that the work is done, so that they end."""
        self.send(Done())
        for sock in self.sockets:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        sock.close()
        if sock in self._socks:
            self._socks.remove(sock)


def standby_sockets() -> tuple[tuple[socket.socket, ...], tuple[socket.socket, ...]]:
    """Make the sockets between a reaper and its two standbys.

    Returns the reaper's sockets to the standby and to the reserve, and the sockets with which the
    standby starts: its own end, the reserve's end, and both ends of a channel between the two.
    """
    (to_standby, standby), (to_reserve, reserve), between = _pair(), _pair(), _pair()
    return (to_standby, to_reserve), (standby, reserve, *between)


def start_reserve(
    ends: Sequence[socket.socket], start: StartStandby, log: Callable[[str], None]
) -> tuple[socket.socket, socket.socket]:
    """Start the reserve; returns the standby's sockets to the reaper and to the reserve.

    Args:
        ends: the sockets with which the standby was started; see `standby_sockets`.
        start: starts the reserve with its sockets.
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
    """A process for which a standby would step in."""

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
        """Whether it still runs after its channel has ended; waits `DYING_S` for its death."""
        ends = time.monotonic() + DYING_S
        while (lives := process.alive(self._pid, self._start)) and time.monotonic() < ends:
            threading.Event().wait(DYING_POLL_S)
        return lives

    def end_if_stopped(self) -> None:
        """Kill it if it stays stopped. Call this only while it would have to act."""
        self._stopped.end_if_stopped(self._pid, self._start)


class Standby:
    """The standby's side: waits until it has to step in, or is dismissed."""

    def __init__(self, ahead: Iterable[socket.socket]) -> None:
        """``ahead`` are the channels to the processes before it, the reaper first."""
        self._ahead = [_Predecessor(sock) for sock in ahead]
        self._messages = list[Message]()
        self._client: process.DeathWatch | None = None
        self._deadline: float | None = None

    def wait(self) -> list[Message]:
        """Wait for the death of all ahead; returns the reaper's messages, none if dismissed."""
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
            if isinstance(message, PauseDeadline):  # moved with each call of a run; the last counts
                before = self._messages
                self._messages = [one for one in before if not isinstance(one, PauseDeadline)]
                self._deadline = message.at_mono
            self._messages.append(message)

    def _client_gone(self) -> bool:
        return self._client is not None and self._client.dead()

    def _too_late(self) -> bool:
        return self._deadline is not None and self._deadline <= time.monotonic()

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
        if self._deadline is not None and not needed:
            waits.append(max(self._deadline - time.monotonic(), 0.0))
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
