"""Finds out whether a process still runs, by its pid and start time, and watches for its death.

A pid alone does not identify a process: the system reuses it, and it stays visible while a dead
process waits for its parent. A pid together with its start time identifies one process.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_hfbudget.endpoints.retry import DEATH_POLL_S, STOPPED_POLL_S

# The first pid namespace of every Linux machine has a fixed number (PROC_PID_INIT_INO).
_OUTSIDE_OF_CONTAINERS = "pid:[4026531836]"


def start_time(pid: int) -> str | None:
    """When the process started, as a text that is only good for comparison; None if it is gone.

    On Linux it is field 22 of ``/proc/<pid>/stat``, clock ticks since boot (proc_pid_stat(5));
    elsewhere the output of ``ps -o lstart=``.
    """
    try:
        stat = _stat(pid)
    except FileNotFoundError:
        return None if os.path.isdir("/proc/self") else _ps(pid)
    return None if stat is None or stat[0] in "ZX" else stat[19]


def alive(pid: int, start: str | None) -> bool:
    """Whether the process that had this pid and start time still runs."""
    return start is not None and start_time(pid) == start


def boot_id() -> str:
    """The id of this boot of this machine (random(4)); empty on systems without one."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """The pid namespace of this process (pid_namespaces(7)); empty if unknown.

    Two containers on one machine may have the same host name, and both may have a process 7.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@dataclass(frozen=True)
class ProcessHost:
    """Where the processes of a record run; by default, where this process runs.

    Attributes:
        host: name of the machine.
        boot_id, pid_namespace: see the functions of these names; both are empty on systems
            without them, and in records of older versions.
    """

    host: str = field(default_factory=socket.gethostname)
    boot_id: str = field(default_factory=boot_id)
    pid_namespace: str = field(default_factory=pid_namespace)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> ProcessHost:
        """Read the place from the keys of a record.

        Raises:
            TypeError: a value is no text.
        """
        old = {"boot_id": "", "pid_namespace": ""}
        known = {name: data[name] for name in ("host", *old) if name in data}
        if not all(isinstance(value, str) for value in known.values()):
            raise TypeError("a record names its place in texts")
        return cls(**{**old, **known})


def judgeable(place: ProcessHost) -> bool:
    """Whether this process can find out if the processes of a place still run.

    An earlier boot of this host has no processes left. Outside of containers, another boot id of
    this host is an earlier boot. In a container that is not certain: containers may have any host
    name, so the record may be of another machine.
    """
    ours = pid_namespace()
    same_boot = place.boot_id in ("", boot_id())
    if place.pid_namespace not in ("", ours):
        return same_boot and ours == _OUTSIDE_OF_CONTAINERS and _vanished(place.pid_namespace)
    same_host = place.host == socket.gethostname()
    return same_host and (same_boot or ours == _OUTSIDE_OF_CONTAINERS)


def _vanished(namespace: str) -> bool:
    """Whether a pid namespace has no process left; False if some processes can't be checked."""
    pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    # With hidepid=2, /proc lacks the processes of other users, also process 1. So check for that.
    return "1" in pids and not any(_may_be_in(namespace, pid) for pid in pids)


def _may_be_in(namespace: str, pid: str) -> bool:
    try:
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == namespace
        except PermissionError:  # another user's process; but anyone may read its NSpid line
            return len(_pids_by_namespace(pid)) != 1
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended since
    except OSError:
        return True


def _pids_by_namespace(pid: str) -> list[str]:
    """The pid of a process in each pid namespace that it is in, ours first."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])


def works(pid: int, start: str | None) -> bool:
    """Whether the process that had this pid and start time still runs, and is not stopped."""
    return alive(pid, start) and not stopped(pid, start)


def stopped(pid: int, start: str | None) -> bool:
    """Whether the process that had this pid and start time is stopped, by SIGSTOP or a debugger."""
    return alive(pid, start) and _state(pid) in ("T", "t")


class StoppedWatch:
    """Kills a process that stays stopped (SIGSTOP) while its work is needed.

    It counts looks, not seconds, because a suspended machine makes no looks.
    """

    _ENOUGH = 10

    def __init__(self) -> None:
        self._looks, self._next = 0, 0.0

    def end_if_stopped(self, pid: int, start: str | None) -> None:
        """Look once; kill the process if it was stopped in the last `_ENOUGH` looks."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + STOPPED_POLL_S * 0.9  # the caller may poll a little early
        self._looks = self._looks + 1 if stopped(pid, start) else 0
        if self._looks >= self._ENOUGH:
            end(pid, start)


