"""Which budgets a call is made inside of: those of the running test, and the open blocks."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

from pytest_hfbudget.ledger import SESSION, Caller, Scope

if TYPE_CHECKING:
    from pytest_hfbudget.errors import BudgetExceededError
    from pytest_hfbudget.metering.budget_args import Threshold
    from pytest_hfbudget.pricing import Quote


class OpenBudget(Protocol):
    """A budget around a block of code: what the calls inside of it need.

    Attributes:
        explicit: the price that it states, if any.
        thresholds: its warnings and fallbacks.
        refusals: the refusals of calls inside of it, for which it raises at its end.
        leaves_refusals: whether it leaves them to the code inside of it, and does not raise.
    """

    scope: Scope
    explicit: Quote | None
    thresholds: tuple[Threshold, ...]
    refusals: list[BudgetExceededError]

    @property
    def leaves_refusals(self) -> bool: ...


class ContextBlocks(NamedTuple):
    """The blocks that a context is inside of.

    Attributes:
        certain: whether these are all of them. A plain thread starts with an empty context, so the
            blocks around it can only be guessed.
        blocks: those that were entered in this context, or in the one that it is a copy of.
    """

    certain: bool
    blocks: tuple[OpenBudget, ...] = ()


class OpenBlock(NamedTuple):
    """A block that is open.

    Attributes:
        everywhere: whether a plain thread may have been started inside of it. If not, only contexts
            of the same thread can be inside of it.
        thread: the thread that entered it.
        task: the task that entered it, if one did.
        at: its place in the order of events. Other tasks that were seen earlier are outside of it.
    """

    block: OpenBudget
    everywhere: bool
    thread: int
    task: ref[asyncio.Task[Any]] | None
    at: int

    def may_enclose(self, thread: int, task: asyncio.Task[Any] | None, seen: int | None) -> bool:
        """Whether an empty context may be inside of it; ``seen``: when its task was first seen."""
        if thread != self.thread:
            return self.everywhere
        older = seen is not None and seen < self.at
        return not older or (self.task is not None and self.task() is task)


class ActiveBudgets(NamedTuple):
    """Everything that a call made here and now has to fit into.

    Attributes:
        scopes: the budgets, the widest first.
        keys: their keys in the ledger.
        capped: whether any of them has a limit, of USD or of calls.
        paid: whether any of them has a limit of USD.
        explicit: the price that the innermost block or the test's marker states, if any does.
        thresholds: the warnings and fallbacks of these budgets, the innermost last.
        test: the running test, which fails for a refusal unless it is over by then.
    """

    scopes: tuple[Scope, ...]
    keys: tuple[str, ...]
    capped: bool
    paid: bool
    explicit: Quote | None
    thresholds: tuple[Threshold, ...]
    test: RunningTest | None


class InheritedBudgets(NamedTuple):
    """The budgets around a whole process, beside its test: the blocks around its start."""

    scopes: tuple[Scope, ...] = ()
    explicit: Quote | None = None


class BudgetKey(NamedTuple):
    """All that decides which budgets a call has to fit into."""

    over_runs: tuple[Scope, ...]
    session: Scope
    test: RunningTest | None
    inherited: InheritedBudgets
    blocks: tuple[OpenBudget, ...]


_entered: ContextVar[ContextBlocks] = ContextVar("hfbudget_entered")

# A number for each task, unique in the process.
_task_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_numbers = itertools.count(1)


@dataclass(eq=False)  # a test that runs twice is two running tests
class RunningTest:
    """The budgets of the test that is running, and what was refused to it.

    Attributes:
        reported: how many of the refusals are in the reports of its subtests.
    """

    id: str
    scopes: tuple[Scope, ...] = ()
    explicit: Quote | None = None
    on_exceed: str = "fail"
    thresholds: tuple[Threshold, ...] = ()
    refusals: list[BudgetExceededError] = field(default_factory=list)
    reported: int = 0

    def take_refusals(self, *, of_subtest: bool) -> list[BudgetExceededError]:
        """Remove all refusals, and return them; at the end of a subtest, only return new ones."""
        if of_subtest:
            since, self.reported = self.reported, len(self.refusals)
            return self.refusals[since:]
        taken, self.refusals[:], self.reported = list(self.refusals), [], 0
        return taken


@dataclass
class BudgetContext:
    """The scopes that a call made here and now is charged to.

    All threads count as those of the running test, with or without its context. So the running test
    is an attribute of the process. Blocks follow the context, if the thread has one. A thread
    without one is charged to every block that was opened in a known context: one of these contexts
    has started it, so it can't break a cap. A thread that has contexts may have an empty one, too
    (``Context().run``, a task that was given one, a greenlet). That is also charged to the blocks
    that the others have opened, unless it belongs to a task which is older than the block.

    Attributes:
        session_id: the inference session that calls to the router are billed to; empty for none.
        over_runs: the budgets that this run shares with others.
        where: what is running, if no test is.
        unowned: refusals of calls that belong to no test and no block.
        closed_because: why no budget can hold a call any more; empty as long as budgets can.
        watched: whether any block so far has had thresholds.
    """

    session: Scope = field(default_factory=lambda: Scope(SESSION, "session budget"))
    over_runs: tuple[Scope, ...] = ()
    test: RunningTest | None = None
    where: str = ""
    unowned: list[BudgetExceededError] = field(default_factory=list)
    closed_because: str = ""
    watched: bool = False
    session_id: str = ""
    inherited: InheritedBudgets = field(default_factory=InheritedBudgets)
    _opened: list[OpenBlock] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _seen: WeakKeyDictionary[asyncio.Task[Any], int] = field(default_factory=WeakKeyDictionary)
    _last: tuple[BudgetKey, ActiveBudgets] | None = None

    def open_blocks(self) -> tuple[OpenBudget, ...]:
        """The blocks around the running code, outermost first."""
        enclosing = self._here()
        if enclosing.certain:
            return enclosing.blocks
        shared = [opened.block for opened in tuple(self._opened) if opened.everywhere]
        return (*shared, *(block for block in enclosing.blocks if block not in shared))

    def enter(self, block: OpenBudget) -> None:
        """Open a block in this context."""
        self.watched = self.watched or bool(block.thresholds)
        enclosing = self._here()
        _entered.set(enclosing._replace(blocks=(*enclosing.blocks, block)))
        at = next(self._order)
        if not enclosing.certain or _in_main_thread():
            self._see_tasks(at)
        here, task = threading.get_ident(), _task()
        by = None if task is None else ref(task)
        self._opened.append(OpenBlock(block, enclosing.certain, here, by, at))

    def leave(self, block: OpenBudget) -> None:
        """Close a block in this context. One that was entered twice has to be left twice."""
        if (enclosing := _entered.get(None)) is not None:
            _entered.set(enclosing._replace(blocks=_without_last(enclosing.blocks, block)))
        for opened in reversed(tuple(self._opened)):
            if opened.block is block:
                self._opened.remove(opened)
                return

    def know_this_context(self) -> None:
        """Note that the blocks of this context, and of all that are copied from it, are known.

        In a plain thread it does nothing: a pool's thread may come inside of later blocks.
        """
        if _in_main_thread():
            _entered.set(self._here()._replace(certain=True))

    def stay_inside(self, blocks: tuple[OpenBudget, ...]) -> None:
        """Be inside of these blocks only, here and in every thread that is started from here.

        A forked child has one thread, which counts as its main thread from then on.
        """
        _entered.set(ContextBlocks(certain=True, blocks=blocks))
        here = threading.get_ident()
        self._opened = [OpenBlock(block, True, here, None, next(self._order)) for block in blocks]

    def _here(self) -> ContextBlocks:
        """The blocks that this context is inside of; for an empty one, those that it may be in."""
        enclosing = _entered.get(None)
        if enclosing is not None:
            return enclosing
        certain = _in_main_thread()
        if not self._opened:
            return ContextBlocks(certain)
        here, task = threading.get_ident(), _task()
        seen = None if task is None else self._seen.get(task)
        blocks = (
            opened.block for opened in tuple(self._opened) if opened.may_enclose(here, task, seen)
        )
        return ContextBlocks(certain, tuple(blocks))

    def _see_tasks(self, before: int) -> None:
        """Record that the tasks of this thread's loop are older than what is opened now."""
        if asyncio._get_running_loop() is not None:
            for task in asyncio.all_tasks():
                self._seen.setdefault(task, before - 1)

    def active(self) -> ActiveBudgets:
        """The budgets that a call made here and now has to fit into; cached until they change."""
        # Each attribute is read once: another thread may begin a test or enter a block at any time.
        entered = _entered.get(None)
        blocks = entered.blocks if entered and entered.certain else self.open_blocks()
        inside = BudgetKey(self.over_runs, self.session, self.test, self.inherited, blocks)
        last = self._last
        if last is not None and last[0] == inside:
            return last[1]
        active = _active(inside)
        self._last = inside, active
        return active

    def capped(self) -> bool:
        """Whether any budget that encloses the running code has a limit."""
        return self.active().capped

    def record_refusal(self, error: BudgetExceededError, test: RunningTest | None) -> None:
        """Record a refusal where code can't swallow it: at the block that refused, else the test.

        A block that has ended can't raise it any more: a task that it has started may outlive it.

        Args:
            test: the test that made the call. If it is over, the refusal belongs to no test.
        """
        for block in self.open_blocks():
            if block.scope.key == error.scope_key:
                is_open = block in [opened.block for opened in tuple(self._opened)]
                if not is_open and not block.leaves_refusals:
                    break
                block.refusals.append(error)
                return
        answers = test if test is self.test else None
        (answers.refusals if answers else self.unowned).append(error)


