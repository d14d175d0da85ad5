"""What an endpoint costs by running.

"Billed per minute" at the instance's hourly price for each replica, initializing included
(https://huggingface.co/docs/inference-endpoints/support/pricing). How a part of a minute is
rounded is not published; here each replica's span is rounded up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

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
