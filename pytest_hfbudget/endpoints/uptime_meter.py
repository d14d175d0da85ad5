"""The public prices of hardware, the cost of endpoints, and each test's share of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.endpoints import Endpoint, objects
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings, EndpointState, Grow
from pytest_hfbudget.endpoints.reaper_messages import PauseReceipt
from pytest_hfbudget.endpoints.retry import NICE_TO_KNOW_S, RetryPolicy
from pytest_hfbudget.endpoints.uptime import (
    NO_UPTIME,
    Uptime,
    UptimeWindow,
    at_most,
    cost,
    earlier_replicas,
    from_replicas,
    parse_time,
    replica_status,
)
from pytest_hfbudget.files import cache_file, read_cache, write_cache
from pytest_hfbudget.locks import Clock
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.text import public_url


@dataclass(frozen=True)
class HardwareList:
    """``GET /v2/provider`` of a control plane.

    Attributes:
        vendors: the answer as it came.
        read_at: unix seconds.
        problem: why it is the copy on disk; empty if the list was read now.
    """

    vendors: Mapping[str, Any]
    read_at: float = 0.0
    problem: str = ""

    @property
    def day(self) -> str:
        """The day on which it was read."""
        return datetime.fromtimestamp(self.read_at, timezone.utc).date().isoformat()


@dataclass(frozen=True)
class HardwareFile:
    """The copy of the hardware list on disk, for when the list can't be read."""

    path: Path
    origin: str

    @classmethod
    def of(cls, api: str) -> HardwareFile:
        """The file for the list of a control plane, in this user's cache."""
        return cls(cache_file("hardware", api), api)

    def load(self) -> HardwareList | None:
        """The list in the file; None without a readable one of this control plane."""
        try:
            copy = read_cache(self.path)
            listed = HardwareList(copy["hardware"], float(copy["read_at"]))
            of_this = copy["origin"] == self.origin and bool(listed.day)
            return listed if of_this and _is_list(listed.vendors) else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None  # absent or damaged: the next list that is read replaces it

    def read(self, ask: Callable[[], Mapping[str, Any]], now: float) -> HardwareList:
        """Read the list and keep a copy; returns the old copy if the list can't be read.

        Raises:
            ControlPlaneError: the list can't be read, and there is no copy.
        """
        try:
            vendors = self._checked(ask())
        except ControlPlaneError as error:
            copy = self.load()
            if copy is None:
                raise
            return HardwareList(copy.vendors, copy.read_at, str(error))
        write_cache(self.path, {"origin": self.origin, "read_at": now, "hardware": vendors})
        return HardwareList(vendors, now)

    def _checked(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        if not _is_list(answer):
            raise ControlPlaneError(
                f"{public_url(self.origin)}/provider did not answer with a list."
            )
        return answer


def price_per_hour(hardware: Mapping[str, Any], endpoint: Endpoint) -> int | None:
    """Atto-USD per replica-hour from the public list of hardware; None if it is not listed.

    The list is searched by vendor, region, instance type and size. If an instance is listed more
    than once, the highest price counts. A price that is invalid or zero counts as not listed.
    """
    prices = [
        _rate(compute.get("pricePerHour"))
        for vendor in _named(hardware.get("vendors"), endpoint.vendor)
        for region in _named(vendor.get("regions"), endpoint.region)
        for compute in objects(region.get("computes"))
        if compute.get("instanceType") == endpoint.instance_type
        and compute.get("instanceSize") == endpoint.instance_size
    ]
    return max(prices, default=0) or None


def _rate(value: object) -> int:
    try:
        return parse_rate(value)
    except ValueError:
        return 0


def _named(items: object, name: str) -> Iterator[Mapping[str, Any]]:
    return (item for item in objects(items) if item.get("name") == name)


def _is_list(hardware: object) -> bool:
    return isinstance(hardware, Mapping) and isinstance(hardware.get("vendors"), list)


def replica_starts(plane: ControlPlane, endpoint: Endpoint, now: float) -> tuple[float, ...]:
    """The earliest times, in unix seconds, at which the running replicas can have started.

    Args:
        now: the time to use if the server reports none.
    """
    changed = _unix(endpoint.updated_at, now)
    try:
        replicas = plane.replicas(endpoint.full_name)
    except ControlPlaneError:
        replicas = ()
    live = [status for one in replicas if not (status := replica_status(one)).get("stoppedAt")]
    found = [_unix(status.get("startedAt"), changed) for status in live]
    # If fewer are listed than should run, assume that the others have run as long as any.
    missing = max(endpoint.target_replica, endpoint.ready_replica, 1) - len(found)
    return (*found, *[min((changed, *found))] * missing)


def _unix(time: object, otherwise: float) -> float:
    parsed = parse_time(time)
    return otherwise if parsed is None else parsed.timestamp()


_TRIES = 2


class UptimeMeter:
    """Reads the prices of endpoints, and measures their uptime. Safe between threads."""

    def __init__(self, plane: ControlPlane, settings: EndpointSettings, clock: Clock) -> None:
        self._plane, self._settings, self._clock = plane, settings, clock
        try_s = min(settings.timings.try_s, NICE_TO_KNOW_S)
        self._quick = plane.with_retry(RetryPolicy(try_s=try_s, total_s=0.0))
        self._lock = threading.Lock()
        self._file = HardwareFile.of(settings.api)
        self._hardware: HardwareList | None = None

    def price(self, state: EndpointState, found: Endpoint) -> int | None:
        """Note the price of a replica in ``state``.

        Returns nano-USD for a minute of the replicas that run first; None if the price is unknown.
        """
        listed = self._listed(state)
        state.use.price_atto = None if listed is None else price_per_hour(listed.vendors, found)
        if listed is not None and state.use.price_atto is None:
            state.warn(
                f"{state.name}: its price is unknown: the list of hardware has none for "
                f"{found.hardware}, so its cost is missing from all sums"
            )
        state.use.count(found.first_replicas)
        return (
            None if state.use.price_atto is None else cost(state.use.price_atto, state.use.replicas)
        )

    def _listed(self, state: EndpointState) -> HardwareList | None:
        with self._lock:
            if self._hardware is None:
                # With a copy at hand, don't wait long for a newer list.
                plane = self._quick if self._file.load() else self._plane
                try:
                    self._hardware = self._file.read(plane.hardware, self._clock.time())
                except ControlPlaneError as error:
                    state.warn(f"{state.name}: its price is unknown: {error}")
                    return None
            listed = self._hardware
        if listed.problem:
            state.warn(f"{state.name}: its price is that of {listed.day}: {listed.problem}")
        return listed

    def count(
        self, state: EndpointState, found: Endpoint, replicas: int, grow: Grow, *, ahead: bool
    ) -> None:
        """Have the caps pay for a minute of each replica that may run from now on."""
        with state.use.counting:
            more = replicas - state.use.replicas
            if more <= 0:
                return
            if self._settings.capped and state.use.price_atto is not None:
                grow(found, more, cost(state.use.price_atto, more), ahead)
            state.use.count(replicas)

    def read(self, state: EndpointState) -> Endpoint | None:
        """The endpoint as it is now; None without a quick answer."""
        try:
            return self._quick.get(state.name)
        except ControlPlaneError:
            return None  # the number of replicas from before stays in use

    def note_earlier_replicas(self, state: EndpointState) -> None:
        """Note the replicas from before this run in ``state``; None if they are unknown."""
        for _ in range(_TRIES):
            replicas = self._replicas(state.name)
            state.use.earlier = None if replicas is None else earlier_replicas(replicas)
            if replicas is not None:
                return

    def uptime(self, state: EndpointState, pause: PauseReceipt | None, *, final: bool) -> Uptime:
        """The uptime of an endpoint: by the server's times if ``final``, else an upper bound."""
        if not state.leased or (state.found_asleep and not state.resumed):
            return NO_UPTIME
        until = self._until(pause)
        window_s = max(until - state.use.resumed_mono, 0.0)
        price, minute_s = state.use.price_atto, self._settings.billing_minute_s
        exact = state.use.earlier is not None and from_replicas(
            (self._replicas(state.name) or ()) if final else (),
            window_s=window_s,
            earlier=state.use.earlier,
            atto_per_hour=price,
            billing_minute_s=minute_s,
        )
        return exact or at_most(
            stretches_s=[each.stop - each.start for each in state.use.stretches(until)],
            replicas=state.use.most_replicas,
            atto_per_hour=price,
            billing_minute_s=minute_s,
        )

    def window(self, state: EndpointState, pause: PauseReceipt | None) -> UptimeWindow:
        """The time that one endpoint's cost is for."""
        return state.use.window(self._until(pause), self._settings.billing_minute_s)

    def _until(self, pause: PauseReceipt | None) -> float:
        until = pause.paused_mono if pause else None
        return self._clock.monotonic() if until is None else until

    def _replicas(self, name: str) -> tuple[Mapping[str, Any], ...] | None:
        try:
            return self._quick.replicas(name)
        except ControlPlaneError:
            return None  # then the uptime is an upper bound by our clock, marked as estimated


_NANOS = 10**9


class EndpointUse(NamedTuple):
    """A stretch of time that a test was on an endpoint; ``stop`` is None while it lasts."""

    test: str
    start: float
    stop: float | None = None


@dataclass(frozen=True)
class Shares:
    """The cost of one endpoint, divided among its uses. Money is nano-USD.

    Attributes:
        tests: the share of each test, in the order of their first use.
        idle: for the time that no test used, the rest of the last minute included.
        cold_start: for the time from its resume until it served.
    """

    tests: Mapping[str, int]
    idle: int = 0
    cold_start: int = 0


def share_out(nano_usd: int, window: UptimeWindow, uses: Iterable[EndpointUse]) -> Shares:
    """Divide an endpoint's cost; the parts add up to ``nano_usd`` exactly.

    Each second of the window costs the same. Tests that use the endpoint at the same time split the
    second evenly. No test pays for a cold start, because all later tests profit from it.
    """
    uses = list(uses)
    times: dict[str, Fraction] = {use.test: Fraction(0) for use in uses}
    idle, cold = Fraction(0), Fraction(0)
    for length, is_cold, tests in _pieces(window, uses):
        if is_cold:
            cold += length
        elif tests:
            for test in tests:
                times[test] += Fraction(length, len(tests))
        else:
            idle += length
    *owed, of_idle, of_cold = apportion(nano_usd, [*times.values(), idle, cold])
    return Shares(dict(zip(times, owed, strict=True)), of_idle, of_cold)


def apportion(whole: int, weights: Sequence[Fraction]) -> list[int]:
    """Divide a whole number in proportion to weights, by the largest-remainder method.

    Each part is its exact value rounded down or up, and the parts add up to the whole. If all
    weights are 0, the last but one (idle time, in `share_out`) gets the whole.
    """
    total = sum(weights)
    if not total:
        parts = [0] * len(weights)
        parts[-2 if len(parts) > 1 else 0] = whole
        return parts
    exact = [whole * weight / total for weight in weights]
    parts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda at: parts[at] - exact[at])
    for at in by_remainder[: whole - sum(parts)]:
        parts[at] += 1
    return parts


