"""The ledger of a run that shares budgets with other runs: over SQLite, or over Redis.

Every change of this ledger is one transaction of the store, in which the spending of other runs
counts as spent. So two runs can't both take what is left. What this run holds is in its row before
anything is sent.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from pytest_hfbudget.errors import BudgetExceededError, HistoryError, LedgerUnreachableError
from pytest_hfbudget.history import BudgetWindow
from pytest_hfbudget.history.database import BudgetStore, DaySpending, DrawNeed, Snapshot
from pytest_hfbudget.ledger import SESSION, Caller, Charge, Hold, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.queue import Account, Waiter
from pytest_hfbudget.locks import non_reentrant, off_loop, own_lock

_BEFORE_ALL_DAYS = 0


class WindowAccounts:
    """The accounts of the windows in a ledger, with what the other runs have spent and hold.

    The store has a row for each run and day, with amounts, not changes. So the next write that
    works puts right what an earlier one has missed.
    """

    def __init__(self, windows: Sequence[BudgetWindow], accounts: Mapping[str, Account]) -> None:
        self.day = _BEFORE_ALL_DAYS  # that of the last transaction
        self._windows, self._accounts = windows, accounts
        self._own = 0  # nano-USD that this run has spent today
        self._taken = dict.fromkeys((window.key for window in windows), 0)
        self._away = dict.fromkeys((window.key for window in windows), 0)
        self._earlier: dict[int, int] = {}
        self._written: dict[int, DaySpending] = {}

    def begin(self, snapshot: Snapshot) -> None:
        """Update the accounts by the snapshot with which a transaction begins."""
        if snapshot.day != self.day:
            self._turn_over(snapshot.day)
        self._see(snapshot)

    def update(self, snapshot: Snapshot | None) -> None:
        """Update the accounts by a later snapshot of the same transaction, if there is one."""
        if snapshot is not None:
            self.note_own()
            self._see(snapshot)

    def shut(self) -> None:
        """Leave no room in any window, because what the other runs have spent is not known."""
        for window in self._windows:
            account = self._accounts[window.key]
            account.scope = account.scope._replace(cap=0)

    def needs(self, keys: Collection[str], least: int, most: int | None) -> dict[str, DrawNeed]:
        """What the windows have too little of for a call, from ``least`` to ``most`` nano-USD."""
        needs = {}
        for window in self._windows:
            account = self._accounts[window.key]
            at_hand = window.cap - account.spent - account.held
            wanted = (least if most is None else most) - at_hand
            if window.key in keys and wanted > 0:
                needs[window.key] = DrawNeed(max(least - at_hand, 0), wanted)
        return needs

    def left(self, key: str) -> int:
        """The nano-USD of a window that no run has spent, less what this run holds."""
        account = self._accounts[key]
        return (account.scope.cap or 0) - account.spent - account.held + self._away[key]

    # --- the rows of this run

    def row(self) -> DaySpending:
        """This run's row of today, as it is now."""
        key = self._windows[0].key
        account = self._accounts[key]
        return DaySpending(account.spent - self._taken[key], account.held - self._away[key])

    def note_own(self) -> None:
        """Note what this run has spent today, before the accounts are read anew."""
        self._own = self.row().spent

    def rows(self) -> dict[int, DaySpending]:
        """The rows that are to be written, by day; empty if they are in the store already."""
        rows = {day: DaySpending(own) for day, own in self._earlier.items()}
        rows[self.day] = self.row()
        return {} if rows == self._written else rows

    def note_written(self) -> None:
        """Note that the store has the rows."""
        self._written, self._earlier = {self.day: self.row()}, {}

    def note_ended(self) -> None:
        """Note that the store has ended the run: what was in its row counts as spent."""
        self._own, self._written = 0, {self.day: DaySpending()}

    def begin_anew(self) -> None:
        """In a forked child: what the parent has spent is in the parent's row."""
        self._own, self._earlier, self._written = 0, {}, {}

    def _see(self, snapshot: Snapshot) -> None:
        """Put into the accounts what the other runs have spent, and what they hold."""
        for window in self._windows:
            key, account = window.key, self._accounts[window.key]
            account.scope = window.scope(snapshot.day)
            self._taken[key] = snapshot.taken[key] - self._stale(window, snapshot.day)
            account.spent = self._taken[key] + self._own
            away = snapshot.away.get(key, 0)
            account.held += away - self._away[key]
            self._away[key] = away

    def _stale(self, window: BudgetWindow, day: int) -> int:
        """The nano-USD of holds that the store still has in this run's rows of earlier days."""
        first = window.first_day(day)
        days = self._earlier.items()
        return sum(sum(self._written.get(at, ())) - own for at, own in days if at >= first)

    def _turn_over(self, day: int) -> None:
        # What is in flight at midnight is settled on the next day, so it is held there.
        if self.day != _BEFORE_ALL_DAYS:
            self._earlier[self.day] = self._own
        self.day, self._own = day, 0


