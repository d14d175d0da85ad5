"""Pauses endpoints that dead runs have left running, and their reapers could not pause.

It finds them in the journals of this machine, in the tags on the control plane, which any machine
can read, and on the Redis server of ``--hf-shared``. It never touches what a live run uses.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_hfbudget.endpoints import GONE, Endpoint, process, tagged_run, tagged_until
from pytest_hfbudget.endpoints import PAUSED as STATE_PAUSED
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import (
    LEFT,
    PAUSED,
    Journal,
    JournaledLease,
    Record,
    leases_dir,
    unfinished,
)
from pytest_hfbudget.endpoints.lease_end import LeaseEnd, Pauser
from pytest_hfbudget.endpoints.lease_store import (
    EndpointLease,
    LeaseStore,
    inherited,
    lease_store_dir,
)
from pytest_hfbudget.endpoints.reaper_messages import SWEPT, BeginLease, PauseReceipt
from pytest_hfbudget.endpoints.retry import FORGET_S, SWEEP_S, Timings
from pytest_hfbudget.endpoints.shared_leases import open_lease_store, shared_leases
from pytest_hfbudget.errors import ConfigError, EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock
from pytest_hfbudget.text import public_url

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedConnection

JOURNAL = "journal"
ELSEWHERE = "elsewhere"
SHARED = "shared"
TAG = "tag"

_AT_ONCE = 8


@dataclass(frozen=True)
class StrayEndpoint:
    """An endpoint that a run may have left running.

    Attributes:
        run: the id of the run; of the first one, if several have left it.
        why: why it counts as left, as a clause for messages.
        where: where it was found. `JOURNAL`: in the journal of a run that is dead for certain.
            `ELSEWHERE`: in the journal of a run that can't be looked for from here. `SHARED`: on
            the Redis server. `TAG`: in the tags on the control plane.
        leases: its leases in the journals.
    """

    name: str
    api: str
    run: str
    why: str
    where: str
    leases: tuple[JournaledLease, ...] = ()


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has done about a stray endpoint.

    Attributes:
        state: the last state that was read; empty if none was.
        verified: the server says that it is paused or deleted.
        error: why the pause is not verified, and what to do.
        skipped: why it was not touched; None if it was.
        beyond: it was skipped because the sweep may not pause more (`SweepExtent.most`).
    """

    name: str
    run: str
    why: str
    where: str
    state: str = ""
    verified: bool = False
    error: str | None = None
    skipped: str | None = None
    beyond: bool = False
    warnings: tuple[str, ...] = ()


def find_local(
    state_dir: Path, *, api: str | None = None, kept: bool = False, elsewhere: bool = False
) -> tuple[StrayEndpoint, ...]:
    """The endpoints in this machine's journals that dead runs have leased and no reaper pauses.

    Args:
        api: base URL of a control plane, to get only its endpoints.
        kept: whether to include endpoints whose reaper still tries to pause them.
        elsewhere: whether to include runs in other containers, or on other machines that use the
            same folder. If such a run lives can't be found out from here. So `sweep` skips its
            endpoints until their tag has expired.
    """
    found: dict[tuple[str, str, str], StrayEndpoint] = {}
    for lease in unfinished(leases_dir(state_dir)):
        intent, server = lease.intent, lease.intent.api.rstrip("/")
        if api is not None and api.rstrip("/") != server:
            continue
        where = JOURNAL if process.judgeable(intent.place) else ELSEWHERE
        if where == JOURNAL:
            why = _left_behind(lease, state_dir, kept)
        else:
            host = intent.place.host
            why = (
                f"its run, in another container or on another machine ({host}), is over by its tag"
            )
        if why is None or (where == ELSEWHERE and not elsewhere):
            continue
        key = (server, intent.endpoint, where)
        known = found.get(key) or StrayEndpoint(intent.endpoint, server, intent.run, why, where)
        found[key] = replace(known, leases=(*known.leases, lease))
    return tuple(found.values())


def find_tagged(plane: ControlPlane, namespace: str, now: float) -> tuple[StrayEndpoint, ...]:
    """The endpoints whose tags name a run, of any machine, and a latest end that is over.

    Args:
        now: unix seconds.

    Raises:
        ControlPlaneError: the namespace can't be listed.
    """
    return tuple(
        StrayEndpoint(one.full_name, plane.base_url, tagged_run(one.tags) or "", _over(one), TAG)
        for one in plane.list(namespace)
        if one.state != STATE_PAUSED and _is_over(one, now)
    )


def find_shared(place: SharedConnection, *, api: str, state_dir: Path) -> tuple[StrayEndpoint, ...]:
    """The endpoints that jobs of any machine have leased on a Redis server, if none is alive.

    Raises:
        HistoryError: the server can't be asked.
    """
    found = []
    for name, leases in shared_leases(place, api=api, state_dir=state_dir).items():
        if leases and not any(lease.live for lease in leases):
            last = max(leases, key=lambda lease: -lease.age_s)
            why = f"nothing was heard of its job on {last.host} for {last.age_s:.0f} s"
            found.append(StrayEndpoint(name, api.rstrip("/"), last.run, why, SHARED))
    return tuple(found)


