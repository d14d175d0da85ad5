"""What the controller does for the workers of xdist: serves them its ledger, orders their tests.

A worker begins a test only when it knows its next test, or that there is none. So the controller
gives each worker two tests at a time, and decides one test ahead. It gives all workers tests of the
block whose endpoints serve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.plugin.role import ORDER

if TYPE_CHECKING:
    from pytest_hfbudget.ledger.ledger import Ledger
    from pytest_hfbudget.plugin.role import Role
    from pytest_hfbudget.plugin.schedule import EndpointSchedule
    from pytest_hfbudget.plugin.test_order import Suite
    from pytest_hfbudget.scheduling import Pool

# How many tests a worker has been given and has not ended: the running one and the next.
IN_HAND = 2
# Values of --dist with which any worker may get any test, unlike `loadfile` or `loadgroup`.
DISTS = ("load", "worksteal")


class ControllerServer:
    """Answers workers over a socket, with the ledger and the controller of the run.

    Args:
        own: further questions that a worker may ask, by name.

    Attributes:
        path: the path of the socket.
        problem: the first error that a worker found when it planned its tests.
        suite: the tests as a worker has collected them; None if no test needs an endpoint.
    """

    def __init__(
        self, controller: Role, ledger: Ledger, own: Mapping[str, Callable[..., Any]]
    ) -> None:
        from pytest_hfbudget.ledger.rpc.server import LedgerServer

        self._controller = controller
        self.problem: HFBudgetError | None = None
        self.suite: Suite | None = None
        self._server = LedgerServer(ledger, {**self._questions(), **own})
        self._server.resume()

    @property
    def path(self) -> str:
        return self._server.path

    def close(self) -> None:
        """Stop serving workers."""
        self._server.close()

    def _questions(self) -> dict[str, Callable[..., Any]]:
        controller = self._controller
        return {
            "declare": self._declare,
            "abort": self._note,
            "ensure": lambda name, keep: controller.ensure(name, keep_running=keep),
            "prefetch_prices": controller.prefetch_prices,
            "note_suite": self._note_suite,
            "revive": controller.revive,
            "take_over": controller.take_over,
            "answered": controller.answered,
            "addresses": controller.addresses,
            "begin_use": self._begin_use,
            "paused": controller.paused,
            "end_use": controller.end_use,
            "share": controller.share,
            "note_unowned": controller.note_unowned,
            "warn": controller.warn,
            "claim": controller.claim,
            "use_up": controller.use_up,
            "used_up": controller.used_up,
        }

    def _begin_use(self, test: str, name: str, scopes: list[Any], worker: str) -> None:
        from pytest_hfbudget.ledger import Scope

        self._controller.begin_use(test, name, tuple(Scope(*each) for each in scopes), worker)

    def _declare(self, names: list[str], paid: bool) -> None:
        try:
            self._controller.declare(tuple(names), paid=paid)
        except HFBudgetError as error:
            self._note(str(error))

    def _note_suite(self, fields: list[Any]) -> None:
        from pytest_hfbudget.plugin.test_order import Suite
        from pytest_hfbudget.scheduling import CollectedTest

        tests, *others = fields
        known = tuple(CollectedTest(id, tuple(needs), *more) for id, needs, *more in tests)
        self.suite = Suite(known, *others)

    def _note(self, message: str) -> None:
        self.problem = self.problem or HFBudgetError(message)


class LateScheduling:
    """Stands for xdist's own scheduler until the workers have collected.

    If tests need endpoints, it then hands over to `EndpointScheduling`.
    """

    def __init__(self, own: Any, config: pytest.Config) -> None:
        self._scheduler, self._config = own, config
        self._order: Any = None
        self._decided = False

    @classmethod
    def around(cls, own: Any, config: pytest.Config) -> Any:
        """Wrap a scheduler of xdist; return another plugin's scheduler unchanged."""
        return cls(own, config) if type(own).__module__.startswith("xdist.") else own

    def schedule(self) -> None:
        """Choose the scheduler, now that all workers have collected; then schedule."""
        if not self._decided:
            self._decided = True
            self._order = self._config.pluginmanager.get_plugin(ORDER)
            if self._order is not None:
                self._scheduler = self._order.scheduler(self._scheduler)
        self._scheduler.schedule()

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Note that a worker has ended a test, with all its attempts."""
        if self._order is not None:
            self._order.ended(item_index)
        self._scheduler.mark_test_complete(node, item_index, duration)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the real scheduler: xdist prints its name, and plugins may check it."""
        return type(self._scheduler)