class StoreLock:
    """The lock of a ledger, which begins a transaction of the store, and ends it.

    If the store fails, calls that were sent are settled all the same. Until a transaction works
    again, no window has room.

    Attributes:
        accounts: what the transactions read and write.
        problem: why the store could not be read or written at the last attempt; empty if it was.
    """

    def __init__(
        self, store: BudgetStore, windows: Sequence[BudgetWindow], accounts: WindowAccounts
    ) -> None:
        self.accounts, self.problem = accounts, ""
        self._store, self._windows = store, windows
        self._lock = own_lock()
        self._in_transaction = False
        watch_forks(self)

    @off_loop()
    def __enter__(self) -> StoreLock:
        non_reentrant(self._lock).__enter__()
        try:
            self._begin()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    @off_loop()
    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            self._lock.__exit__(None, None, None)

    def _is_owned(self) -> bool:
        return self._lock._is_owned()

    def close(self) -> None:
        """End the run: what is in its row counts as spent.

        Raises:
            HistoryError: it was not ended, and its row counts as it is, holds included.
        """
        with self._lock:
            self._store.close()
            self.accounts.note_ended()

    @property
    def trouble(self) -> str:
        """Why a window may look full that is not; empty if the store works."""
        return self.problem or self._store.trouble

    def draw(self, keys: Collection[str], least: int, most: int | None) -> None:
        """Draw what a call needs of these windows, from ``least`` to ``most`` nano-USD.

        The caller is inside of the lock.
        """
        needs = self.accounts.needs(keys, least, most)
        if needs and self._in_transaction:
            self.accounts.update(self._store.draw(needs, self.accounts.row()))

    def _begin(self) -> None:
        try:
            snapshot = self._store.begin(self._windows, self.accounts.day)
        except HistoryError as error:
            self.problem, self._in_transaction = str(error), False
            self.accounts.shut()
            return
        self._in_transaction = True
        self.accounts.begin(snapshot)

    def _end(self) -> None:
        self.accounts.note_own()
        if not self._in_transaction:
            return
        self._in_transaction = False
        try:
            self._store.end(self.accounts.rows())
        except HistoryError as error:
            self.problem = str(error)
        else:
            self.problem = ""
            self.accounts.note_written()

    # --- forks: an SQLite file must not be open in the parent and in the child

    def before_fork(self) -> None:
        """Close the store, and keep all threads out, while the process is forked."""
        self._lock.__enter__()
        self._store.pause()

    def after_in_parent(self) -> None:
        """Let threads in again."""
        self._lock.__exit__(None, None, None)

    def after_in_child(self) -> None:
        """Use a row of the child's own."""
        self._lock = own_lock()
        self._store.forked()
        self.accounts.begin_anew()


