"""The plugin's own locks, waiting and clock: kept apart from handlers, loops and clocks of tests.

A signal handler has to know that the code which it interrupts is inside of a lock.
A handler runs in the main thread, between any two of its instructions. If it calls while that
thread changes an account, it can't wait: the change goes on when the handler has returned. And if
it took another lock meanwhile, it could wait for a thread that waits for this one.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, Protocol, TypeVar

from pytest_hfbudget.errors import interrupted

P = ParamSpec("P")
T = TypeVar("T")


class Lock(Protocol):
    """A lock that knows whether this thread has it, as `threading.Condition` asks its own."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> object: ...

    def _is_owned(self) -> bool: ...


# Locks of every run in this process: a handler interrupts whichever of them is at work. A list,
# because each call looks at all of them, and a `WeakSet` takes ten times as long for that.
OWN_LOCKS: list[weakref.ref[Lock]] = []


def own_lock() -> Lock:
    """A lock of the plugin's own; only its owner can take it again."""
    lock: Any = threading.RLock()
    OWN_LOCKS.append(weakref.ref(lock, OWN_LOCKS.remove))
    return lock  # type: ignore[no-any-return] # typeshed has no `_is_owned`


def inside() -> bool:
    """Whether this is a signal handler that has interrupted its thread inside of such a lock.

    True as well for the code inside itself, which makes no calls.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    # The collector may remove one meanwhile.
    return True in [lock._is_owned() for own in tuple(OWN_LOCKS) if (lock := own()) is not None]


def alone(lock: Lock) -> Lock:
    """The lock, to be entered by ``with``, which is safe from a Ctrl-C as nothing in Python is.

    Raises:
        LedgerBusyError: this thread has it already.
    """
    if lock._is_owned():
        raise interrupted("the ledger")
    return lock


_at_work = own_lock()


def at_work(method: Callable[P, T]) -> Callable[P, T]:
    """A method during which the main thread counts as inside, whatever locks it takes."""

    @functools.wraps(method)
    def marked(*args: P.args, **kwargs: P.kwargs) -> T:
        main = threading.current_thread() is threading.main_thread()
        with _at_work if main else nullcontext():
            return method(*args, **kwargs)

    return marked


@contextmanager
def off_loop() -> Iterator[None]:
    """Run a block, or a function, as if this thread had no running event loop.

    A test may forbid blocking calls in its event loop. What the plugin writes down there takes
    microseconds and is no call of the code under test.
    """
    events = sys.modules.get("asyncio.events")  # who has not imported it has no loop either
    loop = events._get_running_loop() if events else None
    if events is None or loop is None:
        yield
        return
    events._set_running_loop(None)
    try:
        yield
    finally:
        events._set_running_loop(loop)


# --- the clock

POSIX = hasattr(time, "clock_gettime")
# What ``time.monotonic`` reads on macOS, and elsewhere.
MONOTONIC: int = getattr(time, "CLOCK_UPTIME_RAW", getattr(time, "CLOCK_MONOTONIC", 0))


class Clock(Protocol):
    """What tests replace."""

    def time(self) -> float:
        """Unix seconds, for people and records; it may jump."""

    def monotonic(self) -> float:
        """Seconds that never jump; on Linux and macOS they agree between processes."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The real one, also in a test that has replaced or frozen ``time.time`` and the like.

    A deadline of a frozen clock would be years away.
    """

    def time(self) -> float:
        """Unix seconds."""
        return time.clock_gettime(time.CLOCK_REALTIME) if POSIX else time.time()

    def monotonic(self) -> float:
        """Seconds since some moment before the process started; those of ``time.monotonic``."""
        return time.clock_gettime(MONOTONIC) if POSIX else time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait, even in a test that has replaced ``time.sleep``."""
        threading.Event().wait(max(seconds, 0.0))


SYSTEM_CLOCK = SystemClock()
