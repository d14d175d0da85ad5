"""Money: what a person writes becomes whole nano-USD, and comes back as it was written."""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_hfbudget.money import (
    Amounts,
    beside,
    change,
    exact,
    nano,
    parse_rate,
    parse_usd,
    rate_shown,
    rate_text,
    scale,
    show,
    to_usd,
    usd_text,
)

quick = settings(max_examples=100, deadline=None, database=None)
amounts = st.integers(-(10**21), 10**21)
usd = st.decimals(0, 10**12, allow_nan=False, allow_infinity=False) | st.decimals(0, 1, places=40)

NO_AMOUNTS = (None, True, False, "", "abc", "1,5", "$1", "1..2", b"1", [1], 1j, object())
NOT_FINITE = (float("nan"), float("inf"), "NaN", "sNaN", "inf", "-Infinity", Decimal("NaN"))


def dollars(text: str) -> Fraction:
    """The number that an amount for people says; "less than" is a little less."""
    number = Fraction(re.sub(r"[$,<]", "", text))
    return number - Fraction(1, 10**9) if "<" in text else number


class LoudFloat(float):
    """A float whose repr says more than the number, as numpy's does."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)})"


@pytest.fixture
def coarse_context() -> Iterator[None]:
    """A user's decimal context that would round to one digit, upwards, and trap what it can."""
    signals = [decimal.Inexact, decimal.Rounded, decimal.FloatOperation, decimal.Subnormal]
    context = decimal.Context(prec=1, rounding=decimal.ROUND_UP, Emin=-3, Emax=3, traps=signals)
    with decimal.localcontext(context):
        yield


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0, 0),
        (2, 2 * 10**9),
        (0.1, 10**8),
        (1e-9, 1),
        (1e-07, 100),
        ("0.000000001", 1),
        (" 1.50 ", 1_500_000_000),
        ("1e-3", 10**6),
        (Decimal("0.30"), 3 * 10**8),
        (Decimal("-0"), 0),
        (10**12, 10**21),
    ],
)
def test_an_amount_is_read_as_it_is_written(written: object, expected: int) -> None:
    assert parse_usd(written) == expected


def test_a_float_counts_by_its_shortest_repr() -> None:
    assert parse_usd(0.1) * 3 == parse_usd(0.3) == parse_usd("0.3")


def test_a_float_of_another_library_counts_by_its_number() -> None:
    assert parse_usd(LoudFloat(0.1)) == parse_usd(0.1)


@pytest.mark.parametrize("written", ["0.0000000019", 1.9e-9, Decimal("1.999999e-9")])
def test_what_is_finer_than_a_nano_dollar_is_cut_off(written: object) -> None:
    assert parse_usd(written) == 1


def test_an_amount_of_many_digits_is_cut_off_and_never_rounded_up() -> None:
    assert parse_usd("0.1" + "9" * 100) == 199_999_999


@pytest.mark.parametrize("written", NO_AMOUNTS)
def test_what_is_no_number_is_no_amount(written: object) -> None:
    with pytest.raises(ValueError, match="is not an amount of USD"):
        parse_usd(written)


@pytest.mark.parametrize("written", NOT_FINITE)
def test_what_is_not_finite_is_no_amount(written: object) -> None:
    with pytest.raises(ValueError, match="is not a finite amount"):
        parse_usd(written)


@pytest.mark.parametrize("written", [-1, -0.001, "-1e-30", Decimal("-0.5")])
def test_a_negative_amount_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is negative"):
        parse_usd(written)


@pytest.mark.parametrize("written", [10**12 + 1, 1e13, "1e999999", "1000000000000.01"])
def test_an_absurd_amount_is_refused_with_the_most_that_is_read(written: object) -> None:
    with pytest.raises(ValueError, match=r"is more than \$1,000,000,000,000$"):
        parse_usd(written)


