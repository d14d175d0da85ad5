"""Jobs that share a cap, under anything that can be done to them and to their server."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from redis_server import RedisServer
from run_books import charge
from test_shared_budgets import Job, Jobs

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.history import RUN, BudgetWindow
from pytest_hfbudget.ledger import Hold, WaitingHold
from pytest_hfbudget.shared import PREFIX

CAP = 1000
runs = itertools.count()
AMOUNTS = (1, 7, 30, 100, 400)
STEPS = 40
SLOW = pytest.mark.slow


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


class Game:
    """What is spent and held by all jobs, lost ones included, is never over the cap."""

    def __init__(self, server: RedisServer, seed: int) -> None:
        self.server, self.draw, self.run = server, random.Random(seed), f"run{next(runs)}"
        self.jobs = Jobs(server, (BudgetWindow(RUN, CAP),), run=self.run, timeout_s=0.4)
        self.players: list[Player] = []
        self.over: list[Player] = []
        self.start()

    def play(self) -> None:
        """So many steps, the frequent ones more often."""
        usual = [self.call] * 6 + [self.settle] * 4 + [self.beat] * 4
        rare = [self.start, self.end, self.lose, self.forget_scripts]
        rare += [self.restart_without_data, self.call_while_the_server_is_silent]
        for _ in range(STEPS):
            self.draw.choice([*usual, *usual, *rare])()
            self.collect()
            assert self.taken <= CAP
        self.settle_all()
        for job in self.jobs.all:
            job.store.server.close()

    @property
    def taken(self) -> int:
        return sum(player.taken for player in (*self.players, *self.over))

    @property
    def player(self) -> Player:
        return self.draw.choice(self.players)

    def start(self) -> None:
        if len(self.players) < 5:
            self.players.append(Player(self.jobs.job()))

    def call(self, waits: bool | None = None) -> None:
        player, amount = self.player, self.draw.choice(AMOUNTS)
        waits = self.draw.random() < 0.5 if waits is None else waits
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

    def settle(self) -> None:
        player, part = self.player, self.draw.randint(0, 4)
        if player.held:
            hold, amount = player.held.popitem()
            player.spent += amount * part // 4
            player.job.ledger.settle(hold, charge(amount * part // 4))

    def beat(self) -> None:
        self.player.job.beat()

    def end(self) -> None:
        player = self.player
        if len(self.players) > 1 and not player.held and not player.waiting:
            player.job.ledger.close()
            self.players.remove(player)
            self.over.append(player)

    def lose(self) -> None:
        """A job is killed; the server is told at once that its time is over."""
        player = self.player
        if len(self.players) < 2:
            return
        self.players.remove(player)
        self.over.append(player)
        client, key = self.server.client(), f"{PREFIX}run:{self.run}:budget"
        name = f"j:{player.job.name}"
        seq, own, spent, _, _ = client.hget(key, name).split()
        client.hset(key, name, f"{seq} {own} {spent} 0 0")
        player.lost = int(own)

    def forget_scripts(self) -> None:
        self.server.client().script_flush()

    def restart_without_data(self) -> None:
        """Every living job has been heard, and all tell again what they have."""
        for player in self.players:
            player.job.beat()
        self.server.client().flushall()
        for player in self.players:
            player.job.beat()
        self.server.client().hdel(f"{PREFIX}run:{self.run}:budget", "lost")

    def call_while_the_server_is_silent(self) -> None:
        self.server.stop()
        try:
            self.call(waits=False)
        finally:
            self.server.go_on()

    def collect(self) -> None:
        """Note the answers of calls that waited."""
        for player in self.players:
            for place in tuple(player.waiting):
                if place.answer.done():
                    player.waiting.remove(place)
                    if place.answer.exception() is None:
                        player.held[place.id] = place.answer.result().amount

    def settle_all(self) -> None:
        """All that waits gets what there is, once everything else is settled."""
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


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.needed()
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 125), marks=SLOW)])
def test_jobs_never_spend_more_than_their_cap(one_server: RedisServer, seeds: range) -> None:
    for seed in seeds:
        try:
            Game(one_server, seed).play()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
