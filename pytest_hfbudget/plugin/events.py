"""What happened to the endpoints of a run, in order."""

from __future__ import annotations

import time
from typing import NamedTuple

from pytest_hfbudget.endpoints import EndpointReceipt
from pytest_hfbudget.ledger.lock import own_lock


class EndpointEvent(NamedTuple):
    """One thing that happened to an endpoint.

    Attributes:
        name: ``namespace/name``.
        what: ``resumed``, ``ready``, ``failed`` (it did not come up), ``revived`` (after somebody
            else had paused it), ``paused`` (and read back), ``left`` (to another run that uses
            it), ``kept`` (running, as it was found), ``not verified`` (see ``note``).
        at: unix seconds.
        minutes, nano_usd: started minutes and what they cost, once that is over.
        note: what a person should know.
    """

    name: str
    what: str
    at: float
    minutes: int = 0
    nano_usd: int = 0
    note: str = ""


class EndpointLog:
    """Collects the events of all threads."""

    def __init__(self) -> None:
        self._lock = own_lock()
        self._events: list[EndpointEvent] = []
        self._started: set[str] = set()

    def all(self) -> tuple[EndpointEvent, ...]:
        """Every event so far."""
        with self._lock:
            return tuple(self._events)

    def started(self, name: str, receipts: tuple[EndpointReceipt, ...], failure: str = "") -> None:
        """Note how an endpoint came up, or did not; the first time that somebody asked for it."""
        with self._lock:
            if name in self._started:
                return
            self._started.add(name)
            for receipt in receipts:
                if receipt.name == name and receipt.resumed and receipt.resumed_at:
                    self._events.append(EndpointEvent(name, "resumed", receipt.resumed_at))
            what = "failed" if failure else "ready"
            self._events.append(EndpointEvent(name, what, time.time(), note=failure))

    def revived(self, name: str) -> None:
        """Note that an endpoint is back which somebody else had paused."""
        with self._lock:
            self._events.append(EndpointEvent(name, "revived", time.time()))

    def ended(self, receipts: tuple[EndpointReceipt, ...]) -> None:
        """Note what became of every endpoint at the end of the run."""
        with self._lock:
            for receipt in receipts:
                self._events.append(
                    EndpointEvent(
                        receipt.name,
                        _end(receipt),
                        receipt.paused_at or time.time(),
                        receipt.minutes,
                        receipt.nano_usd,
                        receipt.error or "; ".join(receipt.warnings),
                    )
                )


def _end(receipt: EndpointReceipt) -> str:
    if receipt.verified:
        return "paused"
    if receipt.left_to is not None:
        return "left"
    return "kept" if receipt.kept else "not verified"
