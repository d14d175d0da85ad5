"""Jobs that share a cap, under anything that can be done to them and to their server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis_server import RedisServer
from run_books import charge
from test_shared_budgets import KEY, Job, Jobs

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.history import RUN, BudgetWindow
from pytest_hfbudget.ledger import Hold
from pytest_hfbudget.ledger.interface import WaitingHold
from pytest_hfbudget.shared import PREFIX

CAP = 1000
runs = itertools.count()
which = st.integers(0, 7)
amounts = st.sampled_from((1, 7, 30, 100, 400))


@dataclass(eq=False)
class Player:
    """A job, with what is known of it on paper."""

    job: Job
    spent: int = 0
    held: dict[int, int] = field(default_factory=dict)
    waiting: list[WaitingHold] = field(default_factory=list)
    lost: int = 0  # what it had been advanced when it was lost

    @property
    def taken(self) -> int:
        return max(self.spent + sum(self.held.values()), self.lost)


class Machine(RuleBasedStateMachine):
    """What is spent and held by all jobs, dead ones included, is never over the cap."""

    server: RedisServer

    @initialize()
    def begin(self) -> None:
        self.run = f"run{next(runs)}"
        self.jobs = Jobs(self.server, (BudgetWindow(RUN, CAP),), run=self.run, timeout_s=0.1)
        self.players: list[Player] = []
        self.over: list[Player] = []
        self.start()

    @property
    def taken(self) -> int:
        return sum(player.taken for player in (*self.players, *self.over))

    def player(self, at: int) -> Player:
        return self.players[at % len(self.players)]

    @precondition(lambda self: len(self.players) < 5)
    @rule()
    def start(self) -> None:
        self.players.append(Player(self.jobs.job()))

    @rule(at=which, amount=amounts, waits=st.booleans())
    def call(self, at: int, amount: int, waits: bool) -> None:
        player = self.player(at)
        try:
            answer = player.job.ask(amount) if waits else player.job.hold(amount)
        except BudgetExceededError:
            gone = sum(p.spent for p in self.players) + sum(p.taken for p in self.over)
            if waits and not player.job.store.trouble:
                assert gone + amount > CAP, "there was room"
            return
        if isinstance(answer, Hold):
            player.held[answer.id] = answer.amount
        else:
            player.waiting.append(answer)

    @rule(at=which, part=st.integers(0, 4))
    def settle(self, at: int, part: int) -> None:
        player = self.player(at)
        if player.held:
            hold, amount = player.held.popitem()
            player.spent += amount * part // 4
            player.job.ledger.settle(hold, charge(amount * part // 4))

    @rule(at=which)
    def beat(self, at: int) -> None:
        self.player(at).job.beat()

    @precondition(lambda self: len(self.players) > 1)
    @rule(at=which)
    def end(self, at: int) -> None:
        player = self.player(at)
        if not player.held and not player.waiting:
            player.job.ledger.close()
            self.players.remove(player)
            self.over.append(player)

    @precondition(lambda self: len(self.players) > 1)
    @rule(at=which)
    def lose(self, at: int) -> None:
        """A job is killed; the others are told at once that its time is over."""
        player = self.player(at)
        self.collect()
        player.lost = player.job.store.standing(KEY).own
        self.players.remove(player)
        self.over.append(player)
        client, key = self.server.client(), f"{PREFIX}run:{self.run}:budget"
        name = f"j:{player.job.name}"
        seq, own, spent, _, _ = client.hget(key, name).split()
        client.hset(key, name, f"{seq} {own} {spent} 0 0")

    @rule()
    def forget_scripts(self) -> None:
        self.server.client().script_flush()

    @rule()
    def restart_without_data(self) -> None:
        """Every living job has been heard, and all tell again what they have."""
        for player in self.players:
            player.job.beat()
        self.server.client().flushall()
        for player in self.players:
            player.job.beat()
        self.server.client().hdel(f"{PREFIX}run:{self.run}:budget", "lost")

    @rule(at=which, amount=amounts)
    def call_while_the_server_is_silent(self, at: int, amount: int) -> None:
        self.server.stop()
        try:
            self.call(at, amount, waits=False)
        finally:
            self.server.go_on()

    @invariant()
    def never_over_the_cap(self) -> None:
        self.collect()
        assert self.taken <= CAP

    def collect(self) -> None:
        """Note the answers of calls that waited."""
        for player in self.players:
            for place in tuple(player.waiting):
                if place.answer.done():
                    player.waiting.remove(place)
                    if place.answer.exception() is None:
                        player.held[place.id] = place.answer.result().amount

    def teardown(self) -> None:
        """All that waits gets what there is, once everything else is settled."""
        if not hasattr(self, "players"):
            return
        for _ in range(200):
            for player in self.players:
                player.job.beat()
                self.collect()
                for hold in list(player.held):
                    amount = player.held.pop(hold)
                    player.spent += amount
                    player.job.ledger.settle(hold, charge(amount))
            if not any(player.waiting for player in self.players):
                break
        assert not any(player.waiting for player in self.players), "a call waits for nothing"
        assert self.taken <= CAP
        for job in self.jobs.all:
            job.store.server.close()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.needed()
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("examples", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_jobs_never_spend_more_than_their_cap(one_server: RedisServer, examples: int) -> None:
    class OnThisServer(Machine):
        server = one_server

    options: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "deadline": None}
    run_state_machine_as_test(
        OnThisServer,
        settings=settings(max_examples=examples, stateful_step_count=40, **options),
    )
