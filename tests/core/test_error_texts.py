"""What a refusal says and carries, wherever it travels."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal

import pytest

from pytest_hfbudget.errors import (
    BudgetExceededError,
    ConfigError,
    Figures,
    HFBudgetError,
    LedgerUnreachableError,
    UnpricedCallError,
    over_cap,
)


@pytest.fixture
def refusal() -> BudgetExceededError:
    return over_cap(
        scope="test_a",
        scope_key="a",
        model="org/m",
        figures=Figures(cap=10**9, spent=3 * 10**8, held=2 * 10**8, needed=6 * 10**8),
    )


def test_a_refusal_says_every_figure_and_what_to_do(refusal: BudgetExceededError) -> None:
    assert str(refusal) == (
        "test_a: org/m may cost up to $0.60, but only $0.50 of $1.00 is left "
        "($0.30 spent, $0.20 held for calls in flight). The call was not sent. "
        "Raise the cap, or give the call a smaller max_tokens."
    )


def test_a_refusal_with_nothing_in_flight_does_not_speak_of_it() -> None:
    error = over_cap(scope="s", scope_key="s", model="m", figures=Figures(cap=1, spent=1, needed=1))
    assert "in flight" not in str(error)


def test_what_is_left_is_never_less_than_nothing() -> None:
    error = over_cap(scope="s", scope_key="s", model="m", figures=Figures(cap=1, spent=9, needed=1))
    assert "only $0.00 of $0.000000001 is left" in str(error)


def test_a_refusal_carries_its_figures_in_usd(refusal: BudgetExceededError) -> None:
    figures = (refusal.limit, refusal.spent, refusal.held, refusal.needed)
    assert figures == (Decimal(1), Decimal("0.3"), Decimal("0.2"), Decimal("0.6"))
    assert (refusal.scope, refusal.scope_key, refusal.model) == ("test_a", "a", "org/m")


def test_a_refusal_survives_a_process_pool_and_a_copy(refusal: BudgetExceededError) -> None:
    for twin in (pickle.loads(pickle.dumps(refusal)), copy.copy(refusal)):
        assert type(twin) is BudgetExceededError
        assert (str(twin), vars(twin)) == (str(refusal), vars(refusal))


@pytest.mark.parametrize("kind", [UnpricedCallError, LedgerUnreachableError])
def test_code_that_catches_a_refusal_catches_its_kinds(kind: type[HFBudgetError]) -> None:
    assert issubclass(kind, BudgetExceededError)


def test_a_wrong_setting_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)