@pytest.mark.parametrize("wrong", [*NO_AMOUNTS, *NOT_FINITE, -1, 10**13])
def test_a_rate_refuses_what_an_amount_refuses(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"USD|negative|more than"):
        parse_rate(wrong, units=10**6)


@pytest.mark.parametrize(
    ("written", "units", "expected"),
    [
        ("0.0375", 10**6, 37_500_000_000),
        (1, 1, 10**18),
        (0.02, 10**6, 20_000_000_000),
        ("0.001", 1000, 10**12),
        (0, 10**6, 0),
    ],
)
def test_a_rate_is_per_single_unit(written: object, units: int, expected: int) -> None:
    assert parse_rate(written, units=units) == expected


@pytest.mark.parametrize(("written", "units"), [("1", 3), ("1e-30", 1), ("1e-999999999", 1)])
def test_a_rate_is_rounded_up(written: str, units: int) -> None:
    exact = Fraction(10**18, 3) if units == 3 else Fraction(0)
    assert parse_rate(written, units=units) == exact // 1 + 1


@quick
@given(usd, st.sampled_from([1, 3, 7, 1000, 10**6]))
def test_a_rate_is_less_than_one_atto_above_what_was_written(written: Decimal, units: int) -> None:
    exact = Fraction(written) * 10**18 / units
    assert exact <= parse_rate(written, units=units) < exact + 1


@quick
@given(usd)
def test_an_amount_is_less_than_one_nano_below_what_was_written(written: Decimal) -> None:
    exact = Fraction(written) * 10**9
    assert exact - 1 < parse_usd(written) <= exact


@pytest.mark.parametrize(
    ("atto", "expected"), [(0, 0), (1, 1), (10**9, 1), (10**9 + 1, 2), (5 * 10**9, 5)]
)
def test_a_started_nano_dollar_is_a_whole_one(atto: int, expected: int) -> None:
    assert nano(atto) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (52_000, "0.000052"),
        (10**8, "0.1"),
        (10**10, "10"),
        (100 * 10**9, "100"),
        (-1_500_000_000, "-1.5"),
        (10**30, "1" + "0" * 21),
    ],
)
def test_the_text_of_an_amount_has_no_exponent(amount: int, expected: str) -> None:
    assert usd_text(amount) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, "$0.00"),
        (10**8, "$0.10"),
        (52_000, "$0.000052"),
        (1_234_567_891, "$1.234567891"),
        (5 * 10**9, "$5.00"),
        (-1, "-$0.000000001"),
    ],
)
def test_an_exact_amount_has_two_decimals_at_least(amount: int, expected: str) -> None:
    assert exact(amount) == expected


@quick
@given(amounts)
def test_an_exact_amount_is_never_rounded(amount: int) -> None:
    assert dollars(exact(amount)) == Fraction(amount, 10**9)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, "$0.00"),
        (1, "<$0.0001"),
        (99_999, "<$0.0001"),
        (100_000, "$0.0001"),
        (123_456, "$0.000123"),
        (2_100_000, "$0.0021"),
        (9_994_999, "$0.00999"),
        (9_995_000, "$0.01"),
        (13_333_334, "$0.01"),
        (100_000_000, "$0.10"),
        (995_000_000, "$1.00"),
        (1_374_999_999, "$1.37"),
        (1_234_567_890_000_000, "$1,234,567.89"),
        (-13_333_334, "-$0.01"),
        (-1, "-<$0.0001"),
    ],
)
def test_an_amount_for_people_has_cents_and_below_a_cent_three_digits(
    amount: int, expected: str
) -> None:
    assert show(amount) == expected


@quick
@given(st.integers(0, 10**21))
def test_only_nothing_looks_like_nothing(amount: int) -> None:
    assert (show(amount) == "$0.00") == (amount == 0)


