"""One paid request as far as its price goes, and the most that it can use."""

from __future__ import annotations

import math
from typing import NamedTuple

from pytest_hfbudget.pricing.price import MICROSECONDS, Price, Usage

# Router suffixes that choose by a policy instead of naming a provider (hub-docs,
# "Inference Providers": provider selection).
POLICIES = frozenset({"fastest", "cheapest", "preferred"})

# How long a call by the second is taken to last, where neither its client nor its price says.
CALL_SECONDS = 300

# Their answers are vectors, scores or labels, of one size whatever is asked: input is what counts.
READS = frozenset({"feature-extraction", "sentence-similarity", "text-classification"})


class UnboundedCallError(ValueError):
    """The price is of a kind that says nothing about this task, so the call has no bound."""


class CallRequest(NamedTuple):
    """What is about to be sent.

    Attributes:
        model: the Hub id without a provider suffix, or the URL of a server.
        provider: None when the router chooses.
        input_bound: the most input tokens that the payload can make.
        max_output: the caller's own limit on output tokens, None where it set none.
        n: how many answers were asked for.
        timeout: seconds after which the client gives up; None where it waits for ever.
        unreadable: what is wrong with a limit or a number of answers that can't be read.
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

    @property
    def generates(self) -> bool:
        """Whether the answer is made of tokens that cost by the piece."""
        return self.task in ("conversational", "text-generation")

    @property
    def draws(self) -> bool:
        """Whether the answer is made of images."""
        return self.task.endswith("to-image")

    @property
    def is_url(self) -> bool:
        """Whether a server is addressed directly instead of through the router."""
        return self.model.startswith(("http://", "https://"))

    def longest(self, price: Price) -> int:
        """The microseconds that this call is held for, where seconds are what it costs.

        A time-out says nothing about a stream: it is the longest silence, not the longest call.
        """
        if not price.second:
            return 0
        timeout = None if self.stream else self.timeout
        given = None if timeout is None else math.ceil(timeout * MICROSECONDS)
        said = [limit for limit in (given, price.longest) if limit is not None]
        return min(said, default=CALL_SECONDS * MICROSECONDS)

    def most_usage(self, price: Price, output: int) -> Usage:
        """The most that this call can use when each answer has at most ``output`` tokens.

        Raises:
            UnboundedCallError: the price has no unit that bounds this task.
        """
        if not self._bounded_by(price):
            raise UnboundedCallError(f"the price of {self.model} does not bound a {self.task} call")
        written = output * self.n if self.generates else 0
        drawn = self.n if self.draws else 0
        return Usage(self.input_bound, written, 0, drawn, self.longest(price), True)

    def _bounded_by(self, price: Price) -> bool:
        """Whether a price covers all that this task is billed for; a gap in it is no $0."""
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
