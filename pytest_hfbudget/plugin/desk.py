"""Where workers spend, and where they ask for what only the owner of the run can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.ledger.server import LedgerServer

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.owner import Owner


class Desk:
    """The ledger of a run, and its owner, behind a socket.

    Attributes:
        path: the socket's.
        problem: the first thing that a worker found wrong with what it was asked to run.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.problem: HFBudgetError | None = None
        self._server = LedgerServer(owner.ledger, self._questions())
        self._server.start()

    @property
    def path(self) -> str:
        return self._server.path

    def close(self) -> None:
        """Serve nobody any more."""
        self._server.stop()

    def _questions(self) -> dict[str, Callable[..., Any]]:
        owner = self._owner
        return {
            "declare": self._declare,
            "problem": self._note,
            "begin_use": self._begin_use,
            "ensure": lambda name, keep: owner.ensure(name, keep_running=keep),
            "leased": lambda: owner.leased,
            "foresee": owner.foresee,
            "revive": owner.revive,
            "paused": owner.paused,
            "end_use": owner.end_use,
            "share": owner.share,
            "blame": owner.blame,
            "warn": owner.warn,
            "first": owner.first,
            "use_up": owner.use_up,
            "used_up": owner.used_up,
            "catalogue": owner.catalogue_as_read,
        }

    def _declare(self, names: list[str], paid: bool) -> None:
        try:
            self._owner.declare(tuple(names), paid=paid)
        except HFBudgetError as error:
            self._note(str(error))

    def _begin_use(self, test: str, name: str, scopes: list[Any], worker: str) -> None:
        self._owner.begin_use(test, name, tuple(Scope(*scope) for scope in scopes), worker)

    def _note(self, message: str) -> None:
        self.problem = self.problem or HFBudgetError(message)