def end(pid: int, start: str | None) -> None:
    """Kill the process that had this pid and start time, if it still runs and may be killed."""
    if alive(pid, start):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def show_name(name: str) -> None:
    """Have ``ps`` and ``top`` show this process under ``name`` and not as ``python``.

    Linux only, where the name has at most 15 characters (proc_pid_comm(5)).
    """
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def _state(pid: int) -> str:
    """The letter that ``ps`` shows for the state of a process; empty if it is gone."""
    try:
        return (_stat(pid) or [""])[0]
    except FileNotFoundError:
        return "" if os.path.isdir("/proc/self") else _ps_state(pid)


def _stat(pid: int) -> list[str] | None:
    """The fields of ``stat`` from the third on; the second, a name, may contain spaces."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except ProcessLookupError:
        return None


def _ps(pid: int) -> str | None:
    started, _, state = _ask_ps(pid).rpartition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def _ps_state(pid: int) -> str:
    return _ask_ps(pid).rpartition(" ")[2][:1]


def _ask_ps(pid: int) -> str:
    done = subprocess.run(
        ["/bin/ps", "-o", "lstart=,stat=", "-p", str(pid)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        check=False,
    )
    return done.stdout.strip()


class DeathWatch(Protocol):
    """Tells when one process has died."""

    @property
    def period_s(self) -> float | None:
        """How often `dead` must be asked; None when `fileno` becomes readable by itself."""

    def fileno(self) -> int:
        """For a selector; -1 when there is nothing to select on."""

    def dead(self) -> bool:
        """Whether the process has died. Never blocks."""

    def close(self) -> None:
        """Stop watching."""


if sys.platform == "darwin":

    class KqueueWatch:
        """macOS: the kernel reports the exit."""

        period_s = None

        def __init__(self, pid: int) -> None:
            self._queue, self._dead = select.kqueue(), False
            event = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
            self._queue.control([event], 0)

        def fileno(self) -> int:
            """Readable once the process has died."""
            return self._queue.fileno()

        def dead(self) -> bool:
            """Whether the process has died."""
            self._dead = self._dead or bool(self._queue.control([], 1, 0))
            return self._dead

        def close(self) -> None:
            """Stop watching."""
            self._queue.close()

else:

    class PidfdWatch:
        """Linux 5.3 and later: reports the death within milliseconds, forked children or not."""

        period_s = None

        def __init__(self, pid: int) -> None:
            self._fd = os.pidfd_open(pid)

        def fileno(self) -> int:
            """Readable once the process has died."""
            return self._fd

        def dead(self) -> bool:
            """Whether the process has died."""
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return bool(poll.poll(0))

        def close(self) -> None:
            """Stop watching."""
            os.close(self._fd)


class PollingWatch:
    """Anywhere else: compares the start time again and again."""

    period_s = DEATH_POLL_S

    def __init__(self, pid: int, start: str | None) -> None:
        self._pid, self._start = pid, start

    def fileno(self) -> int:
        """Nothing to select on."""
        return -1

    def dead(self) -> bool:
        """Whether the process has died."""
        return not alive(self._pid, self._start)

    def close(self) -> None:
        """Nothing is open."""


def watch(pid: int, start: str | None) -> DeathWatch:
    """A watch on the process with this pid and start time, by the kernel if it can."""
    try:
        found = _by_kernel(pid)
    except OSError:  # gone already, or no such call in this kernel or sandbox
        found = None
    # Compare the start time after opening: the watch may be on a later process with that pid.
    if found is None or not alive(pid, start):
        if found is not None:
            found.close()
        return PollingWatch(pid, start)
    return found


def _by_kernel(pid: int) -> DeathWatch | None:
    if sys.platform == "darwin":
        return KqueueWatch(pid)
    else:  # the type checker follows platforms by branches only
        return PidfdWatch(pid) if hasattr(os, "pidfd_open") else None
