"""Exact money: amounts are whole nano-USD, rates are whole atto-USD per unit.

Hugging Face settles inference in integer nano-USD (hub-docs, "Register as an Inference
Provider"), so a ledger in the same unit has nothing to round. Rates are finer: $0.0375 per
1M tokens is 37.5 nano-USD per token, which is a whole number of atto-USD.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, DecimalException

NANO_PER_USD = 10**9
ATTO_PER_NANO = 10**9
ATTO_PER_USD = NANO_PER_USD * ATTO_PER_NANO

# Far above any bill, far below what would make an int of nano-USD unwieldy.
MOST_USD = Decimal(10**12)

# Contexts of our own, so that no user's decimal.getcontext() can change what a cap means. They are
# wide enough for every sane amount; what is finer is rounded the way that the result goes anyway.
_DOWN = Context(prec=60, rounding=ROUND_FLOOR)
_UP = Context(prec=60, rounding=ROUND_CEILING)


def parse_usd(value: object) -> int:
    """An amount of USD, as a person writes it, in nano-USD; what is finer is cut off.

    A float is read by its shortest repr, so ``0.1`` is ten cents to the nano-dollar.

    Raises:
        ValueError: not a number, NaN, infinite, negative or absurdly large.
    """
    exact = _DOWN.multiply(_decimal(value), Decimal(NANO_PER_USD))
    return int(exact.to_integral_value(context=_DOWN))


def parse_rate(value: object, *, units: int = 1) -> int:
    """A price in USD per ``units`` units, in atto-USD per single unit, rounded up.

    Raises:
        ValueError: as `parse_usd`; also for a negative zero, which some arithmetic has left behind.
    """
    number = _decimal(value)
    if number.is_signed():
        raise ValueError(f"{_shown(value)} is negative; a price is 0 or more")
    exact = _UP.divide(_UP.multiply(number, Decimal(ATTO_PER_USD)), Decimal(units))
    return int(exact.to_integral_value(context=_UP))


def nano(atto: int) -> int:
    """Atto-USD as nano-USD, rounded up: the way Hugging Face rounds a request's cost."""
    return -(-atto // ATTO_PER_NANO)


def rate_text(atto: int, *, units: int = 1) -> str:
    """Atto-USD per single unit as USD per ``units`` units: the inverse of `parse_rate`."""
    whole, rest = divmod(atto * units, ATTO_PER_USD)
    return f"{whole}.{rest:018}".rstrip("0").rstrip(".")


def to_usd(amount: int) -> Decimal:
    """Nano-USD as an exact number of USD."""
    return Decimal(usd_text(amount))


def usd_text(amount: int) -> str:
    """Nano-USD as a plain decimal string of USD, without an exponent: ``0.000052``."""
    whole, rest = divmod(abs(amount), NANO_PER_USD)
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{rest:09}".rstrip("0").rstrip(".")


def show(amount: int) -> str:
    """Nano-USD for people: ``$0.10``, ``$0.000052``; never rounded, at least two decimals."""
    sign, text = ("-" if amount < 0 else ""), usd_text(abs(amount))
    whole, _, decimals = text.partition(".")
    return f"{sign}${whole}.{decimals.ljust(2, '0')}"


def brief(amount: int) -> str:
    """Nano-USD at a glance: cents from $1 on, three digits that count below it."""
    sign, amount = ("-" if amount < 0 else ""), abs(amount)
    if amount < NANO_PER_USD:
        coarse = 10 ** max(len(str(amount)) - 3, 0)
        amount = (amount + coarse // 2) // coarse * coarse
    if amount < NANO_PER_USD:
        return f"{sign}{show(amount)}"
    cent = NANO_PER_USD // 100
    cents = (amount + cent // 2) // cent
    return f"{sign}${cents // 100:,}.{cents % 100:02}"


def _decimal(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError(f"{value!r} is not an amount of USD")
    try:
        # float's own repr: that of a subclass may say more than the number (numpy's does).
        number = Decimal(float.__repr__(value) if isinstance(value, float) else value)
    except DecimalException:
        raise ValueError(f"{value!r} is not an amount of USD") from None
    if not number.is_finite():
        raise ValueError(f"{_shown(value)} is not a finite amount of USD")
    if number < 0:
        raise ValueError(f"{_shown(value)} is negative; an amount of USD is 0 or more")
    if number > MOST_USD:
        raise ValueError(f"{_shown(value)} is more than ${MOST_USD:,}")
    return number


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Decimal) else repr(value)
