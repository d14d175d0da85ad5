"""What dedicated endpoints will cost: hourly price x replica-hours, and nothing per call.

The formula is Hugging Face's own (Inference Endpoints, "Pricing"):
price per hour x (hours x replicas that always run + scale-up hours x additional replicas).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from pytest_hfbudget.money import ATTO_PER_NANO

MINUTES_PER_HOUR = 60
HOURS_PER_DAY = 24
DAYS_PER_WEEK = 7
# The twelfth part of a year of 365 days, which is also the 730 hours of Hugging Face's examples.
WEEKS_PER_MONTH = Fraction(365, 12 * DAYS_PER_WEEK)


@dataclass(frozen=True)
class Machine:
    """An endpoint: its price in atto-USD per replica-hour, and its range of replicas.

    Raises:
        ValueError: the numbers of replicas are invalid, or would cost nothing.
    """

    name: str
    atto_per_hour: int
    min_replicas: int = 1
    max_replicas: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or not self.max_replicas:
            raise ValueError(
                f"{self.name}: {self.min_replicas} to {self.max_replicas} replicas; "
                "the most can't be fewer than the fewest, nor 0"
            )


@dataclass(frozen=True)
class Schedule:
    """When an endpoint runs.

    Attributes:
        hours: a day, of all replicas that always run.
        days: a week.
        scale_up_hours: a day, of the replicas above the fewest.

    Raises:
        ValueError: the hours do not fit into a day, or the days into a week.
    """

    hours: Fraction
    days: Fraction
    scale_up_hours: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if not 0 < self.hours <= HOURS_PER_DAY:
            raise ValueError(f"{_text(self.hours)} hours a day; a day has more than 0 and up to 24")
        if not 0 < self.days <= DAYS_PER_WEEK:
            raise ValueError(f"{_text(self.days)} days a week; a week has more than 0 and up to 7")
        if not 0 <= self.scale_up_hours <= HOURS_PER_DAY:
            raise ValueError(f"{_text(self.scale_up_hours)} scale-up hours a day; at most 24")


ALWAYS = Schedule(Fraction(HOURS_PER_DAY), Fraction(DAYS_PER_WEEK))


@dataclass(frozen=True)
class Runs:
    """A day of short test runs; each resumes its endpoints before, and pauses them after.

    Attributes:
        minutes: of one run, as its tests take.
        cold_start: minutes from the resume until it serves, which are billed too.
        idle: minutes that it stays up after the run: none with a pause, the time-out with an
            automatic scale to zero.
    """

    per_day: int
    minutes: Fraction
    cold_start: Fraction = Fraction(0)
    idle: Fraction = Fraction(0)

    @property
    def billed_minutes(self) -> int:
        """Started minutes of one run: a part of a minute costs a whole one."""
        spent = self.cold_start + self.minutes + self.idle
        return max(-(-spent.numerator // spent.denominator), 1)

    @property
    def hours(self) -> Fraction:
        """Billed hours a day, at most 24: runs that overlap keep it up all day."""
        hours = Fraction(self.per_day * self.billed_minutes, MINUTES_PER_HOUR)
        return min(hours, Fraction(HOURS_PER_DAY))


@dataclass(frozen=True)
class Forecast:
    """Nano-USD per running hour, and per day, week and month; each is rounded up once."""

    hour: int
    day: int
    week: int
    month: int


def forecast(machines: Iterable[Machine], schedule: Schedule) -> Forecast:
    """What several machines cost on one schedule.

    The month is the average one, a twelfth of a year of 365 days: 4.345 weeks.

    Raises:
        ValueError: one of them would never run.
    """
    given = tuple(machines)
    day = sum((_day(machine, schedule) for machine in given), Fraction(0))
    week = day * schedule.days
    return Forecast(
        hour=_nano(day / schedule.hours),
        day=_nano(day),
        week=_nano(week),
        month=_nano(week * WEEKS_PER_MONTH),
    )


def _day(machine: Machine, schedule: Schedule) -> Fraction:
    """Exact atto-USD of one running day."""
    more = machine.max_replicas - machine.min_replicas
    hours = schedule.hours * machine.min_replicas + schedule.scale_up_hours * more
    if not hours:
        raise ValueError(
            f"{machine.name}: with a minimum of 0 replicas it costs what it scales up to; "
            "give the hours a day for which it does"
        )
    return machine.atto_per_hour * hours


def _nano(atto: Fraction) -> int:
    return -(-atto.numerator // (atto.denominator * ATTO_PER_NANO))


def _text(number: Fraction) -> str:
    return f"{float(number):g}"
