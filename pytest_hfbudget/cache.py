"""What was read from a server, kept in the user's cache folder: a copy, never the only one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_file(kind: str, origin: str) -> Path:
    """Where something of a kind that came from one base URL is kept for this user."""
    directory = os.environ.get("HFBUDGET_CACHE_DIR")
    if not directory:
        from platformdirs import user_cache_dir

        directory = user_cache_dir("hfbudget")
    name = hashlib.sha256(origin.encode()).hexdigest()[:12]
    return Path(directory) / f"{kind}-{name}.json"


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole, or not at all: in a read-only home there is no copy."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.replace(path)
