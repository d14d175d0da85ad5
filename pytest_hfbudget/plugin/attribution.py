"""Tells the meter who pays for the calls that are made now: a test, or what several tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import usd_text

if TYPE_CHECKING:
    from pytest_hfbudget.metering.budget_context import RunningTest
    from pytest_hfbudget.plugin.role import RunContext


class Attribution:
    """Tells the meter which test it is, from when there is a meter, and asks it what that cost.

    Attributes:
        called: whether the test itself is being called: what is reported meanwhile is a subtest.
    """

    def __init__(self, run: RunContext, share: Callable[[], int]) -> None:
        """``share`` is what the running test owes for uptime by now, in nano-USD."""
        self._run, self._share = run, share
        self._item: pytest.Item | None = None
        self._where = "before the first test"
        self._markers = 0
        self._problem: HFBudgetError | None = None
        self.called = False

    def begin(self) -> None:
        """There is a meter now, maybe in the middle of a test."""
        self._charge(None)
        if self._item is not None:
            self._charge_to(self._item)

    def enter(self, item: pytest.Item) -> None:
        """From now on calls are charged to this test."""
        self._item, self._markers = item, len(item.own_markers)
        if self._run.runtime is not None:
            self._run.runtime.meter.budgets.know_this_context()
            self._charge_to(item)

    def has_new_markers(self, item: pytest.Item) -> bool:
        """Whether a fixture has added some."""
        return len(item.own_markers) != self._markers

    def charge_anew(self, item: pytest.Item) -> None:
        """Have calls held by the budgets that the fixtures of a test have added, too.

        Raises:
            ConfigError: one of them makes no sense.
        """
        if (before := self.test()) is not None:
            self._charge_to(item)
            if (now := self.test()) is not None:
                now.refusals += before.refusals
            self.check()

    def leave(self, item: pytest.Item) -> None:
        """Nothing that the test has opened stays held."""
        self._item, self._where = None, f"after {item.nodeid}"
        if self._run.runtime is not None:
            self._run.runtime.meter.settle_open(item.nodeid)
            self._charge(None)

    def check(self) -> None:
        """Raise what is wrong with a marker of the running test, where that fails the test.

        Raises:
            ConfigError: one that came after the collection makes no sense.
        """
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    @contextmanager
    def shared(self, where: str) -> Iterator[None]:
        """Charge the session meanwhile: what several tests share belongs to none of them."""
        item, before, test = self._item, self._where, self.test()
        unowned = len(self._run.runtime.meter.budgets.unowned) if self._run.runtime else 0
        self._item, self._where = None, where
        self._charge(None)
        try:
            yield
        finally:
            self._item, self._where = item, before
            if test is None and item is not None and self._run.runtime is not None:
                self._charge_to(item)  # the meter came about inside
            else:
                self._charge(test)
            self._own_refusals(unowned)

    def test(self) -> RunningTest | None:
        """The test that is charged now, where there is a meter."""
        return self._run.runtime.meter.budgets.test if self._run.runtime else None

    def note_cost(self, item: pytest.Item, *, last: bool = True) -> None:
        """Put a test's cost into its properties, from where JUnit takes it."""
        if self._run.runtime is None or (test := self.test()) is None:
            return
        meter = self._run.runtime.meter
        meter.settle_open(item.nodeid) if last else meter.drain()
        share, key = self._share(), test.scopes[-1].key
        if not share and not meter.ledger.touched(key):
            return  # a worker would ask its controller, for each test that never calls
        total = meter.ledger.total(key)
        if total.calls or total.refused or share:
            # A rerun counts on, so what its predecessor said is replaced.
            kept = [p for p in item.user_properties if not str(p[0]).startswith("hfbudget.")]
            item.user_properties[:] = [
                *kept,
                ("hfbudget.usd", usd_text(total.spent - share)),
                *([("hfbudget.uptime_usd", usd_text(share))] if share else []),
                ("hfbudget.calls", total.calls),
                ("hfbudget.refused", total.refused),
            ]

    def note_cost_so_far(self, item: pytest.Item) -> None:
        """The same while the test goes on."""
        self.note_cost(item, last=False)

    def take_notices(self) -> list[str]:
        """The warnings that its budgets have to raise."""
        return self._run.runtime.meter.watcher.take() if self._run.runtime else []

    def _charge_to(self, item: pytest.Item) -> None:
        from pytest_hfbudget.plugin.markers import running_test

        try:
            self._charge(running_test(item, self._run.settings))
        except HFBudgetError as error:
            self._problem = error  # a marker that came after collection; raised where a test can

    def _own_refusals(self, since: int) -> None:
        """Let a test answer for what was refused to a fixture that was set up for it."""
        test = self.test()
        if self._run.runtime is not None and test is not None:
            unowned = self._run.runtime.meter.budgets.unowned
            test.refusals += unowned[since:]
            del unowned[since:]

    def _charge(self, test: RunningTest | None) -> None:
        if self._run.runtime is not None:
            budgets = self._run.runtime.meter.budgets
            budgets.test, budgets.where = test, self._where
