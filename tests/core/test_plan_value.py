"""A plan as a value: what adds up, what is merely bounded, and what it says."""

from __future__ import annotations

from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.reporting.costs import Cost
from pytest_hfbudget.reporting.plan import MOST, Plan, PlannedEndpoint, PlannedTest, excess, lines

CENT = 10**7
ATTO_PER_USD = 10**18


def recorded(name: str, spent: int) -> PlannedTest:
    return PlannedTest(name, Cost(spent, calls=1))


def endpoint(atto_per_hour: int | None, **more: bool) -> PlannedEndpoint:
    return PlannedEndpoint("a/b", 61, "recorded", 130, 0, atto_per_hour, **more)


def text(plan: Plan) -> list[str]:
    return [line.text for line in lines(plan, block_characters=False)]


def test_tests_and_the_started_minutes_of_endpoints_are_expected() -> None:
    hour = endpoint(6 * ATTO_PER_USD)
    assert (hour.minutes, hour.nano_usd) == (4, 40 * CENT)
    plan = Plan((recorded("a", CENT), recorded("b", 1)), (hour,))
    assert plan.expected == 41 * CENT + 1


def test_an_endpoint_without_a_price_is_said_and_not_in_the_sum() -> None:
    plan = Plan((), (endpoint(None),))
    assert plan.expected == 0
    assert text(plan)[-1] == "  uptime of a/b: unknown, not in the sum"


def test_an_endpoint_that_is_kept_costs_nothing() -> None:
    assert Plan((), (endpoint(ATTO_PER_USD, kept=True),)).expected == 0


def test_a_cap_that_tests_share_bounds_them_together() -> None:
    shared, own = Scope("class:c", "c", CENT), Scope("test:z", "z", 2 * CENT)
    tests = (
        PlannedTest("x", None, shared),
        PlannedTest("y", None, shared),
        PlannedTest("z", None, own),
    )
    assert Plan(tests).more == 3 * CENT
    assert Plan(tests).expected == 0


def test_a_record_counts_before_a_cap() -> None:
    plan = Plan((PlannedTest("a", Cost(1, calls=1), Scope("test:a", "a", CENT)),))
    assert (plan.expected, plan.more) == (1, 0)


def test_a_budget_that_holds_just_what_is_expected_is_enough() -> None:
    tests = (recorded("a", 100),)
    assert excess(Plan(tests, cap=100)) is None
    assert excess(Plan(tests)) is None
    said = excess(Plan(tests, cap=99)) or ""
    assert "expected to cost $0.0000001, and its session budget is $0.000000099" in said


def test_the_most_expensive_come_first_and_the_rest_is_counted() -> None:
    tests = tuple(recorded(f"t{n:02}", n) for n in range(MOST + 2))
    said = text(Plan(tests))
    assert said[1].startswith(f"  t{MOST + 1}  <$0.0001")
    assert said[-1] == "  … and 2 tests more"


def test_tests_without_calls_are_only_counted() -> None:
    said = text(Plan((PlannedTest("a", Cost()), recorded("b", 1))))
    assert said == [
        "expected <$0.0001 (2 of 2 tests recorded; no session budget)",
        "  b  <$0.0001 (1 call)",
        "  1 test without calls",
    ]
