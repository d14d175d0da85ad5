"""When the endpoints of a run are resumed and paused, and which test comes next."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.history.usage_schema import Durations
from pytest_hfbudget.locks import SYSTEM_CLOCK
from pytest_hfbudget.plugin.console import fitted
from pytest_hfbudget.reporting import counted
from pytest_hfbudget.reporting.timeline import TestSpan, Timeline, lengths, timeline
from pytest_hfbudget.scheduling import Pool, Task, arrange, is_gap, order

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.endpoints import RunEndpoints
    from pytest_hfbudget.plugin.test_order import Expected

# Between two looks at an endpoint that was resumed and that nothing waits for.
LOOK_S = 2.0
# An endpoint that takes longer than expected is expected to take this part of its time more.
_LATE = 0.1
# A pause that begins so shortly before the next minute is verified before that.
_LOOKS_IN_A_MINUTE = 60
PHASES: tuple[str, ...] = ("setup", "call", "teardown")


class EndpointSchedule:
    """The endpoints of a run while its tests run. Safe between threads.

    Every endpoint is paused after the last test that names it. Where tests may be put into another
    order, it is resumed when the work that is left before its tests is about its cold start.
    """

    def __init__(
        self,
        expected: Expected,
        known: Durations,
        endpoints: RunEndpoints,
        *,
        assumed: float,
        gap_minute_s: float | None = None,
    ) -> None:
        """Nothing is resumed or paused yet.

        Args:
            known: what was measured in earlier runs; it comes before the costs file.
            assumed: seconds of a cold start that is not recorded.
            gap_minute_s: seconds of a billed minute, if endpoints are paused between tests that
                lie apart; None if they are kept.
        """
        tests = tuple(_as_known(task, known.tests) for task in expected.tests)
        self.expected, self._endpoints = expected._replace(tests=tests), endpoints
        self._cold_starts = {**dict(expected.cold_starts), **known.cold_starts}
        self._assumed = assumed
        self._gaps = None if gap_minute_s is None else Gaps(self, endpoints, gap_minute_s)
        self._lock = threading.RLock()
        self._open = Counter(task.id for task in expected.tests)
        self._needs = {task.id: task.needs for task in expected.tests}
        self._left = Counter(name for task in expected.tests for name in task.needs)
        self._asked: set[str] = set()
        # All endpoints count the same: what they cost is read when the first is resumed.
        self.arrangement = arrange(tests, {})
        self._look_at: dict[str, float] = {}
        self._ran: dict[str, TestSpan] = {}
        self._skipped: set[str] = set()

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
        tests = counted(sum(len(unit.tests) for unit in free), "test")
        others = f", {tests} without one" if free else ""
        return (
            f"hfbudget: tests sorted by endpoint: {endpoints}, {blocks}{others} "
            "(--hf-order=collected keeps your order)"
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

    def note(self, report: pytest.TestReport) -> bool:
        """Remember when a test ran; all its attempts together.

        Returns whether it is a report of a phase, and not of a worker that has crashed.
        """
        if report.when not in PHASES:
            return False
        worker = str(getattr(report, "worker_id", ""))
        began = TestSpan(report.nodeid, worker, report.start, report.stop)
        known = self._ran.setdefault(report.nodeid, began)
        self._ran[report.nodeid] = known._replace(stop=max(known.stop, report.stop))
        if report.skipped:
            self._skipped.add(report.nodeid)
        return True

    def timeline(self, minute_s: float) -> Timeline:
        """What happened when, as far as it is known by now."""
        return timeline(
            self.expected.tests,
            tuple(self._ran.values()),
            self._endpoints.paid(),
            clock=SYSTEM_CLOCK.time() - SYSTEM_CLOCK.monotonic(),
            minute_s=minute_s,
        )

    def measured(self) -> Durations:
        """How long tests and cold starts have taken; a test that was skipped says nothing."""
        took = {test.test: test.stop - test.start for test in self._ran.values()}
        tests = lengths(self.expected.tests, self._endpoints.paid(), took)
        kept = {test: seconds for test, seconds in tests.items() if test not in self._skipped}
        return Durations(kept, self._endpoints.log.cold_starts())

    def pause_in_gaps(self, workers: int = 1) -> None:
        """From now on pause endpoints whose tests lie apart, if that is wanted."""
        if self._gaps is not None and not self.expected.repeats:
            self._gaps.begin(workers)

    def cold_start(self, name: str) -> float:
        """Seconds that an endpoint takes until it serves, as far as is known."""
        return self._cold_starts.get(name, self._assumed)

    def left(self) -> list[Task]:
        """The tests that have not ended, in the order in which they are expected to run."""
        tests = self.expected.tests
        ordered = tests if self.expected.kept else [tests[place] for place in self.first_order()]
        return [task for task in ordered if self._open[task.id]]

    def began(self, test: str) -> float | None:
        """When a test began, in unix seconds."""
        return self._ran[test].start if test in self._ran else None

    def pause(self, name: str) -> None:
        """Pause an endpoint that a later test needs again."""
        self._asked.discard(name)
        self._endpoints.release(name, "its next test is far off")

    def ready(self, needs: Collection[str], at: float) -> float:
        """When all of these are expected to serve; `-inf` if they do.

        Args:
            at: when they would be resumed that are not yet.
        """
        return max((self._ready(name, at) for name in needs), default=-math.inf)

    def _ready(self, name: str, at: float) -> float:
        cold = self.cold_start(name)
        since = self._endpoints.since(name)
        if since is None:
            return at + cold
        now = SYSTEM_CLOCK.monotonic()
        late = max(since + cold, now + _LATE * (now - since))
        return since if since == -math.inf else late

    def look(self) -> None:
        """See which endpoints have come up, every few seconds at most."""
        now = SYSTEM_CLOCK.monotonic()
        for name in self.names:
            since = self._endpoints.since(name)
            if since is not None and since > -math.inf and now >= self._look_at.get(name, since):
                self._endpoints.opened(name)
                waited = SYSTEM_CLOCK.monotonic() - since
                self._look_at[name] = SYSTEM_CLOCK.monotonic() + min(LOOK_S, waited / 20)

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


class ThreadedSchedule(EndpointSchedule):
    """Resumes in threads: the controller has workers to serve meanwhile, and runs no test."""

    def _resume(self, name: str, keep_running: bool) -> None:
        thread = threading.Thread(
            target=self._bring_up, args=(name, keep_running), name="hfbudget-resume", daemon=True
        )
        thread.start()

    def _bring_up(self, name: str, keep_running: bool) -> None:
        self._endpoints.warm(name, keep_running=keep_running)
        with suppress(HFBudgetError):
            if self._endpoints.since(name) is not None:
                self._endpoints.ensure(name, keep_running=keep_running)


class Gaps:
    """Pauses endpoints whose tests lie apart, and resumes them in time.

    A thread looks at them, since a test may take longer than a minute.
    """

    def __init__(
        self, schedule: EndpointSchedule, endpoints: RunEndpoints, minute_s: float
    ) -> None:
        """``minute_s``: seconds of a billed minute."""
        self._schedule, self._endpoints, self._minute_s = schedule, endpoints, minute_s
        self._look_s = min(minute_s / _LOOKS_IN_A_MINUTE, 1.0)
        self._paused: set[str] = set()
        self._workers = 1

    def begin(self, workers: int) -> None:
        """Look at them until the run ends."""
        self._workers = workers
        self._endpoints.every(self._look_s, self._look)

    def _look(self) -> None:
        left = self._schedule.left()
        for name in {name for task in left for name in task.needs}:
            idle = self._endpoints.idle_s(name)
            if idle is not None:
                self._tend(name, idle, self._until_used(name, left))

    def _tend(self, name: str, idle: float, until: float | None) -> None:
        since, cold = self._endpoints.since(name), self._schedule.cold_start(name)
        soon = 2 * self._look_s
        if since is None and name in self._paused:
            if until is not None and until <= cold + soon:
                self._schedule.resume(name)
        elif since == -math.inf:
            ends = self._endpoints.minute_left(name) <= soon
            if ends and is_gap(idle, until, cold, self._minute_s):
                self._paused.add(name)
                self._schedule.pause(name)

    def _until_used(self, name: str, left: Sequence[Task]) -> float | None:
        """Seconds until a test needs an endpoint; None if one before it is of unknown length."""
        work, now = 0.0, SYSTEM_CLOCK.time()
        for task in left:
            if name in task.needs:
                break
            if task.seconds is None:
                return None
            began = self._schedule.began(task.id)
            work += max(task.seconds - (0.0 if began is None else now - began), 0.0)
        return work / self._workers


def _as_known(task: Task, seconds: Mapping[str, float]) -> Task:
    return task._replace(seconds=seconds.get(task.id, task.seconds))


# There is one worker, and it has no name.
_ME = ""


class SerialOrder:
    """Registered for a run of one process whose tests need endpoints.

    When a test begins, pytest knows the next one already, so that fixtures which both need stay.
    All tests after that may change their places in the session's list: pytest's loop follows.
    """

    def __init__(self, schedule: EndpointSchedule, items: list[pytest.Item]) -> None:
        """Put the items into their first order, in place."""
        self.schedule, self._pool = schedule, schedule.pool()
        self._collected = tuple(items)
        self._places = {id(item): place for place, item in enumerate(items)}
        if not schedule.expected.kept:
            items[:] = [self._collected[place] for place in schedule.first_order()]
        self._first = tuple(items)
        self._chosen = 0  # so many items of the session have their final place
        self._follows = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember when tests ran."""
        self.schedule.note(report)

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        """Say which order the tests are in."""
        return fitted(config, self.schedule.header())

    # Not first: what ends the run before its first test comes before this.
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Resume the first endpoint, where there are tests to run meanwhile."""
        self.schedule.pause_in_gaps()
        failed = session.testsfailed and not session.config.option.continue_on_collection_errors
        same = tuple(session.items) == self._first  # no other plugin has sorted after this one
        if same and not failed and not self.schedule.expected.kept:
            self._follows = True
            self._choose(session, SYSTEM_CLOCK.monotonic())
            self._after(session, session.items[0])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Pause and resume, and choose the test after the next one."""
        began = SYSTEM_CLOCK.monotonic()
        try:
            return (yield)
        finally:
            self.schedule.ended(item.nodeid)
            self.schedule.look()
            place = self._places.get(id(item))
            if place is not None and not self._task(item).needs:
                self._pool.measure(SYSTEM_CLOCK.monotonic() - began)
            if self._follows and nextitem is not None:
                self._after(item.session, nextitem)

    def _after(self, session: pytest.Session, item: pytest.Item) -> None:
        """Choose what comes after an item that is about to begin."""
        now, task = SYSTEM_CLOCK.monotonic(), self._task(item)
        seconds = self._pool.seconds(self._places[id(item)])
        known = task.seconds if task.needs else 0.0
        self.schedule.resume_in_time(self._pool, known)
        ready = self.schedule.ready(task.needs, now)
        self._choose(session, max(now, ready) + seconds)

    def _choose(self, session: pytest.Session, at: float) -> None:
        place = self._pool.pick(_ME, at, lambda needs: self.schedule.ready(needs, at))
        if place is None:
            return
        items, slot = session.items, self._chosen
        try:
            found = items.index(self._collected[place], slot)
        except ValueError:
            self._follows = False  # another plugin has changed the list meanwhile
            return
        if found != slot:
            items.insert(slot, items.pop(found))
        self._chosen += 1

    def _task(self, item: pytest.Item) -> Task:
        return self.schedule.expected.tests[self._places[id(item)]]
