"""What was counted of a prompt before, and the bounds on a prompt that follow from it.

- A prompt that begins with one that was counted: what is new in it is bounded by its bytes.
- A prompt of the same shape: what was counted there bounds its chat template.
- With the model's tokenizer, text is counted instead of bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pytest_hfbudget.metering.request import (
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    SHOWN,
    Parameters,
    allowance,
    allowances,
    input_bound,
    text_bytes,
)
from pytest_hfbudget.pricing import BYTES, CallRequest, Prompt
from pytest_hfbudget.pricing.book import PriceBook

# The keys of a message that says something and has nothing else.
PLAIN = frozenset({"role", "content"})

# What a request may say that changes no token of its prompt. Whatever else it says is hashed.
NEUTRAL = frozenset(
    {
        *("model", "stream", "stream_options", "seed", "stop", "user"),
        *("max_tokens", "max_completion_tokens", "max_new_tokens"),
        *("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty"),
        *("logprobs", "top_logprobs", "logit_bias", "details", "decoder_input_details"),
    }
)
# How a bound on a prompt came about.
COUNTED, BEGINNING, SHAPE, TOKENIZER = "counted", "its beginning counted", "its shape", "tokenizer"

# What a count gets on top of a quarter, until its provider has counted alike.
MARGIN = 16
# The keys of facts that are no hashes: a provider has counted alike; its counts of earlier runs are
# forgotten; it is believed no more; the model's tokenizer is believed no more.
ALIKE, FORGET, DOUBT, MISCOUNTED = "=", "-", "!", "~"
# Before the hash of a shape stands what is meant: the least that was counted, which bounds the
# template; the most that was counted beside what a tokenizer sees; the most bytes of text of which
# both were compared.
TEMPLATE, BESIDE, LONGEST = SHAPES = "t", "k", "l"

# Marks hashes and what is counted by them; to be raised with any change of either.
RULE = 1


class Fact(NamedTuple):
    """One thing that was learned of a provider.

    Attributes:
        provider: empty for what is true of a model at every provider.
        key: the hash of a request; that of a shape with its letter before it; or one of the signs
            above.
        tokens: 0 where it is no count.
    """

    model: str
    provider: str
    key: str
    tokens: int = 0


@dataclass
class Counts:
    """What one provider has counted of one model.

    Attributes:
        tokens: by the key of a `Fact`.
        seen: the keys that were counted, or confirmed, in this run.
        alike: whether it has counted a prompt alike twice in this run.
        doubted: whether it is believed no more.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    alike: bool = False
    doubted: bool = False

    def most(self, key: str) -> int | None:
        """The most tokens of what has this key; None where it is not known."""
        tokens = self.tokens.get(key)
        return tokens if tokens is None or self.alike else with_margin(tokens)


def notes(facts: Iterable[Fact]) -> Iterator[str]:
    """What a run has found out about how servers count, a sentence each."""
    for model, provider, key, _ in dict.fromkeys(facts):
        if key == MISCOUNTED:
            yield f"the tokenizer of {model} has counted fewer tokens than its server: not used"
        elif key == DOUBT:
            who = provider or "the server"
            yield f"{who} counts a prompt of {model} differently each time, so bytes bound it"


def with_margin(tokens: int) -> int:
    """The most that a provider counts of what it has counted once."""
    return tokens + tokens // 4 + MARGIN


class Part(NamedTuple):
    """One message of a chat, or the whole input of another task.

    Attributes:
        bytes: the most tokens of what it says, by its bytes.
        media: the part of that which stands for what it shows.
        texts: what it says, if that is nothing but text.
    """

    bytes: int
    media: int
    texts: tuple[str, ...] | None


class Measured(NamedTuple):
    """A prompt that was not counted before.

    Attributes:
        beginnings: the hash of each of its beginnings, with one message more each.
    """

    prompt: Prompt
    parts: tuple[Part, ...]
    beginnings: tuple[str, ...]


