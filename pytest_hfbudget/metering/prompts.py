"""The rules by which earlier counts bound a prompt. `bounds` keeps the counts and applies these.

- A prompt begins with one that was counted: only what is new in it is bounded by its bytes.
- A prompt has the shape of one that was counted: that count bounds its chat template.
- The model has a tokenizer on this machine: text is counted instead of bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pytest_hfbudget.metering.prompt_size import (
    ANY_IMAGE,
    MEDIA_KEYS,
    MESSAGE_TOKENS,
    ImageBound,
    allowance,
    image_size,
    media_in,
    text_bytes,
)
from pytest_hfbudget.pricing import Prompt

PLAIN = frozenset({"role", "content"})  # the keys of a message that has nothing but content

# Parameters of a request that change no token of its prompt. All others are hashed.
NEUTRAL = frozenset(
    {
        *("model", "stream", "stream_options", "seed", "stop", "user"),
        *("max_tokens", "max_completion_tokens", "max_new_tokens"),
        *("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty"),
        *("logprobs", "top_logprobs", "logit_bias", "details", "decoder_input_details"),
    }
)
# What a bound on a prompt rests on.
COUNTED, BEGINNING, SHAPE, TOKENIZER = "counted", "its beginning counted", "its shape", "tokenizer"

MARGIN = 16  # tokens on top of a count and a quarter of it, until its provider has counted alike

# The keys of facts that are not hashes:
ALIKE = "="  # a provider has counted a prompt twice with the same result
FORGET = "-"  # a provider's counts of earlier runs are not believed any more
DOUBT = "!"  # a provider is not believed any more
MISCOUNTED = "~"  # the model's tokenizer is not believed any more
IMAGE = "#"  # the most tokens of an image, as hf_image_tokens states for this run
UNDERSTATED = "^"  # an image has made more tokens than hf_image_tokens states
OUTGROWN = "+"  # an image has made more tokens than `IMAGE_RULES` say of its size
# The letters that stand before the hash of a shape. They tell, of prompts of that shape:
TEMPLATE = "t"  # the least tokens that were counted, which bound the chat template
BESIDE = "k"  # the most tokens that were counted beyond those of the tokenizer
LONGEST = "l"  # the most bytes of text that were compared with the tokenizer
SHAPES = TEMPLATE, BESIDE, LONGEST


RULE = 1  # the version of the hashes and of what is counted; raise it if either changes


class Fact(NamedTuple):
    """One thing that was learned about a provider.

    Attributes:
        provider: empty for a fact about a model at every provider.
        key: the hash of a request; a letter and the hash of a shape; or one of the signs above.
        tokens: 0 if the fact is not a number.
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
        alike: whether it has counted a prompt twice with the same result in this run.
        doubted: whether it is not believed any more.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    alike: bool = False
    doubted: bool = False

    def most(self, key: str) -> int | None:
        """The most tokens of what has this key; None if it was not counted."""
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
        elif key == UNDERSTATED:
            yield f"{model} made more tokens of an image than hf_image_tokens states: raise that"
        elif key == OUTGROWN:
            yield f"{model} made more tokens of an image than its size allows: sizes are ignored"


def with_margin(tokens: int) -> int:
    """The most tokens that a provider may count in what it has counted once."""
    return tokens + tokens // 4 + MARGIN


class Part(NamedTuple):
    """One message of a chat, or the whole input of another task.

    Attributes:
        bytes: the most tokens that it makes, by its bytes.
        media: how many of these are for images, sounds and other media.
        texts: its texts; None if it is not only text.
    """

    bytes: int
    media: int
    texts: tuple[str, ...] | None


class Measured(NamedTuple):
    """A prompt that was not counted before.

    Attributes:
        beginnings: the hashes of its first message, of its first two, and so on.
    """

    prompt: Prompt
    parts: tuple[Part, ...]
    beginnings: tuple[str, ...]


Tokenizer = Callable[[str], int]  # counts the tokens of a text


def bound_of(measured: Measured, strict: tuple[int, str], counts: Counts | None) -> tuple[int, str]:
    """The smallest bound on a prompt, in tokens, and its basis.

    Args:
        strict: the bound by its bytes, with its basis.
        counts: what the provider has counted; None for a provider that has counted nothing.
    """
    prompt, parts, beginnings = measured
    whole = [strict]
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
    if (tokens := counts.tokens.get(TEMPLATE + prompt.shape)) is not None:
        if not counts.alike or any(part.media for part in parts):  # of other images of this size
            tokens = with_margin(tokens)
        whole.append((tokens + sum(part.bytes - part.media for part in parts), SHAPE))
    if prompt.tokens is not None and (tokens := counts.most(BESIDE + prompt.shape)) is not None:
        # The error of a tokenizer grows with the text, so bytes count beyond the longest text that
        # was compared. Each part adds one token, because a server may split differently there.
        beyond = max(prompt.size - counts.tokens.get(LONGEST + prompt.shape, 0), 0)
        whole.append((tokens + prompt.tokens + beyond + len(parts), TOKENIZER))
    return min(whole)


def measured(
    said: list[Any],
    shape: str,
    hashes: list[str],
    tokenizer: Tokenizer | None,
    images: ImageBound = ANY_IMAGE,
) -> Measured:
    """A prompt that was not counted before.

    Args:
        said: its messages, or the one input of another task.
        shape: the hash of its shape.
        hashes: those of its beginnings, then its own.
    """
    parts = tuple(_part(each, images) for each in said)
    *beginnings, exact = hashes
    tokens, size = None, sum(part.bytes for part in parts)
    if tokenizer is not None and all(part.texts for part in parts):
        tokens = sum(tokenizer(text) for part in parts for text in part.texts or ())
    return Measured(Prompt(exact, shape, tokens, size), parts, tuple(beginnings))


def _part(said: Any, images: ImageBound) -> Part:
    texts = _texts(said)
    if texts is not None:
        return Part(text_bytes(texts), 0, texts)
    _, tokens, lowered = media_in(said, images)
    return Part(text_bytes(said) - lowered, tokens - lowered, None)


def _texts(said: Any) -> tuple[str, ...] | None:
    """The texts of a message or an input; None if it is not only text."""
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
    """A part of a prompt without its texts: roles, types, names, and the sizes of its images.

    Servers count an image by its width and height alone: transformers gives its processors nothing
    else to count it by (``_get_num_multimodal_tokens``), and neither does vLLM
    (``get_num_image_tokens``). So its size stands for the image, if it can be read.
    """
    if isinstance(said, dict):
        if said.keys() == PLAIN and isinstance(said["content"], str):
            return [said["role"]]
        if not MEDIA_KEYS.isdisjoint(said) and allowance(said):
            return _with_sizes(said)
        kept = ("role", "type", "name")
        return {k: v if k in kept else outline(v) for k, v in said.items() if isinstance(k, str)}
    if isinstance(said, (list, tuple)):
        return [outline(each) for each in said]
    return type(said).__name__


def _with_sizes(shown: Any) -> Any:
    if isinstance(shown, str):
        return image_size(shown) or shown
    if isinstance(shown, dict):
        return {name: _with_sizes(value) for name, value in shown.items()}
    return [_with_sizes(each) for each in shown] if isinstance(shown, (list, tuple)) else shown
