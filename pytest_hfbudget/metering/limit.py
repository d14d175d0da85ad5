"""The limit on output tokens that a call gets from a cap, because its caller set none.

No server may refuse a call for a limit that the plugin has set. How many tokens a prompt has is not
known before, so a limit that is refused is made smaller, and one that goes by another name is sent
under that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pytest_hfbudget.pricing import CallRequest, Catalogue, Quote

# Tokens of prompt and answer that any model in use can take, where nobody says how many it can.
UNKNOWN_CONTEXT = 8192
# A prompt that leaves room for less than this fills the context by itself.
SMALLEST = 16
NAMES = ("max_tokens", "max_completion_tokens")
# How servers say that a limit is too high for them, as opposed to unknown.
TOO_HIGH = ("context", "too large", "too long", "exceed", "must be <=", "less than or equal")


class Limit(NamedTuple):
    """``tokens`` of output for each answer; ``by_cap`` if it is a cap that pays for no more."""

    tokens: int
    by_cap: bool


class Manner(NamedTuple):
    """How a call is sent, as far as a server may ask for another way.

    Attributes:
        ask_usage: whether a stream is asked for its usage.
        limit_name: what chat servers call the limit; None where this one knows no limit.
        at_most: a limit that this server was found to accept, where one was found too high.
    """

    ask_usage: bool = True
    limit_name: str | None = NAMES[0]
    at_most: int | None = None

    def after(self, refused: str, limit: int) -> Manner | None:
        """The manner to try when a server refused ``limit`` in these words; None: no other."""
        words = refused.lower()
        if any(sign in words for sign in TOO_HIGH):
            smaller = limit // 4
            return self._replace(at_most=smaller) if smaller >= SMALLEST else None
        if not any(name in words for name in (*NAMES, "max_new_tokens")):
            return None
        other = self.limit_name == NAMES[0] and "max_new_tokens" not in words
        return self._replace(limit_name=NAMES[1] if other else None)


AS_USUAL = Manner()


def most(request: CallRequest, quote: Quote, contexts: Catalogue) -> int:
    """Nano-USD that a call without a limit of its own can cost, whatever the model writes."""
    longest = contexts.contexts(request.model, request.provider).longest
    if longest:
        return quote.most_within(request, longest)
    return quote.most(request, ceiling(request, contexts))


def of_cap(
    request: CallRequest, quote: Quote, held: int, contexts: Catalogue, manner: Manner
) -> Limit | None:
    """The limit with which a call costs no more than ``held``; None where it needs none."""
    if request.max_output is not None or not request.generates or quote.free:
        return None
    longest = contexts.contexts(request.model, request.provider).longest
    if longest and held >= most(request, quote, contexts):
        return None
    paid = quote.affordable_output(request, held)
    if paid is None:
        return None
    highest = ceiling(request, contexts)
    if manner.at_most is not None:
        highest = min(highest, manner.at_most)
    return Limit(min(paid, highest), by_cap=paid < highest)


def ceiling(request: CallRequest, contexts: Catalogue) -> int:
    """The highest limit with which prompt and answer should still fit into the context.

    The bound on the prompt counts a token for each byte; two bytes are closer, and safe for most.
    """
    shortest = contexts.contexts(request.model, request.provider).shortest or UNKNOWN_CONTEXT
    return max(shortest - request.input_bound // 2, shortest // 8)


def put(payload: dict[str, Any], limit: int, manner: Manner) -> None:
    """Write a limit into a payload, where and as its server looks for it."""
    if "inputs" in payload:
        payload["parameters"] = {**(payload.get("parameters") or {}), "max_new_tokens": limit}
        return
    for name in NAMES:  # one of 0 or less, which servers read as no limit
        payload.pop(name, None)
    payload[manner.limit_name or NAMES[0]] = limit
