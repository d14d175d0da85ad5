"""The child's side: a process that spends from the ledger of the one that started it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_hfbudget.ledger.remote import RemoteLedger, Wire
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.parcel import Place, pack_request, unpack_quote
from pytest_hfbudget.metering.payer import Outer, Payer
from pytest_hfbudget.pricing import CallRequest, Catalogue, PriceBook, Quote

if TYPE_CHECKING:
    from pytest_hfbudget.metering.budget import budget
    from pytest_hfbudget.metering.runtime import Runtime


def adopt(runtime: Runtime, path: str, blocks: tuple[budget, ...]) -> None:
    """Make the meter that a forked child has inherited one of the child's own.

    Args:
        path: the address of the parent's counter.
        blocks: those that were open where the parent forked.
    """
    _connect(runtime.meter, path)
    runtime.meter.disown()
    runtime.meter.payer.stay_inside(blocks)
    runtime.worker = _prefix(runtime.worker)


def joined(path: str) -> Runtime:
    """The runtime of an interpreter that was started by a process with a counter.

    Raises:
        LedgerUnreachableError: that process is gone, or its run is over.
    """
    from pytest_hfbudget.metering.runtime import Runtime

    wire = Wire(path)
    place = Place.unpacked(wire.ask("join"))
    payer = Payer(place.session, test=place.test, where=place.where)
    payer.outer = Outer(place.around, place.explicit)
    emulator = place.addresses.emulator or ""
    meter = Meter(
        RemoteLedger(wire), RemoteBook(wire=wire), payer, router=place.router, emulator=emulator
    )
    _connect(meter, path)
    return Runtime(meter, worker=_prefix(place.worker), addresses=place.addresses, path=path)


def _connect(meter: Meter, path: str) -> None:
    # Two connections: a hold must never wait behind an endpoint that takes minutes to start.
    ledger, slow = Wire(path), Wire(path)
    meter.ledger = RemoteLedger(ledger)
    meter.revive = lambda name: bool(slow.ask("revive", name))
    # It may be a server that nobody has capped, and that lives longer than the tests.
    meter.stops_with_ledger = False


def _prefix(worker: str) -> str:
    # Block numbers start where the parent's stood, and a process id may come again.
    return f"{worker}child-{secrets.token_hex(6)}/"


@dataclass
class RemoteBook(PriceBook):
    """Prices as the process knows them that was joined: its tables, its hook, its catalogue."""

    wire: Wire = field(kw_only=True)

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
