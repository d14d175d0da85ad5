"""`hfbudget bill`: compares what Hugging Face has billed for runs with what the ledger charged."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.errors import HistoryError
from pytest_hfbudget.money import beside, show, usd_text
from pytest_hfbudget.reporting import counted
from pytest_hfbudget.reporting.bill import (
    FORBIDDEN,
    PENDING,
    UNAVAILABLE,
    Bill,
    drift_text,
)
from pytest_hfbudget.values import seconds_or_zero

if TYPE_CHECKING:
    from pytest_hfbudget.history.billing import BillingClient
    from pytest_hfbudget.history.bills import MonthBill

OK, DRIFTED, UNKNOWN = 0, 1, 3
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0  # the service books once a minute
_MOST_PERCENT = Decimal(10**6)


def _percent(_: click.Context, option: click.Parameter, value: str | None) -> Fraction | None:
    """Callback of an option: a percentage, with or without "%", as a fraction.

    Raises:
        BadInput: the value is no percentage.
    """
    if value is None:
        return None
    try:
        number = Decimal(value.strip().removesuffix("%"))
    except DecimalException:
        number = Decimal("nan")
    if not number.is_finite() or not 0 <= number <= _MOST_PERCENT:
        raise output.BadInput(f"{option.opts[0]} {value}: write a percentage, such as 5 or 0.5%.")
    return Fraction(number) / 100


def _seconds(_: click.Context, option: click.Parameter, value: str) -> float:
    try:
        return seconds_or_zero(value)
    except ValueError as error:
        raise output.BadInput(f"{option.opts[0]} {value}: {error}.") from None


@click.command("bill")
@click.argument("run", required=False)
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="The last N runs.")
@click.option("--since", metavar="WHEN", help="Runs since then: 2026-11-21 (UTC), 36h, 7d, 2w.")
@click.option("--month", is_flag=True, help="The billing period up to now, instead of runs.")
@click.option(
    "--wait",
    callback=_seconds,
    default="0",
    metavar="SECONDS",
    help="Ask again for up to SECONDS, until all requests of the runs are booked.",
)
@click.option(
    "--max-drift",
    callback=_percent,
    metavar="PERCENT",
    help="Exit code 1 if bill and ledger differ by more.",
)
@click.option("--org", metavar="NAME", help="The organisation that the calls are billed to.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(
    wait: float, max_drift: Fraction | None, org: str | None, as_json: bool, **which: Any
) -> None:
    """Compare what a run has cost with what Hugging Face has billed.

    RUN is the id of a run of this machine, or the beginning of its id; without it, the last run.
    Hugging Face books calls a minute or more after they were made: a pending run was not free, and
    a reported amount may still grow. The token comes from HF_TOKEN, or from `hf auth login`. It
    needs the permission to read the bill, which is org.billing.read for an organisation.

    Exit codes: 0 shown; 1 the drift is larger than --max-drift, or the bill could not be read;
    2 wrong usage; 3 with --max-drift: a run is pending, or its ledger lacks a price.
    """
    wanted = WantedRuns(**which)
    wanted.check()
    if wanted.month and (max_drift is not None or wait):
        raise click.UsageError("--month takes neither --wait nor --max-drift.")
    try:
        if wanted.month:
            _show_month(org, as_json)
            return
        bills = _asked(wanted.find(), wait, org, max_drift)
    except HistoryError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        rows = [bill.json() for bill in bills]
        click.echo(output.dumped(rows if wanted.several else rows[0]))
    else:
        _show(bills, org)
    _explain(bills)
    sys.exit(_exit_code(bills, max_drift))


# --- runs


def _hub(org: str | None) -> BillingClient:
    from pytest_hfbudget.history.billing import BillingClient

    if org is not None and not org.strip():
        raise output.BadInput("--org is empty: name the organisation, or leave it out.")
    return BillingClient(cli.hub(), cli.token(), org and cli.namespace(org.strip()))


@dataclass(frozen=True)
class WantedRuns:
    """The runs that the user asks for; the last run if none of these is given."""

    run: str | None
    last: int | None
    since: str | None
    month: bool

    def check(self) -> None:
        """Check that the user has given at most one of them.

        Raises:
            click.UsageError: several are given.
        """
        given = {"RUN": self.run, "--last": self.last, "--since": self.since}
        names = [name for name, value in given.items() if value is not None]
        names += ["--month"] if self.month else []
        if len(names) > 1:
            raise click.UsageError(f"Choose one of {', '.join(names)}.")

    @property
    def several(self) -> bool:
        """Whether the output is a list, even if only one run is found."""
        return self.last is not None or self.since is not None

    def find(self) -> list[Bill]:
        """The runs, oldest first.

        Raises:
            click.ClickException: no run is found.
        """
        from pytest_hfbudget.cli.log import moment
        from pytest_hfbudget.history.bills import log_bills

        cli.settings()
        runs, begin = log_bills().runs(), moment("--since", self.since)
        if self.run is not None:
            return [_named(runs, self.run)]
        found = runs if begin is None else [bill for bill in runs if bill.started >= begin]
        if not found:
            raise click.ClickException(
                "the usage log has no matching run that called the router. It leaves out "
                "rehearsals, and with hf_log_days = 0 it keeps nothing. To list its runs: "
                "hfbudget log --by run"
            )
        return found if begin is not None else found[-(self.last or 1) :]


def _named(runs: Sequence[Bill], name: str) -> Bill:
    found = [bill for bill in runs if name and bill.run.startswith(name)]
    if len(found) > 1:
        names = ", ".join(bill.run for bill in found[-5:])
        raise output.BadInput(f"several runs begin with {name}: {names}. Write more of its id.")
    if not found:
        raise output.BadInput(
            f"the usage log has no run {name!r} that called the router. `hfbudget log --by run` "
            "lists those that it has."
        )
    return found[0]


def _asked(
    bills: Sequence[Bill], wait: float, org: str | None, allowed: Fraction | None
) -> list[Bill]:
    """The runs with what the Hub reports; asks again until all is booked, or ``wait`` is over.

    It also asks again while a drift is too large, because the Hub may first book a placeholder for
    a request.
    """
    import time

    from pytest_hfbudget.history.bills import log_bills, read_again

    if not any(bill.session_id for bill in bills):
        return list(bills)
    hub, ends, pause = _hub(org), time.monotonic() + wait, FIRST_WAIT_S
    while True:
        now = time.time()
        found = read_again(bills, hub, now)
        log_bills().keep(found, now)
        forbidden = any(bill.status == FORBIDDEN for bill in found)
        done = all(_needs_no_wait(bill, allowed) for bill in found)
        left = ends - time.monotonic()
        if done or forbidden or left <= 0:
            return found
        time.sleep(min(pause, left))
        pause = min(pause * 2, MOST_WAIT_S)


def _needs_no_wait(bill: Bill, allowed: Fraction | None) -> bool:
    if not (bill.session_id and bill.requests):
        return True  # the Hub will never book anything for this run
    return bill.complete and not (allowed is not None and bill.exceeds(allowed))


def _exit_code(bills: Iterable[Bill], allowed: Fraction | None) -> int:
    bills = tuple(bills)
    if any(bill.status in (FORBIDDEN, UNAVAILABLE) for bill in bills):
        return DRIFTED
    if allowed is None:
        return OK
    if any(bill.exceeds(allowed) for bill in bills):
        return DRIFTED
    unknown = any((bill.booked is None or bill.ledger is None) and bill.requests for bill in bills)
    return UNKNOWN if unknown else OK


def _show(bills: Sequence[Bill], org: str | None) -> None:
    output.console().print(
        output.table(
            *("run", "when (UTC)", "ledger", "billed", "drift", "requests", "status"),
            rows=map(_cells, bills),
            styles=("red" if bill.status in (FORBIDDEN, UNAVAILABLE) else "" for bill in bills),
        )
    )
    for remark in _remarks(bills, org):
        output.say(remark)


def _cells(bill: Bill) -> tuple[str, ...]:
    when = datetime.fromtimestamp(bill.started, timezone.utc).strftime("%Y-%m-%d %H:%M")
    booked = bill.booked
    requests = f"{booked.requests if booked else 0} of {bill.requests}"
    return bill.run, when, *bill.sums, drift_text(bill.drift), requests, bill.status


def _remarks(bills: Sequence[Bill], org: str | None) -> Iterator[str]:
    waiting = [bill for bill in bills if bill.status == PENDING and bill.requests]
    if waiting:
        where = "your own bill" if org is None else f"the bill of {org}"
        hint = "" if org else " Calls that are billed to an organisation are found with --org."
        runs = counted(len(waiting), "run")
        yield (
            f"{runs} pending: not on {where} yet, which does not mean free; ask again in a "
            f"minute, or with --wait.{hint}"
        )
    growing = [bill for bill in bills if bill.booked is not None and not bill.complete]
    if growing:
        yield f"{counted(len(growing), 'run')} may grow: fewer requests are booked than were made."
    if estimated := sum(bill.estimated for bill in bills):
        yield (
            f"{show(estimated)} of the ledger is an upper bound, for answers that told no usage; "
            "the bill says what they cost."
        )
    if any(bill.ledger is None for bill in bills):
        yield "?: the ledger lacks the price of a call, so there is no drift."
    if others := sum(bill.others for bill in bills):
        missing = f"{counted(others, 'call')} {'is' if others == 1 else 'are'} missing here"
        yield f"{missing}, because the tests have set session ids of their own."


def _explain(bills: Iterable[Bill]) -> None:
    for why in dict.fromkeys(bill.why for bill in bills if bill.why):
        click.echo(f"Error: {why}", err=True)


# --- a month


def _show_month(org: str | None, as_json: bool) -> None:
    import time

    from pytest_hfbudget.history.billing import BillError
    from pytest_hfbudget.history.bills import log_bills

    cli.settings()
    try:
        period = _hub(org).period(time.time())
    except BillError as error:
        raise click.ClickException(str(error)) from None
    month = log_bills().month(period)
    if as_json:
        output.print_json(_month_json(month))
        return
    start, now = (
        datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M")
        for at in (period.start, period.now)
    )
    click.echo(f"billing period from {start} to now, {now} (UTC)")
    output.console().print(
        output.table(
            *("", "Hugging Face says", "the log knows", "drift of its runs", "unexplained"),
            rows=((part, *beside(None, *amounts)) for part, amounts in month.parts.items()),
            styles=("", ""),
        )
    )
    pending = month.requests - month.booked_requests
    if pending > 0:
        click.echo(f"{counted(pending, 'request')} of the log not billed yet; see: hfbudget bill")


def _month_json(month: MonthBill) -> dict[str, Any]:
    names = ("billed_usd", "log_usd", "drift_usd", "unexplained_usd")
    parts = {
        part: dict(zip(names, map(usd_text, amounts), strict=True))
        for part, amounts in month.parts.items()
    }
    period = month.period
    counts = {"billed_requests": period.requests, "requests": month.requests}
    return {
        "period": {"start": output.moment(period.start), "now": output.moment(period.now)},
        "inference": {**parts["inference"], **counts},
        "endpoints": parts["endpoints"],
    }
