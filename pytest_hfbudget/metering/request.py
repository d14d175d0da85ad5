"""What a call asks for: a request of huggingface_hub, and the most that it can use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from pytest_hfbudget.metering.budget_context import ActiveBudgets
from pytest_hfbudget.metering.limits import (
    DEFAULT_VARIANT,
    RequestVariant,
    UnreadableLimitError,
    answers,
    output_limit,
    refuse_service_input,
)
from pytest_hfbudget.metering.replay import SendWatch, is_mock
from pytest_hfbudget.pricing import BYTES, CallRequest, Prompt, split_model
from pytest_hfbudget.pricing.table import is_below
from pytest_hfbudget.text import parse_json, printable, public_url

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
CONTAINERS = (dict, list, tuple)


class AskedModel(NamedTuple):
    """The model that a call asks for, which its parameters no longer name.

    Attributes:
        model: its Hub id; the payload has the provider's own id.
        provider: the provider that is asked; ``auto`` if the router chooses.
        instead_of: the model that the caller asked for, if a fallback has replaced it.
    """

    model: str | None = None
    provider: str | None = None
    instead_of: str = ""


UNKNOWN_MODEL = AskedModel()


class InputBound(NamedTuple):
    """The most input tokens of a request, and their basis; the fields are as in `CallRequest`."""

    most: int
    basis: str = BYTES
    inputs: tuple[tuple[str, int, str], ...] = ()
    prompt: Prompt | None = None


class Parameters(Protocol):
    """huggingface_hub's RequestParameters, as far as they are used here."""

    url: str
    task: str
    model: str
    headers: dict[str, Any]
    json: Any
    data: Any


P = TypeVar("P", bound=Parameters)


def changed(parameters: P, **values: Any) -> P:
    """A copy of huggingface_hub's RequestParameters with some fields replaced."""
    if not hasattr(type(parameters), "__dataclass_fields__"):
        other = copy(parameters)  # a stand-in of a test
        vars(other).update(values)
        return other
    other = object.__new__(type(parameters))  # as `replace`, without its look at every field
    own = vars(other)
    own.update(vars(parameters))
    for name, value in values.items():
        if name in own:
            own[name] = value
    return other


def with_own_payload(parameters: P) -> P:
    """The same parameters with a payload of their own, which another thread can't change."""
    payload = parameters.json
    return changed(parameters, json=_copy(payload) if isinstance(payload, CONTAINERS) else payload)


def _copy(value: Any) -> Any:
    """A deep copy of a dictionary, list or tuple, which copies only such values."""
    copied = dict(value) if isinstance(value, dict) else list(value)
    parts: list[Any] = [copied]
    while parts:
        part = parts.pop()
        for key, item in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(item, CONTAINERS):
                part[key] = dict(item) if isinstance(item, dict) else list(item)
                parts.append(part[key])
    return copied


def describe(
    parameters: Parameters,
    *,
    routers: tuple[str, ...],
    asked: AskedModel,
    stream: bool,
    timeout: object = None,
    bound: Callable[[str, str | None], InputBound] | None = None,
) -> CallRequest:
    """The description of a request that is about to be sent.

    Args:
        routers: base URLs of the Hugging Face router.
        asked: the model as the caller named it; a named provider's payload has that provider's
            own id instead.
        timeout: the client's own, in seconds; anything but a number counts as no time-out.
        bound: returns the bound on the input by model and provider; without it, bytes bound it.
    """
    payload = parameters.json if isinstance(parameters.json, dict) else json_object(parameters.data)
    # Anything but a string, such as a mock, is no name.
    named = parameters.task, asked.model, parameters.model, payload.get("model"), asked.provider
    task, hub_model, own_model, posted, provider = [
        name if isinstance(name, str) else "" for name in named
    ]
    model, chosen = _addressed(
        parameters.url, routers, hub_model or own_model, posted, provider or None
    )
    body = parameters.json, parameters.data
    tokens = bound(model, chosen) if bound else InputBound(input_bound(*body))
    unreadable = ""
    try:
        refuse_service_input(payload)
        limit, several = output_limit(payload), answers(payload, task)
    except UnreadableLimitError as error:
        limit, several, unreadable = None, 1, "\n".join(error.args)
    return CallRequest(  # by position, which is twice as fast
        task,
        model,
        chosen,
        parameters.url,
        tokens.most,
        limit,
        max(several, 1),
        stream,
        None if timeout is None else _seconds(timeout),
        unreadable,
        *tokens[1:],
    )


