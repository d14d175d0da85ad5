"""Who owes an endpoint's uptime: the tests that used it, by the time that they ran on it.

Times are seconds on one steady clock. Amounts are nano-USD, and always add up to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_NANOS = 10**9


class Use(NamedTuple):
    """A stretch of time that a test was on an endpoint; ``stop`` is None while it lasts."""

    test: str
    start: float
    stop: float | None = None


class Stretch(NamedTuple):
    """From when until when."""

    start: float
    stop: float


class Window(NamedTuple):
    """The time that was paid for.

    Attributes:
        start, stop: from the request to resume to the pause.
        cold: the stretches within it in which the endpoint was coming up.
        paid_until: when the minute would have ended that the pause has cut short.
    """

    start: float
    stop: float
    cold: tuple[Stretch, ...] = ()
    paid_until: float = 0.0


NO_TIME = Window(0.0, 0.0)


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


def share_out(nano_usd: int, window: Window, uses: Iterable[Use]) -> Shares:
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


def _pieces(window: Window, uses: list[Use]) -> Iterator[tuple[int, bool, tuple[str, ...]]]:
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
