"""What the endpoints of one run cost, as well as can be known from outside."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.api_errors import ControlPlaneError
from pytest_hfbudget.endpoints.endpoint_state import EndpointState
from pytest_hfbudget.endpoints.hardware import HardwareFile, HardwareList, price_per_hour
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.reaper_messages import Receipt
from pytest_hfbudget.endpoints.retry import Clock, RetryPolicy
from pytest_hfbudget.endpoints.types import Endpoint
from pytest_hfbudget.endpoints.uptime import (
    NOTHING,
    Uptime,
    UsageWindow,
    at_most,
    cost,
    earlier_replicas,
    from_replicas,
)

# What a report would like to know may not keep a run from ending.
_NICE_TO_KNOW_S = 5.0


_TRIES = 2


class UptimeMeter:
    """Prices before, uptime after. Safe to share between threads."""

    def __init__(self, plane: ControlPlane, settings: EndpointSettings, clock: Clock) -> None:
        self._plane, self._settings, self._clock = plane, settings, clock
        try_s = min(settings.try_s, _NICE_TO_KNOW_S)
        self._quick = plane.with_pace(RetryPolicy(try_s=try_s, total_s=0.0))
        self._lock = threading.Lock()
        self._file = HardwareFile.of(settings.api)
        self._hardware: HardwareList | None = None

    def price(self, slot: EndpointState, found: Endpoint) -> int | None:
        """Fill in the price of a replica; nano-USD for a minute of what will run at first."""
        listed = self._listed(slot)
        slot.price_atto = None if listed is None else price_per_hour(listed.vendors, found)
        slot.count(found.first_replicas)
        return None if slot.price_atto is None else cost(slot.price_atto, slot.replicas)

    def _listed(self, slot: EndpointState) -> HardwareList | None:
        with self._lock:
            if self._hardware is None:
                # Where there is a copy, a run does not wait long for a newer list.
                plane = self._quick if self._file.load() else self._plane
                try:
                    self._hardware = self._file.read(plane.hardware, self._clock.time())
                except ControlPlaneError as error:
                    slot.warn(f"{slot.name}: its price is unknown: {error}")
                    return None
            listed = self._hardware
        if listed.problem:
            slot.warn(f"{slot.name}: its price is that of {listed.day}: {listed.problem}")
        return listed

    def look(self, slot: EndpointState) -> Endpoint | None:
        """The endpoint as it is now; None where the server does not say so soon."""
        try:
            return self._quick.get(slot.name)
        except ControlPlaneError:
            return None  # what was counted before still counts

    def zero(self, slot: EndpointState) -> None:
        """Remember the replicas that were there before; None where that is unknown."""
        for _ in range(_TRIES):
            replicas = self._replicas(slot.name)
            slot.earlier = None if replicas is None else earlier_replicas(replicas)
            if replicas is not None:
                return

    def uptime(self, slot: EndpointState, pause: Receipt | None, *, final: bool) -> Uptime:
        """What one endpoint has cost: by the server's times when ``final``, else at most."""
        if not slot.leased or (slot.found_asleep and not slot.resumed):
            return NOTHING
        window_s = slot.window_s(self._until(pause))
        price, minute_s = slot.price_atto, self._settings.billing_minute_s
        exact = slot.earlier is not None and from_replicas(
            (self._replicas(slot.name) or ()) if final else (),
            window_s=window_s,
            earlier=slot.earlier,
            atto_per_hour=price,
            billing_minute_s=minute_s,
        )
        return exact or at_most(
            window_s=window_s,
            replicas=slot.most_replicas,
            atto_per_hour=price,
            billing_minute_s=minute_s,
        )

    def window(self, slot: EndpointState, pause: Receipt | None) -> UsageWindow:
        """The time that one endpoint's cost is for."""
        return slot.window(self._until(pause), self._settings.billing_minute_s)

    def _until(self, pause: Receipt | None) -> float:
        until = pause.paused_mono if pause else None
        return self._clock.monotonic() if until is None else until

    def _replicas(self, name: str) -> tuple[Mapping[str, Any], ...] | None:
        try:
            return self._quick.replicas(name)
        except ControlPlaneError:
            return None  # the bill is then bounded by our own clock, and marked as estimated
