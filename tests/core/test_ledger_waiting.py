"""Who waits for calls in flight, who is served first, and who is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from bookkeeping import PATIENCE_S, Books, books, charge, draft

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.ledger import Caller, Hold, LedgerLike, Scope, Totals, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger

CAP = 100
A, B, C = Caller(1, 1), Caller(1, 2), Caller(2, 1)


@pytest.fixture(params=["local", "remote"])
def both(request: pytest.FixtureRequest) -> Iterator[Books]:
    with books(request.param) as opened:
        yield opened


@pytest.fixture
def ledger(both: Books) -> LedgerLike:
    """A ledger with a session, two tests in it, and a block that allows two calls."""
    both.user.open(Scope("all", "the session", CAP))
    both.user.open(Scope("one", "test_one", 50))
    both.user.open(Scope("two", "test_two", 50))
    both.user.open(Scope("few", "a block", max_calls=2))
    return both.user


def ask(
    ledger: LedgerLike, amount: int, *keys: str, caller: Caller = A, most: int | None = -1
) -> Hold | WaitingHold:
    return ledger.hold_or_queue(
        keys or ("all",), amount, amount if most == -1 else most, draft(), caller
    )


def take(ledger: LedgerLike, amount: int, *keys: str, caller: Caller = A) -> Hold:
    """A call that does not have to wait."""
    hold = ask(ledger, amount, *keys, caller=caller)
    assert isinstance(hold, Hold)
    return hold


def stand(
    ledger: LedgerLike, amount: int, *keys: str, caller: Caller = B, most: int | None = -1
) -> WaitingHold:
    """A call that has to wait."""
    place = ask(ledger, amount, *keys, caller=caller, most=most)
    assert isinstance(place, WaitingHold)
    return place


def granted(place: WaitingHold) -> Hold:
    return place.answer.result(PATIENCE_S)


def refusal(place: WaitingHold) -> str:
    error = place.answer.exception(PATIENCE_S)
    assert isinstance(error, BudgetExceededError)
    return str(error)


def settle(ledger: LedgerLike, hold: Hold, nano_usd: int = 0) -> None:
    ledger.settle(hold.id, charge(nano_usd))


# --- who waits


def test_a_call_that_only_calls_in_flight_keep_out_waits_for_them(
    ledger: LedgerLike, both: Books
) -> None:
    first = take(ledger, 60)
    second = stand(ledger, 60)
    assert not second.answer.done()
    assert both.kept.total("all") == Totals(held=60)
    settle(ledger, first, 7)
    assert granted(second) == Hold(second.id, 60)
    assert both.kept.total("all") == Totals(spent=7, held=60, calls=1)


def test_a_released_hold_lets_others_go_on_as_well(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    second = stand(ledger, 60)
    ledger.release(first.id)
    assert granted(second).amount == 60


def test_a_call_that_fits_exactly_does_not_wait(ledger: LedgerLike) -> None:
    take(ledger, 60)
    assert take(ledger, 40, caller=B).amount == 40


def test_what_is_spent_refuses_at_once(ledger: LedgerLike) -> None:
    settle(ledger, take(ledger, 60), 41)
    take(ledger, 20)
    with pytest.raises(
        BudgetExceededError, match=r"org/model may .* in flight.*smaller max_tokens"
    ):
        ask(ledger, 60, caller=B)
    assert isinstance(ask(ledger, 59, caller=B), WaitingHold)


def test_a_call_that_no_cap_could_ever_hold_is_refused_at_once(ledger: LedgerLike) -> None:
    take(ledger, 60)
    with pytest.raises(BudgetExceededError):
        ask(ledger, CAP + 1, caller=B)


def test_one_scope_that_spent_too_much_refuses_though_another_one_would_wait(
    ledger: LedgerLike, both: Books
) -> None:
    take(ledger, 80)
    settle(ledger, take(ledger, 10, "one"), 10)
    with pytest.raises(BudgetExceededError, match="test_one"):
        ask(ledger, 41, "all", "one", caller=B)
    assert both.kept.waiting() == 0


def test_a_call_without_a_limit_waits_only_for_the_least_that_it_needs(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    hold = ask(ledger, 10, caller=B, most=None)
    assert isinstance(hold, Hold)
    assert hold.amount == 40
    third = stand(ledger, 5, caller=C, most=None)
    settle(ledger, first, 20)
    assert granted(third).amount == 40


def test_a_free_call_never_waits_for_money(ledger: LedgerLike) -> None:
    take(ledger, CAP)
    stand(ledger, 1)
    assert take(ledger, 0, caller=C).amount == 0


def test_a_call_in_flight_is_as_good_as_sent_so_no_call_waits_for_its_number(
    ledger: LedgerLike,
) -> None:
    take(ledger, 0, "few")
    take(ledger, 0, "few")
    with pytest.raises(BudgetExceededError, match="would be call 3, but max_calls is 2"):
        ask(ledger, 0, "few", caller=B)


def test_a_hold_that_is_wanted_at_once_or_never_does_not_wait(
    ledger: LedgerLike, both: Books
) -> None:
    take(ledger, 60)
    with pytest.raises(BudgetExceededError, match=r"held for calls in flight\)\. The call was not"):
        ledger.hold(["all"], 60, 60, draft())
    assert both.kept.waiting() == 0


# --- who is served first


def test_who_comes_first_is_served_first(ledger: LedgerLike) -> None:
    first = take(ledger, CAP)
    places = [stand(ledger, 60, caller=Caller(1, n)) for n in (2, 3, 4)]
    for place in places:
        settle(ledger, first)
        first = granted(place)
        assert not any(later.answer.done() for later in places[places.index(place) + 1 :])


def test_a_later_small_call_does_not_starve_an_earlier_big_one(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    big = stand(ledger, 60)
    small = stand(ledger, 10, caller=C)
    assert not small.answer.done()
    settle(ledger, first)
    assert (granted(big).amount, granted(small).amount) == (60, 10)


def test_a_call_that_leaves_enough_for_those_ahead_overtakes_them(ledger: LedgerLike) -> None:
    take(ledger, 50, "all", "one")
    stand(ledger, 20, "all", "one")
    assert take(ledger, 30, "all", "two", caller=C).amount == 30
    with pytest.raises(BudgetExceededError):  # the 20 that are left belong to who waits
        ledger.hold(["all", "two"], 1, 1, draft())


def test_no_call_waits_behind_others_in_scopes_of_which_it_has_no_part(ledger: LedgerLike) -> None:
    take(ledger, 50, "one")
    stand(ledger, 50, "one")
    assert take(ledger, 50, "two", caller=C).amount == 50


def test_all_that_fit_go_on_together(ledger: LedgerLike) -> None:
    first = take(ledger, CAP)
    places = [stand(ledger, 30, caller=Caller(1, n)) for n in (2, 3, 4, 5)]
    settle(ledger, first)
    assert [granted(place).amount for place in places[:3]] == [30, 30, 30]
    assert not places[3].answer.done()


def test_a_call_without_a_limit_leaves_alone_what_those_ahead_need(ledger: LedgerLike) -> None:
    take(ledger, 50, "all", "one")
    stand(ledger, 20, "all", "one")
    hold = ask(ledger, 1, "all", caller=C, most=None)
    assert isinstance(hold, Hold)
    assert hold.amount == 30


def test_the_last_call_that_may_be_sent_belongs_to_who_waits_for_money(ledger: LedgerLike) -> None:
    money = take(ledger, CAP)
    take(ledger, 0, "few")
    ahead = stand(ledger, 10, "all", "few")
    behind = stand(ledger, 0, "few", caller=C)
    settle(ledger, money)
    assert granted(ahead).amount == 10
    assert "would be call 3, but max_calls is 2" in refusal(behind)


def test_the_last_call_comes_back_when_who_waited_for_it_leaves(ledger: LedgerLike) -> None:
    take(ledger, CAP)
    take(ledger, 0, "few")
    ahead = stand(ledger, 10, "all", "few")
    behind = stand(ledger, 0, "few", caller=C)
    ledger.leave(ahead.id)
    assert granted(behind).amount == 0


def test_calls_that_those_ahead_leave_over_can_be_made(ledger: LedgerLike) -> None:
    ledger.open(Scope("four", "a block", max_calls=4))
    take(ledger, CAP)
    take(ledger, 0, "four")
    stand(ledger, 10, "all", "four")
    stand(ledger, 10, "all", "four", caller=Caller(3, 1))
    take(ledger, 0, "four", caller=Caller(3, 2))
    stand(ledger, 0, "four", caller=Caller(3, 3))


def test_one_who_is_not_to_wait_for_the_last_call_is_told_so(ledger: LedgerLike) -> None:
    ledger.open(Scope("idle", "a block of its own", max_calls=1))
    ledger.open(Scope("many", "a wide block", max_calls=9))
    take(ledger, CAP)
    take(ledger, 0, "few")
    stand(ledger, 10, "all", "many", "few")
    with pytest.raises(BudgetExceededError, match=r"^a block: org/model would .*max_calls is 2"):
        ledger.hold(["idle", "many", "few"], 0, 0, draft())


def test_a_settled_call_is_none_that_may_still_be_sent(ledger: LedgerLike) -> None:
    settle(ledger, take(ledger, 0, "all", "few"))
    take(ledger, 60)
    stand(ledger, 60, "all", "few")
    with pytest.raises(BudgetExceededError, match="max_calls is 2"):
        ledger.hold(("all", "few"), 0, 0, draft())


def test_what_those_ahead_need_adds_up(ledger: LedgerLike) -> None:
    take(ledger, 40, "all", "one")
    stand(ledger, 20, "all", "one")
    stand(ledger, 20, "all", "one", caller=C)
    # 60 of the session are free, and 40 of these belong to the two ahead.
    stand(ledger, 40, caller=Caller(3, 1))


def test_who_is_not_to_wait_is_told_which_scope_is_in_the_way(ledger: LedgerLike) -> None:
    take(ledger, 60)
    with pytest.raises(BudgetExceededError, match=r"^the session: "):
        ledger.hold(["one", "all"], 50, 50, draft())


# --- who waits in vain


def test_who_holds_what_is_in_its_own_way_is_refused_at_once(
    ledger: LedgerLike, both: Books
) -> None:
    take(ledger, 60)
    with pytest.raises(BudgetExceededError, match="Waiting can't help") as caught:
        ask(ledger, 60)
    assert "may cost up to $0.00000006, but only $0.00000004" in str(caught.value)
    assert both.kept.waiting() == 0


def test_who_holds_something_waits_where_others_alone_are_in_the_way(ledger: LedgerLike) -> None:
    take(ledger, 10)
    other = take(ledger, 60, caller=B)
    place = stand(ledger, 60, caller=A)
    settle(ledger, other)
    assert granted(place).amount == 60


def test_two_who_would_wait_for_each_other_do_not(ledger: LedgerLike) -> None:
    take(ledger, 50, caller=A)
    take(ledger, 50, caller=B)
    first = stand(ledger, 10, caller=A)
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        ask(ledger, 10, caller=B)
    assert not first.answer.done()


def test_a_circle_of_three_is_broken_by_the_last(ledger: LedgerLike) -> None:
    for caller in (A, B, C):
        take(ledger, 33, caller=caller)
    stand(ledger, 34, caller=A)
    stand(ledger, 50, caller=B)
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        ask(ledger, 2, caller=C)


def test_a_bystander_is_not_refused_for_a_circle_of_others(ledger: LedgerLike) -> None:
    take(ledger, 50, caller=A)
    held = take(ledger, 50, caller=B)
    first = stand(ledger, 10, caller=A)
    bystander = stand(ledger, 80, caller=C)
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        ask(ledger, 10, caller=B)
    assert not bystander.answer.done()
    settle(ledger, held)
    assert granted(first).amount == 10


def test_a_circle_is_found_though_a_call_outside_of_it_will_be_served(
    ledger: LedgerLike,
) -> None:
    take(ledger, 40, caller=A)
    take(ledger, 40, caller=B)
    take(ledger, 20, caller=Caller(5, 1))
    outside = stand(ledger, 20, caller=C)
    stand(ledger, 30, caller=A)
    with pytest.raises(BudgetExceededError) as caught:
        ask(ledger, 30, caller=B)
    assert str(caught.value) == (
        "the session: org/model may cost up to $0.00000003, but only $0.00 of $0.0000001 is left "
        "($0.00 spent, $0.0000001 held for calls in flight). Waiting can't help: the calls in "
        "flight belong to this caller, or to callers that wait for it. The call was not sent. Read "
        "their streams to the end or close them, or raise the cap."
    )
    assert not outside.answer.done()


def test_the_smallest_amount_can_be_waited_for_in_vain(ledger: LedgerLike) -> None:
    take(ledger, CAP)
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        ask(ledger, 1)


def test_a_free_call_in_an_overspent_scope_is_in_no_circle(ledger: LedgerLike) -> None:
    settle(ledger, take(ledger, 50, "two"), 60)
    take(ledger, 0, "few")
    take(ledger, 90, caller=A)
    take(ledger, 10, caller=C)
    stand(ledger, 10, "all", "few")
    free = stand(ledger, 0, "two", "few", caller=Caller(5, 1))
    stand(ledger, 60, caller=C)  # who holds something, so that circles are looked for
    assert not free.answer.done()
    with pytest.raises(BudgetExceededError, match="max_calls is 2"):
        ledger.give_up(free.id, 1)


def test_a_circle_that_others_can_break_is_none(ledger: LedgerLike) -> None:
    take(ledger, 20, caller=A)
    take(ledger, 20, caller=B)
    free = take(ledger, 60, caller=C)
    places = stand(ledger, 60, caller=A), stand(ledger, 40, caller=B)
    settle(ledger, free)
    settle(ledger, granted(places[0]))
    assert granted(places[1]).amount == 40


def test_something_spent_may_close_a_circle(ledger: LedgerLike) -> None:
    take(ledger, 30, caller=A)
    take(ledger, 30, caller=B)
    free = take(ledger, 40, caller=C)
    places = stand(ledger, 40, caller=A), stand(ledger, 40, caller=B)
    settle(ledger, free, 20)
    assert "Waiting can't help" in refusal(places[1])
    assert not places[0].answer.done()


def test_a_call_that_holds_something_waits_behind_none_that_may_wait_for_it(
    ledger: LedgerLike,
) -> None:
    take(ledger, 60, caller=A)
    big = stand(ledger, 60, caller=B)
    assert take(ledger, 30, caller=A).amount == 30
    assert not big.answer.done()


def test_a_task_stands_still_alone(ledger: LedgerLike) -> None:
    one, two = (Caller(1, 1, task, blocking=False) for task in (1, 2))
    held = take(ledger, 60, caller=one)
    place = stand(ledger, 60, caller=two)
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        ask(ledger, 70, caller=one)
    settle(ledger, held)
    assert granted(place).amount == 60


def test_a_thread_stands_still_with_all_its_tasks(ledger: LedgerLike) -> None:
    take(ledger, 60, caller=Caller(1, 1, 1, blocking=False))
    with pytest.raises(BudgetExceededError, match="Waiting can't help"):
        ask(ledger, 60, caller=Caller(1, 1, 2))


def test_threads_of_two_processes_are_not_one(ledger: LedgerLike) -> None:
    take(ledger, 60, caller=Caller(1, 7))
    stand(ledger, 60, caller=Caller(2, 7))


# --- how a wait ends


def test_a_wait_ends_with_a_refusal_when_too_much_was_spent_meanwhile(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    place = stand(ledger, 60)
    settle(ledger, first, 41)
    assert "only $0.000000059 of $0.0000001 is left" in refusal(place)


def test_uptime_that_is_booked_may_end_a_wait(ledger: LedgerLike, both: Books) -> None:
    take(ledger, 60)
    place = stand(ledger, 60)
    both.kept.book("all", 41)
    assert "may cost up to $0.00000006" in refusal(place)


def test_patience_ends_with_a_refusal_that_says_so_with_every_figure(
    ledger: LedgerLike, both: Books
) -> None:
    settle(ledger, take(ledger, 5), 5)
    take(ledger, 60)
    place = stand(ledger, 60)
    with pytest.raises(BudgetExceededError) as caught:
        ledger.give_up(place.id, 1.5)
    assert str(caught.value) == (
        "the session: org/model may cost up to $0.00000006, but only $0.000000035 of $0.0000001 "
        "is left ($0.000000005 spent, $0.00000006 held for calls in flight). Calls in flight did "
        "not end within 1.5 s (hf_hold_wait). The call was not sent. Raise the cap or "
        "hf_hold_wait, or give each call a smaller max_tokens."
    )
    assert refusal(place) == str(caught.value)
    assert both.kept.waiting() == 0


def test_who_gives_up_behind_others_is_told_what_they_wait_for(ledger: LedgerLike) -> None:
    take(ledger, 60)
    stand(ledger, 40 + 1, caller=B)
    place = stand(ledger, 30, caller=C)
    with pytest.raises(BudgetExceededError, match=r"held for calls in flight") as caught:
        ledger.give_up(place.id, 1)
    assert caught.value.figures.held == 101


def test_a_hold_that_comes_at_the_last_moment_is_taken(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    place = stand(ledger, 60)
    settle(ledger, first)
    assert ledger.give_up(place.id, 1) == Hold(place.id, 60)


def test_who_was_refused_already_has_nothing_to_give_up(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    place = stand(ledger, 60)
    settle(ledger, first, 60)
    assert ledger.give_up(place.id, 1) is None
    assert "$0.00000004 of" in refusal(place)


def test_the_calls_behind_go_on_when_one_gives_up(ledger: LedgerLike) -> None:
    take(ledger, 60)
    big = stand(ledger, 60)
    small = stand(ledger, 40, caller=C)
    with pytest.raises(BudgetExceededError):
        ledger.give_up(big.id, 1)
    assert granted(small).amount == 40


def test_who_leaves_is_forgotten_and_those_behind_go_on(ledger: LedgerLike, both: Books) -> None:
    take(ledger, 60)
    big = stand(ledger, 60)
    small = stand(ledger, 40, caller=C)
    ledger.leave(big.id)
    assert refusal(big) == "the caller stopped waiting"
    assert granted(small).amount == 40
    assert both.kept.waiting() == 0
    assert both.kept.total("all") == Totals(held=100)


def test_who_leaves_gives_back_what_was_granted_meanwhile(ledger: LedgerLike, both: Books) -> None:
    first = take(ledger, 60)
    place = stand(ledger, 60)
    settle(ledger, first, 1)
    ledger.leave(place.id)
    assert both.kept.total("all") == Totals(spent=1, calls=1)


def test_what_is_given_back_by_one_who_leaves_goes_to_the_next(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    left, next_one = stand(ledger, 60), stand(ledger, 60, caller=C)
    settle(ledger, first)
    ledger.leave(left.id)
    assert granted(next_one).amount == 60


def test_one_can_leave_twice(ledger: LedgerLike, both: Books) -> None:
    take(ledger, 60)
    place = stand(ledger, 60)
    ledger.leave(place.id)
    ledger.leave(place.id)
    assert both.kept.total("all") == Totals(held=60)


# --- uptime under the same cap


class Minutes:
    """An endpoint whose minutes are booked before any call is served."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.due, self.rearmed = ledger, 0, 0

    def accrue(self) -> None:
        due, self.due = self.due, 0
        self.ledger.book("all", due)

    def rearm(self) -> None:
        self.rearmed += 1


def test_minutes_that_have_started_are_booked_before_a_call_is_served() -> None:
    ledger = Ledger()
    ledger.open(Scope("all", "the session", CAP))
    minutes = Minutes(ledger)
    ledger.share_with(minutes)
    first = take(ledger, 60)
    place = stand(ledger, 60)
    minutes.due, rearmed = 41, minutes.rearmed
    settle(ledger, first)
    assert "may cost up to" in refusal(place)
    assert minutes.rearmed > rearmed


def test_an_answer_can_not_be_cancelled_by_who_waits_for_it(ledger: LedgerLike) -> None:
    first = take(ledger, 60)
    place = stand(ledger, 60)
    answer: Future[Hold] = place.answer
    assert not answer.cancel()
    settle(ledger, first)
    assert granted(place).amount == 60
