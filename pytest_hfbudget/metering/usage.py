"""What was used: read from an answer's JSON, or bounded by what came back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pytest_hfbudget.metering.request import text_bytes
from pytest_hfbudget.pricing import CallRequest, Usage


def parse_body(body: object) -> Mapping[str, Any]:
    """An answer's JSON object; empty where the answer is something else (an image, a list)."""
    if not isinstance(body, (bytes, bytearray, str)):
        return {}
    if isinstance(body, bytes) and body.startswith(b"["):
        return {}  # embeddings are long, and say nothing of usage
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def usage_of(message: Mapping[str, Any]) -> Usage | None:
    """The ``usage`` of an answer or of a stream's chunk, if it carries one that makes sense.

    OpenAI-style: prompt tokens include cached ones, completion tokens include reasoning ones.
    Featherless puts ``cached_tokens`` flat into ``usage``.
    """
    usage = message.get("usage")
    if not isinstance(usage, dict):
        return None
    tokens_in, tokens_out = (
        _number(usage.get("prompt_tokens")),
        _number(usage.get("completion_tokens")),
    )
    if tokens_in is None and tokens_out is None:
        return None
    details = usage.get("prompt_tokens_details")
    nested = details.get("cached_tokens") if isinstance(details, dict) else None
    cached = _number(nested) or _number(usage.get("cached_tokens")) or 0
    return Usage(tokens_in or 0, tokens_out or 0, cached_tokens=min(cached, tokens_in or 0))


def usage_without_count(request: CallRequest, written: int, output_bound: int | None) -> Usage:
    """An upper bound where an answer came back without ``usage``: never nothing.

    ``written`` is the bytes of text that came back; no tokenizer makes more tokens than that.
    """
    most = written if output_bound is None else min(written, output_bound * request.n)
    return Usage(
        input_tokens=request.input_bound,
        output_tokens=most if request.generates else 0,
        images=request.n if request.task.endswith("to-image") else 0,
        estimated=True,
    )


def written_bytes(message: Mapping[str, Any]) -> int:
    """Bytes of what a model wrote in an answer or a chunk: content, reasoning, tool calls.

    No tokenizer makes more tokens than that. Where a server counts tokens, their number.
    """
    details, token = message.get("details"), message.get("token")
    if isinstance(details, dict) and (generated := _number(details.get("generated_tokens"))):
        return generated  # text-generation-inference counts them itself
    if isinstance(token, dict):
        return max(text_bytes(token.get("text") or ""), 1)
    choices = message.get("choices")
    if isinstance(choices, list):
        parts = (c.get("message") or c.get("delta") or c for c in choices if isinstance(c, dict))
        return sum(map(text_bytes, parts))
    return text_bytes(message)


def finished(message: Mapping[str, Any]) -> bool:
    """Whether every choice of a chunk says why it ended: nothing more is written."""
    choices = message.get("choices")
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(c, dict) and c.get("finish_reason") is not None for c in choices)
    )


def finished_by_length(message: Mapping[str, Any]) -> bool:
    """Whether an answer stopped because of its limit on tokens."""
    details = message.get("details")
    if isinstance(details, dict) and details.get("finish_reason") == "length":
        return True
    choices = message.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "length" for choice in choices
    )


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value
