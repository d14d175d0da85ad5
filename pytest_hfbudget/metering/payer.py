"""Who is charged: the test that runs in this process, and the blocks that are open."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pytest_hfbudget.ledger.scope import SESSION, Scope

if TYPE_CHECKING:
    from pytest_hfbudget.metering.budget import budget
    from pytest_hfbudget.pricing import Quote


class Enclosed(NamedTuple):
    """Which blocks a context is inside of.

    Attributes:
        certain: whether that is all of them. A plain thread starts with an empty context, so what
            encloses whoever has started it can only be guessed.
        blocks: those that were entered in this context, or in the one it is a copy of.
    """

    certain: bool
    blocks: tuple[budget, ...] = ()


_enclosed: ContextVar[Enclosed] = ContextVar("hfbudget_enclosed")


@dataclass
class RunningTest:
    """The budgets of the test that is running, and what was refused to it."""

    id: str
    scopes: tuple[Scope, ...] = ()
    explicit: Quote | None = None
    on_exceed: str = "fail"
    refusals: list[str] = field(default_factory=list)


@dataclass
class Payer:
    """The scopes that a call made here and now is charged to.

    Threads and executors of a test are its own, whether or not they carry its context, so the
    running test is an attribute of the process. Blocks follow the context where there is one. A
    thread without one is charged to every block that was opened in a context which is known: one
    of them has started it, and so no cap can be broken by it.

    Attributes:
        over_runs: the budgets that this run shares with others.
        unowned: refusals to calls that belong to no test and no block.
    """

    session: Scope = field(default_factory=lambda: Scope(SESSION, "session budget"))
    over_runs: tuple[Scope, ...] = ()
    test: RunningTest | None = None
    where: str = ""
    unowned: list[str] = field(default_factory=list)
    _shared: list[budget] = field(default_factory=list)

    def open_blocks(self) -> tuple[budget, ...]:
        """The blocks around the running code, outermost first."""
        enclosed = _here()
        if enclosed.certain:
            return enclosed.blocks
        return (*self._shared, *(b for b in enclosed.blocks if b not in self._shared))

    def enter(self, block: budget) -> None:
        """Open a block in this context."""
        enclosed = _here()
        _enclosed.set(enclosed._replace(blocks=(*enclosed.blocks, block)))
        if enclosed.certain:
            self._shared.append(block)

    def leave(self, block: budget) -> None:
        """Close a block in this context; one that was entered twice is still open once."""
        enclosed = _here()
        _enclosed.set(enclosed._replace(blocks=_without_last(enclosed.blocks, block)))
        if block in self._shared:
            self._shared.remove(block)

    def know_this_context(self) -> None:
        """Make this context, and all that are copied from it, one whose blocks are known."""
        _enclosed.set(_here()._replace(certain=True))

    def scopes(self) -> tuple[Scope, ...]:
        """Every budget that encloses the running code, the widest first."""
        test = self.test.scopes if self.test else ()
        return (
            *self.over_runs,
            self.session,
            *test,
            *(block.scope for block in self.open_blocks()),
        )

    def capped(self) -> bool:
        """Whether any budget that encloses the running code has a limit."""
        return any(s.cap is not None or s.max_calls is not None for s in self.scopes())

    def explicit(self) -> Quote | None:
        """The price that the innermost block or the test's marker states, if any does."""
        for block in reversed(self.open_blocks()):
            if block.explicit:
                return block.explicit
        return self.test.explicit if self.test else None


def _here() -> Enclosed:
    try:
        return _enclosed.get()
    except LookupError:
        return Enclosed(certain=threading.current_thread() is threading.main_thread())


def _without_last(blocks: tuple[budget, ...], block: budget) -> tuple[budget, ...]:
    for index in range(len(blocks) - 1, -1, -1):
        if blocks[index] is block:
            return blocks[:index] + blocks[index + 1 :]
    return blocks
