"""The cost of endpoints by uptime: hourly price x replica-hours, and nothing per call.

A run pays for started minutes. A forecast uses Hugging Face's formula (Inference Endpoints,
"Pricing"): price per hour x (hours x replicas that always run + scale-up hours x additional
replicas).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

from pytest_hfbudget.money import ATTO_PER_NANO

MINUTES_PER_HOUR = 60
HOURS_PER_DAY = 24
DAYS_PER_WEEK = 7
# The twelfth part of a year of 365 days, which is also the 730 hours of Hugging Face's examples.
WEEKS_PER_MONTH = Fraction(365, 12 * DAYS_PER_WEEK)
_MICROSECOND = timedelta(microseconds=1)
_FRACTION = re.compile(r"\.(\d+)")
ReplicaKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Uptime:
    """Started minutes of all replicas, and what they cost.

    Attributes:
        nano_usd: 0 if the price is unknown.
        estimated: whether it is an upper bound, because the server reported no times.
    """

    minutes: int
    nano_usd: int
    estimated: bool


NO_UPTIME = Uptime(0, 0, False)


def cost(atto_per_hour: int, minutes: int) -> int:
    """Nano-USD for a number of minutes, rounded up once."""
    return -(-atto_per_hour * minutes // (MINUTES_PER_HOUR * ATTO_PER_NANO))


def started_minutes(span_s: float, billing_minute_s: float = 60.0) -> int:
    """The minutes that have begun in a span of seconds; at least one, even in 0 seconds."""
    minute = _micros(billing_minute_s)
    return max(-(-_micros(span_s) // minute), 1)


def earlier_replicas(replicas: Iterable[Mapping[str, Any]]) -> dict[ReplicaKey, bool]:
    """The replicas from before a run, and whether each had stopped by then."""
    return {_key(replica): bool(replica_status(replica).get("stoppedAt")) for replica in replicas}


def from_replicas(
    replicas: Iterable[Mapping[str, Any]],
    *,
    window_s: float,
    earlier: Mapping[ReplicaKey, bool],
    atto_per_hour: int | None,
    billing_minute_s: float = 60.0,
) -> Uptime | None:
    """The uptime by the server's times of each replica; None if the server lists no replica.

    The clocks of the server and of this machine may differ, so times of both are never subtracted.
    A replica without both of its times counts for the whole window.

    Args:
        window_s: seconds by our clock from the request to resume to the verified pause.
        earlier: see `earlier_replicas`. A replica that had stopped before does not count. One that
            ran before counts for the whole window.
    """
    minutes, estimated, seen = 0, False, False
    for replica in replicas:
        stopped_before = earlier.get(_key(replica))
        if stopped_before:
            continue
        seconds = _span(replica) if stopped_before is None else None
        seen, estimated = True, estimated or seconds is None
        minutes += started_minutes(window_s if seconds is None else seconds, billing_minute_s)
    return _priced(minutes, atto_per_hour, estimated) if seen else None


def at_most(
    *,
    stretches_s: Iterable[float],
    replicas: int,
    atto_per_hour: int | None,
    billing_minute_s: float = 60.0,
) -> Uptime:
    """The upper bound without times of the server: every replica for every stretch.

    Args:
        stretches_s: seconds from each request to resume to the pause after it.
    """
    minutes = sum(started_minutes(seconds, billing_minute_s) for seconds in stretches_s)
    minutes *= max(replicas, 1)
    return _priced(minutes, atto_per_hour, True)


def _priced(minutes: int, atto_per_hour: int | None, estimated: bool) -> Uptime:
    return Uptime(minutes, cost(atto_per_hour or 0, minutes), estimated)


def replica_status(replica: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``status`` of a replica, which has its times; empty if it is missing."""
    status = replica.get("status")
    return status if isinstance(status, Mapping) else {}


def _key(replica: Mapping[str, Any]) -> ReplicaKey:
    return str(replica.get("id")), str(replica_status(replica).get("startedAt"))


def _span(replica: Mapping[str, Any]) -> float | None:
    status = replica_status(replica)
    started, stopped = parse_time(status.get("startedAt")), parse_time(status.get("stoppedAt"))
    if started is None or stopped is None:
        return None
    return max((stopped - started) / _MICROSECOND, 0.0) / 1_000_000


def parse_time(value: object) -> datetime | None:
    """An RFC 3339 time; None for anything else. Python 3.10 reads neither Z nor nanoseconds."""
    if not isinstance(value, str):
        return None
    text = _FRACTION.sub(lambda match: "." + match[1][:6].ljust(6, "0"), value)
    try:
        parsed = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


class UseInterval(NamedTuple):
    """A stretch of time, in seconds on the steady clock."""

    start: float
    stop: float


class Gap(NamedTuple):
    """The time from a pause to the next resume; ``paid_until`` as in `UptimeWindow`."""

    start: float
    stop: float
    paid_until: float


class UptimeWindow(NamedTuple):
    """The time that an endpoint is paid for, on the steady clock.

    Attributes:
        start: the first request to resume.
        stop: the last pause.
        cold: the stretches in which the endpoint was coming up.
        paid_until: the end of the billed minute in which it was paused.
        gaps: the stretches in which the endpoint was paused.
    """

    start: float
    stop: float
    cold: tuple[UseInterval, ...] = ()
    paid_until: float = 0.0
    gaps: tuple[Gap, ...] = ()

    def parts(self) -> Iterator[UptimeWindow]:
        """The windows between the gaps."""
        start = self.start
        for gap in self.gaps:
            yield UptimeWindow(start, gap.start, self.cold, gap.paid_until)
            start = gap.stop
        yield UptimeWindow(start, self.stop, self.cold, self.paid_until)

    @property
    def seconds(self) -> float:
        """The seconds of the window without its gaps."""
        return sum(part.stop - part.start for part in self.parts())


