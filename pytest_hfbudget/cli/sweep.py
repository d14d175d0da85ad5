"""`hfbudget sweep`: pausing what dead runs have left running."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from pytest_hfbudget.cli import access, output
from pytest_hfbudget.cli.pause import print_outcomes
from pytest_hfbudget.endpoints.journal import default_state_dir
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
    from pytest_hfbudget.shared import SharedPlace

TOO_MANY = 3


@click.command("sweep")
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]…")
@click.option("--dry-run", is_flag=True, help="Only say what would be paused.")
@click.option(
    "--max",
    "most",
    type=click.IntRange(min=0),
    metavar="N",
    help="Pause at most N; what is above it is left as it is, for a person to look at.",
)
@click.option(
    "--shared",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[URL]",
    help="Also what lost jobs of any machine have left that shared it over this server.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
def command(
    namespaces: tuple[str, ...],
    dry_run: bool,
    most: int | None,
    shared: str | None,
    as_json: bool,
) -> None:
    """Pause what dead runs have left: those of this machine, and of any machine by their tags.

    This machine's journals tell which runs have died with a lease. For each NAMESPACE, endpoints
    that carry the tag of a run whose time is over are paused too. An endpoint without a journal or
    a tag is never touched, nor is one that a live run has leased. With HFBUDGET_SHARED or
    --shared, those that a job of another machine has leased over that server are not, either.

    Exit codes: 0 nothing is left, or all of it is paused (with --dry-run: would be); 1 at least
    one pause is not verified, or a list could not be read; 2 wrong usage; 3 there were more than
    --max, and those above it were not touched.
    """
    place = access.shared(shared)
    strays, unread = _find(tuple(access.namespace(name) for name in namespaces), place)
    swept: tuple[SweepOutcome, ...] = ()
    if strays:
        folder = default_state_dir()
        extent = SweepExtent(most, dry_run)
        swept = sweep(access.plane(), strays, state_dir=folder, extent=extent, shared=place)
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
    namespaces: tuple[str, ...], place: SharedPlace | None
) -> tuple[tuple[StrayEndpoint, ...], list[str]]:
    """What there is to sweep, and which lists could not be read: that stops nothing else."""
    folder, api = default_state_dir(), access.api()
    found, unread = [*find_local(folder, api=api, kept=True, elsewhere=True)], []
    for name in namespaces:
        try:
            found += find_tagged(access.plane(), name, time.time())
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
            click.echo(f"{one.name}: not touched, {one.skipped} (run {one.run})", err=True)
        elif dry_run:
            click.echo(f"{one.name}: would be paused, {one.why} (run {one.run})")
        else:
            print_outcomes([one])
