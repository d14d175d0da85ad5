"""`hfbudget status`: what runs in a namespace, what it costs, and whose it is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.cli import access, output
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import show, usd_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pytest_hfbudget.endpoints.overview import EndpointHolder, EndpointStanding

EVERY_S = 5.0
_LEAST_S = 0.1
_COLUMNS = ("endpoint", "state", "$/h", "since", "accrued", "lease", "owner")


@dataclass(frozen=True)
class View:
    """One look at a namespace, for either kind of reader."""

    namespace: str
    rows: tuple[EndpointStanding, ...]

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {"namespace": self.namespace, "endpoints": [_as_dict(row) for row in self.rows]}

    def table(self) -> RenderableType:
        """For people."""
        if not self.rows:
            return f"{self.namespace} has no endpoints that this token can see."
        return output.table(
            *_COLUMNS,
            rows=map(_cells, self.rows),
            styles=("" if row.since is None else "bold" for row in self.rows),
        )


@click.command("status")
@click.argument("namespace", required=False)
@click.option(
    "--watch",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[SECONDS]",
    help=f"Draw it again every SECONDS ({EVERY_S:g}), until Ctrl-C.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per look.")
def command(namespace: str | None, watch: str | None, as_json: bool) -> None:
    """List every endpoint of a namespace: state, price, uptime so far, and who leases it.

    NAMESPACE is a user or an organisation; without it that of pytest's configuration counts:
    HFBUDGET_NAMESPACE, or hf_namespace of its ini file.

    Exit codes: 0 listed, also when --watch is ended by Ctrl-C; 1 the list could not be read;
    2 wrong usage.
    """
    access.services()  # what is wrong with a setting is said before anything is read
    seconds, namespace = _interval(watch, namespace)
    look = _look(access.namespace(namespace))
    show = _show_json if as_json else _show_table
    if seconds is None:
        show(look())
        return
    try:
        if not as_json and sys.stdout.isatty():
            _redraw(look, seconds)
        else:
            _repeat(look, show, seconds)
    except KeyboardInterrupt:
        return  # the way to end it, so not a failure


def _interval(watch: str | None, namespace: str | None) -> tuple[float | None, str | None]:
    """Seconds between two looks; `--watch acme` leaves its value to be the namespace."""
    if watch is None:
        return None, namespace
    if not watch:
        return EVERY_S, namespace
    try:
        return max(float(watch), _LEAST_S), namespace
    except ValueError:
        if namespace is None:
            return EVERY_S, watch
        raise click.UsageError(f"--watch {watch}: write a number of seconds.") from None


def _look(namespace: str) -> Callable[[], View]:
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.endpoints.overview import overview

    plane, folder = access.plane(), default_state_dir()
    hardware: dict[str, Any] = {}

    def look() -> View:
        try:
            if not hardware:  # prices do not change while a person watches
                hardware.update(plane.hardware())
            rows = overview(plane, namespace, state_dir=folder, hardware=hardware)
            return View(namespace, rows)
        except HFBudgetError as error:
            raise click.ClickException(str(error)) from None

    return look


def _redraw(look: Callable[[], View], seconds: float) -> None:
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False) as live:
        while True:
            live.update(_framed(look), refresh=True)
            _wait(seconds)


def _repeat(look: Callable[[], View], show_it: Callable[[View], None], seconds: float) -> None:
    while True:
        show_it(look())
        sys.stdout.flush()
        _wait(seconds)


def _framed(look: Callable[[], View]) -> RenderableType:
    """A look, or in its place why there is none: the next one may succeed."""
    try:
        return look().table()
    except click.ClickException as error:
        from rich.text import Text

        return Text(error.message, style="red")


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def _show_json(view: View) -> None:
    output.print_json(view.json())


def _show_table(view: View) -> None:
    output.console().print(view.table())


def _cells(row: EndpointStanding) -> tuple[str, ...]:
    lease, *others = (one.run for one in row.holders) if row.holders else ("",)
    return (
        row.name,
        row.state,
        "?" if row.nano_per_hour is None else show(row.nano_per_hour),
        output.clock_time(row.since),
        "" if row.since is None or row.accrued_nano is None else show(row.accrued_nano),
        f"{lease} +{len(others)}" if others else lease,
        _owner(row.holders[0]) if row.holders else "",
    )


def _owner(holder: EndpointHolder) -> str:
    if holder.pid is None:
        end = f", until {output.clock_time(holder.until)}" if holder.until else ""
        return f"elsewhere{end}"
    if holder.alive is None:
        return f"process {holder.pid} on {holder.host}"
    return f"process {holder.pid}" if holder.alive else f"process {holder.pid}, gone"


def _as_dict(row: EndpointStanding) -> dict[str, Any]:
    priced = row.since is not None and row.accrued_nano is not None
    return {
        "name": row.name,
        "state": row.state,
        "usd_per_hour": None if row.nano_per_hour is None else usd_text(row.nano_per_hour),
        "replicas": row.replicas,
        "since": output.moment(row.since),
        "accrued_usd": usd_text(row.accrued_nano or 0) if priced else None,
        "leases": [{**vars(one), "until": output.moment(one.until)} for one in row.holders],
    }
