"""The journals: files with the leases of each run, for when all processes of the run are dead.

Each run has one file, with one JSON object per line. A line is on the disk before the step that it
announces. A journal never contains a token.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_hfbudget.endpoints.process import ProcessHost
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.files import own_folder, refuse_foreign
from pytest_hfbudget.text import parse_json

INTENT = "intent"  # about to be resumed, or found running and to be paused at the end
RESUMED = "resumed"  # the control plane has answered the resume
REVIVED = "revived"  # about to be resumed once more, since someone else had paused it
PAUSED = "paused"  # the pause was tried to its end; `verified` says how it went
LEFT = "left"  # another run of this machine uses it, and will pause it


@dataclass(frozen=True)
class Record:
    """One line of a journal.

    Attributes:
        at: unix seconds.
        owner_pid, owner_start: the pytest process of the run, and its start time.
        place: where that process runs; its fields stand beside the others in the file.
        api: base URL of the control plane.
        scaling: ``compute.scaling`` as it was before this run.
        state: the endpoint's, when the line was written.
        verified: for `PAUSED`, whether the state was read back.
        reason: why it was paused or left; see `reaper_messages`.
        left_to: for `LEFT`, the run that pauses it now.
    """

    kind: str
    run: str
    endpoint: str
    api: str
    at: float
    owner_pid: int
    owner_start: str | None
    state: str = ""
    scaling: Mapping[str, Any] | None = None
    verified: bool = False
    error: str | None = None
    reason: str = ""
    left_to: str | None = None
    place: ProcessHost = field(default_factory=ProcessHost)


_FIELDS = frozenset(item.name for item in fields(Record)) - {"place"}
_TEXTS = ("kind", "run", "endpoint", "api")
_NEEDED = ("kind", "run", "endpoint", "api", "at", "owner_pid", "owner_start")


def default_state_dir() -> Path:
    """The state folder: ``HFBUDGET_STATE_DIR``, else the platform's place for state."""
    chosen = os.environ.get("HFBUDGET_STATE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs  # not at the top: the reaper can't import it

    return Path(platformdirs.user_state_dir("hfbudget", appauthor=False))


def leases_dir(state_dir: Path) -> Path:
    """The folder of the journals below a state folder."""
    return state_dir / "leases"


class Journal:
    """The file of one run. Several processes may append to it, several threads too."""

    def __init__(self, path: Path, *, existing: bool = False) -> None:
        """Open or create the file, readable by this user only.

        Args:
            existing: the file exists, from an earlier process of the run. Skip the checks, because
                endpoints have to be paused even if the file can no longer be written.

        Raises:
            EndpointError: the file can't be written; without it nothing may be resumed.
        """
        self.path, self._lock = path, threading.Lock()
        if existing:
            return
        try:
            own_folder(path.parent)
            os.close(self._open())
            _sync_directory(path.parent)
        except OSError as error:
            raise EndpointError(_unwritable(path, error)) from error

    @classmethod
    def of(cls, run: str, directory: Path) -> Journal:
        """The journal of a run in a folder of journals."""
        return cls(directory / f"{quote(run, safe='')}.jsonl")

    def write(self, record: Record) -> None:
        """Append a line; when this returns, it is on the disk.

        Raises:
            EndpointError: it could not be written in full.
        """
        data = asdict(record)
        data.update(data.pop("place"))
        line = json.dumps(data, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                self._append(line)
        except OSError as error:
            raise EndpointError(_unwritable(self.path, error)) from error

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _append(self, line: bytes) -> None:
        # Opened anew each time: a test may close descriptors that are not its own. The number may
        # then belong to another file, and a line must not go there.
        fd = self._open()
        try:
            size = os.fstat(fd).st_size
            # A killed writer, or a full disk, may have left half a line. Begin a new line after it.
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line
            while line:
                line = line[os.write(fd, line) :]
            os.fsync(fd)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class JournaledLease:
    """One endpoint of one run, as all its lines in the journal say."""

    intent: Record
    resumed_at: float | None = None
    paused: Record | None = None

    @property
    def finished(self) -> bool:
        """Whether its pause was verified, or was left to another run."""
        return self.paused is not None and (self.paused.verified or self.paused.kind == LEFT)


def read(path: Path) -> Iterator[Record]:
    """The records of one file; damaged and foreign lines are skipped."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        record = _parse(line)
        if record is not None:
            yield record


def read_all(directory: Path) -> tuple[Record, ...]:
    """The records of all runs, file by file."""
    try:
        refuse_foreign(directory, directory.stat())
    except OSError:
        return ()  # no folder, or another user's: that user could make us pause anything
    files = sorted(directory.glob("*.jsonl"))
    return tuple(record for path in files for record in read(path))


def leases(directory: Path) -> tuple[JournaledLease, ...]:
    """All leases in the journals of this machine."""
    found: dict[tuple[str, str], JournaledLease] = {}
    for record in read_all(directory):
        key = (record.run, record.endpoint)
        known = found.get(key)
        if known is None:
            known = JournaledLease(record)  # the `INTENT`, or the first line that is left
        found[key] = _fold(known, record)
    return tuple(found.values())


def unfinished(directory: Path) -> tuple[JournaledLease, ...]:
    """The leases without a verified pause, of running runs and of dead ones."""
    return tuple(lease for lease in leases(directory) if not lease.finished)


def prune(directory: Path, *, before: float) -> None:
    """Remove journals without an open lease that were last written before unix ``before``."""
    open_runs = {lease.intent.run for lease in unfinished(directory)}
    for path in directory.glob("*.jsonl"):
        runs = {record.run for record in read(path)}
        with suppress(OSError):  # another run is tidying up too
            if not runs & open_runs and path.stat().st_mtime < before:
                path.unlink()


def _fold(lease: JournaledLease, record: Record) -> JournaledLease:
    if record.kind == INTENT:
        return JournaledLease(record)
    if record.kind in (RESUMED, REVIVED):
        return JournaledLease(lease.intent, record.at, lease.paused)
    if record.kind in (PAUSED, LEFT):
        return JournaledLease(lease.intent, lease.resumed_at, record)
    return lease


def _parse(line: bytes) -> Record | None:
    try:
        data = parse_json(line)
    except ValueError:  # also what is not UTF-8
        return None
    if not isinstance(data, dict) or any(key not in data for key in _NEEDED):
        return None
    if not all(isinstance(data[key], str) for key in _TEXTS):
        return None
    if not isinstance(data["owner_pid"], int) or not isinstance(data["at"], (int, float)):
        return None
    try:
        place = ProcessHost.parse(data)
    except TypeError:
        return None
    return Record(**{name: data[name] for name in _FIELDS & data.keys()}, place=place)


def _sync_directory(directory: Path) -> None:
    # A new file is only safe from a power cut once its folder is on the disk too.
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"the journal of leases can't be written ({path}: {error.strerror or error}); nothing is "
        "resumed without it. Make room, or set HFBUDGET_STATE_DIR to a folder that is writable."
    )
