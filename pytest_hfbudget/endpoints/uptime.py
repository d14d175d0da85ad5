"""What endpoints cost by running, and which tests that time belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

from pytest_hfbudget.money import ATTO_PER_NANO

MINUTES_PER_HOUR = 60
_MICROSECOND = timedelta(microseconds=1)
_FRACTION = re.compile(r"\.(\d+)")
ReplicaKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Uptime:
    """Started minutes of all replicas, and what they cost.

    Attributes:
        nano_usd: 0 when the price is unknown.
        estimated: an upper bound, because the server had no times of its own.
    """

    minutes: int
    nano_usd: int
    estimated: bool


NOTHING = Uptime(0, 0, False)


def cost(atto_per_hour: int, minutes: int) -> int:
    """Nano-USD of started minutes, rounded up once."""
    return -(-atto_per_hour * minutes // (MINUTES_PER_HOUR * ATTO_PER_NANO))


def started_minutes(span_s: float, billing_minute_s: float = 60.0) -> int:
    """Minutes that have begun in a span of seconds; a span that was entered has at least one."""
    minute = _micros(billing_minute_s)
    return max(-(-_micros(span_s) // minute), 1)


def earlier_replicas(replicas: Iterable[Mapping[str, Any]]) -> dict[ReplicaKey, bool]:
    """The replicas that are there before a run, and whether each has stopped."""
    return {_key(replica): bool(_status(replica).get("stoppedAt")) for replica in replicas}


def from_replicas(
    replicas: Iterable[Mapping[str, Any]],
    *,
    window_s: float,
    earlier: Mapping[ReplicaKey, bool],
    atto_per_hour: int | None,
    billing_minute_s: float = 60.0,
) -> Uptime | None:
    """Uptime by the server's own times; None when it has none to show.

    A difference is only ever taken between two times of the same clock: server's and ours may
    be apart. So a replica without both of its times counts for the whole window.

    Args:
        window_s: seconds, by our clock, from the request to resume to the verified pause.
        earlier: see `earlier_replicas`. What had stopped does not count; what ran already
            counts from our window's start on.
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
    window_s: float,
    replicas: int,
    atto_per_hour: int | None,
    billing_minute_s: float = 60.0,
) -> Uptime:
    """The upper bound while nothing better is known: every replica for the whole window."""
    minutes = max(replicas, 1) * started_minutes(window_s, billing_minute_s)
    return _priced(minutes, atto_per_hour, True)


def _priced(minutes: int, atto_per_hour: int | None, estimated: bool) -> Uptime:
    return Uptime(minutes, cost(atto_per_hour or 0, minutes), estimated)


def _status(replica: Mapping[str, Any]) -> Mapping[str, Any]:
    status = replica.get("status")
    return status if isinstance(status, Mapping) else {}


def _key(replica: Mapping[str, Any]) -> ReplicaKey:
    return str(replica.get("id")), str(_status(replica).get("startedAt"))


def _span(replica: Mapping[str, Any]) -> float | None:
    status = _status(replica)
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


_NANOS = 10**9


class EndpointUse(NamedTuple):
    """A stretch of time that a test was on an endpoint; ``stop`` is None while it lasts."""

    test: str
    start: float
    stop: float | None = None


class UseStretch(NamedTuple):
    """From when until when."""

    start: float
    stop: float


class UsageWindow(NamedTuple):
    """The time that was paid for.

    Attributes:
        start, stop: from the request to resume to the pause.
        cold: the stretches within it in which the endpoint was coming up.
        paid_until: when the minute would have ended that the pause has cut short.
    """

    start: float
    stop: float
    cold: tuple[UseStretch, ...] = ()
    paid_until: float = 0.0


NO_TIME = UsageWindow(0.0, 0.0)


@dataclass(frozen=True)
class Shares:
    """The cost of one endpoint, shared out.

    Attributes:
        tests: what each test that used it owes, in the order in which they came.
        idle: the time that no test used, with the rest of the last minute.
        cold_start: the time from its resume until it served.
    """

    tests: Mapping[str, int]
    idle: int = 0
    cold_start: int = 0


def share_out(nano_usd: int, window: UsageWindow, uses: Iterable[EndpointUse]) -> Shares:
    """Share an endpoint's cost out; what comes back adds up to ``nano_usd`` exactly.

    Every second of the window costs the same. Tests that are on the endpoint at one time split
    it evenly. A test pays nothing for a cold start, which all that come later profit from.
    """
    uses = list(uses)
    times: dict[str, Fraction] = {use.test: Fraction(0) for use in uses}
    idle, cold = Fraction(0), Fraction(0)
    for length, is_cold, tests in _pieces(window, uses):
        if is_cold:
            cold += length
        elif tests:
            for test in tests:
                times[test] += Fraction(length, len(tests))
        else:
            idle += length
    *owed, of_idle, of_cold = apportion(nano_usd, [*times.values(), idle, cold])
    return Shares(dict(zip(times, owed, strict=True)), of_idle, of_cold)


def apportion(whole: int, weights: Sequence[Fraction]) -> list[int]:
    """Parts of a whole in the proportion of their weights, by the largest remainder.

    Each part is its exact value rounded down or up, and together they are the whole. Where all
    weights are 0, the last but one has it all, or the only one.
    """
    total = sum(weights)
    if not total:
        parts = [0] * len(weights)
        parts[-2 if len(parts) > 1 else 0] = whole
        return parts
    exact = [whole * weight / total for weight in weights]
    parts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda at: parts[at] - exact[at])
    for at in by_remainder[: whole - sum(parts)]:
        parts[at] += 1
    return parts


def _pieces(
    window: UsageWindow, uses: list[EndpointUse]
) -> Iterator[tuple[int, bool, tuple[str, ...]]]:
    """The window in pieces in which nothing changes: nanoseconds, cold or not, who was there."""
    start, stop = _nanos(window.start), _nanos(window.stop)
    changes: list[tuple[int, int, str | None]] = []
    for use in uses:
        until = stop if use.stop is None else _nanos(use.stop)
        changes += _within(start, stop, _nanos(use.start), until, use.test)
    for stretch in window.cold:
        changes += _within(start, stop, _nanos(stretch.start), _nanos(stretch.stop), None)
    there: dict[str | None, int] = {}
    at = start
    for moment, step, who in sorted(changes, key=lambda change: change[:2]):
        if moment > at:
            yield _piece(moment - at, there)
            at = moment
        there[who] = there.get(who, 0) + step
        if not there[who]:
            del there[who]
    if stop > at:
        yield _piece(stop - at, there)
    if (rest := _nanos(window.paid_until) - max(stop, start)) > 0:
        yield rest, False, ()


def _piece(length: int, there: Mapping[str | None, int]) -> tuple[int, bool, tuple[str, ...]]:
    return length, None in there, tuple(who for who in there if who is not None)


def _within(
    first: int, last: int, start: int, stop: int, who: str | None
) -> list[tuple[int, int, str | None]]:
    start, stop = max(start, first), min(stop, last)
    return [(start, 1, who), (stop, -1, who)] if start < stop else []


def _nanos(seconds: float) -> int:
    return round(seconds * _NANOS)
