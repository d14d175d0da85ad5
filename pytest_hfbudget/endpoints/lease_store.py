"""The leases of this machine's runs on an endpoint. The last run to end pauses it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_hfbudget.endpoints import Endpoint, process, run_tag
from pytest_hfbudget.endpoints.process import ProcessHost
from pytest_hfbudget.endpoints.retry import BELIEVED_S, LOCK_POLL_S
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.files import own_folder, read_own, replace_file
from pytest_hfbudget.text import parse_json

with contextlib.suppress(ImportError):  # on Windows, where no endpoint is leased
    import fcntl

# A file lock (lockf) is not inherited by forks, and ends with its process, even by SIGKILL. It does
# not exclude other threads of the same process. So each file has a lock for threads as well.
_thread_locks: dict[Path, threading.Lock] = {}
_thread_locks_lock = threading.Lock()


@contextlib.contextmanager
def file_lock(
    path: Path, *, wait: Callable[[float], object], ready: Callable[[], bool]
) -> Iterator[None]:
    """Hold the lock of ``path``, against other processes and other threads of this one.

    Args:
        wait: called with the seconds to wait while the lock is taken; raises to give up.
        ready: called with the lock held, until it returns True. Then the body runs.
    """
    with _thread_locks_lock:
        lock = _thread_locks.setdefault(path.absolute(), threading.Lock())
    while not lock.acquire(blocking=False):
        wait(LOCK_POLL_S)
    try:
        with _locked(path, wait):
            while not ready():
                wait(LOCK_POLL_S)
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def _locked(path: Path, wait: Callable[[float], object]) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    inode = os.fstat(fd).st_ino
    try:
        while not _try(fd):
            wait(LOCK_POLL_S)
        yield
    finally:
        # A test may have closed the descriptor, and its number may belong to another file now.
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == inode:
                os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a file system without locks: two runs may resume, but only one pauses
    return True


IN_USE = "holding"  # in use, or about to be
PAUSING = "pausing"  # its reaper pauses it, or is about to
OVER = "over"  # left to another run, or given up; kept because it has the original scaling


@dataclass(frozen=True)
class EndpointLease:
    """One run's lease on one endpoint.

    Attributes:
        owner_pid, owner_start: the process that uses the endpoint, and its start time.
        reaper_pid, reaper_start: the process that is to pause it, and its start time.
        at: unix seconds of the beginning of the lease.
        scaling: ``compute.scaling`` as it was before the first of the runs that share it.
        place: where these processes run; in the file its fields are beside the others.
    """

    run: str
    endpoint: str
    api: str
    owner_pid: int
    owner_start: str | None
    reaper_pid: int
    reaper_start: str | None
    at: float
    phase: str = IN_USE
    scaling: Mapping[str, Any] | None = None
    place: ProcessHost = field(default_factory=ProcessHost)

    @property
    def here(self) -> bool:
        """Whether this process can find out if the processes of the lease still run."""
        return process.judgeable(self.place)

    @property
    def elsewhere(self) -> bool:
        """Whether it is still open, and this process can't find out if its processes run."""
        return self.phase != OVER and not self.here

    @property
    def in_use(self) -> bool:
        """Whether its run is alive and uses the endpoint. Then no other run may pause it."""
        used = self.here and self.phase == IN_USE
        return used and process.alive(self.owner_pid, self.owner_start)

    @property
    def reaper_works(self) -> bool:
        """Whether the process that is to pause it still runs, and is not stopped."""
        active = self.here and self.phase != OVER
        return active and process.works(self.reaper_pid, self.reaper_start)

    def end_stopped_reaper(self) -> None:
        """Kill the reaper if it is stopped and its run is dead.

        Call this before another run uses or pauses the endpoint: a reaper that is continued later
        would pause the endpoint of that run.
        """
        orphan = self.here and self.phase != OVER and not self.in_use
        if orphan and process.stopped(self.reaper_pid, self.reaper_start):
            process.end(self.reaper_pid, self.reaper_start)


_FIELDS = frozenset(item.name for item in fields(EndpointLease)) - {"place"}
_TEXTS = ("run", "endpoint", "api", "phase")


def lease_store_dir(state_dir: Path) -> Path:
    """The folder of the leases below a state folder."""
    return state_dir / "claims"  # earlier releases look for this name


