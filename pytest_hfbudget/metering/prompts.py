"""The rules by which earlier counts bound a prompt. `bounds` keeps the counts and applies these.

- A prompt begins with one that was counted: only what is new in it is bounded by its bytes.
- A prompt has the shape of one that was counted: that count bounds its chat template.
- The model has a tokenizer on this machine: text is counted instead of bounded.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pytest_hfbudget.metering.request import (
    IMAGE_TOKENS,
    MEDIA_KEYS,
    MESSAGE_TOKENS,
    ImageRule,
    Parameters,
    allowance,
    input_bound,
    text_bytes,
)
from pytest_hfbudget.pricing import BYTES, SIZED, STATED, Prompt
from pytest_hfbudget.pricing.book import PriceBook

PLAIN = frozenset({"role", "content"})  # the keys of a message that has nothing but content
LONGEST_SCHEME = 32  # a URL has "://" within so many characters

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

# Marks of an image that may be shown turned, or has several frames: its size does not tell how many
# tokens it makes. The first bytes of Exif in JPEG and in PNG, of XMP, and of an animated PNG.
TURNED = (b"Exif", b"eXIf", b"Raw profile", b"adobe", b"acTL")
FRAMES = TURNED[-1]
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
HEAD = 2**17  # characters of an image's data that are read, which reach to its frame
NO_FRAME = (0xC4, 0xC8, 0xCC)  # of JPEG's markers C0 to CF, those that are not a frame

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


class ImageBound(NamedTuple):
    """The most tokens of an image: by the highest rule, or ``tokens`` where its size is unknown."""

    tokens: int = IMAGE_TOKENS
    rules: tuple[ImageRule, ...] = ()

    def most(self, part: dict[str, Any]) -> int:
        """The most tokens of the image in a part of a message."""
        size = _image_size_of(part) if self.rules else None
        return max(rule.most(*size) for rule in self.rules) if size else self.tokens


ANY_IMAGE = ImageBound()


def by_bytes(
    parameters: Parameters, book: PriceBook, model: str, provider: str | None, images: ImageBound
) -> tuple[int, str]:
    """The most input tokens of a payload by its bytes, and the basis of that bound.

    The context length of the catalogue limits what images and sounds count. Text counts in full.
    """
    bound = input_bound(parameters.json, parameters.data)
    if bound < IMAGE_TOKENS:  # it shows none
        return bound, BYTES
    _, most, lowered = media_in(parameters.json, images)
    basis = BYTES if not lowered else SIZED if images.rules else STATED
    longest = book.catalogue.contexts(model, provider).longest
    if longest is None or bound - lowered < longest:
        return bound - lowered, basis
    return max(bound - most, min(longest - 1, bound - lowered)), basis


def bytes_bound(payload: object, data: object = None, images: ImageBound = ANY_IMAGE) -> int:
    """The most input tokens of a payload by its bytes, whatever the context length."""
    bound = input_bound(payload, data)
    return bound if bound < IMAGE_TOKENS else bound - media_in(payload, images).lowered


class Media(NamedTuple):
    """The images and other media in a payload, or in a part of one.

    Attributes:
        images: how many images.
        tokens: the most tokens of all media, if nothing is known of an image.
        lowered: how many tokens less these are, by what is known of the images.
    """

    images: int
    tokens: int
    lowered: int


def media_in(value: object, images: ImageBound = ANY_IMAGE) -> Media:
    """The images and other media in a JSON value."""
    parts = [(part, allowance(part)) for part in _media_parts(value)]
    most = [images.most(part) for part, tokens in parts if tokens == IMAGE_TOKENS]
    lowered = len(most) * IMAGE_TOKENS - sum(most)
    return Media(len(most), sum(tokens for _, tokens in parts), lowered)


def _media_parts(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if allowance(value):
            yield value
            return
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _media_parts(each)


def may_change(said: object) -> bool:
    """Whether a part shows something by its URL, where something else may lie next time."""
    return any(
        "://" in text[:LONGEST_SCHEME]
        for part in _media_parts(said)
        for text in _strings(part)
        if not text.startswith("data:")
    )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


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


def image_size(url: str) -> tuple[int, int] | None:
    """Width and height of the PNG or JPEG in a ``data:`` URL; None if its tokens don't follow."""
    kind, _, coded = url.partition(";base64,")
    if not kind.startswith("data:image/") or not coded:
        return None
    try:
        data = a2b_base64(coded)
    except ValueError:
        return None
    return None if any(mark in data for mark in TURNED) else _size_in(data)


def _image_size_of(part: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of the only image in a part, if its data has them; else None.

    An image that is shown turned has the same bound. One of several frames has none by its size.
    """
    shown = [s for s in _strings(part) if "://" in s[:LONGEST_SCHEME] or s.startswith("data:")]
    kind, _, coded = shown[0].partition(";base64,") if len(shown) == 1 else ("", "", "")
    head = "".join(coded[:HEAD].split())
    if not kind.startswith("data:image/") or not re.fullmatch("[A-Za-z0-9+/]+={0,2}", head):
        return None
    data = a2b_base64(head[: len(head) // 4 * 4])
    return None if FRAMES in data[: data.find(b"IDAT")] else _size_in(data)


def _size_in(data: bytes) -> tuple[int, int] | None:
    if data.startswith(PNG):
        return _two(data, 16, 4) if data[12:16] == b"IHDR" else None
    return _jpeg_size(data) if data.startswith(JPEG) else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the first frame of a JPEG (ITU T.81, B.2.2), after other segments."""
    at = len(JPEG)
    while data[at : at + 1] == b"\xff":
        marker, length = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if b"\xc0" <= marker <= b"\xcf" and marker[0] not in NO_FRAME:
            size = _two(data, at + 5, 2)
            return size and size[::-1]
        at += 2 + length
    return None


def _two(data: bytes, at: int, width: int) -> tuple[int, int] | None:
    """The two numbers at ``at``, of ``width`` bytes each; None if one is 0, or data is missing."""
    first, second = (
        int.from_bytes(data[start : start + width], "big") for start in (at, at + width)
    )
    return (first, second) if first and second and len(data) > at + 2 * width else None
