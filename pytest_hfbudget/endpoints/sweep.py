"""Pausing what runs have left running when neither they nor their reapers could.

Two trails lead there: the journals of this machine, and the tags on the server, which any
machine can follow. Neither is believed over a run that lives.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_hfbudget.endpoints import GONE, Endpoint, process, tagged_run, tagged_until
from pytest_hfbudget.endpoints import PAUSED as RESTING
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import (
    LEFT,
    PAUSED,
    Journal,
    Lease,
    Record,
    leases_dir,
    unfinished,
)
from pytest_hfbudget.endpoints.lease_store import HeldLease, LeaseStore, inherited, lease_store_dir
from pytest_hfbudget.endpoints.reaper_messages import SWEPT, Receipt, Watch
from pytest_hfbudget.endpoints.release import Pauser, Releaser
from pytest_hfbudget.endpoints.retry import FORGET_S, SWEEP_S, Timings
from pytest_hfbudget.endpoints.shared_leases import open_lease_store, shared_leases
from pytest_hfbudget.errors import ConfigError, EndpointError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock
from pytest_hfbudget.text import public_url

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedPlace

JOURNAL = "journal"
ELSEWHERE = "elsewhere"
SHARED = "shared"
TAG = "tag"

_AT_ONCE = 8


@dataclass(frozen=True)
class StrayEndpoint:
    """An endpoint that a run may have left running.

    Attributes:
        run: the run; the first of them, if several have left it.
        why: a clause for people.
        where: `JOURNAL`, of a run that is dead for certain; `ELSEWHERE`, in the journal of a run
            that can't be judged from here; `SHARED`, over which machines share it; or `TAG`, on
            the control plane.
        leases: what the journals say of it.
    """

    name: str
    api: str
    run: str
    why: str
    where: str
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True)
class SweepOutcome:
    """What has become of a stray.

    Attributes:
        state: the last that was seen; empty when none was.
        verified: it was read back as paused, or is gone.
        error: why the pause is not verified, and what to do.
        skipped: why it was not touched, if it was not.
        beyond: there were more than might be paused at once, and this was one of the rest.
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
    """What dead runs of this machine have leased, and no reaper will pause any more.

    Args:
        api: base URL of the only control plane to look for.
        kept: also what a reaper is still at, which has not succeeded so far.
        elsewhere: also what was leased in other containers, or on other machines that use the
            same folder. Whether these runs live can't be told from here, so `sweep` leaves it
            alone until the endpoint's tag has expired.
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
            why = f"its run, in another container or machine ({host}), is over by its tag"
        if why is None or (where == ELSEWHERE and not elsewhere):
            continue
        key = (server, intent.endpoint, where)
        known = found.get(key) or StrayEndpoint(intent.endpoint, server, intent.run, why, where)
        found[key] = replace(known, leases=(*known.leases, lease))
    return tuple(found.values())


def find_tagged(plane: ControlPlane, namespace: str, now: float) -> tuple[StrayEndpoint, ...]:
    """What carries the tag of a run, of any machine, whose latest end is over.

    Args:
        now: unix seconds.

    Raises:
        ControlPlaneError: the namespace can't be listed.
    """
    return tuple(
        StrayEndpoint(one.full_name, plane.base_url, tagged_run(one.tags) or "", _over(one), TAG)
        for one in plane.list(namespace)
        if one.state != RESTING and _is_over(one, now)
    )


def find_shared(place: SharedPlace, *, api: str, state_dir: Path) -> tuple[StrayEndpoint, ...]:
    """What jobs of any machine have leased over a server, and none that lives has.

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
        most: how many endpoints may be paused at the most; the rest is skipped.
        dry_run: whether to look at each, and touch none.
    """

    most: int | None = None
    dry_run: bool = False


def sweep(
    plane: ControlPlane,
    strays: Iterable[StrayEndpoint],
    *,
    state_dir: Path,
    extent: SweepExtent = SweepExtent(),
    shared: SharedPlace | None = None,
    timings: Timings = Timings(deadline_s=SWEEP_S),
) -> tuple[SweepOutcome, ...]:
    """Pause strays and verify it; what any run of this machine uses is never touched.

    Args:
        extent: how far it may go.
        shared: the server over which machines share the endpoints; None for none.
    """
    chosen: dict[tuple[str, str], StrayEndpoint] = {}
    # The journal knows more than a tag does.
    for stray in sorted(strays, key=lambda one: (JOURNAL, ELSEWHERE, SHARED, TAG).index(one.where)):
        chosen.setdefault((stray.api, stray.name), stray)
    sweeper = _Sweeper(plane, state_dir, timings, shared)
    with ThreadPoolExecutor(_AT_ONCE, "hfbudget-sweep") as pool:
        looks = list(pool.map(sweeper.look, chosen.values()))
        looks = _limited(looks, extent.most)
        return tuple(looks if extent.dry_run else pool.map(sweeper.pause, chosen.values(), looks))


class _Sweeper:
    """Works on one stray at a time, in several threads."""

    def __init__(
        self,
        plane: ControlPlane,
        state_dir: Path,
        timings: Timings,
        shared: SharedPlace | None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._plane, self._state_dir, self._shared = plane, state_dir, shared
        self._timings, self._clock = timings, clock
        self._run = f"sweep-{uuid.uuid4().hex[:12]}"

    def look(self, stray: StrayEndpoint) -> SweepOutcome:
        """Whether it may be paused, as things are now."""
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
        # It may have been leased anew since it was listed.
        if stray.where == TAG and not _is_over(found, self._clock.time()):
            return replace(plain, state=found.state, skipped="its lease was renewed")
        return replace(plain, state=found.state, skipped=self._doubt(stray, found))

    def pause(self, stray: StrayEndpoint, look: SweepOutcome) -> SweepOutcome:
        """Pause it, unless ``look`` has found a reason not to, and close what was left open."""
        if look.skipped:
            return look
        lease_store = self._lease_store(stray)
        for held_lease in lease_store.others():
            held_lease.end_stopped_reaper()
        watch = Watch(stray.name, self._scaling(stray, lease_store), untag=True)
        pauser = Pauser(self._plane, watch, self._timings, settled=True, clock=self._clock)
        releaser = Releaser(lease_store, self._new_lease(stray), pauser, clock=self._clock)
        receipt = releaser.run(lambda told: self._record(stray, told), reason=SWEPT)
        if receipt.left_to:
            return replace(look, skipped=f"run {receipt.left_to} has come to use it")
        return replace(
            look,
            state=receipt.state,
            verified=receipt.verified,
            error=receipt.error,
            warnings=receipt.warnings,
        )

    def _doubt(self, stray: StrayEndpoint, found: Endpoint) -> str | None:
        """Why it is not touched although no run that lives here uses it."""
        now = self._clock.time()
        users: list[HeldLease | Record] = [
            one for one in self._lease_store(stray).others() if one.elsewhere
        ]
        if stray.where == ELSEWHERE:
            users += [lease.intent for lease in stray.leases]
        if not users or _is_over(found, now):
            return None
        last = max(users, key=lambda one: one.at)
        if found.state == RESTING:
            forgotten = stray.where == JOURNAL or last.at < now - FORGET_S
            return None if forgotten else "it is paused"
        until = tagged_until(found.tags)
        ends = f"It has until {_clock(until)}" if until else "No tag tells when it is over"
        return (
            f"run {last.run} (process {last.owner_pid} on {last.place.host}) is in another "
            f"container or on another machine, and can't be judged from here. {ends}; "
            f"if it is dead: hfbudget pause --force {stray.name}"
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
            return None  # pausing comes first, and will say what is wrong
        return None if scaling is None else dict(scaling)

    def _lease_store(self, stray: StrayEndpoint) -> LeaseStore:
        folder = lease_store_dir(self._state_dir)
        return open_lease_store(
            folder, api=stray.api, endpoint=stray.name, run=self._run, shared=self._shared
        )

    def _new_lease(self, stray: StrayEndpoint) -> HeldLease:
        pid, start = os.getpid(), process.start_time(os.getpid())
        at = self._clock.time()
        return HeldLease(self._run, stray.name, stray.api, pid, start, pid, start, at)

    def _record(self, stray: StrayEndpoint, receipt: Receipt) -> None:
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
                return  # it is paused all the same; the next sweep will find that out


def adopt(stray: StrayEndpoint, run: str, state_dir: Path, *, at: float) -> None:
    """Close the account of dead runs whose endpoint a live one has come to use, and will pause."""
    for lease in stray.leases:
        line = replace(lease.intent, kind=LEFT, at=at, left_to=run, scaling=None)
        with suppress(EndpointError):  # then a sweep will find it paused, and close it
            Journal.of(line.run, leases_dir(state_dir)).write(line)


def _limited(looks: Sequence[SweepOutcome], most: int | None) -> list[SweepOutcome]:
    limited, taken = [], 0
    for look in looks:
        beyond = most is not None and not look.skipped and taken >= most
        taken += not look.skipped
        why = f"beyond the limit of {most}"
        limited.append(replace(look, skipped=why, beyond=True) if beyond else look)
    return limited


def _left_behind(lease: Lease, state_dir: Path, kept: bool) -> str | None:
    """Why a lease has no live run any more, as a clause; None while a process looks after it."""
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
        f"{dead}, and its reaper (process {reaper}) is still at it"
        if reaper
        else f"{dead}, and its reaper too"
    )


def _is_over(endpoint: Endpoint, now: float) -> bool:
    until = tagged_until(endpoint.tags)
    return tagged_run(endpoint.tags) is not None and until is not None and until < now


def _over(endpoint: Endpoint) -> str:
    return f"its run was to be over by {_clock(tagged_until(endpoint.tags) or 0)}"


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"
