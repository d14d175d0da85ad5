"""`hfbudget run`: any command with endpoints that are paused however it ends."""

from __future__ import annotations

import math
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.cli import access, output
from pytest_hfbudget.money import show, usd_text
from pytest_hfbudget.reporting.model import endpoint_verdict

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints.lifecycle import Lifecycle
    from pytest_hfbudget.endpoints.lifecycle_types import EndpointReceipt
    from pytest_hfbudget.endpoints.run_command import CommandOutcome

_CTRL_C = 128 + signal.SIGINT


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAMESPACE/NAME",
    help="To be resumed before and paused after; repeatable. Default: HFBUDGET_ENDPOINTS.",
)
@click.option(
    "--max-uptime",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MIN",
    help="Pause after so many minutes, even if the command still runs. "
    "Default: HFBUDGET_MAX_UPTIME.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the receipts as JSON to FILE.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    endpoints: tuple[str, ...],
    max_uptime: float | None,
    json_file: Path | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with its endpoints up, and have them paused however it ends.

    The endpoints are resumed first. Signals are passed on to the command; should this process be
    killed, its reaper pauses. Receipts go to standard error.

    Exit codes: that of the command, 128 + N if signal N ended it; 1 instead of 0 if a pause is
    not verified; 1 if an endpoint could not be brought up; 2 wrong usage; 127 no such command,
    and nothing was resumed.
    """
    names = _names(endpoints)
    most_s = access.settings().max_uptime if max_uptime is None else max_uptime * 60
    outcome = _errand(names, command, most_s)
    _show(outcome)
    if json_file is not None:
        content = {
            "exit_code": outcome.exit_code,
            "error": outcome.error,
            "endpoints": [_as_dict(one) for one in outcome.receipts],
        }
        json_file.write_text(output.as_json(content) + "\n", encoding="utf-8")
    sys.exit(outcome.exit_code if outcome.exit_code or outcome.in_order else 1)


def _errand(
    names: tuple[str, ...], command: tuple[str, ...], most_s: float | None
) -> CommandOutcome:
    from pytest_hfbudget.endpoints.run_command import CommandOutcome, run_command

    lifecycle = _lifecycle(most_s)
    try:
        return run_command(lifecycle, names, command, max_uptime_s=most_s)
    except KeyboardInterrupt:
        return CommandOutcome(
            _CTRL_C, lifecycle.finish(), "ended by Ctrl-C before the command was."
        )


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    names = given or access.settings().endpoints
    if not names:
        raise click.UsageError("which endpoint? Give --endpoint NAMESPACE/NAME.")
    return tuple(dict.fromkeys(map(access.endpoint_name, names)))


def _lifecycle(most_s: float | None) -> Lifecycle:
    from pytest_hfbudget.endpoints.lifecycle import Lifecycle
    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
    from pytest_hfbudget.endpoints.retry import RunTimings, Timings

    given = access.services()
    settings = EndpointSettings(
        api=given.endpoints_api,
        token=access.token(),
        run=uuid.uuid4().hex[:12],
        idle_timeout_min=given.idle_timeout,
        billing_minute_s=given.billing_minute,
        waits=RunTimings(wait_timeout_s=min(given.endpoint_wait, most_s or math.inf)),
        timings=Timings(looks_s=() if given.emulator else given.endpoint_looks),
    )
    return Lifecycle(settings, progress=_progress)


def _progress(name: str, state: str, seconds: float) -> None:
    click.echo(f"{name}: {state}, {seconds:.0f} s", err=True)


def _show(outcome: CommandOutcome) -> None:
    if outcome.error:
        click.echo(outcome.error, err=True)
    for receipt in outcome.receipts:
        cost = f"{receipt.cost.minutes} min, {show(receipt.cost.nano_usd)}"
        click.echo(f"{receipt.name}: {_verdict(receipt)}; {cost}", err=True)
        for note in filter(None, (receipt.error, *receipt.warnings)):
            click.echo(f"  {note}", err=True)


def _verdict(receipt: EndpointReceipt) -> str:
    if receipt.verified and receipt.reason == "deadline":
        return "paused by --max-uptime, verified"
    return endpoint_verdict(receipt.state, receipt.verified, receipt.left_to, receipt.kept)


def _as_dict(receipt: EndpointReceipt) -> dict[str, Any]:
    return {
        "name": receipt.name,
        "state": receipt.state,
        "resumed": receipt.resumed,
        "resumed_at": output.moment(receipt.resumed_at),
        "paused_at": output.moment(receipt.paused_at),
        "verified": receipt.verified,
        "left_to": receipt.left_to,
        "reason": receipt.reason,
        "minutes": receipt.cost.minutes,
        "usd": usd_text(receipt.cost.nano_usd),
        "error": receipt.error,
        "warnings": list(receipt.warnings),
    }
