"""Files that are written whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_hfbudget.own_files import replace_file

DESCRIPTORS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


def write_whole(path: Path, text: str) -> None:
    """Replace a file by another one; write into what is none, such as a pipe or a device.

    Raises:
        OSError: it can't be written.
    """
    if str(path).startswith(DESCRIPTORS):
        # What it leads to may be a log that somebody else is writing to.
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
        return
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text, mode=0o666)  # less what the umask takes: it is for others to read
