"""The tests that no worker has been given yet, and which of them is the best for one that asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from pytest_hfbudget.scheduling.blocks import Arrangement, Task, Unit, joined

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
        self._longest_first = longest_first
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
