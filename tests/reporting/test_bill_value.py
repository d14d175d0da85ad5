"""The drift between ledger and bill, as a value, as text, by model."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_hfbudget.reporting.bill import Bill, Booked, by_model, drift, drift_text

BILL = Bill("run", "hfbudget-run", 0.0, 100, 2, model="org/a")


@pytest.mark.parametrize(
    ("ledger", "billed", "found"),
    [
        (100, 150, Fraction(1, 2)),
        (100, 0, -1),
        (3, 4, Fraction(1, 3)),
        (0, 5, None),
        (0, 0, None),
        (None, 5, None),
        (5, None, None),
    ],
)
def test_a_drift_is_exact_or_unknown(
    ledger: int | None, billed: int | None, found: Fraction | None
) -> None:
    assert drift(ledger, billed) == found


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Fraction(1, 2), "+50 %"),
        (Fraction(-1, 400), "-0.25 %"),
        (Fraction(1, 3), "+33.33 %"),
        (Fraction(10), "+1000 %"),
        (Fraction(0), "0 %"),
        (Fraction(1, 10**6), "+<0.01 %"),
        (Fraction(-1, 10**6), "-<0.01 %"),
        (None, ""),
    ],
)
def test_a_drift_is_shown_with_its_sign(found: Fraction | None, text: str) -> None:
    assert drift_text(found) == text


@pytest.mark.parametrize(
    ("billed", "ledger", "allowed", "exceeds"),
    [
        (105, 100, Fraction(5, 100), False),
        (106, 100, Fraction(5, 100), True),
        (94, 100, Fraction(5, 100), True),
        (1, 0, Fraction(5), True),
        (0, 0, Fraction(0), False),
        (1, None, Fraction(0), False),
    ],
)
def test_both_directions_count_as_a_drift(
    billed: int, ledger: int | None, allowed: Fraction, exceeds: bool
) -> None:
    assert replace(BILL, ledger=ledger, booked=Booked(billed, 2)).exceeds(allowed) is exceeds


def test_a_bill_is_complete_with_as_many_requests() -> None:
    assert not BILL.complete
    assert not replace(BILL, booked=Booked(5, 1)).complete
    assert replace(BILL, booked=Booked(5, 2)).complete


def test_models_are_summed_over_their_runs() -> None:
    found = by_model(
        [
            replace(BILL, booked=Booked(150, 2)),
            replace(BILL, booked=Booked(50, 2), ledger=300),
            replace(BILL, booked=None),
            replace(BILL, booked=Booked(9, 1), ledger=None),
            replace(BILL, booked=Booked(9, 1), model=""),
            replace(BILL, booked=Booked(500, 1), model="org/b", ledger=1000),
        ]
    )
    assert [(one.model, one.runs, one.drift) for one in found] == [
        ("org/b", 1, Fraction(-1, 2)),
        ("org/a", 2, Fraction(-1, 2)),
    ]
