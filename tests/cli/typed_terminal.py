"""A terminal at which a user types."""

from __future__ import annotations

import os
import pty
import re
import select
import time
from types import TracebackType

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Both ends of a pseudo-terminal; `inner` is what a command gets as its three streams."""

    def __init__(self) -> None:
        self._outer, self.inner = pty.openpty()
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os.close(self._outer)
        os.close(self.inner)

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._outer, text.encode() + b"\n")

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        """Wait until the screen has shown it since the last wait."""
        fresh, ends = "", time.monotonic() + timeout_s
        while text not in _CONTROL.sub("", fresh):
            ready, _, _ = select.select([self._outer], [], [], max(ends - time.monotonic(), 0))
            assert ready, f"{text!r} was not shown; what was: {fresh!r}"
            fresh += os.read(self._outer, 65536).decode(errors="replace")
        self.seen += fresh
