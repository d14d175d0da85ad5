"""What a process asks of the one whose ledger it spends from, and in which form."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import Operation
from pytest_hfbudget.metering.bounds import Share, TokenCounts
from pytest_hfbudget.metering.budget_context import (
    BudgetContext,
    InheritedBudgets,
    OpenBudget,
    RunningTest,
)
from pytest_hfbudget.metering.instrumentation import Addresses
from pytest_hfbudget.metering.meter import EndpointCallbacks, Meter
from pytest_hfbudget.metering.prompts import Fact
from pytest_hfbudget.pricing import CallRequest, Price, Quote
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.catalogue import Catalogue


def adopt(meter: Meter, path: str, blocks: tuple[OpenBudget, ...]) -> None:
    """In a forked child: have the inherited meter spend from the parent's ledger.

    Args:
        path: the address of the parent's listener.
        blocks: the blocks around the code that forked.
    """
    meter.disown()
    _connect(meter, path)
    meter.budgets.stay_inside(blocks)


def connected_meter(path: str) -> tuple[Meter, ParentBudgets]:
    """A meter that spends from the ledger of a parent process, and the parent's settings.

    Raises:
        LedgerUnreachableError: that process is gone, or its run is over.
    """
    wire = LedgerConnection(path)
    parent = ParentBudgets.unpacked(wire.invoke("join"))
    budgets = BudgetContext(parent.session, test=parent.test, where=parent.where)
    budgets.inherited = InheritedBudgets(parent.around, parent.explicit)
    emulator = parent.addresses.emulator or ""
    budgets.session_id = parent.session_id
    meter = Meter(
        RemoteLedger(wire),
        RemoteBook(wire=wire),
        budgets,
        router=parent.router,
        emulator=emulator,
        hold_wait=parent.hold_wait,
        counts=TokenCounts(parent.router, facts_loader(wire)),
    )
    _connect(meter, path)
    return meter, parent


def _connect(meter: Meter, path: str) -> None:
    # Two connections: a hold must never wait behind an endpoint that takes minutes to start.
    ledger, slow = LedgerConnection(path), LedgerConnection(path)
    meter.ledger = RemoteLedger(ledger)
    meter.counts.share = shares(ledger, secrets.token_hex(6))
    meter.endpoints = EndpointCallbacks(
        revive=lambda name: bool(slow.invoke("revive", name)),
        take_over=lambda name, form: slow.invoke("take_over", name, form),
        answered=lambda name, status, stops: slow.invoke("answered", name, status, stops),
    )
    # A child may be an uncapped server that outlives the tests.
    meter.stops_with_ledger = False


def shares(wire: LedgerConnection, origin: str) -> Share:
    """A function for `TokenCounts.share`, which asks another process.

    Args:
        origin: an id of this process.
    """

    def share(facts: list[Fact], heard: int) -> tuple[list[Fact], int]:
        news, heard = wire.invoke("learn", origin, facts, heard)
        return [Fact(*each) for each in news], heard

    return share


def facts_loader(wire: LedgerConnection) -> Callable[[str], list[Fact]]:
    """A function that returns what another process knows of a model."""
    return lambda model: [Fact(*each) for each in wire.invoke("counts", model)]


def count_operations(counts: TokenCounts) -> dict[str, Operation]:
    """The operations by which other processes read and add to the counts of this one."""
    return {
        "counts": counts.facts_about,
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
        return unpack_quote(self.wire.invoke("quote", pack_request(request)))

    def stated(self, request: CallRequest) -> Quote | None:
        return unpack_quote(self.wire.invoke("stated", pack_request(request)))

    def leased_name(self, url: str) -> str | None:
        name: str | None = self.wire.invoke("leased", url)
        return name

    def _catalogue(self) -> Catalogue:
        read = self.wire.invoke("catalogue")
        return Catalogue.parse(read["models"], read_at=read["read_at"], origin=read["origin"])


class ParentBudgets(NamedTuple):
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
    def unpacked(cls, fields: dict[str, Any]) -> ParentBudgets:
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
