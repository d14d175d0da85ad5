"""Parsers of settings; each raises `ValueError` with what to write instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pytest_hfbudget.money import parse_rate

if TYPE_CHECKING:
    from fractions import Fraction

N = TypeVar("N", int, float)

_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_LATEST_S = 3600


def assumed_rates(policy: str) -> tuple[int, int] | None:
    """The atto-USD per token of ``assume:IN/OUT``; None for ``refuse`` and ``free``.

    Raises:
        ValueError: the policy is invalid.
    """
    if policy in ("refuse", "free"):
        return None
    kind, _, rates = policy.partition(":")
    parts = rates.split("/")
    if kind != "assume" or len(parts) != 2:  # noqa: PLR2004 - input and output
        raise ValueError(
            "write refuse, free, or assume:IN/OUT (USD per 1M tokens, for example assume:1/4)"
        )
    rate_in, rate_out = (parse_rate(part, units=10**6) for part in parts)
    return rate_in, rate_out


def names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names, separated by spaces or commas, each once."""
    names = value.replace(",", " ").split() if isinstance(value, str) else value
    return tuple(dict.fromkeys(names))


def url(value: str) -> str:
    """A base URL without its last slash."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("write a URL that starts with http:// or https://")
    return value.rstrip("/")


def emulator(value: str) -> str | None:
    """The URL of an emulator, ``start`` to start one for the run, None for no rehearsal."""
    word = value.strip().lower()
    if word == "start" or word in _SWITCH:
        return "start" if _SWITCH.get(word, True) else None
    if not word.startswith(("http://", "https://")):
        raise ValueError("write 1, the URL of an emulator, or 0 for none")
    return url(value.strip())


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    """One of these words."""

    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return value

    return parse


def switch(value: str) -> bool:
    """True for 1, true or yes; False for 0, false or no."""
    word = value.strip().lower()
    if word not in _SWITCH:
        raise ValueError("write 1 or 0")
    return _SWITCH[word]


def share(value: str) -> Fraction:
    """A percentage, as a fraction."""
    number = value.removesuffix("%").strip()
    # With its sign only: 0.2 would be a fifth to some and a fifth of a percent to others.
    if number == value.strip() or not number.replace(".", "", 1).isdecimal():
        raise ValueError("write a percentage of 0 or more, such as 20%")
    from fractions import Fraction  # takes a millisecond, and few runs have such a limit

    return Fraction(number) / 100


def policy(value: str) -> str:
    """A policy for unpriced calls, unchanged."""
    assumed_rates(value)
    return value


def later(value: str) -> tuple[float, ...]:
    """Seconds after an event, separated by spaces or commas, sorted; empty for 0."""
    try:
        moments = sorted(float(each) for each in value.replace(",", " ").split())
    except ValueError:
        moments = []
    if not moments or not all(0 <= each <= _LATEST_S for each in moments):
        raise ValueError(f"write seconds up to {_LATEST_S}, such as 30 120, or 0 for never")
    return tuple(each for each in moments if each)


def seconds_or_none(value: str) -> float:
    """Seconds, or 0 for not at all."""
    return _number(
        value, float, lambda s: 0 <= s < math.inf, "write a number of seconds, 0 or more"
    )


def seconds(value: str) -> float:
    """Seconds, more than 0."""
    return _number(value, float, lambda s: 0 < s < math.inf, "write a number of seconds above 0")


def seconds_of_minutes(value: str) -> float:
    """A number of minutes, in seconds."""
    advice = "write a number of minutes above 0"
    return _number(value, float, lambda m: 0 < m < math.inf, advice) * 60


def minutes(value: str) -> int:
    """Whole minutes, at least one."""
    return _number(value, int, lambda m: m >= 1, "write a whole number of minutes, 1 or more")


def days(value: str) -> int:
    """Whole days, 0 for none."""
    return _number(value, int, lambda d: d >= 0, "write a whole number of days, or 0 for no log")


def _number(text: str, kind: Callable[[str], N], allowed: Callable[[N], bool], advice: str) -> N:
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(advice) from None
    if not allowed(number):
        raise ValueError(advice)
    return number
