"""Exact money: amounts are whole nano-USD, rates are whole atto-USD per unit.

Hugging Face settles inference in integer nano-USD (hub-docs, "Register as an Inference
Provider"), so a ledger in the same unit has nothing to round. Rates are finer: $0.0375 per
1M tokens is 37.5 nano-USD per token, which is a whole number of atto-USD.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, DecimalException
from typing import NamedTuple

NANO_PER_USD = 10**9
ATTO_PER_NANO = 10**9
ATTO_PER_USD = NANO_PER_USD * ATTO_PER_NANO

# Far above any bill, far below what would make an int of nano-USD unwieldy.
MOST_USD = Decimal(10**12)

# What people are shown: two decimals from a cent on, below a cent three significant digits.
_CENT = NANO_PER_USD // 100
_DIGITS = 3
_LEAST = NANO_PER_USD // 10_000  # smaller amounts are shown as <$0.0001
_ALL_DIGITS = 9

# Contexts of our own, so that no user's decimal.getcontext() can change what a cap means. They have
# digits enough for every sane amount, and round the rest in the direction of the result.
_DOWN = Context(prec=60, rounding=ROUND_FLOOR)
_UP = Context(prec=60, rounding=ROUND_CEILING)


def parse_usd(value: object) -> int:
    """The nano-USD of an amount that a person has written in USD; a finer part is cut off.

    A float is read by its shortest repr, so ``0.1`` is ten cents to the nano-dollar.

    Raises:
        ValueError: not a number, NaN, infinite, negative or absurdly large.
    """
    exact = _DOWN.multiply(_decimal(value), Decimal(NANO_PER_USD))
    return int(exact.to_integral_value(context=_DOWN))


def parse_rate(value: object, *, units: int = 1) -> int:
    """A price in USD per ``units`` units, in atto-USD per single unit, rounded up.

    Raises:
        ValueError: as `parse_usd`; also for -0.0, which a faulty calculation has left behind.
    """
    number = _decimal(value)
    if number.is_signed():
        raise ValueError(f"{_shown(value)} is negative; a price is 0 or more")
    exact = _UP.divide(_UP.multiply(number, Decimal(ATTO_PER_USD)), Decimal(units))
    return int(exact.to_integral_value(context=_UP))


def nano(atto: int) -> int:
    """Atto-USD as nano-USD, rounded up as Hugging Face rounds the cost of a request."""
    return -(-atto // ATTO_PER_NANO)


def rate_text(atto: int, *, units: int = 1) -> str:
    """Atto-USD per single unit as USD per ``units`` units: the inverse of `parse_rate`."""
    whole, rest = divmod(atto * units, ATTO_PER_USD)
    return f"{whole}.{rest:018}".rstrip("0").rstrip(".")


def rate_shown(rate: str) -> str:
    """A text of `rate_text` for people: ``$0.20``, with all digits and at least two decimals."""
    whole, _, decimals = rate.partition(".")
    return f"${int(whole):,}.{decimals.ljust(2, '0')}"


def to_usd(amount: int) -> Decimal:
    """Nano-USD as an exact number of USD."""
    return Decimal(usd_text(amount))


def usd_text(amount: int) -> str:
    """Nano-USD as a plain decimal string of USD, without an exponent: ``0.000052``."""
    whole, rest = divmod(abs(amount), NANO_PER_USD)
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{rest:09}".rstrip("0").rstrip(".")


def exact(amount: int) -> str:
    """Nano-USD to the last digit, with at least two decimals: ``$0.10``, ``$0.000052``."""
    sign, text = ("-" if amount < 0 else ""), usd_text(abs(amount))
    whole, _, decimals = text.partition(".")
    return f"{sign}${int(whole):,}.{decimals.ljust(2, '0')}"


def show(amount: int) -> str:
    """Nano-USD for people: ``$1.37``, ``$0.0021``, ``<$0.0001``; ``$0.00`` is exactly nothing.

    From a cent on it has two decimals, below a cent at most three significant digits.
    """
    return _text(amount, 0)


def beside(cap: int | None, *amounts: int) -> tuple[str, ...]:
    """The texts of amounts that people compare with each other and with a cap.

    The cap has all its digits, as it was written. The others are as `show` writes them, with more
    digits where that is needed so that a greater amount looks greater.

    Returns:
        The texts of ``amounts``, and last that of ``cap`` if it is not None.
    """
    finer = _finer(cap, *amounts)
    return tuple(_text(one, finer[one]) for one in (*amounts, *(() if cap is None else (cap,))))


def scale(*amounts: int) -> Callable[[int], str]:
    """A function that returns the text of an amount on a chart which has these amounts.

    It is `show`, unless that makes different amounts look alike. Then the texts have as many
    decimals as it takes for the least and the most to differ by at least ten of the last decimal.
    """
    if len({show(one) for one in amounts}) == len(set(amounts)):
        return show
    apart = max(amounts) - min(amounts)
    unit = min(10 ** max(len(str(apart)) - 2, 0), _CENT)

    def text(amount: int) -> str:
        said = exact((amount + unit // 2) // unit * unit)
        whole, _, decimals = said.partition(".")
        return f"{whole}.{decimals.ljust(_ALL_DIGITS - len(str(unit)) + 1, '0')}"

    return lambda amount: text(amount) if amount else show(0)


def change(before: int, after: int) -> tuple[str, str, str]:
    """The texts of two amounts, as `beside` writes them, and of their difference with its sign.

    The amounts have as many more digits as it takes for the shown difference to be theirs, and to
    be within a tenth of the exact one.
    """
    finer = _finer(None, before, after)
    more = after - before
    if any(0 < abs(one) < _LEAST and not finer[one] for one in (before, after)):
        text = show(more)
    else:
        while abs(_shown_change(before, after, finer) - more) * 10 > abs(more):
            finer = {one: min(digits + 1, _ALL_DIGITS) for one, digits in finer.items()}
        more = _shown_change(before, after, finer)
        digits = (
            finer[max(before, after, key=abs)] if abs(more) >= _CENT else int(abs(more) < _LEAST)
        )
        text = _text(more, digits)
    old, new = (_text(one, finer[one]) for one in (before, after))
    return old, new, f"+{text}" if more > 0 else text


def _shown_change(before: int, after: int, finer: dict[int, int]) -> int:
    return _rounded(after, finer[after]) - _rounded(before, finer[before])


def _finer(cap: int | None, *amounts: int) -> dict[int, int]:
    """How many more digits than `show` has each amount needs."""
    finer = dict.fromkeys((*amounts, *(() if cap is None else (cap,))), 0)
    if cap is not None:
        finer[cap] = _ALL_DIGITS
    while unclear := {
        one
        for less, more in itertools.pairwise(sorted(finer))
        if _alike(less, more, finer)
        for one in (less, more)
    }:
        for one in unclear:
            finer[one] = min(finer[one] + 1, _ALL_DIGITS)
    return finer


def _alike(less: int, more: int, finer: dict[int, int]) -> bool:
    """Whether the texts of two amounts do not show which is greater, as two of ``<$0.0001``."""
    both_tiny = less * more > 0 and max(abs(less), abs(more)) < _LEAST
    if both_tiny and not (finer[less] and finer[more]):
        return True
    return _rounded(less, finer[less]) >= _rounded(more, finer[more])


class Amounts(NamedTuple):
    """How a text writes its amounts: for people, or to the last digit where ``to_the_last``."""

    to_the_last: bool = False

    def show(self, amount: int) -> str:
        """The text of one amount in nano-USD."""
        return exact(amount) if self.to_the_last else show(amount)

    def beside(self, cap: int | None, *amounts: int) -> tuple[str, ...]:
        """As the function `beside`, or with all digits."""
        if not self.to_the_last:
            return beside(cap, *amounts)
        return tuple(map(exact, (*amounts, *(() if cap is None else (cap,)))))


FOR_PEOPLE = Amounts()


def _text(amount: int, finer: int) -> str:
    if not finer and 0 < abs(amount) < _LEAST:
        return f"{'-' if amount < 0 else ''}<{exact(_LEAST)}"
    return exact(_rounded(amount, finer))


def _rounded(amount: int, finer: int) -> int:
    """What `_text` says, in nano-USD, to ``finer`` more digits than `show` has."""
    whole = abs(amount)
    if not finer and 0 < whole < _LEAST:
        shown = _LEAST - 1
    else:
        unit = _CENT if whole >= _CENT else 10 ** max(len(str(whole)) - _DIGITS, 0)
        more = finer - 1 if whole < _LEAST else finer  # these have three digits after one step
        unit = max(unit // 10 ** max(more, 0), 1)
        shown = (whole + unit // 2) // unit * unit
    return -shown if amount < 0 else shown


def _decimal(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError(f"{value!r} is not an amount of USD; write a number, such as 0.05")
    try:
        # float's own repr: that of a subclass may say more than the number (numpy's does).
        number = Decimal(float.__repr__(value) if isinstance(value, float) else value)
    except DecimalException:
        raise ValueError(
            f"{value!r} is not an amount of USD; write a number, such as 0.05"
        ) from None
    if not number.is_finite():
        raise ValueError(f"{_shown(value)} is not a finite amount of USD")
    if number < 0:
        raise ValueError(f"{_shown(value)} is negative; an amount of USD is 0 or more")
    if number > MOST_USD:
        raise ValueError(f"{_shown(value)} is more than ${MOST_USD:,}")
    return number


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Decimal) else repr(value)