def _in_main_thread() -> bool:
    """Whether this is the main thread, also where eventlet has another `Thread` for it."""
    main = threading.main_thread()
    if threading.current_thread() is main:
        return True
    greenlet: Any = sys.modules.get("greenlet")
    if greenlet is None or main.native_id != threading.get_native_id():
        return False
    return greenlet.getcurrent().parent is None  # a green thread has a parent


def _active(inside: BudgetKey) -> ActiveBudgets:
    over_runs, session, test, inherited, blocks = inside
    of_test, of_blocks = test.scopes if test else (), (block.scope for block in blocks)
    scopes = (*over_runs, session, *of_test, *inherited.scopes, *of_blocks)
    paid = any(scope.cap is not None for scope in scopes)
    stated = (block.explicit for block in reversed(blocks) if block.explicit)
    return ActiveBudgets(
        scopes,
        tuple(scope.key for scope in scopes),
        paid or any(scope.max_calls is not None for scope in scopes),
        paid,
        next(stated, inherited.explicit or (test.explicit if test else None)),
        (*(test.thresholds if test else ()), *(t for block in blocks for t in block.thresholds)),
        test,
    )


def current_caller(*, blocking: bool) -> Caller | None:
    """The running thread and task; None in a coroutine that is not of asyncio or trio.

    Args:
        blocking: whether waiting blocks the whole thread.
    """
    task: object = None
    if asyncio._get_running_loop() is not None:  # outside of any loop, current_task() raises
        task = asyncio.current_task()
    if task is None and "trio" in sys.modules:
        task = trio_task()
    if task is None:
        return Caller(os.getpid(), threading.get_ident(), 0, blocking) if blocking else None
    number = _task_numbers.setdefault(task, next(_numbers))
    return Caller(os.getpid(), threading.get_ident(), number, blocking)


def trio_task() -> object:
    """The running task of trio; None if there is none, or a task of asyncio runs inside of it."""
    trio = sys.modules.get("trio")
    if trio is None or _task() is not None:
        return None
    try:
        return trio.lowlevel.current_task()
    except (RuntimeError, AttributeError):  # the latter while it is being imported
        return None


def _task() -> asyncio.Task[Any] | None:
    return asyncio.current_task() if asyncio._get_running_loop() else None


def _without_last(blocks: tuple[OpenBudget, ...], block: OpenBudget) -> tuple[OpenBudget, ...]:
    for index in range(len(blocks) - 1, -1, -1):
        if blocks[index] is block:
            return blocks[:index] + blocks[index + 1 :]
    return blocks