def _pieces(
    window: UptimeWindow, uses: list[EndpointUse]
) -> Iterator[tuple[int, bool, tuple[str, ...]]]:
    """Cut the window where a use or a cold start begins or ends.

    Yields for each piece its nanoseconds, whether it is of a cold start, and the tests in it.
    """
    for part in window.parts():
        yield from _pieces_of(part, uses)


def _pieces_of(
    window: UptimeWindow, uses: list[EndpointUse]
) -> Iterator[tuple[int, bool, tuple[str, ...]]]:
    start, stop = _nanos(window.start), _nanos(window.stop)
    changes: list[tuple[int, int, str | None]] = []
    for use in uses:
        until = stop if use.stop is None else _nanos(use.stop)
        changes += _within(start, stop, _nanos(use.start), until, use.test)
    for stretch in window.cold:
        changes += _within(start, stop, _nanos(stretch.start), _nanos(stretch.stop), None)
    there: dict[str | None, int] = {}
    at = start
    for moment, step, who in sorted(changes, key=lambda change: change[:2]):
        if moment > at:
            yield _piece(moment - at, there)
            at = moment
        there[who] = there.get(who, 0) + step
        if not there[who]:
            del there[who]
    if stop > at:
        yield _piece(stop - at, there)
    if (rest := _nanos(window.paid_until) - max(stop, start)) > 0:
        yield rest, False, ()


def _piece(length: int, there: Mapping[str | None, int]) -> tuple[int, bool, tuple[str, ...]]:
    return length, None in there, tuple(who for who in there if who is not None)


def _within(
    first: int, last: int, start: int, stop: int, who: str | None
) -> list[tuple[int, int, str | None]]:
    start, stop = max(start, first), min(stop, last)
    return [(start, 1, who), (stop, -1, who)] if start < stop else []


def _nanos(seconds: float) -> int:
    return round(seconds * _NANOS)
