"""The emulator's clock, in whole microseconds since the epoch, and its timers.

Everything that is billed or shown as a timestamp is read from one clock, so the invoice and the
replica list can never disagree about when something happened. A test moves the clock forward
instead of waiting.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Concatenate, ParamSpec, Protocol, TypeVar

MICROSECONDS = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def steady_seconds(monotonic: Callable[[], float] = time.monotonic) -> float:
    """Seconds that never jump, also in a process whose tests have frozen `time.monotonic`.

    Args:
        monotonic: what is read on Windows; bound here, before a test can replace it.
    """
    if hasattr(time, "clock_gettime"):
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return monotonic()


@dataclass(order=True)
class Timer:
    """A callback that is due at `due` (microseconds since the epoch)."""

    due: int
    order: int
    action: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Forget the callback; harmless when it has run already."""
        self.cancelled = True


class Clock:
    """Wall-clock time that never steps back, can be moved forward, and runs timers in order.

    While a timer runs, `now()` is the moment at which it was due, not the slightly later moment at
    which the loop got round to it: a transition after 0.5 s is recorded as exactly 0.5 s.
    """

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._start_ns = monotonic_ns()
        self._start = time.time_ns() // 1000
        self._shift = 0
        self._frozen: int | None = None
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self.on_change: Callable[[], None] = lambda: None

    def now(self) -> int:
        """Microseconds since the epoch."""
        if self._frozen is not None:
            return self._frozen
        return self._start + self._shift + (self._monotonic_ns() - self._start_ns) // 1000

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """Hold the time still, so that all parts of one operation happen at one time."""
        outer, self._frozen = self._frozen, self.now()
        try:
            yield
        finally:
            self._frozen = outer

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run `action` when `seconds` have passed on this clock."""
        timer = Timer(self.now() + to_microseconds(seconds), next(self._order), action)
        heapq.heappush(self._timers, timer)
        self.on_change()
        return timer

    def advance(self, seconds: float) -> None:
        """Move the clock forward; timers that become due run now, each at its own time."""
        self._shift += to_microseconds(seconds)
        self.run_due()

    def run_due(self) -> None:
        """Run every timer whose moment has come."""
        while self._timers and self._timers[0].due <= self.now():
            timer = heapq.heappop(self._timers)
            if timer.cancelled:
                continue
            self._frozen = timer.due
            try:
                timer.action()
            finally:
                self._frozen = None
        self.on_change()

    def seconds_to_next(self) -> float | None:
        """Seconds until the next timer is due, or None when there is none."""
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, (self._timers[0].due - self.now()) / MICROSECONDS)


class Timed(Protocol):
    """What `at_one_time` needs to know of an object."""

    clock: Clock


Arguments = ParamSpec("Arguments")
It = TypeVar("It", bound=Timed)


def at_one_time(
    method: Callable[Concatenate[It, Arguments], None],
) -> Callable[Concatenate[It, Arguments], None]:
    """Decorator: stop the clock while a method runs, so that all it does has the same time."""

    @functools.wraps(method)
    def held(self: It, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        with self.clock.moment():
            method(self, *args, **kwargs)

    return held


def to_microseconds(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * MICROSECONDS)


def rfc3339(moment: int) -> str:
    """A moment as the services print it: RFC 3339, UTC, six decimals."""
    at = _EPOCH + timedelta(microseconds=moment)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_rfc3339(text: str) -> int:
    """The inverse of `rfc3339`, for any offset. Raises ValueError when `text` is no timestamp."""
    at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if at.tzinfo is None:
        raise ValueError(f"a timestamp needs a time zone: {text!r}")
    return (at - _EPOCH) // timedelta(microseconds=1)
