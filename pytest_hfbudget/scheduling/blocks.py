"""Which tests stay together: what can't be torn apart, and blocks that need the same endpoints."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

            def cost(block: int) -> tuple[float, int, int]:
                others = 0
                for other in left:
                    others |= self._needs[other] if other != block else 0
                needs = self._needs[block]
                waiting = self._price(begun & others & ~needs)  # noqa: B023
                common = (last & needs).bit_count()  # noqa: B023
                return self._lengths[block] * waiting, -common, block

            block = min(left, key=cost)
            left.remove(block)
            last = self._needs[block]
            begun |= last
            yield block

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
