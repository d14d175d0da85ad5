"""`hfbudget forecast`: computes what endpoints will cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints.uptime import ALWAYS, Forecast, Machine, Runs, Schedule, forecast
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import NANO_PER_USD, parse_rate, rate_shown, rate_text, show, usd_text

if TYPE_CHECKING:
    from collections.abc import Iterator


# From ten cents on, sums are rounded up to a cent: a forecast need not be exact.
_CENT = NANO_PER_USD // 100
_EXACT_BELOW = 10 * _CENT
_MOST, _FINEST = 10**6, -9
_MONTH = "a month is a twelfth of a year of 365 days: 4.345 weeks, or 730 hours"


def _number(_: click.Context, option: click.Parameter, value: str | None) -> Fraction | None:
    """Callback of an option: the exact value of a decimal number.

    Raises:
        BadInput: the value is no number, negative, too large, or has too many decimals.
    """
    if value is None:
        return None
    try:
        number = Decimal(value)
    except DecimalException:
        number = Decimal("nan")
    if not number.is_finite() or not 0 <= number <= _MOST or number.adjusted() < _FINEST:
        raise output.BadInput(f"{option.opts[0]} {value}: write a number from 0 to {_MOST:,}.")
    return Fraction(number)


@dataclass(frozen=True)
class ForecastRequest:
    """The options as the user gave them: when endpoints run, and with how many replicas.

    If a number of replicas is None, the endpoint's own number counts.
    """

    hours_per_day: Fraction | None
    days_per_week: Fraction
    min_replicas: int | None
    max_replicas: int | None
    scale_up_hours: Fraction
    runs_per_day: int | None
    minutes_per_run: Fraction | None
    cold_start: Fraction
    idle: Fraction

    def machine(self, name: str, atto_per_hour: int, own: tuple[int, int] = (1, 1)) -> Machine:
        """One endpoint with its price and range of replicas.

        Args:
            own: the endpoint's own range. Its minimum counts as at least 1, because a resume starts
                one replica.
        """
        least = max(own[0], 1) if self.min_replicas is None else self.min_replicas
        most = max(own[1], least) if self.max_replicas is None else self.max_replicas
        return Machine(name, atto_per_hour, least, most)

    def runs(self) -> Runs | None:
        """The test runs of a day; None if the user has not asked for runs.

        Raises:
            BadInput: an option for runs is missing, or hours are given as well.
        """
        if self.runs_per_day is None and self.minutes_per_run is None:
            if not self.cold_start and not self.idle:
                return None
        elif self.runs_per_day is not None and self.minutes_per_run is not None:
            if self.hours_per_day is not None:
                raise output.BadInput("--hours-per-day and --runs-per-day: give one of the two.")
            return Runs(self.runs_per_day, self.minutes_per_run, self.cold_start, self.idle)
        raise output.BadInput("--runs-per-day and --minutes-per-run go together.")

    def schedule(self, runs: Runs | None) -> Schedule:
        """The hours and days in which the endpoints run.

        Raises:
            ValueError: there are more hours than a day has, or more days than a week has.
        """
        hours = ALWAYS.hours if self.hours_per_day is None else self.hours_per_day
        return Schedule(runs.hours if runs else hours, self.days_per_week, self.scale_up_hours)


@click.command("forecast")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAMESPACE/NAME",
    help="An endpoint whose price to look up; repeatable. Default without --rate: those of "
    "--hf-endpoint in pytest's configuration.",
)
@click.option(
    "--rate",
    "rates",
    multiple=True,
    metavar="USD",
    help="The price of a replica per hour; repeatable.",
)
@click.option("--hours-per-day", callback=_number, metavar="H", help="Hours that it runs (24).")
@click.option(
    "--days-per-week", callback=_number, default="7", metavar="D", help="Days that it runs (7)."
)
@click.option(
    "--min-replicas", type=click.IntRange(0, 1000), metavar="N", help="The fewest replicas (1)."
)
@click.option(
    "--max-replicas", type=click.IntRange(1, 1000), metavar="N", help="The most replicas."
)
@click.option(
    "--scale-up-hours",
    callback=_number,
    default="0",
    metavar="H",
    help="Hours a day with the most replicas.",
)
@click.option(
    "--runs-per-day", type=click.IntRange(1, 100_000), metavar="N", help="Runs of the tests."
)
@click.option("--minutes-per-run", callback=_number, metavar="MIN", help="Minutes of tests.")
@click.option(
    "--cold-start",
    callback=_number,
    default="0",
    metavar="MIN",
    help="Minutes of each run before the endpoint serves.",
)
@click.option(
    "--idle",
    callback=_number,
    default="0",
    metavar="MIN",
    help="Minutes of each run until the server scales it to zero; 0 for a pause.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(
    endpoints: tuple[str, ...], rates: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Forecast what endpoints cost by an hour, day, week and month.

    An endpoint costs its price per hour x (hours x the fewest replicas + scale-up hours x the
    additional replicas), whether it is called or not. Without --hours-per-day it is never paused.

    For short runs give --runs-per-day and --minutes-per-run instead of hours. Each run is then
    billed by started minutes, from the resume to the pause.

    Exit codes: 0 forecast; 1 an endpoint or its price could not be read; 2 wrong usage.
    """
    if not rates:
        endpoints = endpoints or cli.settings().endpoints
    asked = ForecastRequest(**given)
    runs = asked.runs()
    try:
        schedule = asked.schedule(runs)
        machines = (*_by_rate(rates, asked), *_by_name(endpoints, asked))
        told = ForecastAnswer.of(machines, schedule, runs)
    except HFBudgetError as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:
        raise output.BadInput(str(error)) from None
    if as_json:
        output.print_json(told.json())
    else:
        told.show()


