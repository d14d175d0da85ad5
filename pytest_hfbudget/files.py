"""The plugin's own files, private to this user and written whole; and its cache of answers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_hfbudget.text import parse_json

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def own_folder(path: Path) -> None:
    """Make a folder for this user alone, or check that an existing one is this user's.

    If others can write an existing one, it takes that permission away.

    Raises:
        OSError: it can't be made, or it belongs to another user.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    refuse_foreign(path, found)
    # In a folder with the sticky bit, such as /tmp, others can replace nothing.
    if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def read_own(path: Path) -> str:
    """The text of a file of this user.

    Raises:
        OSError: there is none; or another user owns it or could have written it.
        ValueError: it is not UTF-8.
    """
    refuse_foreign(path.parent, path.parent.stat())
    fd = os.open(path, os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(fd, encoding="utf-8") as file:
        found = os.fstat(fd)
        refuse_foreign(path, found)
        if not stat.S_ISREG(found.st_mode):
            raise _refusal(path, "it is not a file")
        if found.st_mode & _OTHERS_WRITE:
            raise _refusal(path, "other users can write it")
        return file.read()


def check_own(path: Path) -> None:
    """Check that a file is this user's, and remove the write permission of others.

    Raises:
        OSError: it belongs to another user, or is a link.
    """
    found = path.lstat()
    refuse_foreign(path, found)
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(path, "it is not a file")
    if found.st_mode & _OTHERS_WRITE:
        path.chmod(0o600)


def replace_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file whole, or not at all. If the path is a link, the link is replaced, not followed.

    Raises:
        OSError: it can't be written; the file is as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.urandom(8).hex()}.draft")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, mode)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def refuse_foreign(path: Path, found: os.stat_result) -> None:
    """Refuse a file or folder of another user.

    Raises:
        OSError: it belongs to another user.
    """
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise _refusal(path, f"it belongs to another user (number {found.st_uid})")


def _refusal(path: Path, why: str) -> PermissionError:
    return PermissionError(errno.EPERM, why, str(path))


def cache_file(kind: str, origin: str) -> Path:
    """The path of the cache file for one kind of data from one base URL."""
    directory = os.environ.get("HFBUDGET_CACHE_DIR")
    if not directory:
        from platformdirs import user_cache_dir

        directory = user_cache_dir("hfbudget")
    name = hashlib.sha256(origin.encode()).hexdigest()[:12]
    return Path(directory) / f"{kind}-{name}.json"


def fetched_at(path: Path) -> float:
    """When the content of a cache file was fetched, in Unix seconds; 0.0 if that is not known.

    It reads only the first bytes: a catalogue is large, and most runs never need all of it.
    """
    try:
        with path.open("rb") as file:
            found = re.search(rb'"read_at": ([0-9.]+)', file.read(256))
        return float(found[1]) if found else 0.0
    except (OSError, ValueError):
        return 0.0


def read_cache(path: Path) -> Any:
    """The JSON value in a cache file.

    Raises:
        OSError: there is no such file, or another user could have written it.
        ValueError: it is damaged.
    """
    return parse_json(read_own(path))


def write_cache(path: Path, content: Mapping[str, Any]) -> None:
    """Write a cache file, whole or not at all. Where it can't be written, there is no cache."""
    with suppress(OSError, RecursionError):
        own_folder(path.parent)
        replace_file(path, json.dumps(content))


DESCRIPTORS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


def write_whole(path: Path, text: str) -> None:
    """Replace a file; write into a pipe or a device.

    Raises:
        OSError: it can't be written.
    """
    if str(path).startswith(DESCRIPTORS):
        # Appended, because it may be a log that another process writes, too.
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
        return
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text, mode=0o666)  # less the umask: a report is for others, too
