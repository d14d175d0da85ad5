"""Every order in which the steps of a few calls can happen; nothing here is left to chance.

Each caller is a script. Wherever several callers could take a step, all of them are tried, and
a waiting call may also time out or be interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from bookkeeping import charge, draft

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.ledger import Caller, Hold, Scope, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger

CAP = 10
SCOPES = {"all": CAP, "one": 6, "two": 6}


class Ask(NamedTuple):
    """Ask for a call of this name; a script goes on when it has an answer."""

    name: str
    keys: tuple[str, ...]
    least: int
    most: int | None


class End(NamedTuple):
    """End a call, if it was let through: at this cost, or, at None, for nothing."""

    name: str
    cost: int | None


Script = tuple[Ask | End, ...]


def call(name: str, amount: int, cost: int | None, *keys: str, most: int | None = -1) -> Script:
    asked = Ask(name, ("all", *keys), amount, amount if most == -1 else most)
    return asked, End(name, cost)


def around(outer: Script, *inner: Script) -> Script:
    """A stream that is open while other calls are made."""
    return (outer[0], *(step for script in inner for step in script), outer[1])


STORIES: dict[str, tuple[Script, ...]] = {
    "three calls that fit one at a time": (
        call("a", 6, 1),
        call("b", 6, 2),
        call("c", 6, 2),
    ),
    "a big one between small ones": (
        call("a", 4, 4),
        call("b", 9, 5),
        call("c", 3, 1),
        call("d", 1, 0),
    ),
    "calls that cost all that they hold": (
        call("a", 5, 5),
        call("b", 5, 5),
        call("c", 5, 5),
    ),
    "calls of two tests under one session": (
        (*call("a", 4, 2, "one"), *call("b", 4, 2, "one")),
        call("c", 4, 2, "one"),
        call("d", 5, 5, "two"),
    ),
    "calls without a limit": (
        call("a", 1, 2, most=None),
        call("b", 1, 2, most=None),
        call("c", 3, None, most=None),
    ),
    "two streams that are open around other calls": (
        around(call("a", 4, 1), call("b", 4, 2)),
        around(call("c", 4, 1), call("d", 4, 2)),
    ),
    "a stream around a call that can't fit beside it": (
        around(call("a", 6, 1), call("b", 6, 1)),
        call("c", 6, 1),
    ),
    "a stream, and a big call that waits for it": (
        around(call("a", 6, 2), call("b", 2, 1), call("c", 1, 1)),
        call("d", 8, 3),
    ),
    "calls that fail": (
        (*call("a", 9, None), *call("b", 9, None)),
        call("c", 9, None),
        call("d", 2, 1),
    ),
}


@dataclass
class World:
    """A ledger and callers in the middle of their scripts."""

    scripts: tuple[Script, ...]
    ledger: Ledger = field(default_factory=Ledger)
    at: list[int] = field(default_factory=list)
    waiting: dict[int, WaitingHold] = field(default_factory=dict)
    held: dict[str, Hold] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at = [0] * len(self.scripts)
        for key, cap in SCOPES.items():
            self.ledger.open(Scope(key, key, cap))

    def choices(self) -> list[tuple[int, str]]:
        """Who could take which step now."""
        able = []
        for caller, script in enumerate(self.scripts):
            place = self.waiting.get(caller)
            if place is not None:
                able += [(caller, "go on")] if place.answer.done() else []
                able += [(caller, "give up"), (caller, "leave")]
            elif self.at[caller] < len(script):
                able.append((caller, "step"))
        return able

    def take(self, caller: int, what: str) -> None:
        step = self.scripts[caller][self.at[caller]]
        if isinstance(step, End):
            self.end(step)
            self.at[caller] += 1
        elif what == "step":
            self.ask(caller, step)
        else:
            self.stop_waiting(caller, step, what)

    def ask(self, caller: int, step: Ask) -> None:
        try:
            answer = self.ledger.hold_or_queue(
                step.keys, step.least, step.most, draft(), Caller(1, caller)
            )
        except BudgetExceededError:
            answer = None
        if isinstance(answer, WaitingHold):
            self.waiting[caller] = answer
        else:
            self.answered(caller, step, answer)

    def stop_waiting(self, caller: int, step: Ask, what: str) -> None:
        place = self.waiting.pop(caller)
        if what == "leave":
            self.ledger.leave(place.id)
            self.answered(caller, step, None, "left")
            return
        try:
            hold = self.ledger.give_up(place.id, 1) if what == "give up" else None
            self.answered(caller, step, hold or place.answer.result(0))
        except BudgetExceededError:
            self.answered(caller, step, None)

    def answered(self, caller: int, step: Ask, hold: Hold | None, why: str = "refused") -> None:
        self.at[caller] += 1
        if hold is None:
            self.ended[step.name] = why
            return
        assert step.least <= hold.amount
        assert hold.id not in {other.id for other in self.held.values()}
        self.held[step.name] = hold

    def end(self, step: End) -> None:
        if step.name not in self.held:
            return
        hold = self.held.pop(step.name)
        if step.cost is None:
            self.ledger.release(hold.id)
        else:
            self.ledger.settle(hold.id, charge(min(step.cost, hold.amount)))
        with pytest.raises(KeyError):
            self.ledger.release(hold.id)
        assert step.name not in self.ended
        self.ended[step.name] = "done"

    def check(self) -> None:
        """What is true at any time."""
        for scope, totals in self.ledger.scopes().values():
            assert totals.held >= 0
            assert totals.held + totals.spent <= (scope.cap or 0)
        granted = sum(p.answer.result().amount for p in self.waiting.values() if _granted(p))
        ours = sum(hold.amount for hold in self.held.values())
        assert self.ledger.total("all").held == ours + granted
        unanswered = [place for place in self.waiting.values() if not place.answer.done()]
        assert self.ledger.waiting() == len(unanswered)
        if unanswered:  # one of them can end the wait: none waits in vain
            assert [caller for caller, what in self.choices() if what in ("step", "go on")]

    def check_end(self) -> None:
        """What is true when all is over: each call has ended once, and nothing is left of it."""
        asked = [step.name for script in self.scripts for step in script if isinstance(step, Ask)]
        assert sorted(self.ended) == sorted(asked)
        assert {totals.held for _, totals in self.ledger.scopes().values()} == {0}
        assert sum(c.nano_usd or 0 for c in self.ledger.charges()) == self.ledger.total("all").spent


def _granted(place: WaitingHold) -> bool:
    return place.answer.done() and place.answer.exception() is None


def endings(scripts: tuple[Script, ...], *, patient: bool) -> Iterator[World]:
    """The world after each possible order of all steps, checked at every step."""
    paths: list[tuple[tuple[int, str], ...]] = [()]
    while paths:
        path = paths.pop()
        world = World(scripts)
        for choice in path:
            world.take(*choice)
        while True:
            world.check()
            choices = [c for c in world.choices() if not patient or c[1] in ("step", "go on")]
            if not choices:
                break
            paths += [(*path, other) for other in choices[1:]]
            path = (*path, choices[0])
            world.take(*choices[0])
        world.check_end()
        yield world


@pytest.mark.parametrize("story", STORIES)
def test_in_every_order_the_caps_hold_and_each_call_ends_once(story: str) -> None:
    assert sum(1 for _ in endings(STORIES[story], patient=True)) > 5


@pytest.mark.parametrize(
    "story",
    [
        "three calls that fit one at a time",
        "two streams that are open around other calls",
        "a stream, and a big call that waits for it",
    ],
)
def test_in_every_order_the_caps_hold_when_any_wait_may_end_early(story: str) -> None:
    worlds = list(endings(STORIES[story], patient=False))
    assert {"done", "left", "refused"} <= {end for w in worlds for end in w.ended.values()}


@pytest.mark.parametrize("story", ["three calls that fit one at a time", "calls that fail"])
def test_in_any_order_no_call_is_refused_that_fits_once_others_are_done(story: str) -> None:
    for world in endings(STORIES[story], patient=True):
        assert set(world.ended.values()) == {"done"}


def test_of_calls_that_wait_for_one_another_no_more_than_one_is_refused() -> None:
    ends = [
        sorted(world.ended.values())
        for world in endings(STORIES["two streams that are open around other calls"], patient=True)
    ]
    assert ["done", "done", "done", "refused"] in ends
    assert all(end.count("refused") <= 1 for end in ends)
