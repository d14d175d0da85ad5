"""The arguments that a marker and a block share, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.ledger.scope import Scope
from pytest_hfbudget.metering.thresholds import Threshold
from pytest_hfbudget.money import parse_rate, parse_usd
from pytest_hfbudget.pricing.quote import Quote

ON_EXCEED = ("fail", "raise")
SCOPES = ("test", "class", "module", "package", "session")


@dataclass(frozen=True)
class Fallback:
    """The model that calls are sent with from a part of a budget on."""

    at: Fraction
    model: str


@dataclass(frozen=True)
class BudgetArgs:
    """The arguments of a marker or a block, checked; money in nano-USD."""

    cap: int | None
    name: str | None
    max_calls: int | None
    explicit: Quote | None
    on_exceed: str | None
    scope: str
    warn_at: Fraction | None = None
    fallback: Fallback | None = None


def budget_args(
    max_usd: object = None,
    *,
    name: str | None = None,
    warn_at: object = None,
    max_calls: int | None = None,
    price: Mapping[str, Any] | None = None,
    price_per_1k_tokens: Mapping[str, Any] | None = None,
    fallback: Mapping[str, Any] | None = None,
    on_exceed: str | None = None,
    scope: str = "test",
) -> BudgetArgs:
    """Check the arguments that marker and block share.

    Raises:
        ConfigError: one line that names the argument.
        TypeError: an argument that does not exist.
    """
    if on_exceed not in (None, *ON_EXCEED):
        raise ConfigError(f"budget(on_exceed={on_exceed!r}): write one of {', '.join(ON_EXCEED)}")
    if scope not in SCOPES:
        raise ConfigError(f"budget(scope={scope!r}): write one of {', '.join(SCOPES)}")
    if max_calls is not None and (isinstance(max_calls, bool) or not _whole(max_calls)):
        raise ConfigError(f"budget(max_calls={max_calls!r}): write a whole number, 0 or more")
    return BudgetArgs(
        cap=_cap(max_usd),
        name=name,
        max_calls=max_calls,
        explicit=_explicit(price, price_per_1k_tokens),
        on_exceed=on_exceed,
        scope=scope,
        warn_at=None if warn_at is None else _part(warn_at, f"warn_at={warn_at!r}"),
        fallback=None if fallback is None else _fallback(fallback),
    )


def thresholds(
    scope: Scope, warn_at: Fraction | None, fallback: Fallback | None
) -> tuple[Threshold, ...]:
    """What is to happen when parts of a budget are used up.

    Raises:
        ConfigError: the budget has no limit that it could be a part of.
    """
    if warn_at is None and fallback is None:
        return ()
    if scope.cap is None and scope.max_calls is None:
        argument = "fallback" if warn_at is None else "warn_at"
        raise ConfigError(f"budget({argument}=…) is a part of a limit: give max_usd or max_calls")
    warning = () if warn_at is None else (Threshold(scope, warn_at),)
    cheaper = () if fallback is None else (Threshold(scope, fallback.at, fallback.model),)
    return (*warning, *cheaper)


def _whole(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _part(value: object, argument: str) -> Fraction:
    """A part of a limit, exactly as it was written: 0.8 is 4/5."""
    number = isinstance(value, (int, float, Decimal, Fraction)) and not isinstance(value, bool)
    try:
        part = Fraction(str(value)) if number else Fraction(-1)
    except ValueError:  # NaN, infinite
        part = Fraction(-1)
    if not 0 <= part <= 1:
        raise ConfigError(f"budget({argument}): write a part of the limit from 0 to 1, such as 0.8")
    return part


def _fallback(given: object) -> Fallback:
    if not isinstance(given, Mapping) or set(given) != {"at_pct", "model"}:
        raise ConfigError('budget(fallback=…): write {"at_pct": 0.8, "model": "org/model"}')
    model = given["model"]
    if not isinstance(model, str) or not model or "://" in model:
        raise ConfigError(f'budget(fallback={{"model": {model!r}}}): write the Hub id of a model')
    at = given["at_pct"]
    return Fallback(_part(at, f'fallback={{"at_pct": {at!r}}}'), model)


def _cap(max_usd: object) -> int | None:
    if max_usd is None:
        return None
    try:
        return parse_usd(max_usd)
    except ValueError as error:
        raise ConfigError(f"budget(max_usd={max_usd!r}): {error}") from None


def _explicit(price: object, per_1k: object) -> Quote | None:
    from pytest_hfbudget.pricing.table import parse_price

    if price is not None and per_1k is not None:
        raise ConfigError("budget(): give either price or price_per_1k_tokens, not both")
    if price is not None:
        return Quote.of(parse_price(price, "budget(price=…)"), "budget(price=…)")
    return None if per_1k is None else _per_1k(per_1k)


def _per_1k(rates: object) -> Quote:
    from pytest_hfbudget.pricing.price import Price

    where = "budget(price_per_1k_tokens=…)"
    if not isinstance(rates, Mapping) or set(rates) != {"input", "output"}:
        raise ConfigError(f'{where}: write {{"input": 0.001, "output": 0.001}}')
    try:
        rate_in, rate_out = (parse_rate(rates[key], units=1000) for key in ("input", "output"))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Quote.of(Price(input=rate_in, output=rate_out), where)