NO_TIME = UptimeWindow(0.0, 0.0)


@dataclass(frozen=True)
class Machine:
    """An endpoint: its price in atto-USD per replica-hour, and its range of replicas.

    Raises:
        ValueError: the numbers of replicas are invalid, or both are 0.
    """

    name: str
    atto_per_hour: int
    min_replicas: int = 1
    max_replicas: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or not self.max_replicas:
            raise ValueError(
                f"{self.name}: the minimum is {self.min_replicas} replicas, and the maximum is "
                f"{self.max_replicas}. Give --max-replicas of at least {max(self.min_replicas, 1)}."
            )


@dataclass(frozen=True)
class Schedule:
    """When an endpoint runs.

    Attributes:
        hours: hours a day for which the minimum of replicas runs.
        days: days a week.
        scale_up_hours: hours a day for which the other replicas, up to the maximum, run.

    Raises:
        ValueError: the hours do not fit into a day, or the days into a week.
    """

    hours: Fraction
    days: Fraction
    scale_up_hours: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if not 0 < self.hours <= HOURS_PER_DAY:
            raise ValueError(
                f"--hours-per-day {_text(self.hours)}: write a number above 0, up to 24."
            )
        if not 0 < self.days <= DAYS_PER_WEEK:
            raise ValueError(
                f"--days-per-week {_text(self.days)}: write a number above 0, up to 7."
            )
        if not 0 <= self.scale_up_hours <= HOURS_PER_DAY:
            raise ValueError(
                f"--scale-up-hours {_text(self.scale_up_hours)}: write a number from 0 to 24."
            )


ALWAYS = Schedule(Fraction(HOURS_PER_DAY), Fraction(DAYS_PER_WEEK))


@dataclass(frozen=True)
class Runs:
    """The test runs of a day; each run resumes its endpoint, and stops it afterwards.

    Attributes:
        per_day: how many runs a day has.
        minutes: minutes that the tests of one run take.
        cold_start: minutes from the resume until the endpoint serves; they are billed.
        idle: minutes that the endpoint stays up after the run: 0 if the run pauses it, the idle
            time-out if the server scales it to zero.
    """

    per_day: int
    minutes: Fraction
    cold_start: Fraction = Fraction(0)
    idle: Fraction = Fraction(0)

    @property
    def billed_minutes(self) -> int:
        """The started minutes of one run: a part of a minute costs a whole minute."""
        spent = self.cold_start + self.minutes + self.idle
        return max(-(-spent.numerator // spent.denominator), 1)

    @property
    def hours(self) -> Fraction:
        """The billed hours of a day, at most 24: the endpoint can't run for longer."""
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
            f"{machine.name}: with a minimum of 0 replicas, the cost depends on how many hours a "
            "day it is scaled up. Give these with --scale-up-hours."
        )
    return machine.atto_per_hour * hours


def _nano(atto: Fraction) -> int:
    return -(-atto.numerator // (atto.denominator * ATTO_PER_NANO))


def _text(number: Fraction) -> str:
    return f"{float(number):g}"


# `seconds_left` looks no further ahead than this.
HORIZON_S = 86_400.0

# The part of a billed minute that is reserved for the pause request to reach the server.
MARGIN = 0.03


class RunningEndpoint(NamedTuple):
    """Replicas of an endpoint that began at the same time: at its resume, or added later.

    Attributes:
        since: when they began, in seconds on the caller's clock.
        nano_per_minute: nano-USD for each started billing minute of these replicas.
    """

    since: float
    nano_per_minute: int

    def cost(self, until: float, minute_s: float) -> int:
        """Nano-USD of the minutes that have started by ``until``."""
        return (int(max(until - self.since, 0.0) / minute_s) + 1) * self.nano_per_minute


class PayerChange(NamedTuple):
    """The moment from which this job pays for an endpoint that another job paid for before.

    Attributes:
        at: when this job began to pay, in seconds on the steady clock.
        minute: when the last minute began that the other job has paid for, on the same clock.
        ended: nano-USD of the endpoint's spans that were over by then.
    """

    at: float
    minute: float
    ended: int

    def aligned(self, running: RunningEndpoint) -> RunningEndpoint:
        """Replicas that ran at the change, with ``since`` moved to the last minute paid for."""
        return running._replace(since=self.minute) if running.since <= self.at else running


def seconds_left(
    budget: int, running: Iterable[RunningEndpoint], now: float, minute_s: float
) -> float:
    """Seconds until a minute starts that ``budget`` nano-USD no longer pays.

    0 if the budget is used up already; at most `HORIZON_S`, then ask again.

    Args:
        budget: nano-USD for all minutes of these replicas, those already started included.
        now: seconds on the clock of ``since``.
        minute_s: seconds of a billing minute.
    """
    starts = []
    for endpoint in running:
        started = int(max(now - endpoint.since, 0.0) / minute_s) + 1
        budget -= started * endpoint.nano_per_minute
        starts.append((endpoint.since + started * minute_s, endpoint.nano_per_minute))
    heapq.heapify(starts)
    while budget >= 0 and starts:
        at, cost = starts[0]
        if cost == 0 or at - now > HORIZON_S:
            heapq.heappop(starts)
            continue
        budget -= cost
        if budget < 0:
            return max(at - now - MARGIN * minute_s, 0.0)
        heapq.heapreplace(starts, (at + minute_s, cost))
    return 0.0 if budget < 0 else HORIZON_S
