"""A price, what was used, and the one multiplication that turns both into nano-USD."""

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

    ``longest`` is no price: the microseconds that a call by the second takes at most, where whoever
    wrote the price says so.
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
    def dearest_input(self) -> int:
        """What an input token costs at most: a table may make cached ones the dearer ones."""
        return max(self.input or 0, self.cached or 0)

    @property
    def known(self) -> bool:
        """Whether this says anything at all: a row without a price is no price of $0."""
        return self.free or any(
            unit is not None
            for unit in (self.input, self.output, self.call, self.image, self.second)
        )

    def as_row(self) -> dict[str, str | bool]:
        """As it would stand in a price table: USD per 1M tokens, everything else in USD each."""
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
        """Nano-USD of a call, rounded up once for the whole of it.

        Cached input is billed as input where it has no price of its own: the router's catalogue
        names none, so that is its upper bound. Where nobody has counted, all of it may be cached.
        """
        if self.free:
            return 0
        cached = usage.cached_tokens if self.cached is not None else 0
        if usage.estimated and self.cached == self.dearest_input:
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
