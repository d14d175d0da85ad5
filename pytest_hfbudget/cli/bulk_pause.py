"""Pausing by hand: many at once, and nothing under a run that lives."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import click

from pytest_hfbudget.cli.holders import EndpointUser, Records
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.reaper_messages import Watch
from pytest_hfbudget.endpoints.release import Pauser
from pytest_hfbudget.endpoints.retry import Timings
from pytest_hfbudget.endpoints.sweep import StrayEndpoint, SweepOutcome, sweep
from pytest_hfbudget.endpoints.types import GONE

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
