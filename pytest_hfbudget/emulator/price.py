"""What one call costs: exact fractions of a dollar, rounded up to a nano-dollar once per call.

Hugging Face passes the provider's list price on without a markup, in USD per one million tokens,
and rounds what a provider reports up to whole nano-dollars (hub-docs inference-providers/pricing.md
and register-as-a-provider.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

NANO = 10**9
_MILLION = 10**6


@dataclass(frozen=True)
class Price:
    """USD per one million tokens in and out, per image, per second of compute, and per call.

    Cached input costs what other input costs where `cached` is None.
    """

    input: Fraction = Fraction(0)
    output: Fraction = Fraction(0)
    image: Fraction = Fraction(0)
    second: Fraction = Fraction(0)
    call: Fraction = Fraction(0)
    cached: Fraction | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Price:
        """From JSON, where numbers are taken as the decimals that they print as.

        Raises ValueError for an unknown kind of price, an empty one, or a negative number.
        """
        unknown = set(raw) - set(cls.__dataclass_fields__)
        if unknown or not raw:
            raise ValueError(
                f"a price has some of {', '.join(cls.__dataclass_fields__)}; not {raw}"
            )
        parsed = {kind: Fraction(str(value)) for kind, value in raw.items()}
        if min(parsed.values()) < 0:
            raise ValueError(f"a price is not negative: {raw}")
        return cls(**parsed)


@dataclass(frozen=True)
class Consumed:
    """What one call used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    seconds: Fraction = Fraction(0)
    cached_tokens: int = 0  # of the prompt


def nano_usd(price: Price, used: Consumed) -> int:
    """The bill of one call, in nano-USD."""
    cached = price.input if price.cached is None else price.cached
    dollars = (
        price.input * (used.prompt_tokens - used.cached_tokens) / _MILLION
        + cached * used.cached_tokens / _MILLION
        + price.output * used.completion_tokens / _MILLION
        + price.image * used.images
        + price.second * used.seconds
        + price.call
    )
    return math.ceil(dollars * NANO)
