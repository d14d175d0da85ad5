"""Who is charged: the test that runs in this process, and the blocks that are open."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_hfbudget.ledger.scope import SESSION, Scope

if TYPE_CHECKING:
    from pytest_hfbudget.metering.budget import budget
    from pytest_hfbudget.pricing import Quote

# Which blocks enclose the running code. Tasks and copied contexts inherit it; a plain thread
# starts without, which is why an unset variable and an empty tuple mean different things.
_open_blocks: ContextVar[tuple[budget, ...]] = ContextVar("hfbudget_blocks")


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
    running test is an attribute of the process. Blocks follow the context where there is one;
    a thread without one is charged to every open block, because one of them has started it.
    """

    session: Scope = field(default_factory=lambda: Scope(SESSION, "session budget"))
    test: RunningTest | None = None
    where: str = ""
    blocks: list[budget] = field(default_factory=list)

    def open_blocks(self) -> tuple[budget, ...]:
        """The blocks around the running code, outermost first."""
        try:
            return _open_blocks.get()
        except LookupError:
            outside = threading.current_thread() is threading.main_thread()
            return () if outside else tuple(self.blocks)

    def enter(self, block: budget) -> None:
        """Open a block in this context."""
        _open_blocks.set((*self.open_blocks(), block))
        self.blocks.append(block)

    def leave(self, block: budget) -> None:
        """Close a block in this context."""
        self.blocks.remove(block)
        _open_blocks.set(tuple(b for b in self.open_blocks() if b is not block))

    def scopes(self) -> tuple[Scope, ...]:
        """Every budget that encloses the running code, the widest first."""
        test = self.test.scopes if self.test else ()
        return (self.session, *test, *(block.scope for block in self.open_blocks()))

    def capped(self) -> bool:
        """Whether any budget that encloses the running code has a limit."""
        return any(s.cap is not None or s.max_calls is not None for s in self.scopes())

    def explicit(self) -> Quote | None:
        """The price that the innermost block or the test's marker states, if any does."""
        for block in reversed(self.open_blocks()):
            if block.explicit:
                return block.explicit
        return self.test.explicit if self.test else None
