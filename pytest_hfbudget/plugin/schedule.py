"""Decides when the endpoints of a run are resumed and paused, and which test comes next."""

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
from pytest_hfbudget.scheduling import CollectedTest, Pool, arrange, is_gap, order

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.endpoints import RunEndpoints
    from pytest_hfbudget.plugin.test_order import Suite

# Seconds between two looks at a resumed endpoint that no test waits for.
LOOK_S = 2.0
# A cold start that takes longer than expected is expected to take 10 % longer than it has so far.
_LATE = 0.1
# How often `Gaps` looks in a billed minute. It asks for a pause up to two looks before the minute
# ends, so that the pause is verified before the next minute begins.
_LOOKS_IN_A_MINUTE = 60
PHASES: tuple[str, ...] = ("setup", "call", "teardown")


class EndpointSchedule:
    """Resumes and pauses the endpoints of a run while its tests run. Safe between threads.

    Each endpoint is paused after the last test that names it. If the tests may be sorted, each is
    resumed ahead: when the tests before its own take about as long as its cold start.
    """

    def __init__(
        self,
        suite: Suite,
        known: Durations,
        endpoints: RunEndpoints,
        *,
        assumed: float,
        gap_minute_s: float | None = None,
    ) -> None:
        """Nothing is resumed or paused yet.

        Args:
            known: seconds measured in earlier runs; preferred to those of the costs file.
            assumed: seconds of a cold start that was never measured.
            gap_minute_s: seconds of a billed minute, if endpoints are paused in gaps between their
                tests; None if they keep running.
        """
        tests = tuple(_as_known(test, known.tests) for test in suite.tests)
        self.suite, self._endpoints = suite._replace(tests=tests), endpoints
        self._cold_starts = {**dict(suite.cold_starts), **known.cold_starts}
        self._assumed = assumed
        self._gaps = None if gap_minute_s is None else Gaps(self, endpoints, gap_minute_s)
        self._lock = threading.RLock()
        self._open = Counter(test.id for test in suite.tests)
        self._needs = {test.id: test.needs for test in suite.tests}
        self._left = Counter(name for test in suite.tests for name in test.needs)
        self._asked: set[str] = set()
        # No rates: all endpoints count the same, since prices are read with the first resume.
        self.arrangement = arrange(tests, {})
        self._look_at: dict[str, float] = {}
        self._ran: dict[str, TestSpan] = {}
        self._skipped: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The endpoints that tests name, in the order of the tests."""
        return tuple(self._left)

    def pool(self, *, longest_first: bool = False) -> Pool:
        """A pool with all tests."""
        return Pool(self.suite.tests, self.arrangement, longest_first=longest_first)

    def first_order(self) -> list[int]:
        """The indices of the tests, in the order in which they run if all take as expected."""
        cold = {name: self._cold_starts.get(name, self._assumed) for name in self.names}
        return order(self.suite.tests, self.arrangement, cold)

    def header(self) -> str:
        """The line that says which order the tests are in, and why."""
        endpoints = counted(len(self.names), "endpoint")
        if self.suite.kept:
            return f"hfbudget: order: as collected ({self.suite.kept}); {endpoints}"
        blocks, free = counted(len(self.arrangement.blocks), "block"), self.arrangement.free
        tests = counted(sum(len(unit.tests) for unit in free), "test")
        others = f", {tests} without one" if free else ""
        return (
            f"hfbudget: tests sorted by endpoint: {endpoints}, {blocks}{others} "
            "(--hf-order=collected keeps your order)"
        )

    def ended(self, test: str) -> None:
        """Note that a test has ended, and pause the endpoints that no later test needs."""
        with self._lock:
            if not self._open[test]:
                return
            self._open[test] -= 1
            self._left.subtract(self._needs[test])
            over = [name for name in self._needs[test] if not self._left[name]]
        if not self.suite.repeats:
            for name in over:
                self._endpoints.end_lease(name)

    def note(self, report: pytest.TestReport) -> bool:
        """Remember when a test ran, from its first attempt to its last.

        Returns False for xdist's report of a crashed worker, which is of no phase.
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
        """The timeline of tests and endpoints so far."""
        return timeline(
            self.suite.tests,
            tuple(self._ran.values()),
            self._endpoints.paid(),
            clock=SYSTEM_CLOCK.time() - SYSTEM_CLOCK.monotonic(),
            minute_s=minute_s,
        )

    def measured(self) -> Durations:
        """The seconds of tests, without skipped ones, and of cold starts in this run."""
        took = {test.test: test.stop - test.start for test in self._ran.values()}
        tests = lengths(self.suite.tests, self._endpoints.paid(), took)
        kept = {test: seconds for test, seconds in tests.items() if test not in self._skipped}
        return Durations(kept, self._endpoints.log.cold_starts())

    def pause_in_gaps(self, workers: int = 1) -> None:
        """Begin to pause endpoints in gaps between their tests, if the settings say so."""
        if self._gaps is not None and not self.suite.repeats:
            self._gaps.begin(workers)

    def cold_start(self, name: str) -> float:
        """Seconds that an endpoint is expected to take from its resume until it serves."""
        return self._cold_starts.get(name, self._assumed)

    def left(self) -> list[CollectedTest]:
        """The tests that have not ended, in the order in which they are expected to run."""
        tests = self.suite.tests
        ordered = tests if self.suite.kept else [tests[place] for place in self.first_order()]
        return [test for test in ordered if self._open[test.id]]

    def began(self, test: str) -> float | None:
        """When a test began, in unix seconds."""
        return self._ran[test].start if test in self._ran else None

    def pause(self, name: str) -> None:
        """Pause an endpoint that a later test needs again."""
        self._asked.discard(name)
        self._endpoints.end_lease(name, "its next test is far off")

    def ready(self, needs: Collection[str], at: float) -> float:
        """When all of these endpoints are expected to serve; `-inf` if all do.

        Args:
            at: when those that are not yet resumed would be resumed.
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

    def check_ready(self) -> None:
        """Check which endpoints have come up; each one again after at most `LOOK_S` seconds."""
        now = SYSTEM_CLOCK.monotonic()
        for name in self.names:
            since = self._endpoints.since(name)
            if since is not None and since > -math.inf and now >= self._look_at.get(name, since):
                self._endpoints.opened(name)
                waited = SYSTEM_CLOCK.monotonic() - since
                self._look_at[name] = SYSTEM_CLOCK.monotonic() + min(LOOK_S, waited / 20)

    def resume_in_time(self, pool: Pool, busy: float | None, workers: int = 1) -> None:
        """Resume each endpoint whose cold start is as long as the tests before its own.

        Args:
            busy: seconds that the tests take which workers already have; None if unknown.
        """
        if self.suite.kept:
            return
        for needs, before in pool.needed():
            work = None if before is None or busy is None else busy + before / workers
            for name in needs:
                if self._endpoints.since(name) is None and self._is_due(name, work):
                    self.resume(name)

    def _is_due(self, name: str, work: float | None) -> bool:
        # Too late costs time, too early costs money. So an endpoint waits if a time is unknown.
        return work is not None and work <= self._cold_starts.get(name, 0.0)

    def resume(self, name: str) -> None:
        """Resume an endpoint without waiting for it. Further calls do nothing until `pause`."""
        with self._lock:
            if name in self._asked:
                return
            self._asked.add(name)
        self._resume(name, name in self.suite.keep_running)

    def _resume(self, name: str, keep_running: bool) -> None:
        self._endpoints.warm(name, keep_running=keep_running)


class ThreadedSchedule(EndpointSchedule):
    """Resumes in threads, so that the controller can serve its workers meanwhile."""

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
    """Pauses endpoints in long gaps between their tests, and resumes them in time.

    It works in a thread, because one test may take longer than a billed minute.
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
        """Start the thread, which runs until the run ends."""
        self._workers = workers
        self._endpoints.every(self._look_s, self._look)

    def _look(self) -> None:
        left = self._schedule.left()
        for name in {name for test in left for name in test.needs}:
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

    def _until_used(self, name: str, left: Sequence[CollectedTest]) -> float | None:
        """Seconds until a test needs an endpoint; None if a test before it has unknown length."""
        work, now = 0.0, SYSTEM_CLOCK.time()
        for test in left:
            if name in test.needs:
                break
            if test.seconds is None:
                return None
            began = self._schedule.began(test.id)
            work += max(test.seconds - (0.0 if began is None else now - began), 0.0)
        return work / self._workers


