"""One cap over many jobs: advances that a real Redis server adds up."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis_server import RedisServer, redis_server
from run_books import charge

from pytest_hfbudget.errors import BudgetExceededError, LedgerUnreachableError
from pytest_hfbudget.history import RUN, BudgetWindow
from pytest_hfbudget.history.shared_store import LOST_BEATS, JobNames, RedisStore
from pytest_hfbudget.history.window_ledger import WindowLedger
from pytest_hfbudget.ledger import SESSION, Caller, Hold, Scope, WaitingHold
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock, SystemClock
from pytest_hfbudget.shared import PREFIX, SharedAddress, SharedServer, SharedServerError

__all__ = ["redis_server"]

KEY = f"window:{RUN}"
callers = itertools.count()


class Job:
    """A job in this process, whose heart beats when the test says so."""

    def __init__(self, jobs: Jobs, name: str) -> None:
        server = SharedServer(SharedAddress(jobs.server.url), timeout_s=jobs.timeout_s)
        names = JobNames(name, jobs.run, "project")
        self.name = name
        self.store = RedisStore(
            server, names, jobs.windows, expiry_s=jobs.expiry_s, clock=jobs.clock
        )
        self.ledger = WindowLedger(self.store, jobs.windows)
        self.ledger.open(Scope(SESSION, "session budget"))
        self.keys = (*(window.key for window in jobs.windows), SESSION)

    def hold(self, least: int, most: int | None = None) -> Hold:
        return self.ledger.hold(self.keys, least, most or least, charge())

    def ask(self, least: int) -> Hold | WaitingHold:
        caller = Caller(os.getpid(), next(callers))
        return self.ledger.hold_or_queue(self.keys, least, least, charge(), caller)

    def settle(self, hold: Hold, nano_usd: int) -> None:
        self.ledger.settle(hold.id, charge(nano_usd))

    def spend(self, nano_usd: int) -> None:
        self.settle(self.hold(nano_usd), nano_usd)

    def beat(self) -> None:
        if self.store.trouble and not self.store.server.takes_writes():
            self.store.miss()
            self.ledger.catch_up(self.store.snapshot)
        else:
            self.ledger.catch_up(self.store.beat)

    def left(self) -> int:
        return self.ledger.left(KEY)


@dataclass
class Jobs:
    """The jobs of one run."""

    server: RedisServer
    windows: tuple[BudgetWindow, ...] = (BudgetWindow(RUN, 100),)
    run: str = "run"
    expiry_s: float = 30.0
    timeout_s: float = 2.0
    clock: Clock = SYSTEM_CLOCK
    all: list[Job] = field(default_factory=list)

    def job(self) -> Job:
        made = Job(self, f"job{len(self.all)}")
        self.all.append(made)
        return made


@pytest.fixture
def jobs(redis_server: RedisServer) -> Iterator[Jobs]:
    made = Jobs(redis_server)
    yield made
    for job in made.all:
        job.store.server.close()


def test_what_one_job_has_spent_is_gone_for_the_others(jobs: Jobs) -> None:
    first, second = jobs.job(), jobs.job()
    first.spend(60)
    first.beat()
    with pytest.raises(BudgetExceededError) as refused:
        second.hold(41)
    assert refused.value.figures[:3] == (100, 60, 40)
    second.spend(40)
    assert second.left() == 0


def test_an_advance_is_drawn_in_chunks_so_that_most_calls_ask_no_server(jobs: Jobs) -> None:
    jobs.windows = (BudgetWindow(RUN, 10**9),)
    job = jobs.job()
    before = job.store.server.trips
    for _ in range(1000):
        job.spend(100)
    assert job.store.server.trips - before <= 1
    assert job.ledger.total(KEY).spent == 100_000


def test_money_that_lies_with_another_job_is_waited_for_and_comes(jobs: Jobs) -> None:
    first, second = jobs.job(), jobs.job()
    first.settle(first.hold(80), 10)  # 70 of its advance are unused now
    waits = second.ask(85)
    assert isinstance(waits, WaitingHold)
    first.beat()  # hears the wish, and gives back
    second.beat()
    assert waits.answer.result(0).amount == 85
    assert second.left() == 5


def test_money_that_is_spent_is_not_waited_for(jobs: Jobs) -> None:
    first, second = jobs.job(), jobs.job()
    first.spend(80)
    first.beat()
    with pytest.raises(BudgetExceededError, match=r"session budget of all jobs: .* is left"):
        second.ask(21)


def test_a_wait_ends_with_a_refusal_when_the_money_is_spent_meanwhile(jobs: Jobs) -> None:
    first, second = jobs.job(), jobs.job()
    held = first.hold(80)
    waits = second.ask(30)
    assert isinstance(waits, WaitingHold)
    first.settle(held, 80)
    first.beat()
    second.beat()
    with pytest.raises(BudgetExceededError):
        waits.answer.result(0)


def test_a_job_that_is_over_gives_back_what_it_has_not_spent(jobs: Jobs) -> None:
    first, second = jobs.job(), jobs.job()
    first.settle(first.hold(80), 10)
    first.ledger.close()
    second.spend(90)
    assert second.left() == 0


def test_the_end_of_a_job_counts_once_though_it_is_told_twice(jobs: Jobs) -> None:
    first, second = jobs.job(), jobs.job()
    first.spend(30)
    first.store.close()
    first.store.close()
    second.beat()
    assert second.left() == 70


def test_the_advance_of_a_lost_job_counts_as_spent(jobs: Jobs) -> None:
    jobs.expiry_s = 0.4  # counted in whole seconds
    first, second = jobs.job(), jobs.job()
    first.settle(first.hold(80), 10)
    jobs.server.pass_seconds(2, second.beat)
    with pytest.raises(BudgetExceededError):
        second.ask(30)
    first.beat()  # it lives after all, and has 70 that it gives back
    assert isinstance(second.ask(30), Hold)


def test_a_request_that_was_lost_on_the_way_gives_nothing_away(jobs: Jobs) -> None:
    jobs.timeout_s = 1.0
    first, second = jobs.job(), jobs.job()
    first.hold(10)
    jobs.server.stop()
    with pytest.raises(BudgetExceededError):
        first.hold(30)  # stays in the socket of the server that is stopped
    jobs.server.go_on()
    first.beat()
    assert first.hold(60)
    with pytest.raises(BudgetExceededError):
        second.hold(31)
    assert second.hold(30)


def test_a_request_that_arrives_late_or_twice_changes_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    run = SharedServer.run

    def noted(*request: Any) -> Any:
        sent.append(request)
        return run(*request)

    monkeypatch.setattr(SharedServer, "run", noted)
    job = jobs.job()
    job.hold(10)
    job.hold(60)
    key = f"{PREFIX}run:run:budget"
    known = jobs.server.client().hgetall(key)
    for request in sent:
        run(*request)
        assert jobs.server.client().hgetall(key) == known


def test_without_the_server_a_job_spends_its_advance_and_no_more(jobs: Jobs) -> None:
    jobs.windows = (BudgetWindow(RUN, 8000),)
    job = jobs.job()
    job.spend(100)  # an advance of 1000
    jobs.server.kill()
    for _ in range(9):
        job.spend(100)
    for _ in range(2):
        with pytest.raises(LedgerUnreachableError, match=r"the shared server redis://127\.0\.0\.1"):
            job.hold(100)
    jobs.server.start()
    jobs.server.pass_seconds(4, job.beat)  # time for other jobs to tell what they have
    job.spend(100)


def full(server: RedisServer) -> None:
    """Have it refuse every write, as a replica does or one whose disk is full."""
    server.client().config_set("maxmemory", 1)


def pause_writes(server: RedisServer) -> None:
    """Have it answer what only reads, as before a fail-over."""
    server.client().client_pause(60_000, all=False)


@pytest.mark.parametrize("fault", [RedisServer.kill, full, pause_writes])
def test_a_call_waits_some_beats_for_a_server_that_can_not_be_written_and_is_refused_then(
    jobs: Jobs, fault: Callable[[RedisServer], None]
) -> None:
    jobs.timeout_s = 0.2
    job = jobs.job()
    job.spend(90)
    fault(jobs.server)
    waits = job.ask(10)
    assert isinstance(waits, WaitingHold)
    for _ in range(LOST_BEATS):
        assert not waits.answer.done()
        job.beat()
    with pytest.raises(LedgerUnreachableError):
        waits.answer.result(0)
    with pytest.raises(LedgerUnreachableError):
        job.ask(10)


def test_a_job_goes_on_when_a_server_that_was_full_has_room_again(jobs: Jobs) -> None:
    job = jobs.job()
    full(jobs.server)
    job.beat()
    with pytest.raises(LedgerUnreachableError, match=r"when used memory > 'maxmemory'\.$"):
        job.hold(10)
    jobs.server.client().config_set("maxmemory", 0)
    job.beat()
    job.spend(100)


def test_no_server_at_the_start_is_an_error_that_names_it(jobs: Jobs) -> None:
    jobs.server.kill()
    with pytest.raises(Exception, match=r"the shared server redis://127\.0\.0\.1:\d+/0 can't be"):
        jobs.job()


def test_forgotten_scripts_are_loaded_again(jobs: Jobs) -> None:
    job = jobs.job()
    job.spend(10)
    jobs.server.client().script_flush()
    job.spend(90)
    assert job.left() == 0


@pytest.mark.slow
def test_a_server_that_has_lost_its_data_is_told_again(jobs: Jobs) -> None:
    gone, first, second = jobs.job(), jobs.job(), jobs.job()
    gone.spend(20)
    gone.ledger.close()
    first.spend(30)
    first.beat()
    second.spend(10)
    second.beat()
    jobs.server.restart()
    with pytest.raises(BudgetExceededError):
        second.hold(40)  # nothing is drawn before the others have told what they have
    first.beat()
    jobs.server.pass_seconds(4, second.beat)
    assert second.left() == 40
    second.spend(40)


class SlowClock(SystemClock):
    """The clock of a machine that is years behind."""

    def time(self) -> float:
        return 20_000 * 86_400.0


def test_the_days_are_those_of_the_server(jobs: Jobs) -> None:
    jobs.windows = (BudgetWindow("day", 100), BudgetWindow("month", 1000))
    jobs.clock = SlowClock()
    first = jobs.job()
    jobs.clock = SYSTEM_CLOCK
    second = jobs.job()
    first.spend(60)
    first.beat()
    with pytest.raises(BudgetExceededError, match="daily budget"):
        second.hold(41)


def freeze_time(monkeypatch: pytest.MonkeyPatch, unix_s: float) -> None:
    """As freezegun does: wherever a module has these functions, it gets others."""
    for real in (time.time, time.monotonic):
        for module in tuple(sys.modules.values()):
            for name in [name for name, value in vars(module).items() if value is real]:
                monkeypatch.setattr(module, name, lambda: unix_s)


def test_a_test_that_freezes_time_gets_no_budget_of_another_day(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.windows = (BudgetWindow("day", 100),)
    job = jobs.job()
    job.spend(60)
    freeze_time(monkeypatch, 40_000 * 86_400.0)
    with pytest.raises(BudgetExceededError, match="daily budget"):
        job.hold(41)


def test_all_keys_have_one_prefix_and_expire(jobs: Jobs) -> None:
    jobs.windows = (BudgetWindow(RUN, 100), BudgetWindow("day", 100), BudgetWindow("week", 100))
    job = jobs.job()
    job.spend(60)
    job.ledger.close()
    client = jobs.server.client()
    keys = client.keys()
    assert len(keys) == 4
    assert all(key.startswith(PREFIX) and 0 < client.ttl(key) < 63 * 86_400 for key in keys)


def test_keys_of_another_version_are_refused_with_a_line(jobs: Jobs) -> None:
    client = jobs.server.client()
    client.hset(f"{PREFIX}run:run:budget", mapping={"v": "2", "cap": "1"})
    with pytest.raises(Exception, match="version 2 of hfbudget:run:run:budget; this release needs"):
        jobs.job()

    assert client.hgetall(f"{PREFIX}run:run:budget") == {"v": "2", "cap": "1"}


def test_a_wrong_password_is_refused_and_not_told(redis_server: RedisServer) -> None:
    redis_server.client().config_set("requirepass", "s3cret")
    url = redis_server.url.replace("redis://", "redis://:wr0ng@")
    for address in (SharedAddress(url), SharedAddress(redis_server.url, "wr0ng")):
        with pytest.raises(SharedServerError) as refused:
            SharedServer(address).run("return 1", [], [])
        assert "wr0ng" not in f"{refused.value}{address!r}"
    assert SharedServer(SharedAddress(redis_server.url, "s3cret")).run("return 1", [], []) == 1
