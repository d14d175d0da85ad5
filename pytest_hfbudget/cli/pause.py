"""`hfbudget pause` pauses endpoints by name; `hfbudget sweep` pauses those of dead runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints import GONE, PAUSED, tagged_run, tagged_until
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.lease_end import Pauser
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_leases
from pytest_hfbudget.endpoints.reaper_messages import BeginLease
from pytest_hfbudget.endpoints.retry import Timings
from pytest_hfbudget.endpoints.sweep import (
    StrayEndpoint,
    SweepExtent,
    SweepOutcome,
    find_local,
    find_shared,
    find_tagged,
    sweep,
)
from pytest_hfbudget.errors import HFBudgetError

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedConnection


PAUSE_S = 120.0
_AT_ONCE = 16
# `Timings.doubt_s` for a pause by hand: short, because a person waits, and no lease is closed.
_DOUBT_S = 3.0


@click.command("pause")
@click.argument("names", nargs=-1, metavar="[NAMESPACE/NAME]…")
@click.option("--leased", is_flag=True, help="All endpoints that runs of this machine have leased.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="All endpoints of the given namespaces, or of the default one. It asks first.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Pause endpoints that a run is using, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
def command(
    names: tuple[str, ...], leased: bool, every: bool, yes: bool, force: bool, as_json: bool
) -> None:
    """Pause endpoints, and read each pause back.

    An endpoint that a live run has leased is left to that run, unless --force is given. The token
    comes from HF_TOKEN, or from `hf auth login`.

    Exit codes: 0 every pause is verified, or there was nothing to pause; 1 a pause is not verified,
    an endpoint was left to a live run, or the answer to the question was no; 2 wrong usage.
    """

    records = Records.read(cli.api())
    wanted = _wanted(names, leased, every, records)
    if every and wanted and not yes:
        _ask(wanted)
    outcomes = BulkPauser(cli.plane(), records, force=force).pause(wanted) if wanted else ()
    if as_json:
        output.print_json({"endpoints": [vars(outcome) for outcome in outcomes]})
    elif not outcomes:
        click.echo("nothing to pause")
    else:
        print_outcomes(outcomes)
    sys.exit(0 if all(outcome.verified for outcome in outcomes) else 1)


def _wanted(names: tuple[str, ...], leased: bool, every: bool, records: Records) -> tuple[str, ...]:
    """The full names of the endpoints to pause."""
    if leased + every + bool(names and not every) != 1:
        raise click.UsageError("name endpoints, or give --leased, or --all: one of the three.")
    if leased:
        return tuple({**records.users, **records.strays})
    if every:
        spaces = [cli.namespace(name) for name in names or (None,)]
        return tuple(name for space in spaces for name in _awake(space))
    return tuple(dict.fromkeys(map(cli.endpoint_name, names)))


def _awake(namespace: str) -> Iterable[str]:
    try:
        endpoints = cli.plane().list(namespace)
    except HFBudgetError as error:
        raise click.ClickException(str(error)) from None
    return (one.full_name for one in endpoints if one.state != PAUSED)


def _ask(wanted: tuple[str, ...]) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(
            "--all asks before it pauses, and there is no terminal to ask on: add --yes."
        )
    for name in wanted:
        click.echo(f"  {name}", err=True)
    click.confirm(f"Pause these {len(wanted)}?", abort=True, err=True)


@dataclass(frozen=True)
class PauseOutcome:
    """The result for one endpoint; ``error`` also says why an endpoint was skipped."""

    name: str
    state: str
    verified: bool
    error: str | None
    warnings: tuple[str, ...] = ()


class BulkPauser:
    """Pauses endpoints and verifies the pauses."""

    def __init__(self, plane: ControlPlane, records: Records, *, force: bool) -> None:
        self._plane, self._records, self._force = plane, records, force
        self._timings = Timings(deadline_s=PAUSE_S)

    def pause(self, names: Iterable[str]) -> tuple[PauseOutcome, ...]:
        """Pause all these endpoints at the same time; results in the order of the names."""
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
        pauser = Pauser(self._plane, BeginLease(name), timings, resume_over=True)
        receipt = pauser.run(lambda _: None)  # a pause by hand belongs to no run's journal
        if receipt.state == GONE:
            return PauseOutcome(name, GONE, False, _unknown(name))
        return PauseOutcome(name, receipt.state, receipt.verified, receipt.error, receipt.warnings)

    def _left(self, stray: StrayEndpoint) -> PauseOutcome:
        """Pause an endpoint of a dead run, restore its settings, and close the run's lease."""
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
    """Print the results: verified pauses to standard output, everything else to standard error."""
    for one in outcomes:
        if one.verified:
            click.echo(f"{one.name}: {one.state}, verified")
        else:
            click.echo(one.error or f"{one.name}: not verified as paused", err=True)
        for warning in one.warnings:
            click.echo(warning, err=True)


