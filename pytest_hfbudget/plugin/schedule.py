"""When the endpoints of a run are resumed and paused, and which test comes next."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pytest_hfbudget.reporting.model import counted
from pytest_hfbudget.scheduling.blocks import arrange
from pytest_hfbudget.scheduling.pool import Pool, order

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.endpoints import RunEndpoints
    from pytest_hfbudget.plugin.test_order import Expected

# Between two looks at an endpoint that was resumed and that nothing waits for.
LOOK_S = 2.0
# An endpoint that takes longer than expected is expected to take this part of its time more.
_LATE = 0.1


class Schedule:
    """The endpoints of a run while its tests run. Safe between threads.

    Every endpoint is paused after the last test that names it. Where tests may be put into another
    order, it is resumed when the work that is left before its tests is about its cold start.
    """

    def __init__(
        self,
        expected: Expected,
        endpoints: RunEndpoints,
        cold_starts: Mapping[str, float],
        *,
        assumed: float,
    ) -> None:
        """Nothing is resumed or paused yet.

        Args:
            cold_starts: seconds that were recorded, by endpoint.
            assumed: seconds of a cold start that is not recorded.
        """
        self.expected, self._endpoints = expected, endpoints
        self._cold_starts, self._assumed = cold_starts, assumed
        self._lock = threading.RLock()
        self._open = Counter(task.id for task in expected.tests)
        self._needs = {task.id: task.needs for task in expected.tests}
        self._left = Counter(name for task in expected.tests for name in task.needs)
        self._asked: set[str] = set()
        # All endpoints count the same: what they cost is read when the first is resumed.
        self.arrangement = arrange(expected.tests, {})
        self._looked = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The endpoints that tests name, in the order of these tests."""
        return tuple(self._left)

    def pool(self, *, longest_first: bool = False) -> Pool:
        """All tests, in blocks."""
        return Pool(self.expected.tests, self.arrangement, longest_first=longest_first)

    def first_order(self) -> list[int]:
        """The places of the tests as they would run if all took as long as expected."""
        cold = {name: self._cold_starts.get(name, self._assumed) for name in self.names}
        return order(self.expected.tests, self.arrangement, cold)

    def header(self) -> str:
        """Which order the tests are in, and why."""
        endpoints = counted(len(self.names), "endpoint")
        if self.expected.kept:
            return f"hfbudget: order: as collected ({self.expected.kept}); {endpoints}"
        blocks, free = counted(len(self.arrangement.blocks), "block"), self.arrangement.free
        tests = counted(sum(len(unit.tests) for unit in free), "free test")
        meanwhile = f", {tests} during cold starts" if free else ""
        return (
            f"hfbudget: order: {endpoints} in {blocks}{meanwhile} (hf_order=collected keeps yours)"
        )

    def ended(self, test: str) -> None:
        """A test is over: what it was the last to need is paused."""
        with self._lock:
            if not self._open[test]:
                return
            self._open[test] -= 1
            self._left.subtract(self._needs[test])
            over = [name for name in self._needs[test] if not self._left[name]]
        if not self.expected.repeats:
            for name in over:
                self._endpoints.release(name)

    def ready(self, needs: Collection[str], at: float) -> float:
        """When all of these are expected to serve; `-inf` if they do.

        Args:
            at: when they would be resumed that are not yet.
        """
        return max((self._ready(name, at) for name in needs), default=-math.inf)

    def _ready(self, name: str, at: float) -> float:
        cold = self._cold_starts.get(name, self._assumed)
        since = self._endpoints.since(name)
        if since is None:
            return at + cold
        now = time.monotonic()
        late = max(since + cold, now + _LATE * (now - since))
        return since if since == -math.inf else late

    def look(self) -> None:
        """See which endpoints have come up, every few seconds at most."""
        now = time.monotonic()
        if now - self._looked < min(LOOK_S, self._assumed / 10):
            return
        for name in self.names:
            if (self._endpoints.since(name) or -math.inf) > -math.inf:
                self._looked = now
                self._endpoints.opened(name)

    def resume_in_time(self, pool: Pool, busy: float | None, workers: int = 1) -> None:
        """Resume what will be needed when the work before it is done.

        Args:
            busy: seconds of the tests that workers have in hand already; None if unknown.
        """
        if self.expected.kept:
            return
        for needs, before in pool.needed():
            work = None if before is None or busy is None else busy + before / workers
            for name in needs:
                if self._endpoints.since(name) is None and self._is_due(name, work):
                    self.resume(name)

    def _is_due(self, name: str, work: float | None) -> bool:
        # Resumed too late it costs time, too early it costs money: so what is not known waits.
        return work is not None and work <= self._cold_starts.get(name, 0.0)

    def resume(self, name: str) -> None:
        """Resume one without waiting for it, once."""
        with self._lock:
            if name in self._asked:
                return
            self._asked.add(name)
        self._resume(name, name in self.expected.keep_running)

    def _resume(self, name: str, keep_running: bool) -> None:
        self._endpoints.warm(name, keep_running=keep_running)
