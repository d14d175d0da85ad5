"""`hfbudget pause`: by name, what this machine leases, or all of a namespace."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from pytest_hfbudget.cli import access, output
from pytest_hfbudget.errors import HFBudgetError

if TYPE_CHECKING:
    from pytest_hfbudget.cli.bulk_pause import Records


@click.command("pause")
@click.argument("names", nargs=-1, metavar="[NAMESPACE/NAME]…")
@click.option("--leased", is_flag=True, help="Whatever runs of this machine hold a lease on.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="All endpoints of the namespaces named, or of the default one; asks before.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also those that another run is using.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipts as JSON.")
def command(
    names: tuple[str, ...], leased: bool, every: bool, yes: bool, force: bool, as_json: bool
) -> None:
    """Pause endpoints, all at once, and read each pause back.

    What a live run has leased is left alone, and that run is named, unless --force is given. The
    token comes from HF_TOKEN, or from `hf auth login`.

    Exit codes: 0 every pause is verified, or there was nothing to pause; 1 at least one is not
    verified or was left alone, or the question was answered with no; 2 wrong usage.
    """
    from pytest_hfbudget.cli.bulk_pause import BulkPauser, Records, print_outcomes

    records = Records.read(access.api())
    wanted = _wanted(names, leased, every, records)
    if every and wanted and not yes:
        _ask(wanted)
    outcomes = BulkPauser(access.plane(), records, force=force).pause(wanted) if wanted else ()
    if as_json:
        output.print_json({"endpoints": [vars(outcome) for outcome in outcomes]})
    elif not outcomes:
        click.echo("nothing to pause")
    else:
        print_outcomes(outcomes)
    sys.exit(0 if all(outcome.verified for outcome in outcomes) else 1)


def _wanted(names: tuple[str, ...], leased: bool, every: bool, records: Records) -> tuple[str, ...]:
    """Full names of what is to be paused."""
    if leased + every + bool(names and not every) != 1:
        raise click.UsageError("name endpoints, or give --leased, or --all: one of the three.")
    if leased:
        return tuple({**records.users, **records.strays})
    if every:
        spaces = [access.namespace(name) for name in names or (None,)]
        return tuple(name for space in spaces for name in _awake(space))
    return tuple(dict.fromkeys(map(access.endpoint_name, names)))


def _awake(namespace: str) -> Iterable[str]:
    from pytest_hfbudget.endpoints.types import PAUSED

    try:
        endpoints = access.plane().list(namespace)
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
