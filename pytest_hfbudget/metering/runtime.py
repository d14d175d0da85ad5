"""The meter that the calls of this process go through.

The patched classes belong to the process, and so does the meter.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.budget_context import BudgetContext
from pytest_hfbudget.metering.instrumentation import Addresses, Redirect
from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION, ForkSteps
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.paid_hosts import PaidHosts
from pytest_hfbudget.metering.processes import (
    ChildProcesses,
    adopt,
    child_prefix,
    connected_meter,
)
from pytest_hfbudget.pricing.book import PriceBook, price_from_environment
from pytest_hfbudget.pricing.catalogue import kept_catalogue
from pytest_hfbudget.settings import merge

logger = logging.getLogger("pytest_hfbudget")


@dataclass
class Runtime:
    """A meter that calls go through, as long as it has users.

    Attributes:
        worker: the beginning of the keys of this process's blocks, unique in a run.
        path: in a child process, the address of the ledger that it spends from; else empty.
    """

    meter: Meter
    worker: str = ""
    addresses: Addresses = field(default_factory=Addresses)
    path: str = ""
    _users: int = 0
    _redirect: Redirect | None = None

    def __post_init__(self) -> None:
        self.children = ChildProcesses(self)

    @property
    def active(self) -> bool:
        """Whether calls go through this meter, or through that of a run inside of its run."""
        return self._users > 0

    def acquire(self) -> None:
        """Send calls through this meter."""
        with _lock:
            self._users += 1
            if self._users > 1:
                return
            _stack.append(self)
            INSTRUMENTATION.meter = self.meter
            INSTRUMENTATION.http.hosts = self.paid_hosts()
            INSTRUMENTATION.install()
            self.children.reopen()
            self._redirect = Redirect(self.addresses)
            self._redirect.install()

    def paid_hosts(self) -> PaidHosts:
        """The hosts whose calls go through this meter."""
        return self.addresses.paid_hosts_with(self.meter.router)

    def require_hub(self) -> None:
        """Make sure that the plugin sees the calls of huggingface_hub: else no cap could hold them.

        Raises:
            ConfigError: this release sends its calls in a way that the plugin does not know.
        """
        INSTRUMENTATION.require()

    def release(self) -> None:
        """Stop sending calls through this meter, if this was its last user."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            if self._redirect is not None:
                self._redirect.uninstall()
            _stack.remove(self)
            outer = _stack[-1] if _stack else None
            INSTRUMENTATION.meter = outer.meter if outer else None
            INSTRUMENTATION.http.hosts = outer.paid_hosts() if outer else PaidHosts()
            INSTRUMENTATION.uninstall()
            listener = self.children.detach()  # from here on another thread may acquire it again
        if listener is not None:
            listener.close()

    def become_child(self) -> None:
        """In a forked child: spend from the ledger that the parent spends from."""
        self.path = self.path or self.children.forget()
        adopt(self.meter, self.path, self.children.blocks)
        self.worker = child_prefix(self.worker)


def runtime(known: Runtime | None = None) -> Runtime:
    """The runtime of the innermost test run, or one for a plain script.

    Args:
        known: the runtime that the caller has used before, which goes on in a script.

    Raises:
        ValueError: an invalid price or time in the environment.
    """
    with _lock:
        if known is not None and known.active:
            return known
        if _stack:
            return _stack[-1]
        # The ledger of a child belongs to another process, which may be gone by now.
        return standalone() if known is None or known.path else known


def standalone() -> Runtime:
    """What ``budget()`` uses in a plain script: its own ledger, prices from the environment."""
    of_scripts = ("router", "hold_wait", "paid_hosts")
    settings = merge({}, os.environ, lambda name: None, only=of_scripts)
    router, hold_wait = settings.router, settings.hold_wait
    book = PriceBook(
        load_catalogue=off_loop()(partial(kept_catalogue, router)),
        environment=price_from_environment(os.environ),
    )
    meter = Meter(Ledger(), book, BudgetContext(), router=router, hold_wait=hold_wait)
    return Runtime(meter, addresses=Addresses(paid_hosts=settings.paid_hosts))


def join(path: str) -> None:
    """Have this process, in which pytest does not run, spend from the ledger of a run.

    Args:
        path: the address of that ledger.

    Raises:
        LedgerUnreachableError: that run is over.
    """
    if not _stack:
        meter, place = connected_meter(path)
        worker = child_prefix(place.worker)
        Runtime(meter, worker=worker, addresses=place.addresses, path=path).acquire()
        atexit.register(meter.settle_all)


def _before_fork() -> None:
    # If another thread held the lock now, it would stay locked for ever in the child.
    _lock.acquire()
    for each in _stack:
        _safely(each.children.before_fork)


def _after_fork_in_parent() -> None:
    for each in _stack:
        _safely(each.children.after_fork)
    _lock.release()


def _after_fork_in_child() -> None:
    for each in _stack:
        _safely(each.become_child)
    _lock.release()


def _safely(step: Callable[[], None]) -> None:
    # An error must not reach the code that forks. Without a listener, a capped child is refused.
    try:
        step()
    except Exception:
        logger.exception("hfbudget could not prepare a forked process")


# The exception to "no module state": the patched classes belong to the process, so does this.
# A test run may start another one inside its process, hence a stack; the innermost one counts.
_lock = threading.RLock()
_stack: list[Runtime] = []
INSTRUMENTATION.around_forks.append(
    ForkSteps(_before_fork, _after_fork_in_parent, _after_fork_in_child)
)
