"""The order of tests in which their endpoints run for the fewest minutes.

Tests that have to run one after the other are a unit. Units that need the same endpoints are a
block. Nothing here depends on pytest.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

# Up to this many endpoints get the optimal order; with more of them a greedy one is used.
EXACT = 8
# The optimal order is found by looking at every set of blocks: 2 ** 14 sets take 0.2 seconds.
_MOST_BLOCKS = 14


class CollectedTest(NamedTuple):
    """One test of the collection, which is to be scheduled.

    Attributes:
        needs: the endpoints that the test names.
        unit: tests with the same number share fixtures and stay together; -1 for a test of its own.
        certain: False if its set-up may still show that the test does not use its endpoints.
        seconds: how long the test is expected to take; None if unknown.
    """

    id: str
    needs: tuple[str, ...] = ()
    unit: int = -1
    certain: bool = True
    seconds: float | None = None


@dataclass(frozen=True)
class Unit:
    """Tests that run one after the other, in the order in which they were collected.

    Attributes:
        tests: the indices of the tests in the collection.
        needs: all endpoints that at least one of the tests needs.
        seconds: the sum over the tests; None if it is unknown for one of them.
    """

    tests: tuple[int, ...]
    needs: frozenset[str]
    seconds: float | None

    @property
    def length(self) -> float:
        """Seconds, for comparisons only: if unknown, each test counts as one second."""
        return float(len(self.tests)) if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Block:
    """Units that need the same endpoints."""

    needs: frozenset[str]
    units: tuple[Unit, ...]

    @property
    def length(self) -> float:
        """Seconds, see `Unit.length`."""
        return sum(unit.length for unit in self.units)


@dataclass(frozen=True)
class Arrangement:
    """The blocks in the order in which they run, and the units that need no endpoint (free)."""

    blocks: tuple[Block, ...]
    free: tuple[Unit, ...]


def units(tests: Sequence[CollectedTest]) -> tuple[Unit, ...]:
    """The units of these tests, in the order of their first tests."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, test in enumerate(tests):
        alone = test.unit < 0
        members[(place, 0) if alone else (-1, test.unit)].append(place)
    return tuple(joined(tests, places) for places in members.values())


def arrange(tests: Sequence[CollectedTest], rates: Mapping[str, float]) -> Arrangement:
    """Order the blocks so that endpoints cost least while they wait between their blocks.

    The cost of an order is the sum, over all endpoints, of price x idle time between two blocks
    that need the endpoint. Blocks that share endpoints, directly or through other blocks, form a
    group. A group of up to `EXACT` endpoints and `_MOST_BLOCKS` blocks gets the optimal order, a
    larger one a greedy order. The groups follow the order of the collection.

    Args:
        rates: the relative price of each endpoint per second; a missing one counts as 1.
    """
    by_needs: dict[frozenset[str], list[Unit]] = {}
    free = []
    for unit in units(tests):
        if unit.needs:
            by_needs.setdefault(unit.needs, []).append(unit)
        else:
            free.append(unit)
    blocks = [Block(needs, tuple(same)) for needs, same in by_needs.items()]
    ordered = [block for group in _groups(blocks) for block in _best(group, rates)]
    return Arrangement(tuple(ordered), tuple(free))


def joined(tests: Sequence[CollectedTest], places: Sequence[int]) -> Unit:
    """The tests at these indices as one unit."""
    needs = frozenset(name for place in places for name in tests[place].needs)
    times = [tests[place].seconds for place in places]
    known = [seconds for seconds in times if seconds is not None]
    return Unit(tuple(places), needs, sum(known) if len(known) == len(times) else None)


def _groups(blocks: Sequence[Block]) -> list[list[Block]]:
    """Groups of blocks that share endpoints, directly or through other blocks."""
    labels = list(range(len(blocks)))  # blocks of one group have the same label
    first_user: dict[str, int] = {}
    for number, block in enumerate(blocks):
        for name in block.needs:
            first = first_user.setdefault(name, number)
            old, new = labels[number], labels[first]
            labels = [new if label == old else label for label in labels]
    by_group = sorted(range(len(blocks)), key=lambda number: (labels.index(labels[number]), number))
    return [
        [blocks[number] for number in numbers]
        for _, numbers in groupby(by_group, key=lambda number: labels[number])
    ]