@pytest.mark.parametrize(
    ("cap", "given_amounts", "expected"),
    [
        ("0.10", ("0.05", "0"), ("$0.05", "$0.00", "$0.10")),
        ("0.0125", ("0.0125", "0.0131"), ("$0.0125", "$0.013", "$0.0125")),
        ("0.01", ("0.0099999", "0.0100001"), ("$0.0099999", "$0.0100001", "$0.01")),
        ("0.00005", ("0.00004", "0.00005"), ("$0.00004", "$0.00005", "$0.00005")),
        ("0.00005", ("0.00006", "0.05"), ("$0.00006", "$0.05", "$0.00005")),
        (None, ("0.00004", "0.00005", "3"), ("$0.00004", "$0.00005", "$3.00")),
    ],
)
def test_amounts_side_by_side_are_told_apart_and_a_cap_is_as_it_was_written(
    cap: str | None, given_amounts: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    nano_cap = None if cap is None else parse_usd(cap)
    assert beside(nano_cap, *map(parse_usd, given_amounts)) == expected


near = st.integers(0, 10**8).flatmap(
    lambda middle: st.lists(st.integers(0, 30).map(lambda more: middle + more), min_size=2)
)


@quick
@given(near | st.lists(st.integers(0, 10**12)), st.none() | st.integers(0, 10**12))
def test_equal_amounts_look_equal_and_a_greater_one_looks_greater(
    together: list[int], cap: int | None
) -> None:
    texts = beside(cap, *together)
    both = list(zip([*together, *([] if cap is None else [cap])], texts, strict=True))
    assert sum("<" in text for text in set(texts)) <= 1
    for amount, text in both:
        for other, of_other in both:
            if "<" in text:
                assert amount == other or not 0 < other < 10**5, "it may be any of them"
            assert (amount == other) == (text == of_other)
            assert (amount < other) == (dollars(text) < dollars(of_other))
    assert cap is None or texts[-1] == exact(cap)


def test_amounts_to_the_last_digit_have_all_of_them() -> None:
    usd = Amounts(to_the_last=True)
    assert usd.show(13_333_334) == "$0.013333334"
    assert usd.beside(10**7, 1) == ("$0.000000001", "$0.01")


@quick
@given(amounts)
def test_an_amount_in_usd_is_exact(amount: int) -> None:
    assert Fraction(to_usd(amount)) == Fraction(amount, 10**9)


@quick
@given(st.integers(0, 10**21))
def test_an_amount_survives_being_written_and_read(amount: int) -> None:
    assert parse_usd(usd_text(amount)) == amount
    assert parse_usd(to_usd(amount)) == amount


@pytest.mark.usefixtures("coarse_context")
def test_the_context_of_the_user_does_not_change_an_amount() -> None:
    assert parse_usd("1234.567891234") == 1_234_567_891_234
    assert parse_usd(0.0375) == 37_500_000


@pytest.mark.usefixtures("coarse_context")
def test_the_context_of_the_user_does_not_change_a_rate() -> None:
    assert parse_rate("0.0375", units=10**6) == 37_500_000_000


@pytest.mark.usefixtures("coarse_context")
def test_the_context_of_the_user_does_not_change_a_text() -> None:
    assert exact(1_234_567_891_234) == "$1,234.567891234"
    assert show(1_234_567_891_234) == "$1,234.57"
    assert str(to_usd(1_234_567_891_234)) == "1234.567891234"


@pytest.mark.usefixtures("coarse_context")
def test_the_context_of_the_user_does_not_change_what_is_refused() -> None:
    for wrong in ("abc", "NaN", "-1", "1e13"):
        with pytest.raises(ValueError, match=r"USD|negative|more than"):
            parse_usd(wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("NaN", "'NaN' is not a finite amount of USD"),
        (Decimal("Infinity"), "Infinity is not a finite amount of USD"),
        (-1, "-1 is negative; an amount of USD is 0 or more"),
        (Decimal("-0.5"), "-0.5 is negative; an amount of USD is 0 or more"),
        ("1e99", "'1e99' is more than $1,000,000,000,000"),
        (Decimal("1E+99"), "1E+99 is more than $1,000,000,000,000"),
    ],
)
def test_a_refusal_shows_what_was_written(wrong: object, says: str) -> None:
    for read in (parse_usd, parse_rate):
        with pytest.raises(ValueError, match=re.escape(says)):
            read(wrong)