def _as_known(test: CollectedTest, seconds: Mapping[str, float]) -> CollectedTest:
    return test._replace(seconds=seconds.get(test.id, test.seconds))


# The name of the only worker in a run of one process.
_ME = ""


class SerialOrder:
    """Sorts the tests of a run of one process, and sorts again while they run.

    When a test begins, pytest already knows the next one, because it keeps the fixtures that both
    need. All later tests can still be moved in the session's list, since pytest's loop reads the
    list as it goes.
    """

    def __init__(self, schedule: EndpointSchedule, items: list[pytest.Item]) -> None:
        """Put the items into their first order, in place."""
        self.schedule, self._pool = schedule, schedule.pool()
        self._collected = tuple(items)
        self._places = {id(item): place for place, item in enumerate(items)}
        if not schedule.suite.kept:
            items[:] = [self._collected[place] for place in schedule.first_order()]
        self._first = tuple(items)
        self._chosen = 0  # how many items of the session have their final position
        self._follows = False  # whether tests are still being moved

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember when tests ran."""
        self.schedule.note(report)

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        """Say which order the tests are in."""
        return fitted(config, self.schedule.header())

    # Not tryfirst: hooks that end the run before its first test come before this one.
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Choose the first two tests, and resume the endpoints that are due."""
        self.schedule.pause_in_gaps()
        failed = session.testsfailed and not session.config.option.continue_on_collection_errors
        same = tuple(session.items) == self._first  # no other plugin has sorted after this one
        if same and not failed and not self.schedule.suite.kept:
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
            self.schedule.check_ready()
            place = self._places.get(id(item))
            if place is not None and not self._test_of(item).needs:
                self._pool.measure(SYSTEM_CLOCK.monotonic() - began)
            if self._follows and nextitem is not None:
                self._after(item.session, nextitem)

    def _after(self, session: pytest.Session, item: pytest.Item) -> None:
        """Choose the test that runs after an item which is about to begin."""
        now, test = SYSTEM_CLOCK.monotonic(), self._test_of(item)
        seconds = self._pool.seconds(self._places[id(item)])
        known = test.seconds if test.needs else 0.0
        self.schedule.resume_in_time(self._pool, known)
        ready = self.schedule.ready(test.needs, now)
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

    def _test_of(self, item: pytest.Item) -> CollectedTest:
        return self.schedule.suite.tests[self._places[id(item)]]
