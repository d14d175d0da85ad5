"""What the controller does for the workers of xdist: serves them its ledger, orders their tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.plugin.role import ORDER

if TYPE_CHECKING:
    from pytest_hfbudget.ledger.ledger import Ledger
    from pytest_hfbudget.plugin.role import Role
    from pytest_hfbudget.plugin.test_order import Expected


class ControllerServer:
    """The ledger of a run, and its controller, behind a socket.

    Args:
        own: what else workers ask of the controller alone, by name.

    Attributes:
        path: the socket's.
        problem: the first thing that a worker found wrong with what it was asked to run.
        expected: which tests need which endpoints, if any does.
    """

    def __init__(
        self, controller: Role, ledger: Ledger, own: Mapping[str, Callable[..., Any]]
    ) -> None:
        from pytest_hfbudget.ledger.rpc.server import LedgerServer

        self._controller = controller
        self.problem: HFBudgetError | None = None
        self.expected: Expected | None = None
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
            "problem": self._note,
            "ensure": lambda name, keep: controller.ensure(name, keep_running=keep),
            "foresee": controller.foresee,
            "expect": self._expect,
            "revive": controller.revive,
            "take_over": controller.take_over,
            "answered": controller.answered,
            "addresses": controller.addresses,
            "begin_use": self._begin_use,
            "paused": controller.paused,
            "end_use": controller.end_use,
            "share": controller.share,
            "blame": controller.blame,
            "warn": controller.warn,
            "first": controller.first,
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

    def _expect(self, expected: list[Any]) -> None:
        from pytest_hfbudget.plugin.test_order import Expected
        from pytest_hfbudget.scheduling import Task

        tests, *others = expected
        known = tuple(Task(id, tuple(needs), *more) for id, needs, *more in tests)
        self.expected = Expected(known, *others)

    def _note(self, message: str) -> None:
        self.problem = self.problem or HFBudgetError(message)


class LateScheduling:
    """xdist's own scheduler, until tests turn out to need endpoints."""

    def __init__(self, own: Any, config: pytest.Config) -> None:
        self._scheduler, self._config = own, config
        self._order: Any = None
        self._decided = False

    @classmethod
    def around(cls, own: Any, config: pytest.Config) -> Any:
        """The scheduler that xdist is to use; another plugin's stays as it is."""
        return cls(own, config) if type(own).__module__.startswith("xdist.") else own

    def schedule(self) -> None:
        """All workers have collected."""
        if not self._decided:
            self._decided = True
            self._order = self._config.pluginmanager.get_plugin(ORDER)
            if self._order is not None:
                self._scheduler = self._order.scheduler(self._scheduler)
        self._scheduler.schedule()

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """A worker has ended a test, with all its attempts."""
        if self._order is not None:
            self._order.ended(item_index)
        self._scheduler.mark_test_complete(node, item_index, duration)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """xdist tells the name of its scheduler, and other plugins may ask which one it is."""
        return type(self._scheduler)
