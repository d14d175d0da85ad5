"""From what huggingface_hub is about to post to what it can cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from pytest_hfbudget.pricing.request import CallRequest, split_model
from pytest_hfbudget.pricing.table import is_below
from pytest_hfbudget.text import parse_json, printable, public_url

# A chat template adds tokens that no message shows: markers around each message, a default
# system prompt, a preamble that explains the tools. These are generous, they only bound a hold.
TEMPLATE_TOKENS = 256
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 512
# What a message shows instead of saying may be a URL of a few bytes. The vision models in wide use
# make 16,384 tokens of an image at most; sounds, films and documents have no such end, so they are
# taken to fill a long context. Either is cut down to the context, where that is known.
IMAGE_TOKENS = 16_384
MEDIA_TOKENS = 131_072
IMAGES = frozenset({"image", "image_url", "input_image"})
MEDIA = frozenset(
    {"audio", "audio_url", "file", "input_audio", "input_file", "input_video", "video", "video_url"}
)

LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens")
ANSWERS = ("n", "best_of", "num_return_sequences")
# Each provider has its own word for the number of images.
PICTURES = ("n", "num_images", "num_outputs", "num_images_per_prompt")


class Parameters(Protocol):
    """huggingface_hub's RequestParameters, as far as they matter here."""

    url: str
    task: str
    model: str
    json: Any
    data: Any


P = TypeVar("P", bound=Parameters)


def changed(parameters: P, **values: Any) -> P:
    """A copy of huggingface_hub's RequestParameters with some fields replaced."""
    if is_dataclass(parameters) and not isinstance(parameters, type):
        own = {field.name for field in fields(parameters)}
        return replace(parameters, **{k: v for k, v in values.items() if k in own})
    raise TypeError(f"{type(parameters).__name__} is not the RequestParameters that is known")


def describe(
    parameters: Parameters,
    *,
    routers: tuple[str, ...],
    hub_model: str | None,
    provider: str | None,
    stream: bool,
    timeout: object = None,
) -> CallRequest:
    """What is about to be sent.

    Args:
        routers: base URLs of the Hugging Face router.
        hub_model: the model as the caller named it; a named provider's payload carries that
            provider's own id instead.
        provider: who the caller named, None or ``auto`` where the router chooses.
        timeout: the client's own, in seconds; anything else is none.
    """
    payload = parameters.json if isinstance(parameters.json, dict) else _in_data(parameters.data)
    named = str(payload.get("model") or "")
    model, provider = _addressed(
        parameters.url, routers, hub_model or parameters.model, named, provider
    )
    task = parameters.task
    several = _highest(payload, PICTURES if task.endswith("to-image") else ANSWERS)
    return CallRequest(  # by position, which is twice as fast
        task,
        model,
        provider,
        parameters.url,
        input_bound(parameters.json, parameters.data),
        output_limit(payload),
        several or 1,
        stream,
        _seconds(timeout),
    )


@lru_cache(maxsize=256)  # a suite calls a handful of models, each of them again and again
def _addressed(
    url: str, routers: tuple[str, ...], asked: str | None, named: str, provider: str | None
) -> tuple[str, str | None]:
    """The model and the provider, from what the caller asked for and what the payload names.

    The model is fit to be shown: what it is called in is read in logs, reports and terminals.
    """
    model, provider = _named_as(url, routers, asked, named, provider)
    return shown(model), provider


def _named_as(
    url: str, routers: tuple[str, ...], asked: str | None, named: str, provider: str | None
) -> tuple[str, str | None]:
    routed = next((base for base in routers if is_below(url, base)), None)
    name = asked or named or url
    if routed is None and (provider in (None, "hf-inference") or _is_url(name)):
        return url, None
    if _is_url(name):  # the router's own URL was given as base_url
        name, provider = named or name, None
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
    return text_bytes(asked) + raw + TEMPLATE_TOKENS + MESSAGE_TOKENS * count + tools


def text_bytes(value: object) -> int:
    """UTF-8 bytes of all text in a JSON value, with an allowance for each image instead of it."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (list, tuple)):
        return sum(map(text_bytes, value))
    if isinstance(value, dict):
        return _named_bytes(value)
    if value is None or isinstance(value, (bool, int, float)):
        return 8  # as text in a prompt, a number is a handful of tokens
    if isinstance(value, Mapping):  # last, since it is slow to ask for
        return _named_bytes(value)
    # Typed inputs of huggingface_hub are dataclasses that become JSON later.
    own = getattr(value, "__dict__", None)
    return text_bytes(own) if own else len(str(value).encode())


def _named_bytes(values: Mapping[str, Any]) -> int:
    shown = values.get("type")
    if isinstance(shown, str) and (shown in IMAGES or shown in MEDIA):
        allowance = IMAGE_TOKENS if shown in IMAGES else MEDIA_TOKENS
        return allowance + text_bytes(values.get("text", ""))
    total = 0
    for key, item in values.items():
        total += len(str(key))
        # Most of what is sent is plain text: it is counted without another call.
        plain = isinstance(item, str) and item.isascii()
        total += len(item) if plain else text_bytes(item)
    return total


def output_limit(payload: Mapping[str, Any]) -> int | None:
    """The caller's own limit on the output tokens of one answer: the highest, if it sets several.

    Which of several a server goes by is its own affair.
    """
    return _highest(payload, LIMITS)


def _highest(payload: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The highest whole number by one of these names, wherever servers look for it."""
    highest: int | None = None
    for place in (payload, payload.get("parameters"), payload.get("input")):
        if not place or not isinstance(place, (dict, Mapping)):
            continue
        for name in names:
            value = place.get(name)
            if value is None or isinstance(value, bool) or not isinstance(value, int):
                continue
            if value >= 0 and (highest is None or value > highest):
                highest = value
    return highest


def _in_data(data: object) -> Mapping[str, Any]:
    """The JSON object that a payload of bytes is: an image or a sound that goes with parameters."""
    if not isinstance(data, (bytes, bytearray)) or not data.startswith(b"{"):
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


def shown(model: str) -> str:
    """A model's name, or the URL that stands for it, without credentials and control characters."""
    return printable(public_url(model) if _is_url(model) else model)


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _provider_in_path(url: str, router: str | None) -> str | None:
    """The first part of a routed path; the router's own API lies below ``/v1``."""
    if router is None:
        return None
    first = url[len(router) :].lstrip("/").split("/", 1)[0]
    return first if first not in ("v1", "") else None