def _best(blocks: Sequence[Block], rates: Mapping[str, float]) -> Sequence[Block]:
    if len(blocks) <= 1:
        return blocks
    search = _BlockOrder(blocks, rates)
    exact = search.endpoints <= EXACT and len(blocks) <= _MOST_BLOCKS
    order = search.optimal() if exact else search.greedy()
    return [blocks[number] for number in order]


class _BlockOrder:
    """Finds an order for blocks that share endpoints.

    A set of blocks, or of endpoints, is an int with one bit for each member.
    """

    def __init__(self, blocks: Sequence[Block], rates: Mapping[str, float]) -> None:
        names = sorted(frozenset[str]().union(*(block.needs for block in blocks)))
        self.endpoints = len(names)
        self._rates = [rates.get(name, 1.0) for name in names]
        self._lengths = [block.length for block in blocks]
        self._needs = [
            sum(1 << bit for bit, name in enumerate(names) if name in block.needs)
            for block in blocks
        ]
        self._every = (1 << len(blocks)) - 1
        self._prices: dict[int, float] = {}

    def optimal(self) -> Iterable[int]:
        """The optimal order, by dynamic programming over sets of blocks.

        Of two orders that cost the same, the one that is closer to the collection's wins.
        """
        of_set = self._needs_of_sets()
        cheapest: list[tuple[float, tuple[int, ...]]] = [(math.inf, ())] * (self._every + 1)
        cheapest[0] = (0.0, ())
        for placed in range(self._every):
            paid, so_far = cheapest[placed]
            for block, length in enumerate(self._lengths):
                if placed >> block & 1:
                    continue
                then = placed | 1 << block
                idle = of_set[placed] & of_set[self._every ^ then] & ~self._needs[block]
                order = (paid + length * self._price(idle), (*so_far, block))
                cheapest[then] = min(cheapest[then], order)
        return cheapest[self._every][1]

    def greedy(self) -> Iterable[int]:
        """Take next the block during which idle endpoints cost least.

        Of blocks that are equal in this, take the one that shares most endpoints with the last.
        """
        left = list(range(len(self._needs)))
        begun = last = 0
        while left:
            block = min(left, key=lambda block: self._next_cost(block, left, begun, last))
            left.remove(block)
            last = self._needs[block]
            begun |= last
            yield block

    def _next_cost(
        self, block: int, left: Iterable[int], begun: int, last: int
    ) -> tuple[float, int, int]:
        needed_later = 0
        for other in left:
            needed_later |= self._needs[other] if other != block else 0
        needs = self._needs[block]
        idle = self._price(begun & needed_later & ~needs)
        return self._lengths[block] * idle, -(last & needs).bit_count(), block

    def _needs_of_sets(self) -> list[int]:
        found = [0] * (self._every + 1)
        for blocks in range(1, self._every + 1):
            first = (blocks & -blocks).bit_length() - 1
            found[blocks] = found[blocks & (blocks - 1)] | self._needs[first]
        return found

    def _price(self, endpoints: int) -> float:
        if endpoints not in self._prices:
            bits = (rate for bit, rate in enumerate(self._rates) if endpoints >> bit & 1)
            self._prices[endpoints] = sum(bits)
        return self._prices[endpoints]


def is_gap(idle: float, until: float | None, cold_start: float, minute: float) -> bool:
    """Whether to pause an endpoint that serves until a test needs it again.

    A pause saves money if the idle time is longer than the cold start that the pause causes. If the
    idle time is unknown, the endpoint is paused once it has been idle for as long as a cold start.
    That costs at most twice the minimum, as in the ski rental problem.

    Args:
        idle: seconds since a test last used the endpoint.
        until: seconds until a test needs it again; None if unknown.
        cold_start: seconds from a resume until the endpoint serves.
        minute: seconds of a billed minute; a cold start is billed by started minutes.
    """
    return idle >= cold_start if until is None else until > minute * math.ceil(cold_start / minute)


# Returns when all of these endpoints are expected to serve, in seconds on the caller's clock.
Ready = Callable[[frozenset[str]], float]


