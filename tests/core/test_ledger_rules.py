"""The ledger's rules, for each of its users: in its own process or over its socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from bookkeeping import Books, books, charge, draft

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetError, LedgerBusyError
from pytest_hfbudget.ledger import SESSION, Hold, LedgerLike, Refusal, Scope, Totals
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.money import parse_usd

TENTH = parse_usd(0.1)
RESOLVED_TWICE = (KeyError, HFBudgetError)  # over the socket it is said in words


@pytest.fixture(params=["local", "remote"])
def both(request: pytest.FixtureRequest) -> Iterator[Books]:
    with books(request.param) as opened:
        yield opened


@pytest.fixture
def ledger(both: Books) -> LedgerLike:
    """A ledger with an outer scope of $1.00, an inner one of $0.30, and one without a cap."""
    both.user.open(Scope("outer", "the session", parse_usd(1)))
    both.user.open(Scope("inner", "test_a", parse_usd(0.3)))
    both.user.open(Scope("open", "a block"))
    return both.user


def take(ledger: LedgerLike, amount: int, *scopes: str) -> Hold:
    return ledger.hold(scopes, amount, amount, draft(*scopes))


def pay(ledger: LedgerLike, amount: int, *scopes: str) -> None:
    ledger.settle(take(ledger, amount, *scopes).id, charge(amount, *scopes))


def test_a_hold_is_set_aside_in_every_scope_at_once(ledger: LedgerLike) -> None:
    hold = take(ledger, TENTH, "outer", "inner", "open")
    assert hold.amount == TENTH
    for key in ("outer", "inner", "open"):
        assert ledger.total(key) == Totals(held=TENTH)


def test_a_settled_call_is_charged_to_every_scope_at_what_it_cost(ledger: LedgerLike) -> None:
    hold = take(ledger, TENTH, "outer", "inner")
    ledger.settle(hold.id, charge(7, "outer", "inner"))
    assert ledger.total("outer") == ledger.total("inner") == Totals(spent=7, calls=1)


def test_a_released_hold_leaves_nothing(ledger: LedgerLike) -> None:
    ledger.release(take(ledger, TENTH, "outer", "inner").id)
    assert ledger.total("outer") == ledger.total("inner") == Totals()
    assert ledger.charges_in("outer") == ()


def test_a_call_that_was_made_for_nothing_still_counts_as_a_call(ledger: LedgerLike) -> None:
    made = charge(0, "outer")._replace(status="503")
    ledger.release(take(ledger, TENTH, "outer").id, made)
    assert ledger.total("outer") == Totals(calls=1)
    assert ledger.charges_in("outer") == (made,)


def test_a_cap_is_inclusive(ledger: LedgerLike) -> None:
    for _ in range(3):
        pay(ledger, TENTH, "inner")
    assert ledger.total("inner").spent == parse_usd(0.3)
    with pytest.raises(BudgetExceededError):
        take(ledger, 1, "inner")


def test_what_is_held_is_not_there_for_others(ledger: LedgerLike) -> None:
    take(ledger, 2 * TENTH, "inner")
    with pytest.raises(BudgetExceededError, match=r"\$0\.20 held for calls in flight"):
        take(ledger, TENTH + 1, "inner")
    assert take(ledger, TENTH, "inner").amount == TENTH


@pytest.mark.parametrize("scopes", [("outer", "inner"), ("inner", "outer"), ("open", "inner")])
def test_a_call_that_one_scope_refuses_is_held_in_none(
    ledger: LedgerLike, scopes: tuple[str, ...]
) -> None:
    with pytest.raises(BudgetExceededError):
        take(ledger, parse_usd(0.5), *scopes)
    assert {ledger.total(key) for key in scopes} == {Totals()}


def test_a_refusal_carries_the_figures_of_the_scope_that_refused(ledger: LedgerLike) -> None:
    pay(ledger, TENTH, "outer", "inner")
    take(ledger, TENTH, "outer", "inner")
    with pytest.raises(BudgetExceededError) as caught:
        take(ledger, 2 * TENTH, "outer", "inner")
    error = caught.value
    assert (error.scope, error.scope_key, error.model) == ("test_a", "inner", "org/model")
    figures = (error.limit, error.spent, error.held, error.needed)
    assert figures == tuple(map(Decimal, ("0.3", "0.1", "0.1", "0.2")))


def test_a_cap_of_nothing_is_said_to_be_one(ledger: LedgerLike) -> None:
    ledger.open(Scope("nothing", "a block", 0))
    with pytest.raises(BudgetExceededError, match=r"only \$0\.00 of \$0\.00 is left") as caught:
        take(ledger, 1, "nothing")
    assert caught.value.figures.cap == 0


def test_a_scope_named_twice_is_charged_once(ledger: LedgerLike) -> None:
    pay(ledger, TENTH, "inner", "inner")
    assert ledger.total("inner") == Totals(spent=TENTH, calls=1)


# --- between least and most


def test_a_hold_takes_the_most_where_there_is_room(ledger: LedgerLike) -> None:
    assert ledger.hold(["inner"], 1, TENTH, draft()).amount == TENTH


def test_a_hold_takes_what_the_tightest_scope_has_left(ledger: LedgerLike) -> None:
    hold = ledger.hold(["outer", "inner", "open"], 1, parse_usd(0.5), draft())
    assert hold.amount == parse_usd(0.3)
    assert ledger.total("outer").held == parse_usd(0.3)


def test_a_hold_without_a_most_takes_all_that_is_left(ledger: LedgerLike) -> None:
    pay(ledger, TENTH, "inner")
    assert ledger.hold(["outer", "inner"], 1, None, draft()).amount == 2 * TENTH


def test_a_hold_without_a_most_and_without_a_cap_takes_the_least(ledger: LedgerLike) -> None:
    assert ledger.hold(["open"], 5, None, draft()).amount == 5


def test_a_hold_is_refused_where_less_than_the_least_is_left(ledger: LedgerLike) -> None:
    pay(ledger, 2 * TENTH, "inner")
    with pytest.raises(BudgetExceededError):
        ledger.hold(["inner"], TENTH + 1, parse_usd(9), draft())
    assert ledger.hold(["inner"], TENTH, parse_usd(9), draft()).amount == TENTH


def test_a_free_call_fits_into_what_is_used_up(ledger: LedgerLike) -> None:
    pay(ledger, parse_usd(0.3), "inner")
    assert take(ledger, 0, "inner").amount == 0


def test_a_scope_without_a_cap_takes_any_amount(ledger: LedgerLike) -> None:
    pay(ledger, parse_usd(10**6), "open")
    assert ledger.total("open").spent == parse_usd(10**6)


# --- settled once, at what it cost


@pytest.mark.parametrize("first", ["settle", "release"])
@pytest.mark.parametrize("second", ["settle", "release"])
def test_a_hold_is_resolved_once(ledger: LedgerLike, first: str, second: str) -> None:
    hold = take(ledger, TENTH, "inner")
    getattr(ledger, first)(hold.id, charge(7, "inner"))
    before = ledger.total("inner"), ledger.charges_in("inner")
    with pytest.raises(RESOLVED_TWICE):
        getattr(ledger, second)(hold.id, charge(7, "inner"))
    assert (ledger.total("inner"), ledger.charges_in("inner")) == before


def test_a_hold_that_never_was_can_not_be_settled(ledger: LedgerLike) -> None:
    with pytest.raises(RESOLVED_TWICE):
        ledger.settle(99, charge(7, "inner"))
    assert ledger.total("inner") == Totals()


def test_a_call_that_cost_more_than_was_held_is_charged_to_the_nano_dollar(
    ledger: LedgerLike,
) -> None:
    hold = take(ledger, TENTH, "outer", "inner")
    ledger.settle(hold.id, charge(parse_usd(0.4), "outer", "inner"))
    assert ledger.total("inner").spent == ledger.total("outer").spent == parse_usd(0.4)


def test_a_scope_over_its_cap_refuses_whatever_comes(ledger: LedgerLike) -> None:
    ledger.settle(take(ledger, TENTH, "inner").id, charge(parse_usd(0.4), "inner"))
    with pytest.raises(BudgetExceededError, match=r"only \$0\.00 of \$0\.30 is left"):
        take(ledger, 1, "inner")


def test_a_call_without_a_price_counts_and_costs_nothing(ledger: LedgerLike) -> None:
    ledger.settle(take(ledger, 0, "open").id, charge(None, "open"))
    assert ledger.total("open") == Totals(calls=1)


# --- numbers of calls


def test_no_more_calls_are_let_through_than_were_allowed(ledger: LedgerLike) -> None:
    ledger.open(Scope("few", "a block", max_calls=2))
    pay(ledger, 1, "few")
    pay(ledger, 1, "few")
    with pytest.raises(BudgetExceededError, match="org/model would be call 3, but max_calls is 2"):
        take(ledger, 0, "few")


def test_a_refusal_by_number_carries_the_figures_of_its_scope(ledger: LedgerLike) -> None:
    ledger.open(Scope("few", "a block", parse_usd(1), max_calls=2))
    ledger.open(Scope("uncapped", "another block", max_calls=0))
    pay(ledger, 7, "few")
    take(ledger, 5, "few")
    with pytest.raises(BudgetExceededError) as caught:
        take(ledger, 1, "few")
    error = caught.value
    assert (error.scope, error.scope_key, error.model) == ("a block", "few", "org/model")
    assert (error.figures.cap, error.figures.spent, error.figures.held) == (parse_usd(1), 7, 5)
    with pytest.raises(BudgetExceededError) as caught:
        take(ledger, 1, "uncapped")
    assert caught.value.figures.cap == 0


def test_a_call_in_flight_counts_as_a_call(ledger: LedgerLike) -> None:
    ledger.open(Scope("few", "a block", max_calls=1))
    hold = take(ledger, 0, "few")
    with pytest.raises(BudgetExceededError):
        take(ledger, 0, "few")
    ledger.release(hold.id)
    take(ledger, 0, "few")


def test_a_call_that_was_answered_with_an_error_counts_as_a_call(ledger: LedgerLike) -> None:
    ledger.open(Scope("few", "a block", max_calls=1))
    ledger.release(take(ledger, 0, "few").id, charge(0, "few"))
    with pytest.raises(BudgetExceededError):
        take(ledger, 0, "few")


def test_no_calls_at_all_is_a_number_of_calls(ledger: LedgerLike) -> None:
    ledger.open(Scope("none", "a block", max_calls=0))
    with pytest.raises(BudgetExceededError, match="would be call 1, but max_calls is 0"):
        take(ledger, 0, "none")


def test_a_scope_that_is_out_of_calls_leaves_the_others_as_they_are(ledger: LedgerLike) -> None:
    ledger.open(Scope("none", "a block", max_calls=0))
    with pytest.raises(BudgetExceededError):
        take(ledger, 1, "outer", "inner", "none")
    assert ledger.total("outer") == ledger.total("inner") == Totals()


# --- scopes


def test_a_scope_that_is_opened_again_keeps_what_was_spent(ledger: LedgerLike) -> None:
    pay(ledger, 2 * TENTH, "inner")
    ledger.open(Scope("inner", "test_a", parse_usd(0.3)))
    assert ledger.total("inner").spent == 2 * TENTH
    with pytest.raises(BudgetExceededError):
        take(ledger, 2 * TENTH, "inner")


def test_a_scope_that_was_not_opened_stands_at_zero(ledger: LedgerLike) -> None:
    assert ledger.total("elsewhere") == Totals()


@pytest.mark.parametrize("scopes", [("elsewhere",), ("outer", "elsewhere")])
def test_a_call_in_a_scope_that_was_not_opened_is_refused(
    ledger: LedgerLike, scopes: tuple[str, ...]
) -> None:
    with pytest.raises(RESOLVED_TWICE, match="elsewhere"):
        take(ledger, 1, *scopes)
    assert ledger.total("outer") == Totals()


# --- what is remembered


def test_a_refusal_is_counted_in_every_scope_and_remembered(
    ledger: LedgerLike, both: Books
) -> None:
    refusal = Refusal("test_a", "inner", "org/model", "too dear")
    ledger.refuse(["outer", "inner", "inner"], refusal)
    assert ledger.total("outer") == ledger.total("inner") == Totals(refused=1)
    assert both.kept.refusals() == (refusal,)


def test_charges_are_remembered_in_the_order_of_settlement(ledger: LedgerLike, both: Books) -> None:
    first, second = take(ledger, 1, "outer"), take(ledger, 1, "outer", "inner")
    ledger.settle(second.id, charge(2, "outer", "inner"))
    ledger.settle(first.id, charge(1, "outer"))
    assert [each.nano_usd for each in both.kept.charges()] == [2, 1]


def test_each_scope_knows_its_own_charges(ledger: LedgerLike) -> None:
    pay(ledger, 1, "outer")
    pay(ledger, 2, "outer", "inner")
    assert ledger.charges_in("outer") == (charge(1, "outer"), charge(2, "outer", "inner"))
    assert ledger.charges_in("inner") == (charge(2, "outer", "inner"),)
    assert ledger.charges_in("open") == ()


def test_text_of_any_script_is_remembered_as_it_is(ledger: LedgerLike) -> None:
    odd = charge(1, "outer")._replace(model='模型/"é"\n\u2028', test="test_a[\U0001f600-\ud800]")
    ledger.settle(take(ledger, 1, "outer").id, odd)
    assert ledger.charges_in("outer") == (odd,)


def test_every_scope_is_in_the_report_with_where_it_stands(ledger: LedgerLike, both: Books) -> None:
    pay(ledger, 5, "inner")
    assert both.kept.scopes()["inner"] == (
        Scope("inner", "test_a", parse_usd(0.3)),
        Totals(spent=5, calls=1),
    )
    assert list(both.kept.scopes()) == ["outer", "inner", "open"]


def test_what_has_happened_is_booked_though_it_does_not_fit(
    ledger: LedgerLike, both: Books
) -> None:
    both.kept.book("inner", parse_usd(0.4))
    assert ledger.total("inner").spent == parse_usd(0.4)


def test_what_is_asked_for_beforehand_has_to_fit(ledger: LedgerLike, both: Books) -> None:
    both.kept.book("inner", parse_usd(0.3), what="a minute of acme/llm")
    with pytest.raises(BudgetExceededError, match=r"a minute of acme/llm may cost up to \$0\.10"):
        both.kept.book("inner", TENTH, what="a minute of acme/llm")
    assert ledger.total("inner") == Totals(spent=parse_usd(0.3))


def test_what_is_asked_for_beforehand_fits_where_there_is_no_cap(
    ledger: LedgerLike, both: Books
) -> None:
    both.kept.book("open", parse_usd(9), what="a minute of acme/llm")
    assert ledger.total("open").spent == parse_usd(9)


def test_the_uptime_of_an_endpoint_is_spent_without_a_call(ledger: LedgerLike, both: Books) -> None:
    both.kept.book("inner", parse_usd(0.2))
    assert ledger.total("inner") == Totals(spent=parse_usd(0.2))
    with pytest.raises(BudgetExceededError):
        take(ledger, TENTH + 1, "inner")


def test_calls_that_could_not_be_metered_are_counted_by_their_reason(
    ledger: LedgerLike, both: Books
) -> None:
    ledger.count_unmetered("a client of another kind", 2)
    ledger.count_unmetered("a mock", 1)
    ledger.count_unmetered("a client of another kind", 1)
    ledger.flush()
    assert both.kept.unmetered() == {"a client of another kind": 3, "a mock": 1}


def test_the_uptime_of_endpoints_is_spent_from_the_session(both: Books) -> None:
    both.kept.open(Scope(SESSION, "session budget", 100))
    both.kept.book_uptime(60, 60)
    with pytest.raises(BudgetExceededError, match="uptime"):
        both.kept.book_uptime(60, 60, what="the uptime of acme/llm")
    both.kept.book_uptime(40, 40, what="the uptime of acme/llm")
    assert both.kept.total(SESSION) == Totals(spent=100)


class Interrupted(str):
    """A key that the ledger looks up while a signal handler runs."""

    def __new__(cls, key: str, handler: Callable[[], object]) -> Interrupted:
        made = super().__new__(cls, key)
        made.handler = handler
        return made

    handler: Callable[[], object]

    def __hash__(self) -> int:
        self.handler()
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


def in_a_handler(deed: Callable[[Ledger, Hold], object]) -> str:
    """What a signal handler is told that uses a ledger in the middle of a change of it."""
    ledger, told = Ledger(), []
    ledger.open(Scope("all", "the session", TENTH))
    earlier = take(ledger, 1, "all")

    def handler() -> None:
        with pytest.raises(LedgerBusyError) as raised:
            deed(ledger, earlier)
        told.append(str(raised.value))

    take(ledger, 1, Interrupted("all", handler))
    assert ledger.total("all").held == 2
    return told[0]


@pytest.mark.parametrize(
    "deed",
    [
        lambda ledger, hold: ledger.hold(("all",), 1, 1, draft("all")),
        lambda ledger, hold: ledger.hold_or_queue(("all",), 1, 1, draft("all")),
        lambda ledger, hold: ledger.settle(hold.id, charge(1, "all")),
        lambda ledger, hold: ledger.release(hold.id),
    ],
    ids=["hold", "hold_or_queue", "settle", "release"],
)
def test_a_signal_handler_that_interrupts_a_change_is_told_so(
    deed: Callable[[Ledger, Hold], object],
) -> None:
    assert in_a_handler(deed).startswith("the ledger: a signal handler")