class LeaseStore:
    """The leases on one endpoint of one control plane, for one run."""

    def __init__(self, directory: Path, *, api: str, endpoint: str, run: str) -> None:
        self._directory, self._run = directory, run
        server = hashlib.sha256(api.rstrip("/").encode()).hexdigest()[:12]
        self._stem = f"{quote(endpoint, safe='')}@{server}"
        self._path = directory / f"{self._stem}.{quote(run, safe='')}.json"

    @property
    def lock_path(self) -> Path:
        """The file to lock while the endpoint is brought up."""
        return self._directory / f"{self._stem}.lock"

    def locked(self, wait: Callable[[float], object]) -> AbstractContextManager[None]:
        """Keep other runs of this machine from resuming or pausing the endpoint.

        The lock is taken once no other run is pausing the endpoint.

        Args:
            wait: see `file_lock`.
        """

        def ready() -> bool:
            for lease in self.others():
                lease.end_stopped_reaper()
            return self.pauser() is None

        return file_lock(self.lock_path, wait=wait, ready=ready)

    def put(self, lease: EndpointLease) -> None:
        """Write this run's lease. When this returns, other runs can read it.

        Raises:
            EndpointError: it can't be written.
        """
        try:
            own_folder(self._directory)
            data = asdict(lease)
            data.update(data.pop("place"))
            replace_file(self._path, json.dumps(data))
        except OSError as error:
            raise EndpointError(
                f"the lease of this run can't be written ({self._path}: "
                f"{error.strerror or error}). Make room, or set HFBUDGET_STATE_DIR to a folder "
                "that is writable."
            ) from error

    def own(self) -> EndpointLease | None:
        """This run's lease; None if there is none."""
        return _read(self._path)

    def others(self) -> tuple[EndpointLease, ...]:
        """The leases of all other runs, the oldest first, those of dead runs included."""
        return self._others_here()

    def _others_here(self) -> tuple[EndpointLease, ...]:
        found = (_read(path) for path in self._files() if path != self._path)
        return tuple(sorted((lease for lease in found if lease), key=lambda lease: lease.at))

    def successor(self) -> EndpointLease | None:
        """The lease of another live run that uses the endpoint and will pause it, else None."""
        return next((lease for lease in self.others() if lease.in_use), None)

    def in_use_here(self) -> tuple[EndpointLease, ...]:
        """Other live runs of this machine that use the endpoint."""
        return tuple(lease for lease in self._others_here() if lease.in_use)

    def renew(self) -> None:
        """Show other machines that this run is alive. Nothing to do on one machine."""

    def resumed(self, scaling: Mapping[str, Any] | None) -> None:
        """Note that this run has resumed the endpoint; ``scaling`` is from before that."""

    def coming_up(self) -> bool:
        """Whether another run has just resumed it, even if the server still shows it at rest."""
        return False

    def pays(self, minute_s: float) -> tuple[bool, float | None]:
        """Whether this run pays for the endpoint, and until when the payer before has paid.

        Of all runs that share an endpoint, one pays. The time is on the steady clock; None if no
        other run has paid before, or the time is unknown.
        """
        return True, None

    def insist(self) -> None:
        """Have the endpoint paused even if others use it: no budget pays for it any more."""

    def superseded(self) -> str:
        """The run that now has to pause the endpoint instead of this one; empty if none."""
        return ""

    def pauser(self) -> EndpointLease | None:
        """The lease of another run whose reaper pauses the endpoint; None if there is none."""
        found = (lease for lease in self.others() if lease.phase == PAUSING)
        return next((lease for lease in found if lease.reaper_works), None)

    def end(self, lease: EndpointLease, *, paused: bool) -> None:
        """Remove ``lease``; after a verified pause (``paused``) also the leases of dead runs."""
        with contextlib.suppress(OSError, EndpointError):
            mine = self.own()
            if mine is not None and mine.reaper_pid != lease.reaper_pid:
                return  # another reaper has stepped in
            if not paused and lease.scaling is None:
                self._path.unlink()
                return
            if not paused:
                self.put(replace(lease, phase=OVER))
                return
            for path in self._files():
                known = _read(path)
                if path == self._path or known is None or not _counts(known, at=lease.at):
                    path.unlink()

    def _files(self) -> Iterator[Path]:
        # The stem has no character that is special to `glob`, and ends in a hash.
        return self._directory.glob(f"{self._stem}.*.json")


def _counts(lease: EndpointLease, *, at: float) -> bool:
    """Whether a lease is of a live run.

    A run that can't be looked for from here counts as alive for `BELIEVED_S`.

    Args:
        at: unix seconds to which the age of the lease is compared.
    """
    recent = lease.elsewhere and lease.at > at - BELIEVED_S
    return lease.in_use or lease.reaper_works or recent


def inherited(
    found: Endpoint, known: Iterable[tuple[str, Mapping[str, Any] | None]]
) -> Mapping[str, Any] | None:
    """The original scaling of an endpoint that earlier runs have changed; None if it is unchanged.

    The tags tell: a run sets its tag together with its scaling, and removes both together.

    Args:
        found: the endpoint as it is now.
        known: earlier runs, each with the original scaling that it has recorded.
    """
    placed = (scaling for run, scaling in known if run_tag(run) in found.tags)
    return next((scaling for scaling in placed if scaling is not None), None)


def read_leases(directory: Path) -> tuple[EndpointLease, ...]:
    """The leases of all runs of this machine."""
    found = (_read(path) for path in sorted(directory.glob("*.json")))
    return tuple(lease for lease in found if lease)


def prune_leases(directory: Path, *, before: float) -> None:
    """Remove files of dead runs that were last written before unix ``before``."""
    for pattern in ("*.json", "*.draft"):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                lease = _read(path)
                counts = lease is not None and (lease.in_use or lease.reaper_works)
                if path.stat().st_mtime < before and not counts:
                    path.unlink()


def _read(path: Path) -> EndpointLease | None:
    try:
        data = parse_json(read_own(path))
        told = {key: value for key, value in data.items() if key in _FIELDS}
        lease = EndpointLease(**told, place=ProcessHost.parse(data))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    good = all(isinstance(getattr(lease, name), str) for name in _TEXTS)
    return lease if good and isinstance(lease.owner_pid, int) else None