class SweepExtent(NamedTuple):
    """How far a sweep may go.

    Attributes:
        most: the most endpoints to pause; the rest is skipped. None for all.
        dry_run: whether to look at each endpoint and pause none.
    """

    most: int | None = None
    dry_run: bool = False


def sweep(
    plane: ControlPlane,
    strays: Iterable[StrayEndpoint],
    *,
    state_dir: Path,
    extent: SweepExtent = SweepExtent(),
    shared: SharedConnection | None = None,
    timings: Timings = Timings(deadline_s=SWEEP_S),
) -> tuple[SweepOutcome, ...]:
    """Pause stray endpoints and verify the pauses. Skips those that a live run uses.

    Args:
        shared: the Redis server over which machines share endpoints; None if they don't.
    """
    chosen: dict[tuple[str, str], StrayEndpoint] = {}
    # If an endpoint was found in several places, the journal says most about it.
    for stray in sorted(strays, key=lambda one: (JOURNAL, ELSEWHERE, SHARED, TAG).index(one.where)):
        chosen.setdefault((stray.api, stray.name), stray)
    sweeper = _Sweeper(plane, state_dir, timings, shared)
    with ThreadPoolExecutor(_AT_ONCE, "hfbudget-sweep") as pool:
        inspected = _limited(pool.map(sweeper.inspect, chosen.values()), extent.most)
        if extent.dry_run:
            return tuple(inspected)
        return tuple(pool.map(sweeper.pause, chosen.values(), inspected))


