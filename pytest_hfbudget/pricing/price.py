"""A price, a usage, and their product in nano-USD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pytest_hfbudget.money import nano, rate_text

MICROSECONDS = 10**6


class Usage(NamedTuple):
    """What a call consumed.

    ``input_tokens`` includes the cached ones and ``output_tokens`` the reasoning ones, as in
    OpenAI-style ``usage``. ``estimated`` says that no usage came back and these are upper bounds.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    images: int = 0
    microseconds: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class Price:
    """What one unit costs, in atto-USD; None where that kind of unit has no price.

    ``longest`` is not a price: the most microseconds that a call by the second takes, where the
    price table gives them.
    """

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    call: int | None = None
    image: int | None = None
    second: int | None = None
    free: bool = False
    longest: int | None = None

    @property
    def by_token(self) -> bool:
        """Whether tokens are what is billed."""
        return self.input is not None or self.output is not None

    @property
    def highest_input(self) -> int:
        """The most that an input token costs; a table may make cached ones more expensive."""
        return max(self.input or 0, self.cached or 0)

    @property
    def known(self) -> bool:
        """Whether any unit has a price; a row without one is not a price of $0."""
        return self.free or any(
            unit is not None
            for unit in (self.input, self.output, self.call, self.image, self.second)
        )

    def as_row(self) -> dict[str, str | bool]:
        """Its row in a price table: tokens in USD per 1M, everything else in USD each."""
        if self.free:
            return {"free": True}
        rates = {
            **{key: (getattr(self, key), 10**6) for key in ("input", "output", "cached")},
            **{key: (getattr(self, key), 1) for key in ("call", "image", "second")},
        }
        return {
            key: rate_text(rate, units=units)
            for key, (rate, units) in rates.items()
            if rate is not None
        }

    def cost(self, usage: Usage) -> int:
        """Nano-USD of a call; the sum is rounded up once.

        Cached input is billed as input where it has no price of its own: the router's catalogue
        has none, so that is its upper bound. In an estimate, all input may have been cached.
        """
        if self.free:
            return 0
        cached = usage.cached_tokens if self.cached is not None else 0
        if usage.estimated and self.cached == self.highest_input:
            cached = usage.input_tokens
        atto = (
            (usage.input_tokens - cached) * (self.input or 0)
            + cached * (self.cached or 0)
            + usage.output_tokens * (self.output or 0)
            + usage.images * (self.image or 0)
            + (self.call or 0)
            + -(-usage.microseconds * (self.second or 0) // MICROSECONDS)
        )
        return nano(atto)


FREE = Price(free=True)
