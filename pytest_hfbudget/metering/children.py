"""The parent's side of its child processes: they hold and settle at a counter of its own.

So a child of an xdist worker asks that worker, which asks the controller: only the worker knows
which test is running, and has to fail it for a refusal that the child swallowed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError
from pytest_hfbudget.ledger import Charge, Hold, Refusal, Scope, wire
from pytest_hfbudget.ledger.counter import Counter
from pytest_hfbudget.ledger.server import Operation, answer
from pytest_hfbudget.metering.parcel import Place, pack_quote, unpack_request

if TYPE_CHECKING:
    from pytest_hfbudget.metering.budget import budget
    from pytest_hfbudget.metering.runtime import Runtime

# Tells a freshly started interpreter where to join. No secret: only its owner can open it.
VARIABLE = "HFBUDGET_LEDGER"

# Where nobody answers: a child that is forked after the run's end is refused under a cap.
NOWHERE = "/"


class Children:
    """Lets the children of this process spend from the ledger that it spends from itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._counter: Counter | None = None
        self._closed = self._exported = False
        self._before: str | None = None
        self.blocks: tuple[budget, ...] = ()

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
        self.blocks = self._runtime.meter.payer.open_blocks()
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

    def close(self) -> None:
        """Answer no child any more, and book in full what they hold."""
        with self._lock:
            self._closed = True
            counter, self._counter = self._counter, None
        if counter is not None:
            counter.close()
        if self._exported:
            self._exported = False
            if self._before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = self._before

    def _open(self) -> Counter | None:
        with self._lock:
            if self._counter is None and not self._closed:
                self._counter = Counter(lambda: _Child(self._runtime))
            return self._counter


class _Child:
    """One connection of one child; its open holds are booked in full when it is gone."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held: dict[int, Charge] = {}
        self._gone = False
        self._operations = {**self._spending(), **self._telling()}

    def answer(self, line: bytes) -> bytes:
        """The answer to one question."""
        return answer(self._operations, line)

    def gone(self) -> None:
        """Book what is held: nobody knows what was sent for it."""
        self._gone = True
        for hold in list(self._held):
            if (charge := self._held.pop(hold, None)) is not None:
                with suppress(HFBudgetError, KeyError):
                    self._runtime.meter.ledger.settle(hold, charge)

    def _spending(self) -> dict[str, Operation]:
        ledger = self._runtime.meter.ledger
        return {
            "open": lambda scope: ledger.open(Scope(*scope)),
            "hold": self._hold,
            "settle": self._resolving(ledger.settle),
            "release": self._resolving(ledger.release),
            "refuse": self._refuse,
            "total": ledger.total,
            "charges_in": ledger.charges_in,
        }

    def _telling(self) -> dict[str, Operation]:
        book = self._runtime.meter.book
        return {
            "join": self._join,
            "quote": lambda request: pack_quote(book.quote(unpack_request(request))),
            "stated": lambda request: pack_quote(book.stated(unpack_request(request))),
            "leased": book.leased_name,
            "catalogue": self._catalogue,
            "revive": self._runtime.meter.revive,
        }

    def _hold(self, keys: list[str], least: int, most: int | None, draft: list[Any]) -> Hold:
        charge = wire.charge(draft)
        hold = self._runtime.meter.ledger.hold(keys, least, most, charge)
        self._held[hold.id] = charge._replace(nano_usd=hold.amount, status="lost", estimated=True)
        if self._gone:
            self.gone()  # it came too late
        return hold

    def _resolving(self, resolve: Callable[[int, Any], None]) -> Operation:
        def resolved(hold: int, charge: list[Any] | None) -> None:
            del self._held[hold]  # one that is not this child's is a KeyError
            resolve(hold, None if charge is None else wire.charge(charge))

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
            self._runtime.meter.payer.blame(error, test=refusal.test)

    def _catalogue(self) -> dict[str, Any]:
        return self._runtime.meter.book.catalogue.as_read()

    def _join(self) -> dict[str, Any]:
        meter = self._runtime.meter
        payer = meter.payer
        blocks = tuple(block.scope for block in payer.open_blocks())
        return Place(
            session=payer.session,
            test=payer.test,
            around=blocks,
            explicit=payer.around().explicit,
            where=payer.where,
            worker=self._runtime.worker,
            router=meter.router,
            addresses=self._runtime.addresses,
        ).packed()
