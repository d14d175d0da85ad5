"""The plugin's own locks, waiting and clock, which signal handlers and tests can't disturb.

A signal handler runs in the main thread, between any two of its instructions. It may interrupt
that thread inside of a lock, and then make a call. The call can't wait for the lock, because the
thread goes on only after the handler has returned. The call can't take another lock either: it
might wait for a thread that waits for the first one. So a handler has to know that it has
interrupted the holder of a lock.
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
    """A lock that knows whether this thread holds it; `threading.Condition` asks by this name."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> object: ...

    def _is_owned(self) -> bool: ...


# The locks of all runs in this process: a handler may interrupt any of them. Each call looks at
# all of them, and a list takes a tenth of the time of a `WeakSet`.
OWN_LOCKS: list[weakref.ref[Lock]] = []


def own_lock() -> Lock:
    """A new lock of the plugin's own, which the thread that holds it can take again."""
    lock: Any = threading.RLock()
    OWN_LOCKS.append(weakref.ref(lock, OWN_LOCKS.remove))
    return lock  # type: ignore[no-any-return] # typeshed has no `_is_owned`


def holds_own_lock() -> bool:
    """Whether this is the main thread, inside of one of the plugin's own locks.

    Code inside of a lock makes no calls. So a call that finds this True comes from a signal
    handler which has interrupted that code.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    # The garbage collector may remove one meanwhile.
    return True in [lock._is_owned() for own in tuple(OWN_LOCKS) if (lock := own()) is not None]


def non_reentrant(lock: Lock) -> Lock:
    """The lock itself, to be entered by ``with``, unless this thread holds it already.

    Not a context manager written in Python: a Ctrl-C could leave one with the lock held.

    Raises:
        LedgerBusyError: this thread holds it, so a signal handler has interrupted it.
    """
    if lock._is_owned():
        raise interrupted("the ledger")
    return lock


_at_work = own_lock()


def at_work(method: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method, so that the main thread counts as inside of a lock while it runs."""

    @functools.wraps(method)
    def marked(*args: P.args, **kwargs: P.kwargs) -> T:
        main = threading.current_thread() is threading.main_thread()
        with _at_work if main else nullcontext():
            return method(*args, **kwargs)

    return marked


@contextmanager
def off_loop() -> Iterator[None]:
    """Run a block, or a function, as if this thread had no running event loop.

    A test may forbid blocking calls in its event loop. The plugin's own work there takes
    microseconds, and is not done by the code under test.
    """
    events = sys.modules.get("asyncio.events")  # without this module there is no loop
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
    """The time, and waiting. Tests pass a clock of their own."""

    def time(self) -> float:
        """Unix seconds, for people and records; it may jump."""

    def monotonic(self) -> float:
        """Seconds that never jump; on Linux and macOS they agree between processes."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The real clock, also in a test that has replaced or frozen ``time.time`` and the like.

    By a frozen clock a deadline would never come.
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