class Pool:
    """Hands out tests: first from a block whose endpoints serve.

    If no block's endpoints serve yet, it hands out a free test that ends before they do. A test of
    unknown length is expected to take as long as the mean of the measured tests.

    Args:
        longest_first: sort each block by length, so that all workers end it at about the same time.
    """

    def __init__(
        self,
        tests: Sequence[CollectedTest],
        arrangement: Arrangement,
        *,
        longest_first: bool = False,
    ) -> None:
        self._tests = tests
        self._measured = 0.0
        self._count = 0
        self._blocks = [list(block.units) for block in arrangement.blocks]
        self._free = list(arrangement.free)
        if longest_first:
            for units in (*self._blocks, self._free):
                units.sort(key=lambda unit: -unit.length)
        self._begun: dict[object, deque[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._free or any(self._blocks) or any(self._begun.values()))

    def measure(self, seconds: float) -> None:
        """Note how many seconds a test has taken."""
        self._measured += seconds
        self._count += 1

    def seconds(self, test: int) -> float:
        """The seconds that a test is expected to take."""
        known = self._tests[test].seconds
        return (self._measured / max(self._count, 1)) if known is None else known

    def pick(self, worker: object, at: float, ready: Ready, *, spare: bool = False) -> int | None:
        """The index of a worker's next test; None if nothing is left for this worker.

        Args:
            at: when the worker will begin the test, in seconds on the clock of ``ready``.
            spare: other workers will take the rest of the block that serves before this worker is
                free, so this worker takes another block, or a free test.
        """
        rest = self._begun.get(worker)
        if not rest:
            unit = self._choose(at, ready, spare)
            if unit is None:
                return None
            rest = self._begun[worker] = deque(unit.tests)
        return rest.popleft()

    def put_back(self, worker: object, tests: Iterable[int]) -> None:
        """Take back tests that a worker will not run, and the rest of the unit it was in."""
        back = [*tests, *self._begun.pop(worker, ())]
        together: dict[tuple[int, int], list[int]] = {}
        for test in back:
            unit = self._tests[test].unit
            together.setdefault((test, 0) if unit < 0 else (-1, unit), []).append(test)
        for places in reversed(together.values()):
            self._return(joined(self._tests, places))

    def needed(self) -> Iterable[tuple[frozenset[str], float | None]]:
        """For each block with tests left: its endpoints, and the work in the blocks before it.

        The work is in seconds of one worker, or None if unknown. A block is left out if the set-up
        of its tests may still show that they use no endpoint.
        """
        before: float | None = 0.0
        for units in self._blocks:
            if not units:
                continue
            if any(self._tests[test].certain for unit in units for test in unit.tests):
                yield units[0].needs, before
            work = [unit.seconds for unit in units]
            known = [seconds for seconds in work if seconds is not None]
            before = None if before is None or len(known) < len(work) else before + sum(known)

    def left_of_first(self) -> int:
        """How many units are left of the first block that is not yet handed out in full."""
        return next((len(units) for units in self._blocks if units), 0)

    def _choose(self, at: float, ready: Ready, spare: bool) -> Unit | None:
        waiting: tuple[list[Unit], float] | None = None
        last: list[Unit] | None = None
        for units in filter(None, self._blocks):
            when = ready(units[0].needs)
            if when <= at:
                if not spare:
                    return units.pop(0)
                last, spare = units, False
            elif waiting is None:
                waiting = units, when
        if waiting is None:
            return self._free.pop(0) if self._free else last.pop(0) if last else None
        units, when = waiting
        fitting = (n for n, unit in enumerate(self._free) if self._length(unit) <= when - at)
        fits = next(fitting, None)
        return units.pop(0) if fits is None else self._free.pop(fits)

    def _length(self, unit: Unit) -> float:
        return sum(map(self.seconds, unit.tests))

    def _return(self, unit: Unit) -> None:
        home = next((u for u in self._blocks if u and u[0].needs == unit.needs), None)
        if not unit.needs:
            self._free.insert(0, unit)
        elif home is not None:
            home.insert(0, unit)
        else:
            self._blocks.insert(0, [unit])


def order(
    tests: Sequence[CollectedTest], arrangement: Arrangement, cold_starts: Mapping[str, float]
) -> list[int]:
    """The indices of the tests in the order of a run with one worker.

    Free tests that fit run during the first cold start, the others after all blocks.
    """
    pool, at = Pool(tests, arrangement), 0.0
    first = arrangement.blocks[0].needs if arrangement.blocks else frozenset()
    serves = max((cold_starts.get(name, 0.0) for name in first), default=0.0)
    found = []
    while (place := pool.pick("", at, lambda needs: serves)) is not None:
        found.append(place)
        at = max(at, serves if tests[place].needs else 0.0) + pool.seconds(place)
    return found
