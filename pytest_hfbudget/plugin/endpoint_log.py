"""The log of what happened to the endpoints of a run, and each endpoint's line in the report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from pytest_hfbudget.reporting import EndpointLine, counted, endpoint_verdict

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSummary
    from pytest_hfbudget.endpoints.uptime_meter import Shares


class EndpointEvent(NamedTuple):
    """One thing that happened to an endpoint.

    Attributes:
        name: ``namespace/name``.
        what: ``resumed``, ``ready``, ``failed`` (it did not come up), ``revived`` (resumed again
            after another process had paused it), ``paused`` (and verified), ``left`` (to another
            run that uses it), ``kept`` (it ran before and was to keep running), ``not verified``
            (the pause; see ``note``).
        at: unix seconds.
        minutes, nano_usd: started minutes and their cost; 0 before the endpoint is paused.
        note: an error, or warnings, for people.
    """

    name: str
    what: str
    at: float
    minutes: int = 0
    nano_usd: int = 0
    note: str = ""


class EndpointLog:
    """Collects events. Safe between threads."""

    def __init__(self) -> None:
        from pytest_hfbudget.locks import own_lock

        self._lock = own_lock()
        self._events: list[EndpointEvent] = []
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._again: set[str] = set()

    def all(self) -> tuple[EndpointEvent, ...]:
        """Every event so far."""
        with self._lock:
            return tuple(self._events)

    def cold_starts(self) -> dict[str, float]:
        """Seconds from the resume of an endpoint until it served."""
        resumed: dict[str, float] = {}
        starts: dict[str, float] = {}
        for event in self.all():
            if event.what == "resumed":
                resumed[event.name] = event.at
            elif event.what == "ready" and event.name in resumed:
                starts[event.name] = max(event.at - resumed.pop(event.name), 0.0)
        return starts

    def started(
        self,
        name: str,
        receipts: tuple[EndpointSummary, ...],
        *,
        failure: str = "",
        ago: float = 0.0,
    ) -> None:
        """Note that an endpoint came up, ``ago`` seconds ago, or why it did not. Once for each."""
        with self._lock:
            if name in self._started:
                return
            self._started.add(name)
            for receipt in receipts:
                again = name in self._again
                if receipt.name == name and receipt.resumed and receipt.resumed_at and not again:
                    self._events.append(EndpointEvent(name, "resumed", receipt.resumed_at))
            what = "failed" if failure else "ready"
            self._events.append(EndpointEvent(name, what, time.time() - ago, note=failure))

    def resumed_again(self, name: str) -> None:
        """Note a resume, if the endpoint was paused in a gap between its tests; else nothing."""
        with self._lock:
            if name in self._ended:
                self._ended.discard(name)
                self._started.discard(name)
                self._again.add(name)
                self._events.append(EndpointEvent(name, "resumed", time.time()))

    def taken_over(self, name: str) -> None:
        """Note that the code under test starts an endpoint; only its first start counts."""
        with self._lock:
            if name not in self._again:
                self._again.add(name)
                note = "started by the code under test"
                self._events.append(EndpointEvent(name, "resumed", time.time(), note=note))

    def revived(self, name: str) -> None:
        """Note that an endpoint serves again after another process had paused it."""
        with self._lock:
            self._events.append(EndpointEvent(name, "revived", time.time()))

    def ended(self, receipts: tuple[EndpointSummary, ...]) -> None:
        """Note how the uptime of endpoints ended, once for each."""
        with self._lock:
            for receipt in receipts:
                if receipt.name in self._ended:
                    continue
                self._ended.add(receipt.name)
                self._events.append(
                    EndpointEvent(
                        receipt.name,
                        _end(receipt),
                        receipt.paused_at or time.time(),
                        receipt.cost.minutes,
                        receipt.cost.nano_usd,
                        receipt.error or "; ".join(receipt.warnings),
                    )
                )


def _end(receipt: EndpointSummary) -> str:
    if receipt.verified:
        return "paused"
    if receipt.left_to is not None:
        return "left"
    return "kept" if receipt.kept else "not verified"


LATE = "started as the run ended; the report does not have its cost"


def end_line(receipt: EndpointSummary, why: str) -> str:
    """The line that says how the use of an endpoint ended, and why then."""
    end = endpoint_verdict(receipt.state, receipt.verified, receipt.left_to, receipt.kept)
    return "; ".join(filter(None, (f"endpoint {receipt.name}: {end}: {why}", receipt.error)))


def endpoint_line(receipt: EndpointSummary, shares: Shares) -> EndpointLine:
    """The line of an endpoint in the report."""
    notes = [receipt.error or "", *receipt.warnings]
    if receipt.found_running:
        notes.insert(0, "was running before this run")
    elif receipt.taken_over:
        notes.insert(0, "started by the code under test")
    if receipt.revived:
        again = counted(receipt.revived, "more time")
        notes.insert(0, f"another process paused it meanwhile, and this run resumed it {again}")
    return EndpointLine(
        name=receipt.name,
        state=receipt.state,
        nano_usd=receipt.cost.nano_usd,
        minutes=receipt.cost.minutes,
        resumed=receipt.resumed,
        paused=receipt.paused_at is not None,
        verified=receipt.verified,
        left_to=receipt.left_to,
        note="; ".join(note for note in notes if note),
        kept=receipt.kept,
        resumed_at=receipt.resumed_at,
        paused_at=receipt.paused_at,
        shares=tuple(shares.tests.items()),
        idle=shares.idle,
        cold_start=shares.cold_start,
        unpriced=receipt.cost.minutes > 0 and receipt.cost.price_nano_per_hour is None,
    )
