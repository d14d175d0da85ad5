"""`hfbudget status`: what runs in a namespace, what it costs, and whose it is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.cli.shared_view import SharedView
from pytest_hfbudget.endpoints import (
    RUN_TAG,
    Endpoint,
    billed,
    process,
    run_tag,
    tagged_run,
    tagged_until,
    uptime,
)
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.journal import default_state_dir, leases_dir, unfinished
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_held_leases
from pytest_hfbudget.endpoints.retry import NICE_TO_KNOW_S, RetryPolicy
from pytest_hfbudget.endpoints.uptime_meter import price_per_hour
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import exact, show, usd_text

if TYPE_CHECKING:
    from rich.console import RenderableType


EVERY_S = 5.0
_LEAST_S = 0.1
_AT_ONCE = 8
_NICE_TO_KNOW = RetryPolicy(try_s=NICE_TO_KNOW_S, total_s=NICE_TO_KNOW_S)
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
@cli.shared_option(
    "Show who holds what on the server over which machines share budgets and endpoints."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per look.")
def command(namespace: str | None, watch: str | None, shared: str | None, as_json: bool) -> None:
    """List every endpoint of a namespace: state, price, uptime so far, and who leases it.

    NAMESPACE is a user or an organisation; without it that of pytest's configuration counts:
    HFBUDGET_NAMESPACE, or hf_namespace of its ini file.

    Exit codes: 0 listed, also when --watch is ended by Ctrl-C; 1 the list could not be read;
    2 wrong usage.
    """
    cli.services()  # what is wrong with a setting is said before anything is read
    seconds, namespace = _interval(watch, namespace)
    look: Callable[[], View | SharedView]
    if (place := cli.shared(shared) if shared is not None else None) is not None:
        look = partial(SharedView.of, place, cli.api())
    else:
        look = _look(cli.namespace(namespace))
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
    plane, folder = cli.plane(), default_state_dir()
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


def _redraw(look: Callable[[], View | SharedView], seconds: float) -> None:
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False) as live:
        while True:
            live.update(_framed(look), refresh=True)
            _wait(seconds)


def _repeat(
    look: Callable[[], View | SharedView],
    show_it: Callable[[View | SharedView], None],
    seconds: float,
) -> None:
    while True:
        show_it(look())
        sys.stdout.flush()
        _wait(seconds)


def _framed(look: Callable[[], View | SharedView]) -> RenderableType:
    """A look, or in its place why there is none: the next one may succeed."""
    try:
        return look().table()
    except click.ClickException as error:
        from rich.text import Text

        return Text(error.message, style="red")


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def _show_json(view: View | SharedView) -> None:
    output.print_json(view.json())


def _show_table(view: View | SharedView) -> None:
    output.console().print(view.table())


def _cells(row: EndpointStanding) -> tuple[str, ...]:
    lease, *others = (one.run for one in row.holders) if row.holders else ("",)
    return (
        row.name,
        row.state,
        "?" if row.nano_per_hour is None else exact(row.nano_per_hour),
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