@lru_cache(maxsize=256)  # a suite calls a handful of models, each of them again and again
def _addressed(
    url: str, routers: tuple[str, ...], asked: str | None, posted: str, provider: str | None
) -> tuple[str, str | None]:
    """The model and the provider that a request is addressed to.

    The model has no credentials or control characters, so it can be printed.
    """
    model, provider = _model_and_provider(url, routers, asked, posted, provider)
    return printable_model(model), provider


def _model_and_provider(
    url: str, routers: tuple[str, ...], asked: str | None, posted: str, provider: str | None
) -> tuple[str, str | None]:
    routed = next((base for base in routers if is_below(url, base)), None)
    name = asked or posted or url
    if routed is None and (provider in (None, "hf-inference") or _is_url(name)):
        return url, None
    if _is_url(name):  # the router's own URL was given as base_url
        name, provider = posted or name, None
    model, pinned = split_model(name)
    chosen = provider if provider != "auto" else None
    return model, pinned or chosen or _provider_in_path(url, routed)


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


def fits(body: bytes, held: CallRequest, size: Callable[[object], int]) -> bool:
    """Whether the body of a request asks for no more than what was held for it.

    Args:
        size: returns the most input tokens of a payload.
    """
    payload = json_object(body)
    if not payload:
        return len(body) <= held.input_bound
    try:
        limit, several = output_limit(payload), answers(payload, held.task)
    except UnreadableLimitError:
        return False
    unlimited = held.generates and held.max_output is not None and limit is None
    return (
        not unlimited
        and (limit or 0) <= (held.max_output if held.max_output is not None else limit or 0)
        and several <= held.n
        and size(payload) <= held.input_bound
    )


def payload_of(parameters: Parameters) -> Mapping[str, Any]:
    """The JSON object that is posted; empty if the body is something else."""
    return parameters.json if isinstance(parameters.json, dict) else json_object(parameters.data)


def json_object(data: object) -> Mapping[str, Any]:
    """The JSON object in a body of bytes; empty if it is something else, such as a picture."""
    if not isinstance(data, (bytes, bytearray)) or not data[:64].lstrip().startswith(b"{"):
        return {}
    try:
        value = parse_json(data)
    except ValueError:
        return {}  # a picture may begin with any byte
    return value if isinstance(value, dict) else {}


def _seconds(timeout: object) -> float | None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        return None
    return float(timeout) if math.isfinite(timeout) and timeout > 0 else None


def printable_model(model: str) -> str:
    """A model's name or URL, without credentials and control characters."""
    return printable(public_url(model) if _is_url(model) else model)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _provider_in_path(url: str, router: str | None) -> str | None:
    """The provider in a path of the router, which comes first; None for the router's own API."""
    if router is None:
        return None
    first = url[len(router) :].lstrip("/").split("/", 1)[0]
    return first if first not in ("v1", "") else None


class OutgoingCall(NamedTuple):
    """Everything about a call that is known when it is made.

    Attributes:
        watch: sees whether it leaves this process.
        asked: the model as the caller named it.
        timeout: the client's own, which may be of any type.
        budgets: those around the calling code.
        where: what is running, if no test is.
        at: when it was made, in unix seconds.
        started: the same by the meter's clock, in seconds.
        variant: how it is sent, as far as the plugin decides that.
        session_id: the inference session that the router bills it to; empty for none.
    """

    parameters: Parameters
    watch: SendWatch
    asked: AskedModel
    stream: bool
    timeout: object
    budgets: ActiveBudgets
    where: str
    at: float
    started: float
    variant: RequestVariant = DEFAULT_VARIANT
    session_id: str = ""
