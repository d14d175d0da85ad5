"""The meter that the calls of this process go through, and the children that share its ledger.

The patched classes belong to the process, and so does the meter.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError
from pytest_hfbudget.ledger import Refusal, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.rpc.server import LedgerHandler, Listener, Operation
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.budget_context import BudgetContext, OpenBudget
from pytest_hfbudget.metering.instrumentation import Addresses, Redirect
from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION, ForkSteps
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.paid_hosts import PaidHosts
from pytest_hfbudget.metering.processes import (
    ParentBudgets,
    adopt,
    child_prefix,
    connected_meter,
    count_operations,
    pack_quote,
    unpack_request,
)
from pytest_hfbudget.pricing.book import PriceBook, price_from_environment
from pytest_hfbudget.pricing.catalogue import kept_catalogue
from pytest_hfbudget.settings import LEDGER, merge

logger = logging.getLogger("pytest_hfbudget")

# The variable that tells a new interpreter where to join. On Unix its value is not a secret.
VARIABLE = LEDGER

# An address without a server: a child forked after the run's end is refused under a cap.
NOWHERE = "/"

# The `EndpointCallbacks` that a child asks of the process that started it.
ASKED_BY_CHILDREN = ("revive", "take_over", "answered")


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


# --- children


class ChildProcesses:
    """Lets the children of this process spend from the ledger that it spends from itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime: Runtime = weakref.proxy(runtime)  # it has this: no circle
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._closed = self._exported = False
        self._before: str | None = None
        self._waiting: dict[int, WaitingHold] = {}
        self.blocks: tuple[OpenBudget, ...] = ()

    def export(self) -> None:
        """Let processes that are started from now on join.

        Raises:
            HFBudgetError: no socket can be made.
        """
        if self._exported or self._closed:
            return
        try:
            listener = self._open()
        except OSError as error:
            raise HFBudgetError(
                f"no socket can be made for child processes ({error}), so no cap could hold "
                "their calls. Let TMPDIR name a directory that can be written."
            ) from None
        if listener is not None:
            listener.resume()
            self._exported, self._before = True, os.environ.get(VARIABLE)
            os.environ[VARIABLE] = listener.path

    def before_fork(self) -> None:
        """Prepare for a child, and end the listener's threads: a fork copies none of them."""
        # Read here, in the thread that forks: in the child it counts as the main one.
        self.blocks = self._runtime.meter.budgets.open_blocks()
        if not self._runtime.path and (listener := self._open()) is not None:
            listener.pause()

    def after_fork(self) -> None:
        """In the parent: start the listener's threads again."""
        if self._listener is not None:
            self._listener.resume()

    def forget(self) -> str:
        """In a child: close the copy of the listener, and return its address."""
        listener, self._listener = self._listener, None
        self._lock, self._closed, self._exported = threading.Lock(), True, False
        if listener is None:
            return NOWHERE
        listener.forget()
        return listener.path

    def reopen(self) -> None:
        """Answer children again, unless this process is a child: then its parent answers them."""
        self._closed = bool(self._runtime.path)

    def detach(self) -> Listener | None:
        """Answer no more children; closing the returned listener books their holds in full."""
        with self._lock:
            self._closed = True
            listener, self._listener = self._listener, None
        if self._exported:
            self._exported = False
            if self._before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = self._before
        return listener

    def close(self) -> None:
        """Answer no more children, and book their holds in full."""
        if (listener := self.detach()) is not None:
            listener.close()

    def _client(self) -> LedgerHandler:
        runtime = self._runtime
        return LedgerHandler(runtime.meter.ledger, self._waiting, _operations(runtime))

    def _open(self) -> Listener | None:
        with self._lock:
            if self._listener is None and not self._closed:
                self._listener = Listener(self._client)
            return self._listener


def _operations(runtime: Runtime) -> dict[str, Operation]:
    """The operations that a child may ask for, beside those of the ledger."""
    meter, book = runtime.meter, runtime.meter.book

    def drained(read: Operation) -> Operation:
        def read_all(key: str) -> Any:
            meter.drain()
            return read(key)

        return read_all

    return {
        "total": drained(meter.ledger.total),
        "charges_in": drained(meter.ledger.charges_in),
        "refuse": lambda keys, fields: _refuse(runtime, keys, Refusal(*fields)),
        "join": lambda: _join(runtime),
        "quote": lambda request: pack_quote(book.quote(unpack_request(request))),
        "stated": lambda request: pack_quote(book.stated(unpack_request(request))),
        "leased": lambda url: book.leased_name(url) or meter.endpoints.find(url),
        "catalogue": lambda: book.catalogue.as_read(),  # noqa: PLW0108 - read when asked for
        **{name: getattr(meter.endpoints, name) for name in ASKED_BY_CHILDREN},
        **count_operations(meter.counts),
    }


def _refuse(runtime: Runtime, keys: list[str], refusal: Refusal) -> None:
    """Count a child's refusal, and record it as that of a call which is made here."""
    runtime.meter.ledger.refuse(keys, refusal)
    if not refusal.scope_key.startswith(f"{runtime.worker}child-"):
        error = BudgetExceededError(
            refusal.message,
            scope=refusal.scope,
            scope_key=refusal.scope_key,
            model=refusal.model,
        )
        if refusal.details:
            error.explain(refusal.details)
        budgets = runtime.meter.budgets
        running = budgets.test if budgets.test and budgets.test.id == refusal.test else None
        budgets.record_refusal(error, running)


def _join(runtime: Runtime) -> dict[str, Any]:
    meter, budgets = runtime.meter, runtime.meter.budgets
    blocks = tuple(block.scope for block in budgets.open_blocks())
    return ParentBudgets(
        session=budgets.session,
        test=budgets.test,
        around=(*budgets.over_runs, *blocks),
        explicit=budgets.active().explicit,
        where=budgets.where,
        worker=runtime.worker,
        router=meter.router,
        addresses=runtime.addresses,
        session_id=budgets.session_id,
        hold_wait=meter.hold_wait,
    ).packed()


# --- which meter


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
