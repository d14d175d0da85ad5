"""What a request may cost: one price, or several where the router is free to choose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_NANO
from pytest_hfbudget.pricing.price import FREE, MICROSECONDS, Price, Usage
from pytest_hfbudget.pricing.request import CallRequest
from pytest_hfbudget.values import assumed_rates


@dataclass(frozen=True)
class UnpricedPolicy:
    """The policy behind ``--hf-unpriced``: no price means refuse."""

    price: Price | None = None
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> UnpricedPolicy:
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


@dataclass(frozen=True)
class Quote:
    """Prices with the place each was found; the dearest one counts, at every use."""

    options: tuple[tuple[Price, str], ...]

    @classmethod
    def of(cls, price: Price, source: str) -> Quote:
        """A quote of one known price."""
        return cls(((price, source),))

    @classmethod
    def any_of(cls, quotes: Iterable[Quote]) -> Quote | None:
        """A quote that holds whichever of several will apply; None where there is none."""
        options = tuple(option for quote in quotes for option in quote.options)
        return cls(options) if options else None

    @cached_property
    def free(self) -> bool:
        """Whether this costs nothing whichever price applies."""
        return all(price.free for price, _ in self.options)

    @cached_property
    def certain(self) -> bool:
        """Whether all who may answer have the same price."""
        return len({price for price, _ in self.options}) == 1

    @cached_property
    def by_token(self) -> bool:
        """Whether tokens count in any of these prices."""
        return any(price.input is not None or price.output is not None for price, _ in self.options)

    @cached_property
    def by_second(self) -> bool:
        """Whether time counts in any of these prices."""
        return any(price.second for price, _ in self.options)

    def longest(self, request: CallRequest) -> int:
        """The microseconds that are held for a call whose time costs something."""
        return max(request.longest(price) for price, _ in self.options)

    def cost(self, usage: Usage) -> tuple[int, str]:
        """Nano-USD at the dearest price for just this usage, and where that price is from."""
        if len(self.options) == 1:
            price, source = self.options[0]
            return price.cost(usage), source
        return max([(price.cost(usage), source) for price, source in self.options])

    def most(self, request: CallRequest, output: int) -> int:
        """Nano-USD that a request can cost when each answer has at most ``output`` tokens.

        Raises:
            UnboundedCallError: a price has no unit that bounds this task.
        """
        if len(self.options) == 1:
            price, _ = self.options[0]
            return price.cost(request.most_usage(price, output))
        return max([price.cost(request.most_usage(price, output)) for price, _ in self.options])

    def most_within(self, request: CallRequest, context: int) -> int:
        """Nano-USD of a call whose prompt and each answer share ``context`` tokens.

        A longer prompt leaves less for the answers, so the dearest is one of the two extremes.

        Raises:
            UnboundedCallError: as `most`.
        """
        prompt = min(request.input_bound, context)
        return max(
            self.most(request._replace(input_bound=size), context - size) for size in (0, prompt)
        )

    def affordable_output(self, request: CallRequest, amount: int) -> int | None:
        """The output tokens per answer that ``amount`` nano-USD pays for; None: any number."""
        limits = [_affordable(price, request, amount) for price, _ in self.options]
        return min((limit for limit in limits if limit is not None), default=None)


def _affordable(price: Price, request: CallRequest, amount: int) -> int | None:
    if price.free:
        return None
    time = -(-request.longest(price) * (price.second or 0) // MICROSECONDS)
    fixed = request.input_bound * price.dearest_input + (price.call or 0) + time
    left = amount * ATTO_PER_NANO - fixed
    if left < 0:
        return 0  # not even the question is paid for
    each = (price.output or 0) * request.n
    return left // each if each else None
