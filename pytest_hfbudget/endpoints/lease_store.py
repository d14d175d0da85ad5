"""The leases that runs of this machine hold on an endpoint: the last of them pauses it."""

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
from pytest_hfbudget.endpoints.process import Place
from pytest_hfbudget.endpoints.retry import BELIEVED_S, LOCK_POLL_S
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.files import own_folder, read_own, replace_file
from pytest_hfbudget.text import parse_json

with contextlib.suppress(ImportError):  # on Windows, where no endpoint is leased
    import fcntl

# A lock of this kind is not inherited by forks, and ends with its process whatever ends that.
# But it does not keep a process from itself: for threads there is another one.
_here: dict[Path, threading.Lock] = {}
_supervisor = threading.Lock()


@contextlib.contextmanager
def file_lock(
    path: Path, *, wait: Callable[[float], object], ready: Callable[[], bool]
) -> Iterator[None]:
    """Hold the lock of ``path``, against other processes and other threads of this one.

    Args:
        wait: called with seconds while another one holds the lock; raises to give up.
        ready: called with the lock held, until it returns True; only then the body runs.
    """
    with _supervisor:
        lock = _here.setdefault(path.absolute(), threading.Lock())
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
        # A test may have closed it, and the number may belong to something else by now.
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == inode:
                os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a file system without locks: then two may resume, and still one pauses
    return True


HOLDING = "holding"  # in use, or about to be
PAUSING = "pausing"  # its reaper is about to pause it, or does so
OVER = "over"  # left to another run, or given up; kept for the scaling that it remembers


@dataclass(frozen=True)
class HeldLease:
    """One run's use of one endpoint.

    Attributes:
        owner_pid, owner_start: the process that uses it.
        reaper_pid, reaper_start: the process that is to pause it.
        at: unix seconds of its beginning.
        scaling: ``compute.scaling`` from before the first of all runs that share it.
        place: where these processes run; its fields stand beside the others in the file.
    """

    run: str
    endpoint: str
    api: str
    owner_pid: int
    owner_start: str | None
    reaper_pid: int
    reaper_start: str | None
    at: float
    phase: str = HOLDING
    scaling: Mapping[str, Any] | None = None
    place: Place = field(default_factory=Place)

    @property
    def here(self) -> bool:
        """Whether it can be told from here if its processes run; if not, nothing is known."""
        return process.judgeable(self.place)

    @property
    def elsewhere(self) -> bool:
        """Whether it may count for a process that can't be looked for from here."""
        return self.phase != OVER and not self.here

    @property
    def in_use(self) -> bool:
        """Whether its run lives and uses the endpoint: then no other run may pause it."""
        holding = self.here and self.phase == HOLDING
        return holding and process.alive(self.owner_pid, self.owner_start)

    @property
    def reaper_works(self) -> bool:
        """Whether the process that is to pause it still runs, and is not stopped."""
        active = self.here and self.phase != OVER
        return active and process.works(self.reaper_pid, self.reaper_start)

    def end_stopped_reaper(self) -> None:
        """End a stopped reaper of a dead run: continued, it would pause what another run uses.

        To be called before its endpoint is used or paused by another run.
        """
        orphan = self.here and self.phase != OVER and not self.in_use
        if orphan and process.stopped(self.reaper_pid, self.reaper_start):
            process.end(self.reaper_pid, self.reaper_start)


_FIELDS = frozenset(item.name for item in fields(HeldLease)) - {"place"}
_TEXTS = ("run", "endpoint", "api", "phase")


def lease_store_dir(state_dir: Path) -> Path:
    """The folder of the held leases below a state folder."""
    return state_dir / "claims"  # the name that earlier versions know