@dataclass(frozen=True)
class EndpointUser:
    """A run that uses an endpoint; ``who`` describes its process, for messages."""

    run: str
    who: str


@dataclass(frozen=True)
class Records:
    """What the leases and journals of this machine say, read once.

    Attributes:
        users: the live run that uses an endpoint, by endpoint.
        strays: the endpoints that dead runs have left, by name.
    """

    users: dict[str, EndpointUser]
    strays: dict[str, StrayEndpoint]

    @classmethod
    def read(cls, api: str, state_dir: Path | None = None) -> Records:
        """Read the records of one control plane, as of now."""
        folder = state_dir or default_state_dir()
        leases = [
            one
            for one in read_leases(lease_store_dir(folder))
            if one.api.rstrip("/") == api and one.in_use
        ]
        users = {one.endpoint: EndpointUser(one.run, f"process {one.owner_pid}") for one in leases}
        strays = find_local(folder, api=api, kept=True)
        return cls(users, {stray.name: stray for stray in strays})

    def user(self, plane: ControlPlane, name: str) -> EndpointUser | None:
        """The run that uses an endpoint: by the records of this machine, else by its tags."""
        if name in self.users or name in self.strays:
            return self.users.get(name)
        try:
            marks = plane.get(name).tags
        except ControlPlaneError:
            return None  # the pause comes next, and will report the error
        run, until = tagged_run(marks), tagged_until(marks)
        if run is None or until is None or until < time.time():
            return None
        return EndpointUser(run, f"not of this machine, until {output.clock_time(until)}")


# --- hfbudget sweep

# Exit code if there are more endpoints than --max.
TOO_MANY = 3


@click.command("sweep")
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]…")
@click.option("--dry-run", is_flag=True, help="Only say what would be paused.")
@click.option(
    "--max",
    "most",
    type=click.IntRange(min=0),
    metavar="N",
    help="Pause at most N endpoints, and leave the others for a person to look at.",
)
@cli.shared_option(
    "Also pause what lost jobs have left running, on any machine that shares this Redis server. "
    "URL defaults to HFBUDGET_SHARED."
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
def sweep_command(
    namespaces: tuple[str, ...],
    dry_run: bool,
    most: int | None,
    shared: str | None,
    as_json: bool,
) -> None:
    """Pause what dead runs have left running.

    The journals of this machine say which runs have died with a lease. In each NAMESPACE the sweep
    also pauses the endpoints with the tag of a run whose time is over, whichever machine it ran on.
    It never touches an endpoint that has neither a journal nor a tag, and none that a live run has
    leased. With HFBUDGET_SHARED or --shared it also knows the leases of jobs on other machines.

    Exit codes: 0 nothing is left, or all of it is paused (with --dry-run: would be); 1 a pause is
    not verified, or a list could not be read; 2 wrong usage; 3 more than --max were found.
    """
    place = cli.shared(shared)
    strays, unread = _find(tuple(cli.namespace(name) for name in namespaces), place)
    swept: tuple[SweepOutcome, ...] = ()
    if strays:
        folder = default_state_dir()
        extent = SweepExtent(most, dry_run)
        swept = sweep(cli.plane(), strays, state_dir=folder, extent=extent, shared=place)
    if as_json:
        told = {"endpoints": [vars(one) for one in swept], "unread": unread}
        output.print_json({"dry_run": dry_run, **told})
    else:
        _show(swept, dry_run)
    for problem in unread:
        click.echo(f"Error: {problem}", err=True)
    sys.exit(_exit_code(swept, dry_run) or int(bool(unread)))


def _exit_code(swept: tuple[SweepOutcome, ...], dry_run: bool) -> int:
    if any(one.beyond for one in swept):
        return TOO_MANY
    return int(not dry_run and not all(one.verified or one.skipped for one in swept))


def _find(
    namespaces: tuple[str, ...], place: SharedConnection | None
) -> tuple[tuple[StrayEndpoint, ...], list[str]]:
    """The endpoints to sweep, and errors of lists that could not be read.

    An unreadable list does not stop the sweep of the others.
    """
    folder, api = default_state_dir(), cli.api()
    found, unread = [*find_local(folder, api=api, kept=True, elsewhere=True)], []
    for name in namespaces:
        try:
            found += find_tagged(cli.plane(), name, time.time())
        except HFBudgetError as error:
            unread.append(str(error))
    if place is not None:
        try:
            found += find_shared(place, api=api, state_dir=folder)
        except HFBudgetError as error:
            unread.append(str(error))
    return tuple(found), unread


def _show(swept: tuple[SweepOutcome, ...], dry_run: bool) -> None:
    if not swept:
        click.echo("dead runs have left nothing to pause")
    for one in swept:
        if one.skipped:
            click.echo(f"{one.name}: not touched (run {one.run}): {one.skipped}", err=True)
        elif dry_run:
            click.echo(f"{one.name}: would be paused, {one.why} (run {one.run})")
        else:
            print_outcomes([one])
