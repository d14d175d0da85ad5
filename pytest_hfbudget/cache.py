"""What was read from a server, kept in the user's cache folder: a copy, never the only one.

Prices come from here, so a copy that another user could have written does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_hfbudget.own_files import own_folder, read_own, replace_file
from pytest_hfbudget.text import parse_json


def cache_file(kind: str, origin: str) -> Path:
    """Where something of a kind that came from one base URL is kept for this user."""
    directory = os.environ.get("HFBUDGET_CACHE_DIR")
    if not directory:
        from platformdirs import user_cache_dir

        directory = user_cache_dir("hfbudget")
    name = hashlib.sha256(origin.encode()).hexdigest()[:12]
    return Path(directory) / f"{kind}-{name}.json"


def kept(path: Path) -> Any:
    """The value that is kept in a file.

    Raises:
        OSError: there is none, or another user could have written it.
        ValueError: it is damaged.
    """
    return parse_json(read_own(path))


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole, or not at all: in a read-only home there is no copy."""
    with suppress(OSError, RecursionError):
        own_folder(path.parent)
        replace_file(path, json.dumps(content))