@dataclass(frozen=True)
class ForecastAnswer:
    """The forecast for each endpoint, for all, and for all if they were never paused."""

    schedule: Schedule
    runs: Runs | None
    each: tuple[tuple[Machine, Forecast], ...]
    total: Forecast
    never_paused: Forecast

    @classmethod
    def of(
        cls, machines: tuple[Machine, ...], schedule: Schedule, runs: Runs | None
    ) -> ForecastAnswer:
        """Compute the forecast.

        Raises:
            ValueError: there is no endpoint, or the options contradict each other.
        """
        if not machines:
            raise ValueError("forecast of what? Give --endpoint NAMESPACE/NAME or --rate USD.")
        if schedule.scale_up_hours and all(m.max_replicas == m.min_replicas for m in machines):
            raise ValueError("--scale-up-hours needs replicas to scale up to; give --max-replicas.")
        each = tuple((one, forecast([one], schedule)) for one in machines)
        always = Schedule(ALWAYS.hours, ALWAYS.days, schedule.scale_up_hours)
        return cls(schedule, runs, each, forecast(machines, schedule), forecast(machines, always))

    def json(self) -> dict[str, Any]:
        """The forecast as JSON."""
        return {
            "hours_per_day": float(self.schedule.hours),
            "days_per_week": float(self.schedule.days),
            "scale_up_hours": float(self.schedule.scale_up_hours),
            "billed_minutes_per_run": self.runs and self.runs.billed_minutes,
            "endpoints": [
                {
                    "name": machine.name,
                    "usd_per_hour": rate_text(machine.atto_per_hour),
                    "min_replicas": machine.min_replicas,
                    "max_replicas": machine.max_replicas,
                    "usd": _usd(cost),
                }
                for machine, cost in self.each
            ],
            "usd": _usd(self.total),
            "never_paused_usd": _usd(self.never_paused),
        }

    def show(self) -> None:
        """Print the forecast as a table."""
        console = output.console()
        if self.runs:
            console.print(_runs_text(self.runs))
        console.print(self._table())
        console.print(f"{_MONTH}; from ten cents on, sums are rounded up to a cent")

    def _table(self) -> output.TextTable:
        rows = [
            (
                machine.name,
                rate_shown(rate_text(machine.atto_per_hour)),
                _replicas(machine),
                *_cells(cost),
            )
            for machine, cost in self.each
        ]
        styles = [""] * len(rows)
        if len(rows) > 1:
            rows.append(("all", "", "", *_cells(self.total)))
            styles.append("bold")
        if self.never_paused != self.total:
            rows.append(("never paused", "", "", *_cells(self.never_paused)))
            styles.append("dim")
        columns = ("endpoint", "$/h", "replicas", "hour", "day", "week", "month")
        return output.table(*columns, rows=rows, styles=styles)


def _by_rate(rates: tuple[str, ...], asked: ForecastRequest) -> Iterator[Machine]:
    for rate in rates:
        try:
            atto = parse_rate(rate)
        except ValueError as error:
            raise ValueError(f"--rate {rate}: {error}") from None
        if not atto:
            raise ValueError(f"--rate {rate}: write a price above 0")
        yield asked.machine(f"--rate {rate}", atto)


def _by_name(names: tuple[str, ...], asked: ForecastRequest) -> Iterator[Machine]:
    if not names:
        return
    from pytest_hfbudget.endpoints.uptime_meter import price_per_hour

    cli.services()
    plane = cli.plane()
    hardware = plane.hardware()
    for name in map(cli.endpoint_name, names):
        found = plane.get(name)
        price = price_per_hour(hardware, found)
        if price is None:
            kind = f"{found.vendor} {found.region} {found.instance_type} {found.instance_size}"
            raise HFBudgetError(f"{name}: {kind} is on no price list; give its price with --rate.")
        own = found.scaling.min_replica, found.scaling.max_replica
        yield asked.machine(name, price, own)


def _runs_text(runs: Runs) -> str:
    parts = {"cold start": runs.cold_start, "run": runs.minutes, "idle": runs.idle}
    said = " + ".join(f"{float(part):g} min {name}" for name, part in parts.items() if part)
    return (
        f"{runs.per_day} x ({said}): {runs.billed_minutes} started minutes each, "
        f"{float(runs.hours):.2f} hours a day"
    )


def _replicas(machine: Machine) -> str:
    least, most = machine.min_replicas, machine.max_replicas
    return str(least) if least == most else f"{least} to {most}"


def _cells(cost: Forecast) -> tuple[str, ...]:
    sums = (cost.day, cost.week, cost.month)
    cents = (nano if nano < _EXACT_BELOW else -(-nano // _CENT) * _CENT for nano in sums)
    return show(cost.hour), *map(show, cents)


def _usd(cost: Forecast) -> dict[str, str]:
    return {period: usd_text(nano) for period, nano in asdict(cost).items()}
