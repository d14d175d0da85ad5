"""What is done with a call that nobody has a price for."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.pricing.price import FREE, Price

TOKENS_PER_UNIT = 10**6  # token prices are quoted per 1M tokens


@dataclass(frozen=True)
class Unpriced:
    """The policy behind ``--hf-unpriced``: no price means refuse."""

    price: Price | None = None
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> Unpriced:
        """``refuse``, ``free``, or ``assume:IN/OUT`` in USD per 1M tokens.

        Raises:
            ConfigError: anything else.
        """
        if text == "refuse":
            return cls()
        if text == "free":
            return cls(FREE, "--hf-unpriced=free")
        kind, _, rates = text.partition(":")
        parts = rates.split("/")
        if kind == "assume" and len(parts) == 2:  # noqa: PLR2004 - input and output
            try:
                rate_in, rate_out = (parse_rate(part, units=TOKENS_PER_UNIT) for part in parts)
            except ValueError as error:
                raise ConfigError(f"--hf-unpriced={text}: {error}") from None
            return cls(Price(input=rate_in, output=rate_out), f"--hf-unpriced={text}")
        raise ConfigError(
            f"--hf-unpriced={text}: write refuse, free, or assume:IN/OUT "
            "(USD per 1M tokens, for example assume:1/4)"
        )
