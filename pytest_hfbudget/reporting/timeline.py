"""The timeline of endpoints and tests, and the least minutes that the endpoints needed.

Times are seconds since the first test or the first resume, whichever is earlier. Money is nano-USD.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from pytest_hfbudget.endpoints.uptime import UptimeWindow, started_minutes
from pytest_hfbudget.endpoints.uptime_meter import EndpointUse
from pytest_hfbudget.money import show
from pytest_hfbudget.scheduling import Arrangement, CollectedTest, Unit

COLD, USED, IDLE, PAUSED = "cold start", "in use", "idle", "paused"
# How many tests a timeline keeps: tests on endpoints first, then the longest.
MOST_TESTS = 2000


class Stretch(NamedTuple):
    """A time in which an endpoint was in one state."""

    state: str
    start: float
    stop: float


class Lane(NamedTuple):
    """The states of one endpoint, from the beginning of the run to its end."""

    endpoint: str
    stretches: tuple[Stretch, ...]


class TestSpan(NamedTuple):
    """When one test ran.

    Attributes:
        worker: the worker of xdist that ran it; empty without workers.
        endpoints: the endpoints that it used.
    """

    test: str
    worker: str
    start: float
    stop: float
    endpoints: tuple[str, ...] = ()


class Minutes(NamedTuple):
    """Started minutes of the endpoints that tests name, and their cost."""

    minutes: int = 0
    nano_usd: int = 0

    def plus(self, other: Minutes) -> Minutes:
        return Minutes(self.minutes + other.minutes, self.nano_usd + other.nano_usd)

    def minus(self, other: Minutes) -> Minutes:
        return Minutes(self.minutes - other.minutes, self.nano_usd - other.nano_usd)

    def __str__(self) -> str:
        return f"{self.minutes:,} ({show(self.nano_usd)})"


NO_MINUTES = Minutes()


@dataclass(frozen=True)
class Timeline:
    """The timeline of one run.

    Attributes:
        began_at: unix seconds to which all other times are relative.
        seconds: until the last pause or the end of the last test, whichever is later.
        paid: the minutes of the endpoints that tests name.
        least: the least minutes these endpoints need: for their cold starts, and then for their
            tests on all workers at once.
        collected: the minutes in the order of the collection, if the first test of each endpoint
            resumed it, and the end of the run paused it.
    """

    began_at: float
    seconds: float
    lanes: tuple[Lane, ...]
    tests: tuple[TestSpan, ...]
    paid: Minutes = NO_MINUTES
    least: Minutes = NO_MINUTES
    collected: Minutes = NO_MINUTES

    @property
    def line(self) -> str:
        """The figures in one line."""
        saved = self.collected.minus(self.paid)
        text = f"endpoint minutes: {self.paid} paid, {self.least} are the least"
        if self.paid == self.least == self.collected:
            return f"endpoint minutes: {self.paid} paid, as few as possible"
        if saved.nano_usd <= 0 and saved.minutes <= 0:
            return f"{text}; as many as in the order of the collection"
        return f"{text}; the order of the collection takes {self.collected}: {saved} saved"


class Paid(NamedTuple):
    """What was paid for one endpoint of the run, and when.

    Attributes:
        window: the time that was paid for, on the steady clock.
        uses: when tests used it, on the steady clock.
    """

    endpoint: str
    window: UptimeWindow
    uses: Sequence[EndpointUse]
    minutes: int
    nano_usd: int

    @property
    def cold_s(self) -> float:
        """The mean seconds of its cold starts: there is one after each resume."""
        resumes = len(self.window.gaps) + 1
        return sum(stretch.stop - stretch.start for stretch in self.window.cold) / resumes

    def lengths(self) -> dict[str, float]:
        """Seconds for which each test used it, by node id."""
        found: dict[str, float] = {}
        for use in self.uses:
            stop = self.window.stop if use.stop is None else use.stop
            found[use.test] = found.get(use.test, 0.0) + max(stop - use.start, 0.0)
        return found

    def cost_of(self, seconds: float, minute_s: float) -> Minutes:
        """What it would have cost if it had run for ``seconds`` with the same replicas."""
        replicas = max(round(self.minutes / started_minutes(self.window.seconds, minute_s)), 1)
        minutes = started_minutes(seconds, minute_s) * replicas
        return Minutes(minutes, math.ceil(self.nano_usd * minutes / max(self.minutes, 1)))


def lengths(
    tests: Iterable[CollectedTest], paid: Sequence[Paid], free: Mapping[str, float]
) -> dict[str, float]:
    """Seconds that each test took, without the time that it waited for endpoints.

    Args:
        free: seconds of each test from its beginning to its end, by node id; used for tests that
            need no endpoint.
    """
    on = [each.lengths() for each in paid]
    found = {}
    for test in tests:
        # A test with two endpoints waits for the second one while it uses the first.
        times = [times[test.id] for times in on if test.id in times]
        if times:
            found[test.id] = min(times)
        elif test.id in free and not test.needs:
            found[test.id] = free[test.id]
    return found


class Span(NamedTuple):
    """The time of an endpoint from resume to pause, in seconds since the first test began."""

    start: float
    stop: float

    @property
    def seconds(self) -> float:
        return self.stop - self.start


def least_seconds(cold_start: float, tests: Iterable[float], workers: int) -> float:
    """The least seconds that an endpoint has to run: its cold start, then its tests.

    It assumes that all workers run its tests at once, and that no test gets quicker or slower.

    Args:
        tests: the seconds for which each test uses it.
    """
    times = tuple(tests)
    return cold_start + max(max(times, default=0.0), sum(times) / max(workers, 1))


def collected_spans(
    tests: Sequence[CollectedTest], cold_starts: Mapping[str, float], workers: int
) -> dict[str, Span]:
    """When each endpoint would run in the order of the collection, without any planning.

    The first test that names an endpoint resumes it, and the end of the run pauses it.

    Args:
        tests: the tests; one of unknown length counts as 0 seconds.
        cold_starts: the seconds of each endpoint's cold start.
    """
    free = [0.0] * max(workers, 1)
    resumed: dict[str, float] = {}
    for test in tests:
        begin = heapq.heappop(free)
        for name in test.needs:
            ready = resumed.setdefault(name, begin) + cold_starts.get(name, 0.0)
            begin = max(begin, ready)
        heapq.heappush(free, begin + (test.seconds or 0.0))
    return {name: Span(start, max(free)) for name, start in resumed.items()}


def arranged_spans(
    tests: Sequence[CollectedTest],
    arrangement: Arrangement,
    cold_starts: Mapping[str, float],
    workers: int,
) -> dict[str, Span]:
    """When each endpoint runs in the planned order.

    It is resumed just in time, and paused after the last test that names it. Tests without
    endpoints run during the first cold start, or after all blocks.
    """
    at = max((cold_starts.get(n, 0.0) for n in _first(arrangement)), default=0.0)
    spans: dict[str, Span] = {}
    for block in arrangement.blocks:
        times = [_length(tests, unit) for unit in block.units]
        stop = at + least_seconds(0.0, times, workers)
        for name in block.needs:
            cold = cold_starts.get(name, 0.0)
            start = spans[name].start if name in spans else at - cold
            spans[name] = Span(start, stop)
        at = stop
    return spans


def _first(arrangement: Arrangement) -> frozenset[str]:
    return arrangement.blocks[0].needs if arrangement.blocks else frozenset()


def _length(tests: Sequence[CollectedTest], unit: Unit) -> float:
    return sum(tests[test].seconds or 0.0 for test in unit.tests)


def timeline(
    tests: Sequence[CollectedTest],
    ran: Sequence[TestSpan],
    paid: Sequence[Paid],
    *,
    clock: float,
    minute_s: float,
) -> Timeline:
    """The timeline of a run.

    Args:
        tests: every test, in the order of the collection.
        ran: the tests that have run; their times are unix seconds.
        clock: what has to be added to the steady clock for unix seconds.
        minute_s: seconds of a billing minute.
    """
    named = {name for test in tests for name in test.needs}
    begins = [test.start for test in ran] + [each.window.start + clock for each in paid]
    ends = [test.stop for test in ran] + [each.window.stop + clock for each in paid]
    began, ended = min(begins, default=0.0), max(ends, default=0.0)
    zero = began - clock
    users: dict[str, dict[str, float]] = {}
    for each in paid:
        for use in each.uses:
            users.setdefault(use.test, {}).setdefault(each.endpoint, use.start - zero)
    shown = [
        test._replace(
            # Until it had all of its endpoints, the test was waiting.
            start=max(test.start - began, *users.get(test.test, {"": 0.0}).values()),
            stop=test.stop - began,
            endpoints=tuple(users.get(test.test, ())),
        )
        for test in ran
    ]
    shown.sort(key=lambda test: (not test.endpoints, test.start - test.stop))
    workers = len({test.worker for test in ran})
    took = lengths(tests, paid, {test.test: test.stop - test.start for test in ran})
    known = [test._replace(seconds=took.get(test.id)) for test in tests if test.id in took]
    cold = {each.endpoint: each.cold_s for each in paid}
    in_order = collected_spans(known, cold, workers)
    total = least = collected = NO_MINUTES
    for each in paid:
        if each.endpoint not in named or not each.minutes:
            continue
        total = total.plus(Minutes(each.minutes, each.nano_usd))
        needed = least_seconds(each.cold_s, _used(each, took), workers)
        least = least.plus(each.cost_of(needed, minute_s))
        if each.endpoint in in_order:
            collected = collected.plus(each.cost_of(in_order[each.endpoint].seconds, minute_s))
    return Timeline(
        began_at=began,
        seconds=ended - began,
        lanes=tuple(Lane(each.endpoint, tuple(_lane(each, zero, ended - began))) for each in paid),
        tests=tuple(sorted(shown[:MOST_TESTS], key=lambda test: (test.worker, test.start))),
        paid=total,
        least=min(least, total),  # the clocks of both differ by parts of a second
        collected=collected,
    )


def _used(paid: Paid, took: Mapping[str, float]) -> list[float]:
    return [min(seconds, took.get(test, seconds)) for test, seconds in paid.lengths().items()]


def _lane(paid: Paid, zero: float, end: float) -> Iterator[Stretch]:
    """The states of an endpoint one after the other, from 0 to ``end``."""
    start, stop = paid.window.start, paid.window.stop
    cold = merged((each.start, each.stop) for each in paid.window.cold)
    used = merged((use.start, stop if use.stop is None else use.stop) for use in paid.uses)
    gaps = [(gap.start, gap.stop) for gap in paid.window.gaps]
    found = [Stretch(PAUSED, 0.0, start - zero)]
    pairs = cold + used + gaps
    changes = {start, stop, *(min(max(at, start), stop) for pair in pairs for at in pair)}
    for begin, until in pairwise(sorted(changes)):
        middle = (begin + until) / 2
        state = COLD if _in(cold, middle) else USED if _in(used, middle) else IDLE
        state = PAUSED if _in(gaps, middle) else state
        if found[-1].state == state:
            found[-1] = found[-1]._replace(stop=until - zero)
        else:
            found.append(Stretch(state, begin - zero, until - zero))
    found.append(Stretch(PAUSED, stop - zero, end))
    return (stretch for stretch in found if stretch.stop > stretch.start)


def merged(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The intervals in order, with overlapping ones joined."""
    found: list[tuple[float, float]] = []
    for start, stop in sorted(pairs):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _in(times: Sequence[tuple[float, float]], at: float) -> bool:
    number = bisect(times, (at, math.inf)) - 1
    return number >= 0 and at < times[number][1]
