"""In which order tests run so that their endpoints run for the fewest minutes. Knows no pytest.

What can't be torn apart is a unit; units that need the same endpoints are a block.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

# So many endpoints are put into the best order there is; the order of more is a good one.
EXACT = 8
# The exact order looks at every set of blocks: 2 ** 14 of them take a fifth of a second.
_MOST_BLOCKS = 14


class Task(NamedTuple):
    """One test.

    Attributes:
        needs: the endpoints that it names.
        unit: tests with the same number share fixtures, and move as a whole.
        certain: nothing that is known before it begins may keep it from using them.
        seconds: how long it is expected to take; None if that is not known.
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
        tests: their places in the collection.
        needs: the endpoints of any of them.
        seconds: of all together; None if that of one is not known.
    """

    tests: tuple[int, ...]
    needs: frozenset[str]
    seconds: float | None

    @property
    def length(self) -> float:
        """Seconds, to compare with; a test of unknown length counts as one second."""
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
    """Blocks in the order in which they run, and what needs no endpoint."""

    blocks: tuple[Block, ...]
    free: tuple[Unit, ...]


def units(tasks: Sequence[Task]) -> tuple[Unit, ...]:
    """What can't be torn apart, in the order of its first test; a negative unit is one test."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, task in enumerate(tasks):
        alone = task.unit < 0
        members[(place, 0) if alone else (-1, task.unit)].append(place)
    return tuple(joined(tasks, places) for places in members.values())


def arrange(tasks: Sequence[Task], rates: Mapping[str, float]) -> Arrangement:
    """The order with the smallest sum, over the endpoints, of price x time between its blocks.

    What shares an endpoint stays adjacent as far as it can: a, a and b, b. Exact for up to
    `EXACT` endpoints that are tied to each other by common tests; what is not tied keeps the
    order of the collection.

    Args:
        rates: the price of each endpoint for any time; one that is not in it counts as 1.
    """
    by_needs: dict[frozenset[str], list[Unit]] = {}
    free = []
    for unit in units(tasks):
        if unit.needs:
            by_needs.setdefault(unit.needs, []).append(unit)
        else:
            free.append(unit)
    blocks = [Block(needs, tuple(of_it)) for needs, of_it in by_needs.items()]
    ordered = [block for tied in _tied(blocks) for block in _best(tied, rates)]
    return Arrangement(tuple(ordered), tuple(free))


def joined(tasks: Sequence[Task], places: Sequence[int]) -> Unit:
    """The tests at these places as one unit."""
    needs = frozenset(name for place in places for name in tasks[place].needs)
    times = [tasks[place].seconds for place in places]
    known = [seconds for seconds in times if seconds is not None]
    return Unit(tuple(places), needs, sum(known) if len(known) == len(times) else None)


