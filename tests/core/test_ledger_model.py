"""The ledger under anything that can be done to it, against the plainest ledger there is."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from bookkeeping import PATIENCE_S, Books, books, charge, draft
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.ledger import Caller, Charge, Hold, Refusal, Scope, Totals, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger

KEYS = ("session", "class", "test", "block")
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)
more_or_less = st.sampled_from((0, 0, 5, 20, None))
amounts = st.integers(0, 60)


# Mostly threads, and one thread with tasks.
CALLERS = (
    *(Caller(1, thread) for thread in range(1, 9)),
    *(Caller(1, 9, task, blocking=False) for task in (1, 2)),
    Caller(1, 9, 2),
)


class PlainCall(NamedTuple):
    """A call that is held or waits, as a reader would keep it on paper."""

    keys: set[str]
    least: int
    most: int | None
    caller: Caller | None


class PlainLedger:
    """The rules once more, in lists and sums, with nothing remembered that can be worked out."""

    def __init__(self) -> None:
        self.caps: dict[str, int | None] = {}
        self.max_calls: dict[str, int | None] = {}
        self.charged: list[Charge] = []
        self.booked: list[tuple[str, int]] = []
        self.refused: list[str] = []
        self.held: dict[int, tuple[PlainCall, int]] = {}
        self.line: dict[int, PlainCall] = {}

    def spent(self, key: str) -> int:
        calls = sum(c.nano_usd or 0 for c in self.charged if key in c.scopes)
        return calls + sum(amount for booked, amount in self.booked if booked == key)

    def calls(self, key: str) -> int:
        return sum(key in c.scopes for c in self.charged)

    def amounts(self, key: str) -> list[int]:
        return [amount for call, amount in self.held.values() if key in call.keys]

    def totals(self, key: str) -> Totals:
        held, refused = sum(self.amounts(key)), self.refused.count(key)
        return Totals(self.spent(key), held, self.calls(key), refused)

    def fits(self, call: PlainCall, taken: dict[str, list[int]]) -> bool:
        """Whether a call fits beside what is spent and these amounts."""
        return all(
            (cap := self.caps[key]) is None
            or not call.least
            or self.spent(key) + sum(taken[key]) + call.least <= cap
            for key in call.keys
        )

    def has_calls(self, call: PlainCall, others: list[PlainCall]) -> bool:
        """Whether each scope allows one more call than those in flight and these."""
        return all(
            (most := self.max_calls[key]) is None
            or self.calls(key) + len(self.amounts(key)) + sum(key in o.keys for o in others) < most
            for key in call.keys
        )

    def possible(self, call: PlainCall) -> bool:
        return self.fits(call, {key: [] for key in KEYS}) and self.has_calls(call, [])

    def amount(self, call: PlainCall, ahead: list[PlainCall]) -> int | None:
        """What a call gets behind these others; None if it has to wait."""
        taken = {
            key: [*self.amounts(key), *(o.least for o in ahead if key in o.keys)] for key in KEYS
        }
        if not (self.fits(call, taken) and self.has_calls(call, ahead)):
            return None
        rooms = [
            cap - self.spent(k) - sum(taken[k])
            for k in call.keys
            if (cap := self.caps[k]) is not None
        ]
        limits = [*rooms, *([] if call.most is None else [call.most])]
        return max(min(limits), call.least) if limits else call.least

    def stands_still(self, caller: Caller | None, waiting: list[PlainCall]) -> bool:
        return caller is not None and any(
            other.caller is not None
            and other.caller.thread == caller.thread
            and (other.caller.blocking or other.caller.task == caller.task)
            for other in waiting
        )

    def holds_something(self, call: PlainCall) -> bool:
        return any(self.stands_still(held.caller, [call]) for held, _ in self.held.values())

    def circle(self) -> list[int]:
        """Those in line who wait for each other."""
        stuck = dict(self.line)
        while True:
            kept = [
                h for h in self.held.values() if self.stands_still(h[0].caller, [*stuck.values()])
            ]
            taken = {key: [amount for call, amount in kept if key in call.keys] for key in KEYS}
            helped = [place for place, call in stuck.items() if self.fits(call, taken)]
            if not helped:
                return list(stuck)
            for place in helped:
                del stuck[place]

    def answer(self) -> tuple[int, int | None] | None:
        """The next in line who waits no longer: with an amount, or with a refusal."""
        ahead: list[PlainCall] = []
        for place, call in self.line.items():
            if not self.possible(call):
                return place, None
            amount = self.amount(call, [] if self.holds_something(call) else ahead)
            if amount is not None:
                return place, amount
            ahead.append(call)
        circle = [place for place in self.circle() if self.holds_something(self.line[place])]
        return (circle[-1], None) if circle else None

    def answers(self) -> dict[int, int | None]:
        """All who wait no longer, now that something has changed."""
        answered: dict[int, int | None] = {}
        while (answer := self.answer()) is not None:
            place, amount = answer
            call = self.line.pop(place)
            answered[place] = amount
            if amount is not None:
                self.held[place] = call, amount
        return answered


class LedgerMachine(RuleBasedStateMachine):
    """Holds never settle above what was held here, so every cap must hold at any time."""

    kind = "local"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.books: Books = self.stack.enter_context(books(self.kind))
        self.plain = PlainLedger()
        self.places: dict[int, WaitingHold] = {}

    def teardown(self) -> None:
        self.stack.close()

    @initialize(
        caps=st.tuples(*[st.sampled_from((60, 80, 100, None)) | st.integers(0, 100)] * 4),
        calls=st.tuples(*[st.sampled_from((None, None, None, None, 9, 6, 3, 0))] * 4),
    )
    def open_scopes(self, caps: tuple[int | None, ...], calls: tuple[int | None, ...]) -> None:
        for key, cap, most in zip(KEYS, caps, calls, strict=True):
            self.books.user.open(Scope(key, key, cap, most))
            self.plain.caps[key], self.plain.max_calls[key] = cap, most

    @rule(keys=some_keys, least=amounts, more=more_or_less)
    def hold(self, keys: list[str], least: int, more: int | None) -> None:
        call = PlainCall(set(keys), least, None if more is None else least + more, None)
        amount = self.plain.amount(call, list(self.plain.line.values()))
        try:
            hold = self.books.user.hold(keys, least, call.most, draft(*keys))
        except BudgetExceededError:
            assert amount is None
            return
        assert hold.amount == amount
        assert hold.id not in self.plain.held
        self.plain.held[hold.id] = call, hold.amount

    @rule(keys=some_keys, least=amounts, more=more_or_less, who=st.sampled_from(CALLERS))
    def ask(self, keys: list[str], least: int, more: int | None, who: Caller) -> None:
        if self.plain.stands_still(who, list(self.plain.line.values())):
            return
        call = PlainCall(set(keys), least, None if more is None else least + more, who)
        newest = 10**9
        self.plain.line[newest] = call
        answers = self.plain.answers()
        waits, amount = newest not in answers, answers.pop(newest, None)
        try:
            answer = self.books.user.hold_or_queue(keys, least, call.most, draft(*keys), who)
        except BudgetExceededError:
            assert (waits, amount) == (False, None)
        else:
            assert answer.id not in self.plain.held
            if isinstance(answer, WaitingHold):
                assert waits
                self.places[answer.id] = answer
                self.plain.line[answer.id] = self.plain.line.pop(newest)
            else:
                assert answer.amount == amount
                self.plain.held[answer.id] = self.plain.held.pop(newest)
        self.hear(answers)  # who takes the last call leaves none for those in line

    @rule(
        keys=some_keys,
        leasts=st.lists(st.integers(10, 60), min_size=3, max_size=5),
        callers=st.permutations(CALLERS),
    )
    def crowd(self, keys: list[str], leasts: list[int], callers: list[Caller]) -> None:
        """Several at once, of which some have to wait."""
        for least, who in zip(leasts, callers, strict=False):
            self.ask([*keys, "session"], least, 0, who)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if not self.plain.held:
            return
        hold = data.draw(st.sampled_from(sorted(self.plain.held)))
        call, amount = self.plain.held.pop(hold)
        # Mostly little, so that there is something left to wait for.
        cost = data.draw(st.sampled_from((0, amount // 20, amount // 10, amount, None)))
        made = charge(cost, *sorted(call.keys))
        self.plain.charged.append(made)
        self.books.user.settle(hold, made)
        self.hear_answers()

    @rule(data=st.data(), made=st.booleans())
    def release(self, data: st.DataObject, made: bool) -> None:
        if not self.plain.held:
            return
        hold = data.draw(st.sampled_from(sorted(self.plain.held)))
        call, _ = self.plain.held.pop(hold)
        given_back = charge(0, *sorted(call.keys)) if made else None
        self.plain.charged += [given_back] if given_back else []
        self.books.user.release(hold, given_back)
        self.hear_answers()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A waiting call is interrupted, or one that was about to go on."""
        if not self.plain.line:
            return
        place = data.draw(st.sampled_from(sorted(self.plain.line)))
        del self.plain.line[place], self.places[place]
        self.books.user.leave(place)
        self.hear_answers()

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if not self.plain.line:
            return
        place = data.draw(st.sampled_from(sorted(self.plain.line)))
        del self.plain.line[place], self.places[place]
        with pytest.raises(BudgetExceededError):
            self.books.user.give_up(place, 1)
        self.hear_answers()

    @rule(key=st.sampled_from(KEYS), minutes=st.integers(0, 20))
    def revoke(self, key: str, minutes: int) -> None:
        """Something else spends what is neither spent nor held: the uptime of an endpoint."""
        cap = self.plain.caps[key]
        room = None if cap is None else cap - self.plain.spent(key) - sum(self.plain.amounts(key))
        if room is not None and room < minutes:
            with pytest.raises(BudgetExceededError):
                self.books.kept.book(key, minutes, what="a minute")
            return
        self.books.kept.book(key, minutes, what="a minute")
        self.plain.booked.append((key, minutes))
        self.hear_answers()

    def hear_answers(self) -> None:
        self.hear(self.plain.answers())

    def hear(self, answers: dict[int, int | None]) -> None:
        """All that the plain ledger answers have the same answer, and no other call has one."""
        for place, amount in answers.items():
            answer = self.places.pop(place).answer
            if amount is None:
                assert isinstance(answer.exception(PATIENCE_S), BudgetExceededError)
            else:
                assert answer.result(PATIENCE_S) == Hold(place, amount)
        assert not any(place.answer.done() for place in self.places.values())

    @rule(keys=some_keys)
    def refuse(self, keys: list[str]) -> None:
        self.books.user.refuse(keys, Refusal(None, keys[0], "org/model", "no"))
        self.plain.refused += set(keys)

    @rule(key=st.sampled_from(KEYS), cap=st.none() | amounts)
    def open_again(self, key: str, cap: int | None) -> None:
        self.books.user.open(Scope(key, "again", cap))

    @rule(hold=st.integers(0, 10**6))
    def settle_what_is_not_open(self, hold: int) -> None:
        if hold in self.plain.held:
            return
        with pytest.raises(Exception, match=str(hold)):
            self.books.user.settle(hold, charge(1))

    @invariant()
    def no_cap_is_broken(self) -> None:
        for scope, totals in self.books.kept.scopes().values():
            assert scope.cap is None or totals.spent + totals.held <= scope.cap

    @invariant()
    def totals_are_those_of_the_plain_ledger(self) -> None:
        for key in self.plain.caps:
            assert self.books.kept.total(key) == self.plain.totals(key)
        assert self.books.kept.waiting() == len(self.plain.line)

    @invariant()
    def charges_are_those_of_the_plain_ledger(self) -> None:
        assert list(self.books.kept.charges()) == self.plain.charged


class RemoteLedgerMachine(LedgerMachine):
    kind = "remote"


TestTheLedgerKeepsEveryCap = LedgerMachine.TestCase
TestTheLedgerKeepsEveryCap.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, database=None
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