def test_a_negative_zero_is_no_rate() -> None:
    with pytest.raises(ValueError, match=r"^-0\.0 is negative; a price is 0 or more$"):
        parse_rate(-0.0)


@given(st.integers(0, 10**24), st.sampled_from([1, 1000, 10**6]))
def test_the_text_of_a_rate_is_read_as_that_rate(atto: int, units: int) -> None:
    text = rate_text(atto, units=units)
    assert parse_rate(text, units=units) == atto
    assert "E" not in text


@pytest.mark.parametrize(
    ("atto", "units", "text"),
    [(0, 1, "0"), (1, 1, "0.000000000000000001"), (10**18, 1, "1"), (10**12, 10**6, "1")],
)
def test_a_rate_is_written_without_what_says_nothing(atto: int, units: int, text: str) -> None:
    assert rate_text(atto, units=units) == text


def test_a_rate_is_written_for_one_unit_where_nothing_else_is_said() -> None:
    assert rate_text(10**18) == "1"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        ("0.2", "$0.20"),
        ("0.0000225", "$0.0000225"),
        ("1", "$1.00"),
        ("1200.5", "$1,200.50"),
    ],
)
def test_a_rate_is_shown_with_all_digits_and_at_least_two_decimals(rate: str, text: str) -> None:
    assert rate_shown(rate) == text


def test_a_rate_is_for_one_unit_where_nothing_else_is_said() -> None:
    assert parse_rate("0.5") == 5 * 10**17


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("0.6549", "0.7851", ("$0.65", "$0.79", "+$0.14")),  # to the last digit it is 0.1302
        ("0.9649", "0.9653", ("$0.9649", "$0.9653", "+$0.0004")),
        ("0.0005", "0.0005598", ("$0.0005", "$0.00056", "+$0.00006")),
        ("0.0000275", "0.000000109", ("$0.0000275", "$0.000000109", "-$0.0000274")),
        ("0", "0.00005", ("$0.00", "<$0.0001", "+<$0.0001")),
        ("0", "0.0125", ("$0.00", "$0.013", "+$0.013")),
        ("1", "1", ("$1.00", "$1.00", "$0.00")),
    ],
)
def test_a_difference_is_that_of_the_amounts_as_they_are_shown(
    before: str, after: str, expected: tuple[str, str, str]
) -> None:
    assert change(parse_usd(before), parse_usd(after)) == expected


@settings(max_examples=1000, deadline=None, database=None)
@given(amounts, amounts)
def test_a_difference_that_is_shown_is_near_the_exact_one(before: int, after: int) -> None:
    *_, more = change(before, after)
    off = abs(dollars(more.removeprefix("+")) * 10**9 - (after - before))
    assert off * 5 <= max(abs(after - before), 5 * 10**7)


@pytest.mark.parametrize(
    ("amounts", "shown"),
    [
        (["0.0021", "0.0109"], ["$0.0021", "$0.01"]),
        (["0.0268", "0.0280", "0.0251"], ["$0.0268", "$0.0280", "$0.0251"]),
        (["1.2341", "1.2342", "1.2351"], ["$1.2341", "$1.2342", "$1.2351"]),
        (["250", "0.011", "0.014"], ["$250.00", "$0.01", "$0.01"]),
        (["0.03", "0.03"], ["$0.03", "$0.03"]),
        (["0.034", "0.033", "0"], ["$0.034", "$0.033", "$0.00"]),
    ],
)
def test_a_chart_has_as_many_decimals_as_tell_its_least_from_its_most(
    amounts: list[str], shown: list[str]
) -> None:
    nanos = [parse_usd(one) for one in amounts]
    usd = scale(*nanos)
    assert [usd(one) for one in nanos] == shown