class LeaseStore:
    """The lease_store on one endpoint of one control plane, seen by one run."""

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
        """Keep other runs of this machine from resuming the endpoint; begins when none pauses it.

        Args:
            wait: see `file_lock`.
        """

        def ready() -> bool:
            for lease in self.others():
                lease.end_stopped_reaper()
            return self.pauser() is None

        return file_lock(self.lock_path, wait=wait, ready=ready)

    def put(self, lease: HeldLease) -> None:
        """Write this run's lease; when this returns, all others see it.

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
                f"what this run uses can't be written down ({self._path}: "
                f"{error.strerror or error}). Make room, or set HFBUDGET_STATE_DIR to a folder "
                "that is writable."
            ) from error

    def own(self) -> HeldLease | None:
        """This run's lease; None if there is none."""
        return _read(self._path)

    def others(self) -> tuple[HeldLease, ...]:
        """All other runs' lease_store, the oldest first, whether they still count or not."""
        return self._others_here()

    def _others_here(self) -> tuple[HeldLease, ...]:
        found = (_read(path) for path in self._files() if path != self._path)
        return tuple(sorted((lease for lease in found if lease), key=lambda lease: lease.at))

    def successor(self) -> HeldLease | None:
        """Another live run that uses the endpoint, and will pause it; None if there is none."""
        return next((lease for lease in self.others() if lease.in_use), None)

    def in_use_here(self) -> tuple[HeldLease, ...]:
        """Other live runs of this machine that use the endpoint."""
        return tuple(lease for lease in self._others_here() if lease.in_use)

    def renew(self) -> None:
        """Show that this run lives, where that can't be seen."""

    def resumed(self, scaling: Mapping[str, Any] | None) -> None:
        """Note that this run has resumed the endpoint, which had this scaling before."""

    def coming_up(self) -> bool:
        """Whether another run has just resumed it, though it may be seen at rest yet."""
        return False

    def pays(self, minute_s: float) -> tuple[bool, float | None]:
        """Whether this run books what the endpoint costs: of all that share it, only one does.

        And until when, on the steady clock, the run has paid that did so before; None if none has.
        """
        return True, None

    def insist(self) -> None:
        """Have the endpoint paused though others use it: no budget pays for it any more."""

    def superseded(self) -> str:
        """The run that has taken over what this one was to pause; empty if none has."""
        return ""

    def pauser(self) -> HeldLease | None:
        """A run whose reaper is about to pause the endpoint."""
        found = (lease for lease in self.others() if lease.phase == PAUSING)
        return next((lease for lease in found if lease.reaper_works), None)

    def end(self, lease: HeldLease, *, paused: bool) -> None:
        """Remove ``lease``. Once the pause is verified (``paused``), leases of dead runs go too."""
        with contextlib.suppress(OSError, EndpointError):
            mine = self.own()
            if mine is not None and mine.reaper_pid != lease.reaper_pid:
                return  # another reaper has taken over
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


def _counts(lease: HeldLease, *, at: float) -> bool:
    """Whether a lease is a live run's; of one from elsewhere that is believed for a day."""
    recent = lease.elsewhere and lease.at > at - BELIEVED_S
    return lease.in_use or lease.reaper_works or recent


def inherited(
    found: Endpoint, known: Iterable[tuple[str, Mapping[str, Any] | None]]
) -> Mapping[str, Any] | None:
    """The scaling from before the first of several runs, if theirs is still in place.

    The tags tell whether it is: they are set and taken off together with the scaling.

    Args:
        known: runs, each with the scaling that it remembers.
    """
    placed = (scaling for run, scaling in known if run_tag(run) in found.tags)
    return next((scaling for scaling in placed if scaling is not None), None)


def read_held_leases(directory: Path) -> tuple[HeldLease, ...]:
    """All lease_store of this machine."""
    found = (_read(path) for path in sorted(directory.glob("*.json")))
    return tuple(lease for lease in found if lease)


def prune_held_leases(directory: Path, *, before: float) -> None:
    """Remove what is older than unix ``before`` and counts no more."""
    for pattern in ("*.json", "*.draft"):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                lease = _read(path)
                counts = lease is not None and (lease.in_use or lease.reaper_works)
                if path.stat().st_mtime < before and not counts:
                    path.unlink()


def _read(path: Path) -> HeldLease | None:
    try:
        data = parse_json(read_own(path))
        told = {key: value for key, value in data.items() if key in _FIELDS}
        lease = HeldLease(**told, place=Place.parse(data))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    good = all(isinstance(getattr(lease, name), str) for name in _TEXTS)
    return lease if good and isinstance(lease.owner_pid, int) else None