class WorkersOrder:
    """Registered in the controller of a run whose tests need endpoints."""

    def __init__(self, config: pytest.Config, schedule: EndpointSchedule) -> None:
        self._config, self.schedule = config, schedule

    def scheduler(self, own: Any) -> Any:
        """The scheduler to use: ours, or xdist's own where the order of the tests is kept."""
        suite = self.schedule.suite
        self.schedule.pause_in_gaps(len(own.nodes))
        tests = [test.id for test in suite.tests]
        grouped = self._config.getoption("dist") not in DISTS
        if (
            grouped
            or suite.kept
            or any(list(of_it) != tests for of_it in own.node2collection.values())
        ):
            return own  # if workers have collected different tests, it reports that
        from pytest_hfbudget.plugin.console import say

        say(self._config, self.schedule.header())
        return EndpointScheduling(own, self.schedule)

    def ended(self, place: int) -> None:
        """Note that a test has ended, and pause the endpoints that no later test needs."""
        self.schedule.ended(self.schedule.suite.tests[place].id)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember when tests ran. A test whose worker crashed has ended, unless it is rerun."""
        if not self.schedule.note(report) and str(report.outcome) != "rerun":
            self.schedule.ended(report.nodeid)


class EndpointScheduling:
    """A scheduler for xdist; see `xdist.scheduler.protocol.Scheduling`.

    It runs in the main thread. Only resumes run in threads, because they take long.
    """

    def __init__(self, own: Any, schedule: EndpointSchedule) -> None:
        """``own`` is xdist's scheduler; it knows the workers and the tests they collected."""
        self._schedule, self._own = schedule, own
        self._tests: list[str] = list(next(iter(own.node2collection.values())))
        self._pool: Pool = schedule.pool(longest_first=True)
        self._hands: dict[Any, list[int]] = {node: [] for node in own.nodes}
        self._began: dict[Any, float] = {}
        self.config = own.config

    # --- what xdist asks

    @property
    def nodes(self) -> list[Any]:
        """The workers."""
        return list(self._hands)

    @property
    def collection_is_completed(self) -> bool:
        """Always True: this scheduler starts after the workers have collected."""
        return True

    @property
    def tests_finished(self) -> bool:
        """Whether each worker has begun its last test."""
        return not self._pool and all(len(hand) < IN_HAND for hand in self._hands.values())

    @property
    def has_pending(self) -> bool:
        """Whether tests are left, or running."""
        return bool(self._pool) or any(self._hands.values())

    def add_node(self, node: Any) -> None:
        """Add a worker that replaces a crashed one."""
        self._hands[node] = []

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """Shut down a new worker that has not collected the same tests as the others."""
        if list(collection) != self._tests:
            self._hands.pop(node, None)
            node.shutdown()

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Note that a worker has ended a test, and give it another one."""
        self._hands[node].remove(item_index)
        self._began[node] = time.monotonic()
        if not self._schedule.suite.tests[item_index].needs:
            self._pool.measure(duration)
        self._give(node)

    def mark_test_pending(self, item: str) -> None:
        """Have a test run again, as another plugin asks after a crash."""
        self._pool.put_back(None, [self._tests.index(item)])
        for node in self.nodes:
            self._give(node)

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        """Never called: this scheduler takes no test back from a worker."""
        raise NotImplementedError

    def remove_node(self, node: Any) -> str | None:
        """Remove a worker; returns the test during which it crashed, None if it ended normally."""
        hand = self._hands.pop(node)
        crashed = self._tests[hand.pop(0)] if hand else None
        self._pool.put_back(node, hand)
        if crashed is not None:
            for other in self.nodes:
                self._give(other)
        return crashed

    def schedule(self) -> None:
        """Give each worker tests until it has two."""
        self._resume_in_time()
        for _ in range(IN_HAND):
            for node in self.nodes:
                if len(self._hands[node]) < IN_HAND:
                    self._give(node, most=1)

    # --- which test comes next

    def _give(self, node: Any, most: int = IN_HAND) -> None:
        """Give a worker tests until it has two; shut it down if no test is left for it."""
        if node.shutting_down:
            return
        self._resume_in_time()
        hand, chosen, more = self._hands[node], list[int](), True
        while more and len(hand) < IN_HAND and len(chosen) < most:
            at = self._free_at(node)
            ready = partial(self._ready, at=at)
            place = self._pool.pick(node, at, ready, spare=self._is_spare(node, at))
            more = place is not None
            if place is not None:
                chosen.append(place)
                hand.append(place)
                self._began.setdefault(node, time.monotonic())
        if chosen:
            node.send_runtest_some(chosen)
        if not more:  # the tests that are left belong to units that other workers have begun
            node.shutdown()

    def _ready(self, needs: frozenset[str], at: float) -> float:
        return self._schedule.ready(needs, at)

    def _free_at(self, node: Any) -> float:
        """When a worker is expected to have ended the tests that it was given, in seconds."""
        at = self._began.get(node, time.monotonic())
        for place in self._hands[node]:
            needs = self._schedule.suite.tests[place].needs
            at = max(at, self._schedule.ready(needs, at)) + self._pool.seconds(place)
        return max(at, time.monotonic())

    def _is_spare(self, node: Any, at: float) -> bool:
        """Whether other workers are free before this one for all tests left in the block."""
        left = self._pool.left_of_first()
        if not left:
            return False
        others = (other for other in self._hands if other is not node and not other.shutting_down)
        return left <= sum(self._free_at(other) < at for other in others)

    def _resume_in_time(self) -> None:
        self._schedule.resume_in_time(self._pool, self._busy(), max(len(self._hands), 1))

    def _busy(self) -> float | None:
        """Seconds until workers end the endpoint tests they have; the mean, None if unknown."""
        now, tests, work = time.monotonic(), self._schedule.suite.tests, 0.0
        for node, hand in self._hands.items():
            needed = [tests[place] for place in hand if tests[place].needs]
            if any(test.seconds is None for test in needed):
                return None
            work += self._free_at(node) - now if needed else 0.0
        return work / max(len(self._hands), 1)
