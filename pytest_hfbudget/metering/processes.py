"""Child processes: they hold and settle at the ledger of the process that started them."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError
from pytest_hfbudget.ledger import Refusal, Scope, WaitingHold
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import LedgerClient, Listener, Operation
from pytest_hfbudget.metering.bounds import Share, TokenCounts
from pytest_hfbudget.metering.budget_context import (
    BudgetContext,
    InheritedBudgets,
    OpenBudget,
    RunningTest,
)
from pytest_hfbudget.metering.instrumentation import Addresses
from pytest_hfbudget.metering.meter import EndpointHooks, Meter
from pytest_hfbudget.metering.prompts import Fact
from pytest_hfbudget.pricing import CallRequest, Price, Quote
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.settings import LEDGER


class ParentProcess(Protocol):
    """A process whose children spend from its ledger.

    Attributes:
        worker: begins the keys of its blocks, which makes them unique in a run.
        path: in a child process, the address of the ledger that it spends from; else empty.
    """

    meter: Meter
    worker: str
    path: str
    addresses: Addresses


def adopt(meter: Meter, path: str, blocks: tuple[OpenBudget, ...]) -> None:
    """In a forked child: have the inherited meter spend from the parent's ledger.

    Args:
        path: the address of the parent's listener.
        blocks: the blocks around the code that forked.
    """
    meter.disown()
    _connect(meter, path)
    meter.budgets.stay_inside(blocks)


def connected_meter(path: str) -> tuple[Meter, ParentPlace]:
    """A meter that spends from the ledger of a parent process, and the parent's settings.

    Raises:
        LedgerUnreachableError: that process is gone, or its run is over.
    """
    wire = LedgerConnection(path)
    place = ParentPlace.unpacked(wire.ask("join"))
    budgets = BudgetContext(place.session, test=place.test, where=place.where)
    budgets.inherited = InheritedBudgets(place.around, place.explicit)
    emulator = place.addresses.emulator or ""
    budgets.session_id = place.session_id
    meter = Meter(
        RemoteLedger(wire),
        RemoteBook(wire=wire),
        budgets,
        router=place.router,
        emulator=emulator,
        hold_wait=place.hold_wait,
        counts=TokenCounts(place.router, known_to(wire)),
    )
    _connect(meter, path)
    return meter, place


def _connect(meter: Meter, path: str) -> None:
    # Two connections: a hold must never wait behind an endpoint that takes minutes to start.
    ledger, slow = LedgerConnection(path), LedgerConnection(path)
    meter.ledger = RemoteLedger(ledger)
    meter.counts.share = shares(ledger, secrets.token_hex(6))
    meter.endpoints = EndpointHooks(
        revive=lambda name: bool(slow.ask("revive", name)),
        take_over=lambda name, form: slow.ask("take_over", name, form),
        answered=lambda name, status, stops: slow.ask("answered", name, status, stops),
    )
    # A child may be an uncapped server that outlives the tests.
    meter.stops_with_ledger = False


def shares(wire: LedgerConnection, origin: str) -> Share:
    """A function for `TokenCounts.share`, which asks another process.

    Args:
        origin: an id of this process.
    """

    def share(facts: list[Fact], heard: int) -> tuple[list[Fact], int]:
        news, heard = wire.ask("learn", origin, facts, heard)
        return [Fact(*each) for each in news], heard

    return share


def known_to(wire: LedgerConnection) -> Callable[[str], list[Fact]]:
    """A function that returns what another process knows of a model."""
    return lambda model: [Fact(*each) for each in wire.ask("counts", model)]


def count_operations(counts: TokenCounts) -> dict[str, Operation]:
    """The operations by which other processes read and add to the counts of this one."""
    return {
        "counts": counts.known,
        "learn": lambda origin, facts, heard: counts.shared_by(
            origin, [Fact(*each) for each in facts], heard
        ),
    }


def child_prefix(worker: str) -> str:
    """A new beginning for the keys of a child's blocks.

    Args:
        worker: the beginning of its parent's keys.
    """
    # Block numbers start where the parent's stood, and a process id may come again.
    return f"{worker}child-{secrets.token_hex(6)}/"


@dataclass
class RemoteBook(PriceBook):
    """The price book of the joined process, with its tables, hook and catalogue: it is asked."""

    remote: ClassVar[bool] = True
    wire: LedgerConnection = field(kw_only=True)

    def __post_init__(self) -> None:
        self.load_catalogue = self._catalogue

    def quote(self, request: CallRequest, explicit: Quote | None = None) -> Quote | None:
        if explicit and not self.leased_name(request.url):
            return explicit
        return unpack_quote(self.wire.ask("quote", pack_request(request)))

    def stated(self, request: CallRequest) -> Quote | None:
        return unpack_quote(self.wire.ask("stated", pack_request(request)))

    def leased_name(self, url: str) -> str | None:
        name: str | None = self.wire.ask("leased", url)
        return name

    def _catalogue(self) -> Catalogue:
        read = self.wire.ask("catalogue")
        return Catalogue.parse(read["models"], read_at=read["read_at"], origin=read["origin"])


# The variable that tells a new interpreter where to join. On Unix its value is not a secret.
VARIABLE = LEDGER

# An address without a server: a child forked after the run's end is refused under a cap.
NOWHERE = "/"

# The `EndpointHooks` that a child asks of the process that started it.
ASKED_BY_CHILDREN = ("revive", "take_over", "answered")


class ChildProcesses:
    """Lets the children of this process spend from the ledger that it spends from itself."""

    def __init__(self, runtime: ParentProcess) -> None:
        self._runtime: ParentProcess = weakref.proxy(runtime)  # it has this: no circle
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

    def _client(self) -> LedgerClient:
        runtime = self._runtime
        return LedgerClient(runtime.meter.ledger, self._waiting, _operations(runtime))

    def _open(self) -> Listener | None:
        with self._lock:
            if self._listener is None and not self._closed:
                self._listener = Listener(self._client)
            return self._listener


def _operations(runtime: ParentProcess) -> dict[str, Operation]:
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


def _refuse(runtime: ParentProcess, keys: list[str], refusal: Refusal) -> None:
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


def _join(runtime: ParentProcess) -> dict[str, Any]:
    meter, budgets = runtime.meter, runtime.meter.budgets
    blocks = tuple(block.scope for block in budgets.open_blocks())
    return ParentPlace(
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


class ParentPlace(NamedTuple):
    """What a process learns from the one that it joins: the budgets around it, and addresses.

    Attributes:
        test: the test that is running now, if one is.
        around: the scopes of the blocks that are open now.
        explicit: the price that a block or the test's marker states.
        worker: the beginning of the keys of blocks in the joined process.
        session_id: the inference session that calls to the router are billed to; empty for none.
    """

    session: Scope
    test: RunningTest | None
    around: tuple[Scope, ...]
    explicit: Quote | None
    where: str
    worker: str
    router: str
    addresses: Addresses
    session_id: str
    hold_wait: float

    def packed(self) -> dict[str, Any]:
        """The fields as JSON."""
        # The parent warns and swaps models, and it hears of refusals.
        kept: dict[str, Any] = {"explicit": None, "refusals": [], "thresholds": ()}
        test = self.test and {**asdict(self.test), **kept}
        return {
            **self._asdict(),
            "test": test,
            "explicit": pack_quote(self.explicit),
            "addresses": self.addresses._asdict(),
        }

    @classmethod
    def unpacked(cls, fields: dict[str, Any]) -> ParentPlace:
        """The place behind packed fields."""
        test, addresses = fields["test"], fields["addresses"]
        if test is not None:
            test = RunningTest(**{**test, "scopes": _scopes(test["scopes"]), "thresholds": ()})
        addresses = {**addresses, "paid_hosts": tuple(addresses["paid_hosts"])}
        return cls(
            **{
                **fields,
                "session": Scope(*fields["session"]),
                "test": test,
                "around": _scopes(fields["around"]),
                "explicit": unpack_quote(fields["explicit"]),
                "addresses": Addresses(**addresses),
            }
        )


def _scopes(rows: list[Any]) -> tuple[Scope, ...]:
    return tuple(Scope(*row) for row in rows)


def pack_quote(quote: Quote | None) -> list[Any] | None:
    """A quote as JSON."""
    if not quote:
        return None
    providers = quote.providers or (None,) * len(quote.options)
    rows = zip(quote.options, providers, strict=True)
    return [[asdict(price), source, provider] for (price, source), provider in rows]


def unpack_quote(rows: list[Any] | None) -> Quote | None:
    """The quote behind packed rows."""
    if not rows:
        return None
    options = tuple((Price(**price), source) for price, source, _ in rows)
    return Quote(options, tuple(provider for *_, provider in rows))


def pack_request(request: CallRequest) -> dict[str, Any]:
    """A request as JSON, without what no price depends on."""
    return request._replace(inputs=(), prompt=None)._asdict()


def unpack_request(fields: dict[str, Any]) -> CallRequest:
    """The request behind packed fields."""
    return CallRequest(**fields)
