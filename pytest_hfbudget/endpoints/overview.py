"""What a namespace runs, what that costs by now, and whose it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_hfbudget.endpoints import process, uptime
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import leases_dir, unfinished
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_held_leases
from pytest_hfbudget.endpoints.retry import NICE_TO_KNOW_S, RetryPolicy
from pytest_hfbudget.endpoints.types import (
    RUN_TAG,
    Endpoint,
    billed,
    run_tag,
    tagged_run,
    tagged_until,
)
from pytest_hfbudget.endpoints.uptime_meter import price_per_hour

_AT_ONCE = 8
_NICE_TO_KNOW = RetryPolicy(try_s=NICE_TO_KNOW_S, total_s=NICE_TO_KNOW_S)


@dataclass(frozen=True)
class EndpointHolder:
    """The run that has a lease on an endpoint.

    Attributes:
        pid: its process; None when only a tag tells of it.
        host: the machine of that process; None when only a tag tells of it.
        alive: whether the process runs; None when it can't be judged from here.
        until: unix seconds, the run's latest end as tagged; None if there is no such tag.
    """

    run: str
    pid: int | None = None
    host: str | None = None
    alive: bool | None = None
    until: float | None = None


@dataclass(frozen=True)
class EndpointStanding:
    """One endpoint, now.

    Attributes:
        nano_per_hour: nano-USD of an hour of all its present replicas, at their price even if
            there are none (then of one); None when the price is unknown.
        replicas: that cost something now, as far as is known.
        since: unix seconds, by the server's clock: when the oldest of them started, else when
            the endpoint last changed; None for what costs nothing.
        accrued_nano: nano-USD since then, an upper bound; None when the price is unknown.
        holders: the runs that have a lease on it, live ones first.
    """

    name: str
    state: str
    nano_per_hour: int | None
    replicas: int = 0
    since: float | None = None
    accrued_nano: int | None = None
    holders: tuple[EndpointHolder, ...] = ()


def overview(
    plane: ControlPlane,
    namespace: str,
    *,
    state_dir: Path,
    hardware: Mapping[str, Any] | None = None,
    now: float | None = None,
) -> tuple[EndpointStanding, ...]:
    """Every endpoint of a namespace, from all pages of the list.

    Args:
        state_dir: where this machine's runs write down what they use.
        hardware: `ControlPlane.hardware`, for callers that ask often; read if None.
        now: unix seconds.

    Raises:
        ControlPlaneError: the list can't be read. Unknown prices or replicas are no error.
    """
    endpoints = plane.list(namespace)
    plane = plane.with_retry(_NICE_TO_KNOW)
    prices = _hardware(plane) if hardware is None else hardware
    held = _holders(plane.base_url, state_dir)
    at = time.time() if now is None else now

    def one(endpoint: Endpoint) -> EndpointStanding:
        known = _with_tag(endpoint, held.get(endpoint.full_name, ()))
        return _standing(plane, endpoint, price_per_hour(prices, endpoint), known, at)

    with ThreadPoolExecutor(_AT_ONCE, "hfbudget-overview") as pool:
        return tuple(pool.map(one, endpoints))


def _standing(
    plane: ControlPlane,
    endpoint: Endpoint,
    atto_per_hour: int | None,
    holders: tuple[EndpointHolder, ...],
    now: float,
) -> EndpointStanding:
    starts = _starts(plane, endpoint, now) if billed(endpoint.state) else ()
    minutes = sum(uptime.started_minutes(max(now - start, 0.0)) for start in starts)
    priced = atto_per_hour is not None
    hour = uptime.cost(atto_per_hour or 0, uptime.MINUTES_PER_HOUR * max(len(starts), 1))
    return EndpointStanding(
        endpoint.full_name,
        endpoint.state,
        nano_per_hour=hour if priced else None,
        replicas=len(starts),
        since=min(starts, default=None),
        accrued_nano=uptime.cost(atto_per_hour or 0, minutes) if priced else None,
        holders=holders,
    )


def _starts(plane: ControlPlane, endpoint: Endpoint, now: float) -> tuple[float, ...]:
    """When each replica that costs something has started; the earliest that is possible."""
    changed = _unix(endpoint.updated_at)
    fallback = now if changed is None else changed
    try:
        replicas = plane.replicas(endpoint.full_name)
    except ControlPlaneError:
        replicas = ()
    live = [status for one in replicas if not (status := _status(one)).get("stoppedAt")]
    times = [_unix(status.get("startedAt")) for status in live]
    found = [fallback if at is None else at for at in times]
    # Fewer are listed than there are to be: the others may have been there all the time.
    missing = max(endpoint.target_replica, endpoint.ready_replica, 1) - len(found)
    return (*found, *[min((fallback, *found))] * missing)


def _holders(api: str, state_dir: Path) -> dict[str, tuple[EndpointHolder, ...]]:
    """The holders that this machine's records name, by endpoint."""
    found: dict[str, dict[str, EndpointHolder]] = {}
    records = [(lease.intent, lease.intent.endpoint) for lease in unfinished(leases_dir(state_dir))]
    for record, name in records:
        if record.api.rstrip("/") == api:
            alive = process.alive(record.owner_pid, record.owner_start)
            known = alive if process.judgeable(record.place) else None
            holder = EndpointHolder(record.run, record.owner_pid, record.place.host, known)
            found.setdefault(name, {})[record.run] = holder
    for held_lease in read_held_leases(lease_store_dir(state_dir)):
        if held_lease.api.rstrip("/") == api and held_lease.in_use:
            holder = EndpointHolder(
                held_lease.run, held_lease.owner_pid, held_lease.place.host, True
            )
            found.setdefault(held_lease.endpoint, {})[held_lease.run] = holder
    return {name: tuple(sorted(by.values(), key=_order)) for name, by in found.items()}


def _order(holder: EndpointHolder) -> bool:
    return not holder.alive


def _with_tag(
    endpoint: Endpoint, holders: tuple[EndpointHolder, ...]
) -> tuple[EndpointHolder, ...]:
    tagged, until = tagged_run(endpoint.tags), tagged_until(endpoint.tags)
    if tagged is None or any(run_tag(one.run) == RUN_TAG + tagged for one in holders):
        return holders
    return (*holders, EndpointHolder(tagged, until=until))


def _status(replica: Mapping[str, Any]) -> Mapping[str, Any]:
    status = replica.get("status")
    return status if isinstance(status, Mapping) else {}


def _unix(value: object) -> float | None:
    parsed = uptime.parse_time(value)
    return None if parsed is None else parsed.timestamp()


def _hardware(plane: ControlPlane) -> Mapping[str, Any]:
    try:
        return plane.hardware()
    except ControlPlaneError:
        return {}