def _tied(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that share endpoints, directly or by others between them."""
    group = list(range(len(blocks)))
    owner: dict[str, int] = {}
    for number, block in enumerate(blocks):
        for name in block.needs:
            first = owner.setdefault(name, number)
            old, new = group[number], group[first]
            group = [new if of_it == old else of_it for of_it in group]
    keyed = sorted(range(len(blocks)), key=lambda number: (group.index(group[number]), number))
    return [
        [blocks[number] for number in of_it]
        for _, of_it in groupby(keyed, key=lambda number: group[number])
    ]


def _best(blocks: Sequence[Block], rates: Mapping[str, float]) -> Sequence[Block]:
    if len(blocks) <= 1:
        return blocks
    puzzle = _Puzzle(blocks, rates)
    exact = puzzle.endpoints <= EXACT and len(blocks) <= _MOST_BLOCKS
    order = puzzle.exactly() if exact else puzzle.greedily()
    return [blocks[number] for number in order]


class _Puzzle:
    """Blocks that share endpoints; sets of blocks and of endpoints are the bits of numbers."""

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

    def exactly(self) -> Iterable[int]:
        """By the cheapest way to each set of blocks; among equals the collection's order."""
        of_set = self._needs_of_sets()
        cheapest: list[tuple[float, tuple[int, ...]]] = [(math.inf, ())] * (self._every + 1)
        cheapest[0] = (0.0, ())
        for placed in range(self._every):
            paid, so_far = cheapest[placed]
            for block, length in enumerate(self._lengths):
                if placed >> block & 1:
                    continue
                then = placed | 1 << block
                open_still = of_set[placed] & of_set[self._every ^ then] & ~self._needs[block]
                way = (paid + length * self._price(open_still), (*so_far, block))
                cheapest[then] = min(cheapest[then], way)
        return cheapest[self._every][1]

    def greedily(self) -> Iterable[int]:
        """Next what keeps the fewest endpoints waiting, and goes on with the most of them."""
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
        others = 0
        for other in left:
            others |= self._needs[other] if other != block else 0
        needs = self._needs[block]
        waiting = self._price(begun & others & ~needs)
        return self._lengths[block] * waiting, -(last & needs).bit_count(), block

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
    """Whether an endpoint that serves is to be paused until it is needed again.

    To pause it saves money if it is idle for longer than the cold start that this costs. Where
    that is unknown, it is paused once it has idled so long: that costs twice the least at most.

    Args:
        idle: seconds since a test last used it.
        until: seconds until a test needs it again; None if that is not known.
        minute: seconds of a billed minute; a cold start is paid for by started minutes.
    """
    return idle >= cold_start if until is None else until > minute * math.ceil(cold_start / minute)


# When all of these endpoints are expected to serve, on the caller's clock.
Ready = Callable[[frozenset[str]], float]


class Pool:
    """Gives tests out: of the block whose endpoints serve, else free ones that fit meanwhile.

    A test of unknown length is taken to be as long as the mean of those that have been measured.

    Args:
        longest_first: inside a block, so that several workers come to its end together.
    """

    def __init__(
        self, tasks: Sequence[Task], arrangement: Arrangement, *, longest_first: bool = False
    ) -> None:
        self._tasks = tasks
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
        """A test has taken so long."""
        self._measured += seconds
        self._count += 1

    def seconds(self, test: int) -> float:
        """How long a test is expected to take."""
        known = self._tasks[test].seconds
        return (self._measured / max(self._count, 1)) if known is None else known

    def pick(self, worker: object, at: float, ready: Ready, *, spare: bool = False) -> int | None:
        """The place of the next test for a worker, which will begin it at that time.

        Args:
            spare: another worker comes to the last tests of the block that serves before this
                one, so this one is to take something else.
        """
        rest = self._begun.get(worker)
        if not rest:
            unit = self._choose(at, ready, spare)
            if unit is None:
                return None
            rest = self._begun[worker] = deque(unit.tests)
        return rest.popleft()

    def put_back(self, worker: object, tests: Iterable[int]) -> None:
        """Tests that a worker will not run; with them the rest of the unit that it was in."""
        back = [*tests, *self._begun.pop(worker, ())]
        together: dict[tuple[int, int], list[int]] = {}
        for test in back:
            unit = self._tasks[test].unit
            together.setdefault((test, 0) if unit < 0 else (-1, unit), []).append(test)
        for places in reversed(together.values()):
            self._return(joined(self._tasks, places))

    def needed(self) -> Iterable[tuple[frozenset[str], float | None]]:
        """The needs of each block with tests left, and the work in the blocks before it.

        In seconds of one worker; None if that is not known. Blocks that may need nothing after all
        are not among them.
        """
        before: float | None = 0.0
        for units in self._blocks:
            if not units:
                continue
            if any(self._tasks[test].certain for unit in units for test in unit.tests):
                yield units[0].needs, before
            work = [unit.seconds for unit in units]
            known = [seconds for seconds in work if seconds is not None]
            before = None if before is None or len(known) < len(work) else before + sum(known)

    def left_of_first(self) -> int:
        """How many units are left of the first block that is not given out."""
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
    tasks: Sequence[Task], arrangement: Arrangement, cold_starts: Mapping[str, float]
) -> list[int]:
    """The places of the tests in a run of one worker, if all take as long as expected.

    Free tests go into the first cold start as far as they fit, and behind the blocks.
    """
    pool, at = Pool(tasks, arrangement), 0.0
    first = arrangement.blocks[0].needs if arrangement.blocks else frozenset()
    serves = max((cold_starts.get(name, 0.0) for name in first), default=0.0)
    found = []
    while (place := pool.pick("", at, lambda needs: serves)) is not None:
        found.append(place)
        at = max(at, serves if tasks[place].needs else 0.0) + pool.seconds(place)
    return found
