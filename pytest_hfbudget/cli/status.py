"""`hfbudget status`: lists the endpoints of a namespace, their cost, and who has leased them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
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
from pytest_hfbudget.endpoints.lease_store import lease_store_dir, read_leases
from pytest_hfbudget.endpoints.retry import NICE_TO_KNOW_S, RetryPolicy
from pytest_hfbudget.endpoints.shared_leases import RemoteLease, server_of, shared_leases
from pytest_hfbudget.endpoints.uptime_meter import price_per_hour, replica_starts
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import beside, exact, show, usd_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pytest_hfbudget.history.shared_store import JobShare
    from pytest_hfbudget.shared import SharedConnection

EVERY_S = 5.0
_LEAST_S = 0.1
_AT_ONCE = 8
_NICE_TO_KNOW = RetryPolicy(try_s=NICE_TO_KNOW_S, total_s=NICE_TO_KNOW_S)
_COLUMNS = ("endpoint", "state", "$/h", "since", "accrued", "lease", "owner")
_LEASES = ("endpoint", "job", "run", "machine", "phase", "heard of")
_SHARES = ("budget", "job", "advanced", "spent", "heard of")


@dataclass(frozen=True)
class View:
    """The endpoints of a namespace at one time, as a table or as JSON."""

    namespace: str
    rows: tuple[EndpointStatus, ...]

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


@dataclass(frozen=True)
class SharedView:
    """What jobs hold on the Redis server: leases on endpoints, and advances on budgets."""

    leases: tuple[RemoteLease, ...]
    shares: tuple[JobShare, ...]
    expiry_s: float

    @classmethod
    def of(cls, place: SharedConnection, api: str) -> SharedView:
        """Read the server once.

        Raises:
            click.ClickException: the server can't be asked.
        """
        from pytest_hfbudget.history.shared_store import read_shares

        try:
            by_name = shared_leases(place, api=api, state_dir=default_state_dir())
            leases = tuple(lease for each in by_name.values() for lease in each)
            return cls(leases, read_shares(server_of(place)), place.expiry_s)
        except HFBudgetError as error:
            raise click.ClickException(str(error)) from None

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "leases": [
                {
                    "endpoint": lease.endpoint,
                    "job": lease.run,
                    "run": lease.shared_run,
                    "machine": lease.host,
                    "phase": lease.phase,
                    "live": lease.live,
                    "seconds": lease.age_s,
                }
                for lease in self.leases
            ],
            "advances": [
                {
                    "budget": share.budget,
                    "job": share.job,
                    "advanced_usd": usd_text(share.advanced),
                    "spent_usd": usd_text(share.spent),
                    "live": share.age_s <= self.expiry_s,
                    "seconds": share.age_s,
                }
                for share in self.shares
            ],
        }

    def table(self) -> RenderableType:
        """For people."""
        from rich.console import Group

        leases = (
            (one.endpoint, one.run, one.shared_run, one.host, one.phase, self._heard(one.age_s))
            for one in self.leases
        )
        shares = (
            (one.budget, one.job, *beside(None, one.advanced, one.spent), self._heard(one.age_s))
            for one in self.shares
        )
        tables = [output.table(*_LEASES, rows=leases), output.table(*_SHARES, rows=shares)]
        known = [table for table in tables if table.rows]
        return Group(*known) if known else "no job shares anything over this server."

    def _heard(self, age_s: float) -> str:
        lost = ", lost" if age_s > self.expiry_s else ""
        return f"{age_s:.0f} s ago{lost}"


Look = Callable[[], View | SharedView]


@click.command("status")
@click.argument("namespace", required=False)
@click.option(
    "--watch",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[SECONDS]",
    help=f"Draw the list again every SECONDS ({EVERY_S:g}), until Ctrl-C.",
)
@cli.shared_option(
    "Show the leases and budgets of all jobs that share this Redis server, instead of a namespace. "
    "URL defaults to HFBUDGET_SHARED."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, one object for each look.")
def command(namespace: str | None, watch: str | None, shared: str | None, as_json: bool) -> None:
    """List the endpoints of a namespace.

    Of each endpoint the list has its state, its price, what it has cost since its start, and the
    run that has leased it. NAMESPACE is a user or an organisation. Without it the command uses
    HFBUDGET_NAMESPACE, or hf_namespace of pytest's ini file.

    Exit codes: 0 listed, also when --watch is ended by Ctrl-C; 1 the list could not be read;
    2 wrong usage.
    """
    cli.services()  # report an invalid setting before anything is read
    seconds, namespace = _interval(watch, namespace)
    look: Look
    if (place := cli.shared(shared) if shared is not None else None) is not None:
        look = partial(SharedView.of, place, cli.api())
    else:
        look = _look(cli.namespace(namespace))
    try:
        if seconds is not None and not as_json and sys.stdout.isatty():
            _redraw(look, seconds)
        else:
            _show(look, seconds, as_json)
    except KeyboardInterrupt:
        if seconds is None:
            raise  # with --watch, Ctrl-C is the normal end


def _interval(watch: str | None, namespace: str | None) -> tuple[float | None, str | None]:
    """Seconds between two looks, and the namespace; `--watch acme` gives the namespace."""
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


def _look(namespace: str) -> Look:
    plane, folder = cli.plane(), default_state_dir()
    hardware = cache(plane.hardware)  # prices do not change while a person watches

    def look() -> View:
        try:
            rows = overview(plane, namespace, state_dir=folder, hardware=hardware())
        except HFBudgetError as error:
            raise click.ClickException(str(error)) from None
        return View(namespace, rows)

    return look


def _redraw(look: Look, seconds: float) -> None:
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False) as live:
        while True:
            live.update(_framed(look), refresh=True)
            threading.Event().wait(seconds)


def _show(look: Look, seconds: float | None, as_json: bool) -> None:
    while True:
        view = look()
        if as_json:
            output.print_json(view.json())
        else:
            output.console().print(view.table())
        if seconds is None:
            return
        sys.stdout.flush()
        threading.Event().wait(seconds)


def _framed(look: Look) -> RenderableType:
    """The table, or the error in its place, since the next look may succeed."""
    try:
        return look().table()
    except click.ClickException as error:
        from rich.text import Text

        return Text(error.message, style="red")


def _cells(row: EndpointStatus) -> tuple[str, ...]:
    lease, *others = (one.run for one in row.owners) if row.owners else ("",)
    return (
        row.name,
        row.state,
        "?" if row.nano_per_hour is None else exact(row.nano_per_hour),
        output.clock_time(row.since),
        "" if row.since is None or row.accrued_nano is None else show(row.accrued_nano),
        f"{lease} +{len(others)}" if others else lease,
        _owner_text(row.owners[0]) if row.owners else "",
    )


def _owner_text(owner: LeaseOwner) -> str:
    if owner.pid is None:
        end = f", until {output.clock_time(owner.until)}" if owner.until else ""
        return f"elsewhere{end}"
    if owner.alive is None:
        return f"process {owner.pid} on {owner.host}"
    return f"process {owner.pid}" if owner.alive else f"process {owner.pid}, gone"


def _as_dict(row: EndpointStatus) -> dict[str, Any]:
    priced = row.since is not None and row.accrued_nano is not None
    return {
        "name": row.name,
        "state": row.state,
        "usd_per_hour": None if row.nano_per_hour is None else usd_text(row.nano_per_hour),
        "replicas": row.replicas,
        "since": output.moment(row.since),
        "accrued_usd": usd_text(row.accrued_nano or 0) if priced else None,
        "leases": [{**vars(one), "until": output.moment(one.until)} for one in row.owners],
    }


@dataclass(frozen=True)
class LeaseOwner:
    """A run that has a lease on an endpoint.

    Attributes:
        pid: the process id of the run; None if it is known only from a tag.
        host: the machine of that process; None if it is known only from a tag.
        alive: whether the process runs; None if that can't be found out from here.
        until: the latest end of the run by its tag, in unix seconds; None without such a tag.
    """

    run: str
    pid: int | None = None
    host: str | None = None
    alive: bool | None = None
    until: float | None = None


@dataclass(frozen=True)
class EndpointStatus:
    """One endpoint as it is now.

    Attributes:
        nano_per_hour: nano-USD per hour of its current replicas, or of one replica if it has none;
            None if the price is unknown.
        replicas: how many replicas cost something now.
        since: when the oldest of these replicas started, in unix seconds by the server's clock; if
            unknown, when the endpoint last changed. None if the endpoint costs nothing now.
        accrued_nano: nano-USD since then, an upper bound; None if the price is unknown.
        owners: the runs that have a lease on it, live runs first.
    """

    name: str
    state: str
    nano_per_hour: int | None
    replicas: int = 0
    since: float | None = None
    accrued_nano: int | None = None
    owners: tuple[LeaseOwner, ...] = ()


def overview(
    plane: ControlPlane,
    namespace: str,
    *,
    state_dir: Path,
    hardware: Mapping[str, Any] | None = None,
    now: float | None = None,
) -> tuple[EndpointStatus, ...]:
    """The status of every endpoint of a namespace.

    Args:
        state_dir: the folder of this machine's journals and leases.
        hardware: the answer of `ControlPlane.hardware`, if the caller has it; else it is read.
        now: unix seconds.

    Raises:
        ControlPlaneError: the list can't be read. Unknown prices or replicas are no error.
    """
    endpoints = plane.list(namespace)
    plane = plane.with_retry(_NICE_TO_KNOW)
    prices, held = hardware or {}, _lease_owners(plane.base_url, state_dir)
    if hardware is None:
        with suppress(ControlPlaneError):
            prices = plane.hardware()
    at = time.time() if now is None else now

    def one(endpoint: Endpoint) -> EndpointStatus:
        price = price_per_hour(prices, endpoint)
        starts = replica_starts(plane, endpoint, at) if billed(endpoint.state) else ()
        minutes = sum(uptime.started_minutes(max(at - start, 0.0)) for start in starts)
        hour = uptime.MINUTES_PER_HOUR * max(len(starts), 1)
        return EndpointStatus(
            endpoint.full_name,
            endpoint.state,
            nano_per_hour=None if price is None else uptime.cost(price, hour),
            replicas=len(starts),
            since=min(starts, default=None),
            accrued_nano=None if price is None else uptime.cost(price, minutes),
            owners=_with_tag(endpoint, held.get(endpoint.full_name, ())),
        )

    with ThreadPoolExecutor(_AT_ONCE, "hfbudget-overview") as pool:
        return tuple(pool.map(one, endpoints))


def _lease_owners(api: str, state_dir: Path) -> dict[str, tuple[LeaseOwner, ...]]:
    """The runs that have leases by the records of this machine, by endpoint."""
    found: dict[str, dict[str, LeaseOwner]] = {}
    for record in (lease.intent for lease in unfinished(leases_dir(state_dir))):
        if record.api.rstrip("/") == api:
            alive = process.alive(record.owner_pid, record.owner_start)
            known = alive if process.judgeable(record.place) else None
            owner = LeaseOwner(record.run, record.owner_pid, record.place.host, known)
            found.setdefault(record.endpoint, {})[record.run] = owner
    for held in read_leases(lease_store_dir(state_dir)):
        if held.api.rstrip("/") == api and held.in_use:
            owner = LeaseOwner(held.run, held.owner_pid, held.place.host, True)
            found.setdefault(held.endpoint, {})[held.run] = owner
    return {
        name: tuple(sorted(by.values(), key=lambda one: not one.alive))
        for name, by in found.items()
    }


def _with_tag(endpoint: Endpoint, owners: tuple[LeaseOwner, ...]) -> tuple[LeaseOwner, ...]:
    tagged, until = tagged_run(endpoint.tags), tagged_until(endpoint.tags)
    if tagged is None or any(run_tag(one.run) == RUN_TAG + tagged for one in owners):
        return owners
    return (*owners, LeaseOwner(tagged, until=until))