class WindowLedger(Ledger):
    """The ledger of one run among others, all of which spend from the same windows.

    Raises:
        HistoryError: the store can't be read or written; under a cap that ends the run.
    """

    def __init__(self, store: BudgetStore, windows: Sequence[BudgetWindow]) -> None:
        super().__init__()
        self._windows = tuple(window.key for window in windows)
        for window in windows:
            self.open(window.scope())
        accounts = WindowAccounts(windows, self._accounts)
        self._lock = self._store_lock = StoreLock(store, windows, accounts)
        with self._store_lock:
            pass
        if self._store_lock.problem:
            store.pause()
            raise HistoryError(self._store_lock.problem)

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        """As `Ledger.hold`.

        Raises:
            LedgerUnreachableError: what the other runs have spent can't be read.
            BudgetExceededError: as `Ledger.hold`.
        """
        with self._unreadable_explained(draft.model):
            return self._if_written(super().hold(keys, least, most, draft), draft.model)

    def hold_or_queue(
        self,
        keys: Sequence[str],
        least: int,
        most: int | None,
        draft: Charge,
        caller: Caller | None = None,
    ) -> Hold | WaitingHold:
        """As `Ledger.hold_or_queue`, and as `hold`."""
        with self._unreadable_explained(draft.model):
            answer = super().hold_or_queue(keys, least, most, draft, caller)
            return self._if_written(answer, draft.model) if isinstance(answer, Hold) else answer

    @contextmanager
    def _unreadable_explained(self, model: str) -> Iterator[None]:
        """Raise another refusal for a window that only looks full, because it can't be read."""
        try:
            yield
        except BudgetExceededError as error:
            if error.scope_key in self._windows and self._store_lock.trouble:
                raise self._unreachable(model) from None
            raise

    def _if_written(self, granted: Hold, model: str) -> Hold:
        """The hold, which is in the store; if it could not be written, it is refused."""
        if granted.amount and self._store_lock.problem:
            self.release(granted.id)
            raise self._unreachable(model)
        return granted

    def book(self, key: str, nano_usd: int, *, what: str = "") -> None:
        """As `Ledger.book`; what is booked to the session is booked to every window."""
        if key == SESSION:
            self.book_uptime(nano_usd, nano_usd, what=what)
        else:
            super().book(key, nano_usd, what=what)

    def book_uptime(self, nano_usd: int, shared: int, *, what: str = "") -> None:
        """As `Ledger.book_uptime`: of jobs that share an endpoint, one pays for all."""
        booked: list[str] = []
        with self._unreadable_explained(what):
            if what:
                with self._store_lock:
                    self._store_lock.draw(self._windows, shared, shared)
            try:
                for each in self._windows:
                    super().book(each, shared, what=what)
                    booked.append(each)
                super().book(SESSION, nano_usd, what=what)
            except BudgetExceededError:
                for each in booked:
                    super().book(each, -shared)
                raise

    def left(self, key: str) -> int:
        """The nano-USD of a window that no run has spent, less what this run holds."""
        with self._store_lock:
            return self._store_lock.accounts.left(key)

    def catch_up(self, beat: Callable[[], Snapshot]) -> bool:
        """Let the calls in the queue go on that can, and return whether some still wait.

        Args:
            beat: called before that, inside of the lock; returns the snapshot of the store.
        """
        with self._store_lock:
            self._store_lock.accounts.update(beat())
            for waiter in tuple(self._queue):
                keys = [account.scope.key for account in waiter.request.accounts]
                self._store_lock.draw(keys, waiter.request.least, waiter.request.most)
            self._answer_queue()
            return bool(self._queue)

    def close(self) -> None:
        """End the run.

        Raises:
            HistoryError: as `StoreLock.close`.
        """
        self._store_lock.close()

    def _hold_or_queue(
        self,
        keys: Sequence[str],
        least: int,
        most: int | None,
        draft: Charge,
        caller: Caller | None,
    ) -> Hold | Waiter:
        self._store_lock.draw(keys, least, most)
        return super()._hold_or_queue(keys, least, most, draft, caller)

    def _refuse_waiter(self, waiter: Waiter, why: Exception) -> None:
        of_window = getattr(why, "scope_key", "") in self._windows
        if of_window and self._store_lock.trouble:
            why = self._unreachable(waiter.request.draft.model)
        super()._refuse_waiter(waiter, why)

    def _unreachable(self, model: str) -> LedgerUnreachableError:
        return LedgerUnreachableError(
            f"{model} was not called, because a budget over many runs can't be read or written: "
            f"{self._store_lock.trouble}",
            scope_key=self._windows[0],
            model=model,
        )


class Forked(Protocol):
    """An object with something to do around each fork."""

    def before_fork(self) -> None: ...
    def after_in_parent(self) -> None: ...
    def after_in_child(self) -> None: ...


def watch_forks(lock: Forked) -> None:
    """Call these methods around each fork, for as long as the object exists."""

    # By weak references, because a registration can't be taken back, and a process may have many
    # runs.
    def call(method: weakref.WeakMethod[Callable[[], None]]) -> Callable[[], None]:
        def now() -> None:
            if (alive := method()) is not None:
                with suppress(HistoryError):
                    alive()

        return now

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=call(weakref.WeakMethod(lock.before_fork)),
            after_in_parent=call(weakref.WeakMethod(lock.after_in_parent)),
            after_in_child=call(weakref.WeakMethod(lock.after_in_child)),
        )
