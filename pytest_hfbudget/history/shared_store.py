"""Budgets that many machines share: each job draws advances on a cap that a Redis server keeps.

A job's ledger spends from its advance without asking anyone. The server adds up the advances of
all jobs. A draw that would take the sum over the cap gets nothing. So what is spent can't be over
the cap either, whatever happens to a job, to the server or to their connection.

A job writes amounts, never changes, and numbers its requests. So a repeated request does nothing,
a late one is ignored, and a server that has lost its data gets all of it again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.history import RUN, BudgetWindow, day_of
from pytest_hfbudget.history.database import DaySpending, DrawNeed, Snapshot
from pytest_hfbudget.history.window_ledger import WindowLedger, watch_forks
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock
from pytest_hfbudget.shared import PREFIX, VERSION, SharedServer, SharedServerError

# Lua counts in floating point: whole numbers are exact below 2^53.
LARGEST_CAP = 9_000_000 * 10**9

BEAT_S = 1.0
HURRY_S = 0.2
# After so many beats without an answer, calls don't wait for the server any longer.
LOST_BEATS = 3
DAY_S = 86_400
KEPT_DAYS = {RUN: 7, "day": 3, "week": 15, "month": 62}

_EXCHANGE = Path(__file__).with_name("advances.lua").read_text("utf-8")


class PoolStanding(NamedTuple):
    """One shared budget as of the last answer, in nano-USD.

    Attributes:
        own: what this job has been advanced.
        gone: what ended jobs have spent, and what lost ones had been advanced.
        used, unspent: what the other jobs have spent, and what is left of their advances.
        jobs: how many share it now, this one included.
        wished: what other jobs need and could not draw.
    """

    own: int = 0
    gone: int = 0
    used: int = 0
    unspent: int = 0
    jobs: int = 1
    wished: int = 0


@dataclass(frozen=True)
class JobNames:
    """The names of a job, its run and its project in the keys of the server."""

    job: str
    run: str
    project: str

    def pool(self, window: BudgetWindow, day: int) -> str:
        """The key of a shared budget."""
        if window.length == RUN:
            return f"{PREFIX}run:{self.run}:budget"
        return f"{PREFIX}project:{self.project}:{window.length}:{window.first_day(day)}"


class RedisStore:
    """The advances of one job. Used under the ledger's lock.

    Args:
        expiry_s: seconds without a sign of life after which a job's whole advance counts as spent.
    """

    def __init__(
        self,
        server: SharedServer,
        names: JobNames,
        windows: Sequence[BudgetWindow],
        *,
        expiry_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.server, self._names, self._windows = server, names, tuple(windows)
        self._expiry_s, self._clock = expiry_s, clock
        self.trouble = ""
        self._missed = 0  # beats in a row without an answer
        self._seq = 0
        self._day = 0
        self._server_s, self._read_at = 0.0, 0.0
        self._pools: dict[str, PoolStanding] = {}
        self._rows: dict[int, DaySpending] = {}

    @property
    def lost(self) -> bool:
        """Whether the server has not answered for so long that no call waits for it any more."""
        return bool(self.trouble) and self._missed >= LOST_BEATS

    def standing(self, key: str) -> PoolStanding:
        """The shared budget with this key, as of the last answer."""
        return self._pools.get(key, PoolStanding())

    @property
    def wished(self) -> bool:
        """Whether another job needs more than it could draw."""
        return any(pool.wished for pool in self._pools.values())

    def begin(self, windows: Sequence[BudgetWindow], not_before: int) -> Snapshot:
        if not self._day:
            self._day = day_of(self._clock.time())
            self._exchange()  # the first look, which has to succeed
            if (today := self._today()) != self._day:  # a clock is wrong here
                self._turn(today)
        elif not self.trouble and (today := self._today()) > self._day:
            with suppress(SharedServerError):  # the new day begins once the server knows of it
                self._turn(today)
        return self.snapshot()

    def _turn(self, today: int) -> None:
        before, self._day = self._day, today
        # What is in flight is held on the new day, and settled there.
        self._rows[today] = DaySpending(0, self._rows.get(before, DaySpending()).held)
        try:
            self._exchange(before=before)
        except SharedServerError:
            self._day = before
            del self._rows[today]
            raise

    def draw(self, needs: Mapping[str, DrawNeed], row: DaySpending) -> Snapshot:
        self._rows[self._day] = row
        if not self.trouble:
            with suppress(SharedServerError):
                self._exchange(needs)
        return self.snapshot()

    def end(self, rows: Mapping[int, DaySpending]) -> None:
        self._rows.update(rows)

    def beat(self) -> Snapshot:
        """Show that this job lives, tell what it has spent, and give back what others need."""
        with suppress(SharedServerError):
            self._exchange(returns=True)
            if self.wished:
                self._exchange(returns=True)
        return self.snapshot()

    def miss(self) -> None:
        """Note that the server still does not answer."""
        self._missed += 1

    def pause(self) -> None:
        """Nothing is locked on the server."""

    def forked(self) -> None:
        names = self._names
        self._names = JobNames(f"{names.job}.{os.getpid()}", names.run, names.project)
        self._seq = 0
        self._pools = {key: pool._replace(own=0) for key, pool in self._pools.items()}
        self._rows = {}

    def close(self) -> None:
        self._exchange(closes=True)
        self._pools = {key: pool._replace(own=0) for key, pool in self._pools.items()}
        self._rows = {}

    @property
    def _row(self) -> DaySpending:
        return self._rows.get(self._day, DaySpending())

    def _today(self) -> int:
        """The day on the server, by its last answer and the time since then."""
        return day_of(self._server_s + self._clock.monotonic() - self._read_at)

    def snapshot(self) -> Snapshot:
        """What the other jobs have taken, as of the last answer."""
        taken, away = {}, {}
        for window in self._windows:
            pool = self.standing(window.key)
            others = pool.gone + pool.used
            rest = max(window.cap - others - pool.own, 0)
            earlier = sum(sum(row) for day, row in self._days(window) if day != self._day)
            # What can't be drawn any more counts as spent, so that no call waits for it.
            taken[window.key] = others + earlier + (rest if self.lost else 0)
            away[window.key] = 0 if self.lost else rest
        return Snapshot(self._day, taken, away)

    def _days(self, window: BudgetWindow) -> list[tuple[int, DaySpending]]:
        """The rows of this job in the present window."""
        first = window.first_day(self._day)
        return [(day, row) for day, row in self._rows.items() if day >= first]

    def _exchange(
        self,
        needs: Mapping[str, DrawNeed] = MappingProxyType({}),
        *,
        before: int = 0,
        returns: bool = False,
        closes: bool = False,
    ) -> None:
        """Tell the server where this job stands, and draw what it needs.

        Args:
            before: the day that has just ended, if one has.
            returns: whether to give back what others need and this job does not.
            closes: whether the job ends.

        Raises:
            SharedServerError: the server can't be used; nothing has changed here.
        """
        self._seq += 1
        names, keys, values = self._names, list[str](), list[object]()
        for window in self._windows:
            anew = bool(before) and window.first_day(before) != window.first_day(self._day)
            pool = PoolStanding() if anew else self.standing(window.key)
            need = needs.get(window.key, DrawNeed(0, 0))
            spent = sum(row.spent for _, row in self._days(window))
            bound = spent + self._row.held
            advance = bound if returns and pool.wished else max(pool.own, bound)
            kept_s = KEPT_DAYS[window.length] * DAY_S
            keys.append(names.pool(window, self._day))
            spent = bound if closes else spent
            gone = -1 if anew or window.key not in self._pools else pool.gone
            values += [window.cap, advance, spent, need.least, need.most, gone, kept_s]
        keys.append(f"{PREFIX}closed:{names.job}")
        mode = "close" if closes else "sync"
        head = [VERSION, names.job, self._seq, round(self._expiry_s), mode]
        try:
            _, seconds, *figures = self.server.run(_EXCHANGE, keys, [*head, *values])
        except SharedServerError as error:
            self.trouble = str(error)
            raise
        self.trouble, self._missed = "", 0
        self._server_s, self._read_at = float(seconds), self._clock.monotonic()
        for at, window in enumerate(self._windows[: len(figures) // 6]):
            self._pools[window.key] = PoolStanding(*figures[at * 6 : at * 6 + 6])


class JobShare(NamedTuple):
    """What one job has drawn of one budget and spent, in nano-USD; seconds since it was heard."""

    budget: str
    job: str
    advanced: int
    spent: int
    age_s: float


def read_shares(server: SharedServer) -> tuple[JobShare, ...]:
    """The shares of all jobs in all shared budgets, except of jobs that have ended.

    Raises:
        SharedServerError: the server can't be used.
    """
    found = []
    now = float(server.run("return redis.call('TIME')", [], [])[0])
    for key in (*server.keys(f"{PREFIX}run:*:budget"), *server.keys(f"{PREFIX}project:*")):
        told = server.run("return redis.call('HGETALL', KEYS[1])", [key], [])
        for name, value in sorted(zip(told[::2], told[1::2], strict=True)):
            if name.startswith("j:"):
                _, advanced, spent, beat, _ = map(int, value.split())
                budget = key.removeprefix(PREFIX).removesuffix(":budget")
                found.append(JobShare(budget, name[2:], advanced, spent, max(now - beat, 0.0)))
    return tuple(found)


class Heartbeat:
    """A thread that shows every second that this job lives, and draws for calls that wait.

    It ends before each fork, because Python warns if a process with threads is forked.
    """

    def __init__(self, ledger: WindowLedger, store: RedisStore) -> None:
        self._ledger, self._store = ledger, store
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        watch_forks(self)

    def start(self) -> None:
        """Start the thread."""
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop,), name="hfbudget-shared", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until it has ended."""
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None:
            thread.join()

    def before_fork(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def after_in_parent(self) -> None:
        """Start the thread again, if there was one."""
        if self._thread is not None:
            self.start()

    def after_in_child(self) -> None:
        """Forget the thread, which does not exist in a child."""
        self._thread = None

    def _run(self, stop: threading.Event) -> None:
        waits = False
        while not stop.wait(HURRY_S if waits or self._store.wished else BEAT_S):
            # An error here comes again at the next call, where the caller sees it.
            with suppress(HFBudgetError):
                waits = self._beat()

    def _beat(self) -> bool:
        store = self._store
        # Asked outside of the ledger's lock, so that calls go on while a server is silent.
        if store.trouble and not store.server.takes_writes():
            store.miss()
            return self._ledger.catch_up(store.snapshot)
        return self._ledger.catch_up(store.beat)


def shared_ledger(
    server: SharedServer, names: JobNames, windows: Sequence[BudgetWindow], *, expiry_s: float
) -> SharedJobLedger:
    """The ledger of a new job, which has drawn nothing so far.

    Raises:
        SharedServerError: the server can't be used.
        HFBudgetError: a cap is too large to be counted exactly.
    """
    for window in windows:
        if window.cap > LARGEST_CAP:
            raise HFBudgetError(
                f"the {window.label} is too large to be shared: write at most 9000000 USD."
            )
    return SharedJobLedger(RedisStore(server, names, windows, expiry_s=expiry_s), windows)


class SharedJobLedger(WindowLedger):
    """The ledger of one job among others. Its heartbeat runs until it is closed."""

    def __init__(self, store: RedisStore, windows: Sequence[BudgetWindow]) -> None:
        super().__init__(store, windows)
        self.shares = store
        self._heartbeat = Heartbeat(self, store)
        self._heartbeat.start()

    def jobs(self, window: BudgetWindow) -> int:
        """How many jobs share a budget."""
        return self.shares.standing(window.key).jobs

    def close(self) -> None:
        self._heartbeat.stop()
        super().close()
