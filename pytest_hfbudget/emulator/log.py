"""The event log: what reached the emulator, what it answered, and how its endpoints moved.

Tests read from it what happened in which order ("was it paused, and when?"). So it has one entry
for the arrival of a request and another one for its answer. Tokens appear only as fingerprints.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

Entry = dict[str, Any]


class Log:
    """Entries numbered from 1, kept in memory, optionally appended to a JSON-lines file.

    Used from the server's event loop only, hence without a lock.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self.entries: list[Entry] = []
        self._file = file
        self._closed = False
        self._waiters: set[asyncio.Future[None]] = set()

    def add(self, kind: str, **fields: Any) -> Entry:
        """Append an entry and wake all who wait for one."""
        entry: Entry = {
            "seq": len(self.entries) + 1,
            "time": time.time(),
            "mono": time.monotonic(),
            "kind": kind,
            **fields,
        }
        self.entries.append(entry)
        if self._file is not None:
            # Flushed line by line: the reader may be a test that has just killed everything.
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        self._wake()
        return entry

    def find(self, after: int, wanted: Mapping[str, str]) -> list[Entry]:
        """Entries with `seq` above `after` whose fields, as text, equal all of `wanted`."""
        return [entry for entry in self.entries[max(0, after) :] if _fits(entry, wanted)]

    async def wait(self, after: int, wanted: Mapping[str, str], seconds: float) -> list[Entry]:
        """Like `find`, but wait up to `seconds` until there is at least one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not (found := self.find(after, wanted)):
            remaining = deadline - loop.time()
            if remaining <= 0 or self._closed:
                return []
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            await asyncio.wait([waiter], timeout=remaining)
            self._waiters.discard(waiter)
        return found

    def close(self) -> None:
        """Write nothing more to the file, and send everyone who waits away with nothing."""
        self._file = None
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def open_file(path: Path | None) -> IO[str] | None:
    """The JSON-lines file at `path`, opened for appending."""
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")


def fingerprint(token: str | None) -> str | None:
    """A short hash that tells tokens apart without giving them away."""
    if not token:
        return None
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def _fits(entry: Entry, wanted: Mapping[str, str]) -> bool:
    return all(str(entry.get(name)) == value for name, value in wanted.items())
