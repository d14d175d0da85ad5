"""Pausing by hand: many at once, and nothing under a run that lives."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click

from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_held_leases
from pytest_hfbudget.endpoints.reaper_messages import Watch
from pytest_hfbudget.endpoints.release import Pauser
from pytest_hfbudget.endpoints.retry import Timings
from pytest_hfbudget.endpoints.sweep import StrayEndpoint, SweepOutcome, find_local, sweep
from pytest_hfbudget.endpoints.types import GONE, tagged_run, tagged_until

PAUSE_S = 120.0
_AT_ONCE = 16
# A person waits and is told what was answered; no lease is closed by it.
_DOUBT_S = 3.0


@dataclass(frozen=True)
class PauseOutcome:
    """What has become of one endpoint; ``error`` also tells why it was left alone."""

    name: str
    state: str
    verified: bool
    error: str | None
    warnings: tuple[str, ...] = ()


class BulkPauser:
    """Pauses endpoints and reads it back."""

    def __init__(self, plane: ControlPlane, records: Records, *, force: bool) -> None:
        self._plane, self._records, self._force = plane, records, force
        self._timings = Timings(deadline_s=PAUSE_S)

    def pause(self, names: Iterable[str]) -> tuple[PauseOutcome, ...]:
        """All at once."""
        with ThreadPoolExecutor(_AT_ONCE, "hfbudget-pause") as pool:
            return tuple(pool.map(self._one, names))

    def _one(self, name: str) -> PauseOutcome:
        user = None if self._force else self._records.user(self._plane, name)
        if user is not None:
            return PauseOutcome(name, "", False, _in_use(name, user))
        stray = self._records.strays.get(name)
        return self._plain(name) if stray is None else self._left(stray)

    def _plain(self, name: str) -> PauseOutcome:
        timings = replace(self._timings, doubt_s=_DOUBT_S)
        pauser = Pauser(self._plane, Watch(name), timings, settled=True)
        receipt = pauser.run(lambda _: None)  # a pause by hand belongs to no run's journal
        if receipt.state == GONE:
            return PauseOutcome(name, GONE, False, _unknown(name))
        return PauseOutcome(name, receipt.state, receipt.verified, receipt.error, receipt.warnings)

    def _left(self, stray: StrayEndpoint) -> PauseOutcome:
        """What a dead run has changed is put back, and its lease closed."""
        folder = default_state_dir()
        (swept,) = sweep(self._plane, [stray], state_dir=folder, timings=self._timings)
        if swept.skipped is not None and self._force:
            return self._plain(stray.name)
        error = swept.error or swept.skipped
        return PauseOutcome(stray.name, swept.state, swept.verified, error, swept.warnings)


def _unknown(name: str) -> str:
    namespace = name.partition("/")[0]
    return f'there is no endpoint "{name}"; `hfbudget status {namespace}` lists yours.'


def _in_use(name: str, user: EndpointUser) -> str:
    return (
        f"{name}: run {user.run} ({user.who}) is using it, so it was left alone; "
        f"to pause it all the same: hfbudget pause --force {name}"
    )


def print_outcomes(outcomes: Iterable[PauseOutcome | SweepOutcome]) -> None:
    """How pauses ended, for people: what went wrong is for standard error."""
    for one in outcomes:
        if one.verified:
            click.echo(f"{one.name}: {one.state}, verified")
        else:
            click.echo(one.error or f"{one.name}: not verified as paused", err=True)
        for warning in one.warnings:
            click.echo(warning, err=True)


@dataclass(frozen=True)
class EndpointUser:
    """A run that has an endpoint in use; ``who`` is a clause for people."""

    run: str
    who: str


@dataclass(frozen=True)
class Records:
    """What this machine knows at one time.

    Attributes:
        users: by endpoint, the live run that uses it.
        strays: by endpoint, what a dead run has left.
    """

    users: dict[str, EndpointUser]
    strays: dict[str, StrayEndpoint]

    @classmethod
    def read(cls, api: str, state_dir: Path | None = None) -> Records:
        """As of now, for one control plane."""
        folder = state_dir or default_state_dir()
        leases = [
            one
            for one in read_held_leases(lease_store_dir(folder))
            if one.api.rstrip("/") == api and one.in_use
        ]
        users = {one.endpoint: EndpointUser(one.run, f"process {one.owner_pid}") for one in leases}
        strays = find_local(folder, api=api, kept=True)
        return cls(users, {stray.name: stray for stray in strays})

    def user(self, plane: ControlPlane, name: str) -> EndpointUser | None:
        """The run that uses an endpoint, on this machine or, as far as tags tell, on another."""
        if name in self.users or name in self.strays:
            return self.users.get(name)
        try:
            marks = plane.get(name).tags
        except ControlPlaneError:
            return None  # the attempt to pause it will tell what is wrong
        run, until = tagged_run(marks), tagged_until(marks)
        if run is None or until is None or until < time.time():
            return None
        return EndpointUser(run, f"not of this machine, until {output.clock_time(until)}")
