"""The order of the tests in a run of one process; it may change until a test is the next but one.

When a test begins, pytest knows the next one already, so that fixtures which both need stay. All
tests after that may change their places in the session's list: pytest's loop follows.
"""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from pytest_hfbudget.plugin.schedule import Schedule
from pytest_hfbudget.scheduling.blocks import Task

# There is one worker, and it has no name.
_ME = ""


class SerialOrder:
    """Registered for a run of one process whose tests need endpoints."""

    def __init__(self, schedule: Schedule, items: list[pytest.Item]) -> None:
        """Put the items into their first order, in place."""
        self._schedule, self._pool = schedule, schedule.pool()
        self._collected = tuple(items)
        self._places = {id(item): place for place, item in enumerate(items)}
        if not schedule.expected.kept:
            items[:] = [self._collected[place] for place in schedule.first_order()]
        self._first = tuple(items)
        self._chosen = 0  # so many items of the session have their final place
        self._follows = False

    def pytest_report_collectionfinish(self) -> str:
        """Say which order the tests are in."""
        return self._schedule.header()

    # Not first: what ends the run before its first test comes before this.
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Resume the first endpoint, where there are tests to run meanwhile."""
        failed = session.testsfailed and not session.config.option.continue_on_collection_errors
        same = tuple(session.items) == self._first  # no other plugin has sorted after this one
        if same and not failed and not self._schedule.expected.kept:
            self._follows = True
            self._choose(session, time.monotonic())
            self._after(session, session.items[0])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Pause and resume, and choose the test after the next one."""
        began = time.monotonic()
        try:
            return (yield)
        finally:
            self._schedule.ended(item.nodeid)
            self._schedule.look()
            place = self._places.get(id(item))
            if place is not None and not self._task(item).needs:
                self._pool.measure(time.monotonic() - began)
            if self._follows and nextitem is not None:
                self._after(item.session, nextitem)

    def _after(self, session: pytest.Session, item: pytest.Item) -> None:
        """Choose what comes after an item that is about to begin."""
        now, task = time.monotonic(), self._task(item)
        seconds = self._pool.seconds(self._places[id(item)])
        known = task.seconds if task.needs else 0.0
        self._schedule.resume_in_time(self._pool, known)
        ready = self._schedule.ready(task.needs, now)
        self._choose(session, max(now, ready) + seconds)

    def _choose(self, session: pytest.Session, at: float) -> None:
        place = self._pool.pick(_ME, at, lambda needs: self._schedule.ready(needs, at))
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
        return self._schedule.expected.tests[self._places[id(item)]]
