"""What a call costs, and where its price comes from.

This module has the records: a price, a usage, a request, and the quote that a request gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_NANO, rate_text
from pytest_hfbudget.values import assumed_rates

MICROSECONDS = 10**6


class Usage(NamedTuple):
    """What a call consumed.

    ``input_tokens`` includes the cached ones and ``output_tokens`` the reasoning ones, as in
    OpenAI-style ``usage``. ``estimated`` says that no usage came back and these are upper bounds.
    ``told`` is the cost of the call in nano-USD by the provider's own answer, or None.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    images: int = 0
    microseconds: int = 0
    estimated: bool = False
    reported_cost: int | None = None


@dataclass(frozen=True)
class Price:
    """What one unit costs, in atto-USD; None for a kind of unit without a price.

    ``longest`` is not a price. It is the most microseconds that a call billed by the second takes;
    None if the price table does not say.
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
        """Whether tokens are billed."""
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

        Cached input is billed as input if it has no price of its own: the router's catalogue
        has none, so that is its upper bound. In an estimate, all input may have been cached.
        """
        if self.free:
            return 0
        read, written, cached, images, microseconds, estimated, _ = usage
        if self.cached is None:
            cached = 0
        elif estimated and self.cached >= (self.input or 0):
            cached = read
        atto = (
            (read - cached) * (self.input or 0)
            + cached * (self.cached or 0)
            + written * (self.output or 0)
            + images * (self.image or 0)
            + (self.call or 0)
            + -(-microseconds * (self.second or 0) // MICROSECONDS)
        )
        return -(-atto // ATTO_PER_NANO)


FREE = Price(free=True)

# Router suffixes that choose by a policy instead of naming a provider (hub-docs,
# "Inference Providers": provider selection).
POLICIES = frozenset({"fastest", "cheapest", "preferred"})

# The seconds that are held for a call which is billed by the second, if neither its client nor its
# price has a limit.
CALL_SECONDS = 300

# Tasks whose answers consist of billed tokens, or of images.
GENERATE = frozenset({"conversational", "text-generation"})
DRAW = "to-image"  # how the names of the latter end

# Tasks whose answers are vectors, scores or labels: of a fixed size, so only input is billed.
READS = frozenset({"feature-extraction", "sentence-similarity", "text-classification"})


class UnboundedCallError(ValueError):
    """The price has no unit that this task is billed by, so the call has no bound."""


# What bounds input that no server has counted. An image in it counts by the settings or its size.
BYTES, STATED = "bytes", "bytes, and hf_image_tokens for each image"
SIZED = "bytes, and the most that its model makes of an image of its size"
UNLEARNED = frozenset({BYTES, STATED, SIZED})


class Prompt(NamedTuple):
    """What identifies a prompt, without its text.

    Attributes:
        exact: the hash of all that its number of tokens depends on.
        shape: the hash of the same without the texts; empty for a prompt that was counted before.
        tokens: how many tokens the model's tokenizer makes of the texts; None without a tokenizer.
        size: the bytes of the texts.
    """

    exact: str
    shape: str = ""
    tokens: int | None = None
    size: int = 0


class CallRequest(NamedTuple):
    """What is about to be sent.

    Attributes:
        model: the Hub id without a provider suffix, or the URL of a server.
        provider: None when the router chooses.
        input_bound: the most input tokens that the payload can make.
        max_output: the caller's own limit on output tokens; None if it set none.
        n: how many answers were asked for.
        timeout: seconds after which the client gives up; None if it has no time-out.
        unreadable: why no bound can be known; in a second line what to do. Empty if one is known.
        basis: what ``input_bound`` rests on, in a word or two.
        inputs: (name, bound, basis) of providers with a smaller bound, if the router may choose.
        prompt: identifies the prompt; None if no count of it would be reused.
    """

    task: str
    model: str
    provider: str | None = None
    url: str = ""
    input_bound: int = 0
    max_output: int | None = None
    n: int = 1
    stream: bool = False
    timeout: float | None = None
    unreadable: str = ""
    basis: str = BYTES
    inputs: tuple[tuple[str, int, str], ...] = ()
    prompt: Prompt | None = None

    def for_provider(self, provider: str | None) -> CallRequest:
        """The request with the input bound of one provider."""
        for name, bound, basis in self.inputs:
            if name == provider:
                return self._replace(input_bound=bound, basis=basis, inputs=())
        return self._replace(inputs=()) if self.inputs else self

    @property
    def generates(self) -> bool:
        """Whether the answer consists of billed tokens."""
        return self.task in GENERATE

    @property
    def draws(self) -> bool:
        """Whether the answer consists of images."""
        return self.task.endswith(DRAW)

    @property
    def is_url(self) -> bool:
        """Whether a server is addressed directly instead of through the router."""
        return self.model.startswith(("http://", "https://"))

    def longest(self, price: Price) -> int:
        """The microseconds that this call is held for, if its price is by the second, else 0.

        The time-out of a stream does not count: it limits each pause, not the whole call.
        """
        if not price.second:
            return 0
        timeout = None if self.stream else self.timeout
        given = None if timeout is None else math.ceil(timeout * MICROSECONDS)
        limits = [limit for limit in (given, price.longest) if limit is not None]
        return min(limits, default=CALL_SECONDS * MICROSECONDS)

    def most_usage(self, price: Price, output: int) -> Usage:
        """The most that this call can use when each answer has at most ``output`` tokens.

        Raises:
            UnboundedCallError: the price has no unit that bounds this task.
        """
        generates, draws = self.task in GENERATE, self.task.endswith(DRAW)
        by_token = generates and price.input is not None and price.output is not None
        if not by_token and not self._bounded_by(price):
            raise UnboundedCallError(f"the price of {self.model} does not bound a {self.task} call")
        return Usage(
            self.input_bound,
            output * self.n if generates else 0,
            0,
            self.n if draws else 0,
            self.longest(price) if price.second else 0,
            True,
        )

    def _bounded_by(self, price: Price) -> bool:
        """Whether a price has every unit that this task is billed by; a missing one is not $0."""
        if price.free or price.call is not None or price.second:
            return True
        if self.generates:
            return price.input is not None and price.output is not None
        if self.draws:
            return price.image is not None
        return self.task in READS and price.input is not None


def split_model(name: str) -> tuple[str, str | None]:
    """``org/model:provider`` as the Hub id and the provider that it pins, if it pins one."""
    if name.startswith(("http://", "https://")) or ":" not in name:
        return name, None
    model, _, suffix = name.rpartition(":")
    return model, None if suffix in POLICIES else suffix


@dataclass(frozen=True)
class UnpricedPolicy:
    """The policy of ``--hf-unpriced``; without a price it refuses the call."""

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


class QuotedOffer(NamedTuple):
    """The most that one request can cost at one provider.

    Attributes:
        provider: None if the price is not that of a certain provider.
        request: with the input bound of this provider.
    """

    nano_usd: int
    provider: str | None
    price: Price
    request: CallRequest


@dataclass(frozen=True)
class Quote:
    """The prices that may apply to a request, each with its source. The most expensive one counts.

    Attributes:
        providers: whose price each is; None for any other provider. Empty if that is not known.
    """

    options: tuple[tuple[Price, str], ...]
    providers: tuple[str | None, ...] = ()

    @classmethod
    def of(cls, price: Price, source: str) -> Quote:
        """A quote of one known price."""
        return cls(((price, source),))

    @cached_property
    def free(self) -> bool:
        """Whether all prices are free."""
        return all(price.free for price, _ in self.options)

    @cached_property
    def certain(self) -> bool:
        """Whether all these prices are the same."""
        return len({price for price, _ in self.options}) == 1

    @cached_property
    def by_token(self) -> bool:
        """Whether any of these prices is by the token."""
        return any(price.input is not None or price.output is not None for price, _ in self.options)

    @cached_property
    def by_second(self) -> bool:
        """Whether any of these prices is by the second."""
        return any(price.second for price, _ in self.options)

    def longest(self, request: CallRequest) -> int:
        """The microseconds that are held for a call that is billed by the second."""
        return max(request.longest(price) for price, _ in self.options)

    def cost(self, usage: Usage) -> tuple[int, str]:
        """Nano-USD of this usage at its most expensive price, and the source of that price."""
        if len(self.options) == 1:
            price, source = self.options[0]
            return price.cost(usage), source
        return max([(price.cost(usage), source) for price, source in self.options])

    def most(self, request: CallRequest, output: int) -> int:
        """Nano-USD that a request can cost when each answer has at most ``output`` tokens.

        Raises:
            UnboundedCallError: a price has no unit that bounds this task.
        """
        if len(self.options) == 1 and not request.inputs:
            price, _ = self.options[0]
            return price.cost(request.most_usage(price, output))
        return max([price.cost(one.most_usage(price, output)) for price, one in self.each(request)])

    def offers(self, request: CallRequest, output: int) -> list[QuotedOffer]:
        """The most that a request can cost at each provider; raises as `most`."""
        return [
            QuotedOffer(
                price.cost(one.most_usage(price, output)),
                self.providers[number] if self.providers else None,
                price,
                one,
            )
            for number, (price, one) in enumerate(self.each(request))
        ]

    def each(self, request: CallRequest) -> Iterator[tuple[Price, CallRequest]]:
        """Each price, with the request as its provider bounds it."""
        for number, (price, _) in enumerate(self.options):
            provider = self.providers[number] if self.providers else None
            yield price, request.for_provider(provider)

    def most_within(self, request: CallRequest, context: int) -> int:
        """Nano-USD of a call whose prompt and each answer share ``context`` tokens.

        A longer prompt leaves less for the answers, so one of the two extremes costs most.

        Raises:
            UnboundedCallError: as `most`.
        """
        return max(
            price.cost(one._replace(input_bound=size).most_usage(price, context - size))
            for price, one in self.each(request)
            for size in (0, min(one.input_bound, context))
        )

    def affordable_output(self, request: CallRequest, amount: int) -> int | None:
        """The output tokens per answer that ``amount`` nano-USD pays for; None for any number."""
        limits = [_affordable(price, one, amount) for price, one in self.each(request)]
        return min((limit for limit in limits if limit is not None), default=None)


def _affordable(price: Price, request: CallRequest, amount: int) -> int | None:
    if price.free:
        return None
    time = -(-request.longest(price) * (price.second or 0) // MICROSECONDS)
    fixed = request.input_bound * price.highest_input + (price.call or 0) + time
    left = amount * ATTO_PER_NANO - fixed
    if left < 0:
        return 0  # it does not even pay for the input
    each = (price.output or 0) * request.n
    return left // each if each else None
