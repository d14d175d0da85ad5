"""One run at a time brings an endpoint up, so that two of them resume it once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.05

# A lock of this kind is not inherited by forks, and ends with its process whatever ends that.
# But it does not keep a process from itself: for threads there is another one.
_here: dict[Path, threading.Lock] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def turn(path: Path, *, wait: Callable[[float], None], ready: Callable[[], bool]) -> Iterator[None]:
    """Hold the only turn that there is at ``path``.

    Args:
        wait: called with seconds while it is someone else's turn; raises to give up.
        ready: asked once it is ours; nothing begins before it says yes.
    """
    with _guard:
        ours = _here.setdefault(path.absolute(), threading.Lock())
    while not ours.acquire(blocking=False):
        wait(_POLL_S)
    try:
        with _locked(path, wait):
            while not ready():
                wait(_POLL_S)
            yield
    finally:
        ours.release()


@contextlib.contextmanager
def _locked(path: Path, wait: Callable[[float], None]) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    inode = os.fstat(fd).st_ino
    try:
        while not _try(fd):
            wait(_POLL_S)
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
