"""From what huggingface_hub is about to post to what it can cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

from pytest_hfbudget.pricing.request import CallRequest, split_model
from pytest_hfbudget.pricing.table import is_below

# A chat template adds tokens that no message shows: markers around each message, a default
# system prompt, a preamble that explains the tools. These are generous, they only bound a hold.
TEMPLATE_TOKENS = 256
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 512
# An image may be passed as a URL of a few bytes; vision models make up to some thousand tokens.
IMAGE_TOKENS = 16_384

LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


class Parameters(Protocol):
    """huggingface_hub's RequestParameters, as far as they matter here."""

    url: str
    task: str
    model: str
    json: Any
    data: Any


def describe(
    parameters: Parameters,
    *,
    routers: tuple[str, ...],
    hub_model: str | None,
    provider: str | None,
    stream: bool,
) -> CallRequest:
    """What is about to be sent.

    Args:
        routers: base URLs of the Hugging Face router.
        hub_model: the model as the caller named it; a named provider's payload carries that
            provider's own id instead.
        provider: who the caller named, None or ``auto`` where the router chooses.
    """
    payload = parameters.json if isinstance(parameters.json, dict) else {}
    named = str(payload.get("model") or "")
    model, provider = _addressed(
        parameters.url, routers, hub_model or parameters.model, named, provider
    )
    return CallRequest(
        task=parameters.task,
        model=model,
        provider=provider,
        url=parameters.url,
        input_bound=input_bound(payload, parameters.data),
        max_output=output_limit(payload),
        n=_count(payload),
        stream=stream,
    )


@lru_cache(maxsize=256)  # a suite calls a handful of models, each of them again and again
def _addressed(
    url: str, routers: tuple[str, ...], asked: str | None, named: str, provider: str | None
) -> tuple[str, str | None]:
    """The model and the provider, from what the caller asked for and what the payload names."""
    routed = next((base for base in routers if is_below(url, base)), None)
    name = asked or named or url
    if routed is None and (provider in (None, "hf-inference") or _is_url(name)):
        return url, None
    if _is_url(name):  # the router's own URL was given as base_url
        name, provider = named or name, None
    model, pinned = split_model(name)
    chosen = provider if provider != "auto" else None
    return model, pinned or chosen or _provider_in_path(url, routed)


def input_bound(payload: Mapping[str, Any], data: Any = None) -> int:
    """The most input tokens of a payload: a tokenizer makes no token of less than a byte."""
    messages = payload.get("messages")
    count = len(messages) if isinstance(messages, list) else 1
    tools = TOOLS_TOKENS if payload.get("tools") else 0
    raw = len(data) if isinstance(data, (bytes, bytearray)) else 0
    return text_bytes(payload) + raw + TEMPLATE_TOKENS + MESSAGE_TOKENS * count + tools


def text_bytes(value: object) -> int:
    """UTF-8 bytes of all text in a JSON value, with an allowance for each image instead of it."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (list, tuple)):
        return sum(map(text_bytes, value))
    if isinstance(value, dict):  # before Mapping, which is slow to ask for
        return _named_bytes(value)
    if isinstance(value, Mapping):
        return _named_bytes(value)
    if value is None or isinstance(value, (bool, int, float)):
        return 8  # as text in a prompt, a number is a handful of tokens
    # Typed inputs of huggingface_hub are dataclasses that become JSON later.
    fields = getattr(value, "__dict__", None)
    return text_bytes(fields) if fields else len(str(value).encode())


def _named_bytes(values: Mapping[str, Any]) -> int:
    if values.get("type") == "image_url":
        return IMAGE_TOKENS
    total = 0
    for key, item in values.items():
        total += len(str(key)) + text_bytes(item)
    return total


def output_limit(payload: Mapping[str, Any]) -> int | None:
    """The caller's own limit on the output tokens of one answer: the highest, if it sets several.

    Which of several a server goes by is its own affair.
    """
    numbers = _limits(payload)
    if isinstance(parameters := payload.get("parameters"), dict):
        numbers += _limits(parameters)
    return max(numbers, default=None)


def _limits(place: Mapping[str, Any]) -> list[int]:
    given = [place[name] for name in LIMITS if name in place]
    return [v for v in given if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _count(payload: Mapping[str, Any]) -> int:
    n = payload.get("n")
    return n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else 1


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _provider_in_path(url: str, router: str | None) -> str | None:
    """The first part of a routed path; the router's own API lies below ``/v1``."""
    if router is None:
        return None
    first = url[len(router) :].lstrip("/").split("/", 1)[0]
    return first if first not in ("v1", "") else None
