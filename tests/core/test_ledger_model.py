"""The ledger under anything that can be done to it, against the plainest ledger there is."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from bookkeeping import Books, books, charge, draft
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.ledger import Charge, Ledger, Refusal, Scope, Totals

KEYS = ("session", "class", "test", "block")
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)
amounts = st.integers(0, 60)


class PlainScope:
    """One scope as a reader would keep it on paper."""

    def __init__(self, cap: int | None, max_calls: int | None) -> None:
        self.cap, self.max_calls = cap, max_calls
        self.spent = self.calls = self.refused = 0


class LedgerMachine(RuleBasedStateMachine):
    """Holds never settle above what was held here, so every cap must hold at any time."""

    kind = "local"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.books: Books = self.stack.enter_context(books(self.kind))
        self.plain: dict[str, PlainScope] = {}
        self.open: dict[int, tuple[int, set[str]]] = {}
        self.charged: list[Charge] = []

    def teardown(self) -> None:
        self.stack.close()

    @initialize(
        caps=st.tuples(*[st.none() | st.integers(0, 100)] * 4),
        calls=st.tuples(*[st.none() | st.integers(0, 6)] * 4),
    )
    def open_scopes(self, caps: tuple[int | None, ...], calls: tuple[int | None, ...]) -> None:
        for key, cap, most in zip(KEYS, caps, calls, strict=True):
            self.books.user.open(Scope(key, key, cap, most))
            self.plain[key] = PlainScope(cap, most)

    def held(self, key: str) -> list[int]:
        return [amount for amount, keys in self.open.values() if key in keys]

    def room(self, key: str) -> int | None:
        scope = self.plain[key]
        return None if scope.cap is None else scope.cap - scope.spent - sum(self.held(key))

    def fits(self, keys: set[str], least: int) -> bool:
        for key in keys:
            scope, room = self.plain[key], self.room(key)
            if room is not None and room < least:
                return False
            if scope.max_calls is not None and scope.calls + len(self.held(key)) >= scope.max_calls:
                return False
        return True

    @rule(keys=some_keys, least=amounts, more=st.none() | amounts)
    def hold(self, keys: list[str], least: int, more: int | None) -> None:
        most = None if more is None else least + more
        fits = self.fits(set(keys), least)
        limits = [room for key in keys if (room := self.room(key)) is not None]
        try:
            hold = self.books.user.hold(keys, least, most, draft(*keys))
        except BudgetExceededError:
            assert not fits
            return
        assert fits
        limits += [] if most is None else [most]
        assert hold.amount == min(limits, default=least)
        assert hold.id not in self.open
        self.open[hold.id] = (hold.amount, set(keys))

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if not self.open:
            return
        hold = data.draw(st.sampled_from(sorted(self.open)))
        amount, keys = self.open.pop(hold)
        cost = data.draw(st.none() | st.integers(0, amount))
        self.remember(charge(cost, *sorted(keys)))
        self.books.user.settle(hold, self.charged[-1])

    @rule(data=st.data(), made=st.booleans())
    def release(self, data: st.DataObject, made: bool) -> None:
        if not self.open:
            return
        hold = data.draw(st.sampled_from(sorted(self.open)))
        _, keys = self.open.pop(hold)
        if made:
            self.remember(charge(0, *sorted(keys)))
        self.books.user.release(hold, self.charged[-1] if made else None)

    def remember(self, made: Charge) -> None:
        self.charged.append(made)
        for key in made.scopes:
            self.plain[key].spent += made.nano_usd or 0
            self.plain[key].calls += 1

    @rule(keys=some_keys)
    def refuse(self, keys: list[str]) -> None:
        self.books.user.refuse(keys, Refusal(None, keys[0], "org/model", "no"))
        for key in set(keys):
            self.plain[key].refused += 1

    @rule(key=st.sampled_from(KEYS), cap=st.none() | amounts)
    def open_again(self, key: str, cap: int | None) -> None:
        self.books.user.open(Scope(key, "again", cap))

    @rule(hold=st.integers(0, 10**6))
    def settle_what_is_not_open(self, hold: int) -> None:
        if hold in self.open:
            return
        with pytest.raises(Exception, match=str(hold)):
            self.books.user.settle(hold, charge(1))

    @invariant()
    def no_cap_is_broken(self) -> None:
        for scope, totals in self.books.kept.scopes().values():
            assert scope.cap is None or totals.spent + totals.held <= scope.cap

    @invariant()
    def totals_are_those_of_the_plain_ledger(self) -> None:
        for key, scope in self.plain.items():
            expected = Totals(scope.spent, sum(self.held(key)), scope.calls, scope.refused)
            assert self.books.kept.total(key) == expected

    @invariant()
    def charges_are_those_of_the_plain_ledger(self) -> None:
        assert list(self.books.kept.charges()) == self.charged


class RemoteLedgerMachine(LedgerMachine):
    kind = "remote"


TestTheLedgerKeepsEveryCap = LedgerMachine.TestCase
TestTheLedgerKeepsEveryCap.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, database=None
)
TestTheLedgerBehindItsSocketKeepsEveryCap = RemoteLedgerMachine.TestCase
TestTheLedgerBehindItsSocketKeepsEveryCap.settings = settings(
    max_examples=10,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after every few instructions, not every few milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def spend(ledger: Ledger, seed: int, calls: int) -> tuple[int, int]:
    """Make calls as one thread of many: what they cost, and the most that was ever taken."""
    chance, cost, peak = random.Random(seed), 0, 0
    for _ in range(calls):
        keys = chance.sample(("a", "b", "c"), chance.randint(0, 3))
        least = chance.randint(0, 20)
        try:
            hold = ledger.hold(["all", *keys], least, least + 10, draft())
        except BudgetExceededError:
            continue
        totals = ledger.total("all")
        peak = max(peak, totals.spent + totals.held)
        if chance.random() < 0.2:
            ledger.release(hold.id)
            continue
        paid = chance.randint(0, hold.amount)
        ledger.settle(hold.id, charge(paid, "all", *keys))
        cost += paid
    return cost, peak


@pytest.mark.usefixtures("restless")
def test_many_threads_never_take_more_than_a_cap_together() -> None:
    ledger, cap = Ledger(), 5_000
    for key, most in (("all", cap), ("a", 2_000), ("b", None), ("c", 50)):
        ledger.open(Scope(key, key, most))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda seed: spend(ledger, seed, 500), range(8)))
    totals = ledger.total("all")
    assert max(peak for _, peak in results) <= cap
    assert totals.spent == sum(cost for cost, _ in results)
    assert totals.spent == sum(each.nano_usd or 0 for each in ledger.charges())
    assert totals.calls == len(ledger.charges())
    assert {t.held for _, t in ledger.scopes().values()} == {0}
    for key in ("a", "b", "c"):
        assert ledger.total(key).spent == sum(c.nano_usd or 0 for c in ledger.charges_in(key))


@pytest.mark.usefixtures("restless")
def test_many_threads_never_send_more_calls_than_were_allowed() -> None:
    ledger = Ledger()
    ledger.open(Scope("all", "all", max_calls=100))

    def call(_: int) -> bool:
        try:
            hold = ledger.hold(["all"], 0, 0, draft())
        except BudgetExceededError:
            return False
        ledger.settle(hold.id, charge(0, "all"))
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(call, range(800))) == 100


@pytest.mark.usefixtures("restless")
def test_a_hold_is_settled_by_one_of_many_threads() -> None:
    ledger = Ledger()
    ledger.open(Scope("all", "all"))
    hold = ledger.hold(["all"], 5, 5, draft())

    def settle(_: int) -> bool:
        try:
            ledger.settle(hold.id, charge(5, "all"))
        except KeyError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(settle, range(8))) == 1
    assert ledger.total("all") == Totals(spent=5, calls=1)


def test_the_holds_of_an_owner_that_died_are_booked_in_full() -> None:
    ledger, gone, alive = Ledger(), object(), object()
    ledger.open(Scope("all", "all", 100))
    settled = ledger.hold(["all"], 10, 10, draft("all"), gone)
    ledger.settle(settled.id, charge(1, "all"))
    for owner in (gone, gone, alive):
        ledger.hold(["all"], 10, 10, draft("all"), owner)
    assert ledger.abandon(gone) == 2
    assert ledger.total("all") == Totals(spent=21, held=10, calls=3)
    lost = draft("all")._replace(nano_usd=10, status="lost", estimated=True)
    assert ledger.charges() == (charge(1, "all"), lost, lost)


def test_an_owner_dies_once() -> None:
    ledger, gone = Ledger(), object()
    ledger.open(Scope("all", "all", 100))
    hold = ledger.hold(["all"], 10, 10, draft("all"), gone)
    assert (ledger.abandon(gone), ledger.abandon(gone)) == (1, 0)
    with pytest.raises(KeyError):
        ledger.settle(hold.id, charge(1, "all"))
    assert ledger.total("all") == Totals(spent=10, calls=1)
