"""How long endpoints run: at least, in the order of the collection, and in the order of blocks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pytest_hfbudget.scheduling.blocks import Arrangement, Task, Unit


class Span(NamedTuple):
    """From its resume to its pause, in seconds from the begin of the tests."""

    start: float
    stop: float

    @property
    def seconds(self) -> float:
        return self.stop - self.start


def least(cold_start: float, tests: Iterable[float], workers: int) -> float:
    """Seconds for which an endpoint has to run: until it serves, and then while tests use it.

    All workers are on it, and no test is shorter for that.

    Args:
        tests: seconds for which each of them uses it.
    """
    times = tuple(tests)
    return cold_start + max(max(times, default=0.0), sum(times) / max(workers, 1))


def collected(
    tasks: Sequence[Task], cold_starts: Mapping[str, float], workers: int
) -> dict[str, Span]:
    """In the order of the collection: resumed by the first test that names it, until the end.

    This is what a run without any of this would do.

    Args:
        tasks: of known length; one of unknown length counts as no time.
        cold_starts: seconds, of every endpoint.
    """
    free = [0.0] * max(workers, 1)
    resumed: dict[str, float] = {}
    for task in tasks:
        begin = heapq.heappop(free)
        for name in task.needs:
            ready = resumed.setdefault(name, begin) + cold_starts.get(name, 0.0)
            begin = max(begin, ready)
        heapq.heappush(free, begin + (task.seconds or 0.0))
    return {name: Span(start, max(free)) for name, start in resumed.items()}


def arranged(
    tasks: Sequence[Task],
    arrangement: Arrangement,
    cold_starts: Mapping[str, float],
    workers: int,
) -> dict[str, Span]:
    """In the order of blocks: resumed just in time, paused after the last test that names it.

    Free tests go into the first cold start as far as they fit, and behind the blocks.
    """
    at = max((cold_starts.get(n, 0.0) for n in _first(arrangement)), default=0.0)
    spans: dict[str, Span] = {}
    for block in arrangement.blocks:
        times = [_length(tasks, unit) for unit in block.units]
        stop = at + least(0.0, times, workers)
        for name in block.needs:
            cold = cold_starts.get(name, 0.0)
            start = spans[name].start if name in spans else at - cold
            spans[name] = Span(start, stop)
        at = stop
    return spans


def _first(arrangement: Arrangement) -> frozenset[str]:
    return arrangement.blocks[0].needs if arrangement.blocks else frozenset()


def _length(tasks: Sequence[Task], unit: Unit) -> float:
    return sum(tasks[test].seconds or 0.0 for test in unit.tests)
