"""Child processes: they hold and settle at the ledger of the process that started them."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError, LedgerUnreachableError
from pytest_hfbudget.ledger import Caller, Charge, Hold, Refusal, Scope, WaitingHold
from pytest_hfbudget.ledger.rpc import codec
from pytest_hfbudget.ledger.rpc.client import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import Listener, Operation, answer
from pytest_hfbudget.metering.budget_context import BudgetContext, InheritedBudgets, OpenBudget
from pytest_hfbudget.metering.instrumentation.addresses import Addresses
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.serialization import (
    ParentPlace,
    pack_quote,
    pack_request,
    unpack_quote,
    unpack_request,
)
from pytest_hfbudget.pricing import CallRequest, Catalogue, PriceBook, Quote
from pytest_hfbudget.settings import LEDGER


class ParentProcess(Protocol):
    """A process whose children spend from its ledger.

    Attributes:
        worker: begins the keys of its blocks, which makes them unique in a run.
        path: the socket of the ledger that it spends from itself; empty where it has its own.
    """

    meter: Meter
    worker: str
    path: str
    addresses: Addresses


def adopt(meter: Meter, path: str, blocks: tuple[OpenBudget, ...]) -> None:
    """Make the meter that a forked child has inherited one of the child's own.

    Args:
        path: the address of the parent's listener.
        blocks: those that were open where the parent forked.
    """
    _connect(meter, path)
    meter.disown()
    meter.budgets.stay_inside(blocks)


def connected_meter(path: str) -> tuple[Meter, ParentPlace]:
    """A meter that spends from the ledger of a parent process, and what the parent has told.

    Raises:
        LedgerUnreachableError: that process is gone, or its run is over.
    """
    wire = LedgerConnection(path)
    place = ParentPlace.unpacked(wire.ask("join"))
    budgets = BudgetContext(place.session, test=place.test, where=place.where)
    budgets.inherited = InheritedBudgets(place.around, place.explicit)
    emulator = place.addresses.emulator or ""
    meter = Meter(
        RemoteLedger(wire), RemoteBook(wire=wire), budgets, router=place.router, emulator=emulator
    )
    _connect(meter, path)
    return meter, place


def _connect(meter: Meter, path: str) -> None:
    # Two connections: a hold must never wait behind an endpoint that takes minutes to start.
    ledger, slow = LedgerConnection(path), LedgerConnection(path)
    meter.ledger = RemoteLedger(ledger)
    meter.endpoints.revive = lambda name: bool(slow.ask("revive", name))
    # It may be a server that nobody has capped, and that lives longer than the tests.
    meter.stops_with_ledger = False


def child_prefix(worker: str) -> str:
    """What begins the keys of a child's blocks.

    Args:
        worker: what begins those of its parent.
    """
    # Block numbers start where the parent's stood, and a process id may come again.
    return f"{worker}child-{secrets.token_hex(6)}/"


@dataclass
class RemoteBook(PriceBook):
    """Prices as the process knows them that was joined: its tables, its hook, its catalogue."""

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


# Tells a freshly started interpreter where to join. No secret: only its owner can open it.
VARIABLE = LEDGER


# How long a question for a place in line is listened to at a time: threads must be able to step
# aside for a fork in between.
LISTEN_S = 0.2


# Where nobody answers: a child that is forked after the run's end is refused under a cap.
NOWHERE = "/"


class ChildProcesses:
    """Lets the children of this process spend from the ledger that it spends from itself."""

    def __init__(self, runtime: ParentProcess) -> None:
        self._runtime: ParentProcess = weakref.proxy(runtime)  # it has this: no circle
        self._lock = threading.Lock()
        self._counter: Listener | None = None
        self._closed = self._exported = False
        self._before: str | None = None
        self._places: dict[int, WaitingHold] = {}
        self.blocks: tuple[OpenBudget, ...] = ()

    def export(self) -> None:
        """Let processes join that are started from now on.

        Raises:
            HFBudgetError: no socket can be made.
        """
        if self._exported or self._closed:
            return
        try:
            counter = self._open()
        except OSError as error:
            raise HFBudgetError(
                f"no socket can be made for child processes ({error}), so no cap could hold "
                "their calls. Let TMPDIR name a directory that can be written."
            ) from None
        if counter is not None:
            counter.come_back()
            self._exported, self._before = True, os.environ.get(VARIABLE)
            os.environ[VARIABLE] = counter.path

    def before_fork(self) -> None:
        """Be ready for one child more, with no thread of ours in the way of the fork."""
        # Here, in the thread that forks: in the child it counts as the main one.
        self.blocks = self._runtime.meter.budgets.open_blocks()
        if not self._runtime.path and (counter := self._open()) is not None:
            counter.step_aside()

    def after_fork(self) -> None:
        """Go on in the parent."""
        if self._counter is not None:
            self._counter.come_back()

    def forget(self) -> str:
        """Let go of the counter in a child; its address, for the child to call at."""
        counter, self._counter = self._counter, None
        self._lock, self._closed, self._exported = threading.Lock(), True, False
        if counter is None:
            return NOWHERE
        counter.forget()
        return counter.path

    def reopen(self) -> None:
        """Answer children again, unless this is one itself: it spends where they can."""
        self._closed = bool(self._runtime.path)

    def detach(self) -> Listener | None:
        """Answer no child any more; closing the counter books in full what they hold."""
        with self._lock:
            self._closed = True
            counter, self._counter = self._counter, None
        if self._exported:
            self._exported = False
            if self._before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = self._before
        return counter

    def close(self) -> None:
        """Answer no child any more, and book in full what they hold."""
        if (counter := self.detach()) is not None:
            counter.close()

    def _open(self) -> Listener | None:
        with self._lock:
            if self._counter is None and not self._closed:
                self._counter = Listener(lambda: _Child(self._runtime, self._places))
            return self._counter


class _Child:
    """One connection of one child; its open holds are booked in full when it is gone."""

    def __init__(self, runtime: ParentProcess, places: dict[int, WaitingHold]) -> None:
        """``places`` in line are all children's: each is asked for by a second connection."""
        self._runtime, self._places = runtime, places
        self._held: dict[int, Charge] = {}
        self._waiting: dict[int, Charge] = {}
        self._gone = False
        self._operations = {**self._spending(), **self._telling()}

    def answer(self, line: bytes) -> bytes:
        """The answer to one question."""
        return answer(self._operations, line)

    def gone(self) -> None:
        """Book what is held: nobody knows what was sent for it."""
        self._gone = True
        for place in list(self._waiting):
            self._leave(place)
        for hold in list(self._held):
            if (charge := self._held.pop(hold, None)) is not None:
                with suppress(HFBudgetError, KeyError):
                    self._runtime.meter.ledger.settle(hold, charge)

    def _spending(self) -> dict[str, Operation]:
        ledger = self._runtime.meter.ledger
        return {
            "open": lambda scope: ledger.open(Scope(*scope)),
            "hold": self._hold,
            "ask": self._ask,
            "answer": self._answer_to,
            "give_up": self._give_up,
            "leave": self._leave,
            "settle": self._resolving(ledger.settle),
            "release": self._resolving(ledger.release),
            "flush": ledger.flush,
            "refuse": self._refuse,
            "miss": ledger.miss,
            "total": self._looking(ledger.total),
            "charges_in": self._looking(ledger.charges_in),
        }

    def _looking(self, read: Operation) -> Operation:
        def look(*arguments: Any) -> Any:
            self._runtime.meter.drain()
            return read(*arguments)

        return look

    def _telling(self) -> dict[str, Operation]:
        book = self._runtime.meter.book
        return {
            "join": self._join,
            "quote": lambda request: pack_quote(book.quote(unpack_request(request))),
            "stated": lambda request: pack_quote(book.stated(unpack_request(request))),
            "leased": book.leased_name,
            "catalogue": self._catalogue,
            "revive": self._runtime.meter.endpoints.revive,
        }

    def _hold(self, keys: list[str], least: int, most: int | None, draft: list[Any]) -> Hold:
        charge = codec.charge(draft)
        return self._granted(self._runtime.meter.ledger.hold(keys, least, most, charge), charge)

    def _granted(self, hold: Hold, charge: Charge) -> Hold:
        self._held[hold.id] = charge._replace(nano_usd=hold.amount, status="lost", estimated=True)
        if self._gone:
            self.gone()  # it came too late
        return hold

    def _ask(
        self, keys: list[str], least: int, most: int | None, draft: list[Any], caller: list[Any]
    ) -> tuple[int, int | None]:
        """A hold, or a place in line without an amount, for which "answer" is to be asked."""
        charge = codec.charge(draft)
        answer = self._runtime.meter.ledger.ask(keys, least, most, charge, Caller(*caller))
        if isinstance(answer, Hold):
            return self._granted(answer, charge)
        self._waiting[answer.id], self._places[answer.id] = charge, answer
        answer.answer.add_done_callback(lambda came: self._came(answer.id, came))
        return answer.id, None

    def _came(self, place: int, answer: Future[Hold]) -> None:
        charge = self._waiting.pop(place, None)
        if charge is not None and answer.exception() is None:
            self._held[place] = charge._replace(
                nano_usd=answer.result().amount, status="lost", estimated=True
            )

    def _answer_to(self, place: int) -> Hold | None:
        waiting = self._places.get(place)
        if waiting is None:
            raise LedgerUnreachableError("the connection of the call that waited was lost")
        try:
            hold = waiting.answer.result(LISTEN_S)
        except NotYet:  # another one than the built-in, before Python 3.11
            return None
        except BaseException:
            self._places.pop(place, None)
            raise
        self._places.pop(place, None)
        return hold

    def _give_up(self, place: int, seconds: float) -> Hold | None:
        return self._runtime.meter.ledger.give_up(place, seconds)

    def _leave(self, place: int) -> None:
        for places in (self._waiting, self._held, self._places):
            places.pop(place, None)
        with suppress(HFBudgetError):
            self._runtime.meter.ledger.leave(place)

    def _resolving(self, resolve: Callable[[int, Any], None]) -> Operation:
        def resolved(hold: int, charge: list[Any] | None) -> None:
            del self._held[hold]  # one that is not this child's is a KeyError
            resolve(hold, None if charge is None else codec.charge(charge))

        return resolved

    def _refuse(self, keys: list[str], fields: list[Any]) -> None:
        """Count a refusal, and let answer for it who would if the call had been made here."""
        refusal = Refusal(*fields)
        self._runtime.meter.ledger.refuse(keys, refusal)
        if not refusal.scope_key.startswith(f"{self._runtime.worker}child-"):
            error = BudgetExceededError(
                refusal.message,
                scope=refusal.scope,
                scope_key=refusal.scope_key,
                model=refusal.model,
            )
            budgets = self._runtime.meter.budgets
            running = budgets.test if budgets.test and budgets.test.id == refusal.test else None
            budgets.record_refusal(error, running)

    def _catalogue(self) -> dict[str, Any]:
        return self._runtime.meter.book.catalogue.as_read()

    def _join(self) -> dict[str, Any]:
        meter = self._runtime.meter
        budgets = meter.budgets
        blocks = tuple(block.scope for block in budgets.open_blocks())
        return ParentPlace(
            session=budgets.session,
            test=budgets.test,
            around=(*budgets.over_runs, *blocks),
            explicit=budgets.active().explicit,
            where=budgets.where,
            worker=self._runtime.worker,
            router=meter.router,
            addresses=self._runtime.addresses,
        ).packed()
