"""The most tokens of a prompt by its bytes, its images and other media."""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pytest_hfbudget.metering.replay import is_mock
from pytest_hfbudget.pricing import BYTES, SIZED, STATED, Prompt
from pytest_hfbudget.pricing.book import PriceBook

# A chat template adds tokens that no message shows: markers around each message, a default
# system prompt, a preamble that explains the tools. These are generous, they only bound a hold.
TEMPLATE_TOKENS = 256
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 512

# The most tokens of an image or other media, whose URL may have a few bytes. Vision models in wide
# use make at most 16,384 tokens of an image. Sounds, films and documents have no such limit, so
# they are taken to fill a long context. A known context length cuts both down.
IMAGE_TOKENS = 16_384
MEDIA_TOKENS = 131_072
IMAGES = frozenset({"image", "image_url", "input_image"})
MEDIA = frozenset(
    {"audio", "audio_url", "file", "input_audio", "input_file", "input_video", "video", "video_url"}
)


class ImageRule(NamedTuple):
    """The most tokens of an image: ``itself``, and ``square`` for each square that it covers.

    Squares are ``side`` pixels wide. At most ``squares`` count: larger images are scaled down.
    """

    itself: int
    square: int = 0
    side: int = 1
    squares: int = 0

    def most(self, width: int, height: int) -> int:
        """The most tokens of an image of this size."""
        squares = -(-width // self.side) * -(-height // self.side)
        return self.itself + self.square * min(squares, self.squares)


# How servers count images, by the beginning of a model's id. Brackets name the processors of
# transformers and vLLM that show it; each number has room for markers around the image.
# A token for a square of 28 or 32 pixels (qwen2_vl, glm4v, kimi_vl, mistral3), or 16 (pixtral), and
# for each row. Qwen's own examples scale small images up to 256 tokens, 454 if they are long. Text
# Generation Inference counts squares of 14 pixels instead (its issue 3177).
PATCHES = ImageRule(512, 1, 14, 16_896)
IMAGE_RULES = {
    PATCHES: (
        *("qwen/qwen2-vl", "qwen/qwen2.5-vl", "qwen/qwen3-vl", "qwen/qwen3.5", "qwen/qwen3.6"),
        *("zai-org/glm-4.1v", "zai-org/glm-4.5v", "zai-org/glm-4.6v"),
        *("moonshotai/kimi-vl", "moonshotai/kimi-k2.", "moonshotai/kimi-k3"),
        *("mistralai/pixtral", "mistralai/mistral-small-3.1", "mistralai/mistral-small-3.2"),
    ),
    # 16 tiles and the whole, each of 144 and a separator (llama4).
    ImageRule(320, 145, 336, 16): ("meta-llama/llama-4-",),
    # 4 tiles of 1,601 (mllama).
    ImageRule(6_420): ("meta-llama/llama-3.2-11b-vision", "meta-llama/llama-3.2-90b-vision"),
    # 256, and as much for each of four crops (gemma3); 1,120 at its finest (gemma4).
    ImageRule(1_400): ("google/gemma-3-", "google/gemma-3n-", "google/gemma-4-"),
    # 12 tiles and the whole, each of 256 and a line break (cohere2_vision).
    ImageRule(320, 257, 512, 12): ("coherelabs/command-a-vision",),
    # As many, of 169 and a name, also of a small image (aya_vision, got_ocr2).
    ImageRule(2_500): ("coherelabs/aya-vision",),
}

# Together counts tiles, whatever the model does (its documentation of vision, "Pricing").
PROVIDER_RULES = {"together": ImageRule(64, 1_601, 560, 4)}

# Keys of a part that shows something; some servers need no type.
MEDIA_KEYS = IMAGES | MEDIA | {"type"}

# As text in a prompt, a number is a token for each digit at most; most are a handful.
NUMBER_BYTES = 8
NUMBERS = (bool, int, float)

# Tokens around each item of a list and each key, if a template shows JSON: brackets, a comma,
# quotes, white space. A message, which is an item, has two keys.
STRUCTURE_TOKENS = 4
MESSAGE_KEYS = 2

LONGEST_SCHEME = 32  # a URL has "://" within so many characters

# Marks of an image that may be shown turned, or has several frames: its size does not tell how many
# tokens it makes. The first bytes of Exif in JPEG and in PNG, of XMP, and of an animated PNG.
TURNED = (b"Exif", b"eXIf", b"Raw profile", b"adobe", b"acTL")
FRAMES = TURNED[-1]
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
HEAD = 2**17  # characters of an image's data that are read, which reach to its frame
NO_FRAME = (0xC4, 0xC8, 0xCC)  # of JPEG's markers C0 to CF, those that are not a frame


class InputBound(NamedTuple):
    """The most input tokens of a request, and their basis; the fields are as in `CallRequest`."""

    most: int
    basis: str = BYTES
    inputs: tuple[tuple[str, int, str], ...] = ()
    prompt: Prompt | None = None


def input_bound(payload: object, data: object = None) -> int:
    """The most input tokens of a payload: a tokenizer makes no token of less than a byte."""
    asked = payload if isinstance(payload, (dict, Mapping)) else {}
    messages = asked.get("messages")
    count = len(messages) if isinstance(messages, list) else 1
    tools = TOOLS_TOKENS if asked.get("tools") else 0
    raw = len(data) if isinstance(data, (bytes, bytearray)) else 0
    return _mapping_bytes(asked) + raw + TEMPLATE_TOKENS + MESSAGE_TOKENS * count + tools


def text_bytes(value: object) -> int:
    """UTF-8 bytes of all text in a JSON value; an image or other media counts its allowance."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (list, tuple)):
        sizes = [_mapping_bytes(v) if type(v) is dict else text_bytes(v) for v in value]
        keys = sum([max(len(v) - MESSAGE_KEYS, 0) for v in value if type(v) is dict])
        return sum(sizes) + STRUCTURE_TOKENS * (len(value) + keys)
    if isinstance(value, dict):
        return _mapping_bytes(value) + STRUCTURE_TOKENS * len(value)
    if value is None or isinstance(value, NUMBERS):
        return _digits(value)
    if isinstance(value, Mapping):  # last, since it is slow to ask for
        return _mapping_bytes(value)
    # Typed inputs of huggingface_hub are dataclasses that become JSON later.
    own = None if is_mock(value) else getattr(value, "__dict__", None)
    return text_bytes(own) if own else len(str(value).encode())


def allowance(values: Mapping[str, Any]) -> int:
    """The most tokens of the image or other media in a part of a message; 0 if it has none."""
    shown = values.get("type")
    kinds = {shown} if isinstance(shown, str) else values.keys()  # some servers need no type
    if not MEDIA.isdisjoint(kinds):
        return MEDIA_TOKENS
    return 0 if IMAGES.isdisjoint(kinds) else IMAGE_TOKENS


@lru_cache(maxsize=256)
def image_rules(model: str, provider: str | None) -> tuple[ImageRule, ...]:
    """The rules by which an image for a model may be counted; empty if none is known."""
    known = [rule for rule, ids in IMAGE_RULES.items() if model.lower().startswith(ids)]
    others = [rule for name, rule in PROVIDER_RULES.items() if provider in (None, name)]
    return (*known, *others) if known else ()


def _mapping_bytes(values: Mapping[str, Any]) -> int:
    if not MEDIA_KEYS.isdisjoint(values) and (most := allowance(values)):
        return most + text_bytes(values.get("text", ""))
    total = 0
    for key, item in values.items():
        total += len(key) if isinstance(key, str) and key.isascii() else len(f"{key}".encode())
        # Most of what is sent is plain text and numbers, which are counted without another call.
        if isinstance(item, str) and item.isascii():
            total += len(item)
        else:
            total += _digits(item) if isinstance(item, NUMBERS) else text_bytes(item)
    return total


def _digits(number: object) -> int:
    return max(len(repr(number)), NUMBER_BYTES)


# --- images and other media


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
    payload: object,
    data: object,
    book: PriceBook,
    model: str,
    provider: str | None,
    images: ImageBound,
) -> tuple[int, str]:
    """The most input tokens of a payload by its bytes, and the basis of that bound.

    The context length of the catalogue limits what images and sounds count. Text counts in full.
    """
    bound = input_bound(payload, data)
    if bound < IMAGE_TOKENS:  # it shows none
        return bound, BYTES
    _, most, lowered = media_in(payload, images)
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
