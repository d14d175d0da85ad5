"""Time, as the modules here are given it: a clock, and how long to wait between tries."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What tests replace."""

    def time(self) -> float:
        """Unix seconds, for people and records; it may jump."""

    def monotonic(self) -> float:
        """Seconds that never jump; on Linux and macOS they agree between processes."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The real one."""

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment before the process started."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait, even in a test that has replaced ``time.sleep``."""
        threading.Event().wait(max(seconds, 0.0))


SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client of the control plane is.

    Attributes:
        try_s: seconds for one try to connect, and again for its whole answer.
        total_s: seconds for one operation with all its tries; 0 means a single try.
        first_wait_s, most_wait_s: the wait before a second try doubles from the first to the
            most; each is shortened at random, so that parallel runs don't come back in step.
    """

    try_s: float = 10.0
    total_s: float = 60.0
    first_wait_s: float = 0.25
    most_wait_s: float = 8.0

    def wait(self, tries: int, retry_after: float | None = None) -> float:
        """Seconds to wait after ``tries`` failures; what the server asked for is the least."""
        backoff: float = min(self.most_wait_s, self.first_wait_s * 2 ** min(tries - 1, 30))
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
        return max(jittered, retry_after or 0.0)