class Estimate(NamedTuple):
    """What `CallRequest` says of a prompt."""

    input_bound: int
    basis: str
    inputs: tuple[tuple[str, int, str], ...]
    prompt: Prompt


# Counts the tokens of a text.
Tokenizer = Callable[[str], int]


def by_bytes(request: CallRequest, parameters: Parameters, book: PriceBook) -> int:
    """The most input tokens of a payload by its bytes alone.

    Images and sounds make no more tokens than a server would take. Text is bounded by its own
    bytes, whatever the catalogue says of the context.
    """
    bound = input_bound(parameters.json, parameters.data)
    if bound < IMAGE_TOKENS:  # it shows none
        return bound
    longest = book.catalogue.contexts(request.model, request.provider).longest
    if longest is None or bound < longest:
        return bound
    return max(bound - allowances(parameters.json), min(longest - 1, bound))


def bound_of(measured: Measured, strict: int, counts: Counts | None) -> tuple[int, str]:
    """The least of all bounds on a prompt, and how it came about."""
    prompt, parts, beginnings = measured
    whole = [(strict, BYTES)]
    if counts is None or counts.doubted:
        return whole[0]
    if (tokens := counts.most(prompt.exact)) is not None:
        return tokens, COUNTED
    for at in range(len(beginnings), 0, -1):
        if (tokens := counts.most(beginnings[at - 1])) is not None:
            new = parts[at:]
            more = sum(part.bytes for part in new) + MESSAGE_TOKENS * len(new)
            whole.append((tokens + more, BEGINNING))
            break
    if (tokens := counts.most(TEMPLATE + prompt.shape)) is not None:
        whole.append((tokens + sum(part.bytes - part.media for part in parts), SHAPE))
    if prompt.tokens is not None and (tokens := counts.most(BESIDE + prompt.shape)) is not None:
        # A tokenizer that counts too little does so more with longer texts, so beyond the longest
        # that was compared bytes count. Where parts meet, a server may cut in another place.
        beyond = max(prompt.size - counts.tokens.get(LONGEST + prompt.shape, 0), 0)
        whole.append((tokens + prompt.tokens + beyond + len(parts), TOKENIZER))
    return min(whole)


def measured(
    said: list[Any], shape: str, hashes: list[str], tokenizer: Tokenizer | None
) -> Measured:
    """A prompt that was not counted before.

    Args:
        said: its messages, or the one input of another task.
        shape: the hash of its shape.
        hashes: those of its beginnings, then its own.
    """
    parts = tuple(map(_part, said))
    *beginnings, exact = hashes
    tokens, size = None, sum(part.bytes for part in parts)
    if tokenizer is not None and all(part.texts for part in parts):
        tokens = sum(tokenizer(text) for part in parts for text in part.texts or ())
    return Measured(Prompt(exact, shape, tokens, size), parts, tuple(beginnings))


def _part(said: Any) -> Part:
    texts = _texts(said)
    if texts is not None:
        return Part(text_bytes(texts), 0, texts)
    return Part(text_bytes(said), allowances(said), None)


def _texts(said: Any) -> tuple[str, ...] | None:
    """What a message or an input says, where that is nothing but text."""
    if isinstance(said, dict) and said.keys() == PLAIN:
        said = said["content"]
    if isinstance(said, str):
        return (said,)
    if not isinstance(said, list) or not said:
        return None
    texts = [
        part["text"] if isinstance(part, dict) and part.keys() == {"type", "text"} else part
        for part in said
    ]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else None


def outline(said: Any) -> Any:
    """A part without its texts: what a chat template makes something of, and what it shows."""
    if isinstance(said, dict):
        if said.keys() == PLAIN and isinstance(said["content"], str):
            return [said["role"]]
        if not SHOWN.isdisjoint(said) and allowance(said):
            return said
        kept = ("role", "type", "name")
        return {k: v if k in kept else outline(v) for k, v in said.items() if isinstance(k, str)}
    if isinstance(said, (list, tuple)):
        return [outline(each) for each in said]
    return type(said).__name__