class _Sweeper:
    """Looks at and pauses stray endpoints. Safe between threads."""

    def __init__(
        self,
        plane: ControlPlane,
        state_dir: Path,
        timings: Timings,
        shared: SharedConnection | None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._plane, self._state_dir, self._shared = plane, state_dir, shared
        self._timings, self._clock = timings, clock
        self._run = f"sweep-{uuid.uuid4().hex[:12]}"

    def inspect(self, stray: StrayEndpoint) -> SweepOutcome:
        """Check whether an endpoint may be paused now; if not, `skipped` says why."""
        plain = SweepOutcome(stray.name, stray.run, stray.why, stray.where)
        if stray.api != self._plane.base_url:
            return replace(
                plain, skipped=f"it belongs to another control plane, {public_url(stray.api)}"
            )
        in_use = self._in_use(stray)
        if in_use:
            return replace(plain, skipped=in_use)
        try:
            found = self._plane.get(stray.name)
        except ControlPlaneError as error:
            return replace(plain, state=GONE if error.gone else "", error=str(error))
        except ConfigError as error:
            return replace(plain, skipped=str(error))
        # A run may have leased it since it was listed.
        if stray.where == TAG and not _is_over(found, self._clock.time()):
            return replace(plain, state=found.state, skipped="its lease was renewed")
        return replace(plain, state=found.state, skipped=self._doubt(stray, found))

    def pause(self, stray: StrayEndpoint, inspected: SweepOutcome) -> SweepOutcome:
        """Pause an endpoint and close its leases, unless ``inspected`` has a reason not to."""
        if inspected.skipped:
            return inspected
        lease_store = self._lease_store(stray)
        for held_lease in lease_store.others():
            held_lease.end_stopped_reaper()
        terms = BeginLease(stray.name, self._scaling(stray, lease_store), untag=True)
        pauser = Pauser(self._plane, terms, self._timings, resume_over=True, clock=self._clock)
        lease_end = LeaseEnd(lease_store, self._new_lease(stray), pauser, clock=self._clock)
        receipt = lease_end.run(lambda told: self._record(stray, told), reason=SWEPT)
        if receipt.left_to:
            return replace(inspected, skipped=f"run {receipt.left_to} now uses it")
        return replace(
            inspected,
            state=receipt.state,
            verified=receipt.verified,
            error=receipt.error,
            warnings=receipt.warnings,
        )

    def _doubt(self, stray: StrayEndpoint, found: Endpoint) -> str | None:
        """Why it is skipped although no live run of this machine uses it; None if it is not.

        A run that can't be looked for from here may still be alive.
        """
        now = self._clock.time()
        unknown: list[EndpointLease | Record] = [
            one for one in self._lease_store(stray).others() if one.elsewhere
        ]
        if stray.where == ELSEWHERE:
            unknown += [lease.intent for lease in stray.leases]
        if not unknown or _is_over(found, now):
            return None
        last = max(unknown, key=lambda one: one.at)
        if found.state == STATE_PAUSED:
            forgotten = stray.where == JOURNAL or last.at < now - FORGET_S
            return None if forgotten else "it is paused"
        until = tagged_until(found.tags)
        ends = f"Its tag says until {_utc(until)}" if until else "No tag says when it ends"
        return (
            f"run {last.run} (process {last.owner_pid} on {last.place.host}) is in another "
            f"container or on another machine, and can't be checked from here. {ends}. "
            f"If that run is dead: hfbudget pause --force {stray.name}"
        )

    def _in_use(self, stray: StrayEndpoint) -> str | None:
        for held_lease in self._lease_store(stray).others():
            if held_lease.in_use:
                return f"run {held_lease.run} (process {held_lease.owner_pid}) uses it"
            if held_lease.reaper_works and held_lease.run not in {
                lease.intent.run for lease in stray.leases
            }:
                return f"process {held_lease.reaper_pid} is about to pause it"
        return None

    def _scaling(self, stray: StrayEndpoint, lease_store: LeaseStore) -> dict[str, object] | None:
        known = [(held_lease.run, held_lease.scaling) for held_lease in lease_store.others()]
        known += [(lease.intent.run, lease.intent.scaling) for lease in stray.leases]
        try:
            scaling = inherited(self._plane.get(stray.name), known)
        except ControlPlaneError:
            return None  # the pause comes next, and will report the error
        return None if scaling is None else dict(scaling)

    def _lease_store(self, stray: StrayEndpoint) -> LeaseStore:
        folder = lease_store_dir(self._state_dir)
        return open_lease_store(
            folder, api=stray.api, endpoint=stray.name, run=self._run, shared=self._shared
        )

    def _new_lease(self, stray: StrayEndpoint) -> EndpointLease:
        pid, start = os.getpid(), process.start_time(os.getpid())
        at = self._clock.time()
        return EndpointLease(self._run, stray.name, stray.api, pid, start, pid, start, at)

    def _record(self, stray: StrayEndpoint, receipt: PauseReceipt) -> None:
        for lease in () if receipt.left_to else stray.leases:
            line = replace(
                lease.intent,
                kind=PAUSED,
                at=self._clock.time(),
                state=receipt.state,
                verified=receipt.verified,
                error=receipt.error,
                reason=SWEPT,
                scaling=None,
            )
            try:
                Journal.of(line.run, leases_dir(self._state_dir)).write(line)
            except EndpointError:
                return  # the pause is done; the next sweep will close the lease


def close_dead_leases(stray: StrayEndpoint, run: str, state_dir: Path, *, at: float) -> None:
    """Close the leases of dead runs in the journals, because a live run will pause the endpoint.

    Args:
        run: the live run.
        at: unix seconds.
    """
    for lease in stray.leases:
        line = replace(lease.intent, kind=LEFT, at=at, left_to=run, scaling=None)
        with suppress(EndpointError):  # then a sweep will find it paused, and close it
            Journal.of(line.run, leases_dir(state_dir)).write(line)


def _limited(inspected: Iterable[SweepOutcome], most: int | None) -> list[SweepOutcome]:
    limited, taken = [], 0
    for one in inspected:
        beyond = most is not None and not one.skipped and taken >= most
        taken += not one.skipped
        why = f"beyond the limit of {most}"
        limited.append(replace(one, skipped=why, beyond=True) if beyond else one)
    return limited


def _left_behind(lease: JournaledLease, state_dir: Path, kept: bool) -> str | None:
    """Why a lease counts as left behind, as a clause; None if its run or reaper is alive."""
    intent = lease.intent
    own = LeaseStore(
        lease_store_dir(state_dir), api=intent.api, endpoint=intent.endpoint, run=intent.run
    )
    held_lease = own.own()
    reaper = held_lease.reaper_pid if held_lease is not None and held_lease.reaper_works else None
    if reaper and not kept:
        return None
    # A pause that failed for good has ended the lease, even if the run goes on.
    if lease.paused is not None and not reaper:
        return f"its pause failed: {lease.paused.error or lease.paused.state}"
    if process.alive(intent.owner_pid, intent.owner_start):
        return None
    dead = f"its run died (process {intent.owner_pid})"
    if (
        held_lease is not None
        and held_lease.here
        and process.stopped(held_lease.reaper_pid, held_lease.reaper_start)
    ):
        return f"{dead}, and its reaper (process {held_lease.reaper_pid}) is stopped"
    return (
        f"{dead}, and its reaper (process {reaper}) is still trying to pause it"
        if reaper
        else f"{dead}, and its reaper too"
    )


def _is_over(endpoint: Endpoint, now: float) -> bool:
    until = tagged_until(endpoint.tags)
    return tagged_run(endpoint.tags) is not None and until is not None and until < now


def _over(endpoint: Endpoint) -> str:
    return f"its run was to be over by {_utc(tagged_until(endpoint.tags) or 0)}"


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"
