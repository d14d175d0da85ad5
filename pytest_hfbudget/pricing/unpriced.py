"""What is done with a call that nobody has a price for."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.pricing.price import FREE, Price
from pytest_hfbudget.values import assumed_rates


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
        source = f"--hf-unpriced={text}"
        try:
            rates = assumed_rates(text)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
        if rates is not None:
            return cls(Price(input=rates[0], output=rates[1]), source)
        return cls(FREE, source) if text == "free" else cls()
