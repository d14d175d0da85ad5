"""What an answer says: its usage, how much was written, and whether it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from pytest_hfbudget.metering.prompt_size import text_bytes
from pytest_hfbudget.money import nano, parse_rate
from pytest_hfbudget.pricing import GENERATE, MICROSECONDS, CallRequest, Usage
from pytest_hfbudget.text import parse_json

UNREADABLE_ANSWER = "hfbudget could not make sense of an answer"

# Longer than any call: a longer time is an error.
LONGEST = 86_400 * MICROSECONDS

# No call has a billion tokens, whatever its model's context. A number above is an error, which must
# not use up a budget.
MOST_TOKENS = 10**9
LONGEST_COUNT = 9  # digits
# A million dollars in nano-USD: no answer costs more.
MOST_TOLD = 10**15

COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
# The names of the responses API for the same fields.
NAMES_IN_CHAT = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "input_tokens_details": "prompt_tokens_details",
    "output_tokens_details": "completion_tokens_details",
}
# The fields of a chunk that have what the model writes.
WRITTEN = ("content", "text", "reasoning", "reasoning_content", "tool_calls")
USAGE, BACKSLASH = b'"usage":', ord("\\")
DECODER = json.JSONDecoder()

# Fields, and below their values, by which providers say that an answer has to be fetched later.
STATUS = ("status", "task_status")
# The last events of the responses API.
ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
UNDER_WAY = frozenset(
    {"created", "in_progress", "in_queue", "pending", "processing", "queued", "starting"}
)

EXACT = Context(prec=60)  # our own, so that a test which changes decimal's can't affect it


def parse_body(body: object) -> Mapping[str, Any]:
    """The JSON object of an answer, or the only one in its list (text-generation-inference).

    Empty if the answer is something else, such as an image or vectors.
    """
    if not isinstance(body, (bytes, bytearray, str)):
        return {}
    if isinstance(body, bytes) and _is_vectors(body):
        return {}
    try:
        value = parse_json(body)
    except ValueError:
        return {}
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return value if isinstance(value, dict) else {}


def ending_with_usage(body: object) -> Mapping[str, Any]:
    """The ``usage`` at the end of an answer, found without parsing the rest; empty if not certain.

    Quotes inside of a string are escaped, so this match is a key. If only further members and one
    brace follow its value, that is the last brace of the answer. So the ``usage`` is the answer's
    own.
    """
    if not isinstance(body, bytes):
        return {}
    at = body.rfind(USAGE)
    if at < 1 or body[at - 1] == BACKSLASH:
        return {}
    try:
        text = body[at + len(USAGE) :].decode().strip()
        usage, end = DECODER.raw_decode(text)
        rest = text[end:].lstrip()
        if rest != "}":
            parse_json("{" + rest.removeprefix(","))
    except (ValueError, RecursionError):
        return {}
    return {"usage": usage}


def _is_vectors(body: bytes) -> bool:
    """Whether a body is a list of numbers: embeddings, which are long and tell no usage."""
    first = body[:64].lstrip(b"[ \t\r\n")[:1]
    return body.startswith(b"[") and (first == b"-" or first.isdigit())


def usage_of(message: Mapping[str, Any], request: CallRequest) -> Usage | None:
    """The ``usage`` of an answer or of a stream's chunk; None if there is none that makes sense.

    OpenAI-style: prompt tokens include cached ones, completion tokens include reasoning ones. If
    the total is more than both, the rest is reasoning, and is added. Without a total, or with more
    reasoning tokens than written ones, reasoning tokens are added, and the usage is an estimate.
    Featherless puts ``cached_tokens`` directly into ``usage``. A usage with one half missing, or
    without prompt tokens, does not count.
    """
    usage = message.get("usage")
    if not isinstance(usage, dict):
        return _tgi_usage(message)
    if "input_tokens" in usage and "prompt_tokens" not in usage:
        usage = {NAMES_IN_CHAT.get(name, name): value for name, value in usage.items()}
    tokens_in, tokens_out, total = [
        value if type(value) is int and 0 <= value < MOST_TOKENS else None
        for value in map(usage.get, COUNTS)
    ]
    generates = request.task in GENERATE
    # No prompt has 0 tokens: such a usage leaves out what is billed.
    if not tokens_in or (generates and tokens_out is None):
        return None
    beside = 0
    if generates:
        written = max(tokens_out or 0, (total or 0) - (tokens_in or 0))
        tells = "completion_tokens_details" in usage or "reasoning_tokens" in usage
        reasoning = _reasoning(usage) if tells else 0
        beside = reasoning if not total or reasoning > written else 0
        tokens_out = written + beside
    cached, details = usage.get("cached_tokens"), usage.get("prompt_tokens_details")
    if cached is not None or details is not None:
        nested = details.get("cached_tokens") if isinstance(details, dict) else None
        cached = min(_number(nested) or _number(cached) or 0, tokens_in or 0)
    cost = usage.get("estimated_cost")
    reported = None if cost is None else parse_cost(cost)
    estimated = bool(beside) and reported is None
    return Usage(
        tokens_in or 0, tokens_out or 0, cached or 0, estimated=estimated, reported_cost=reported
    )


def parse_cost(usd: object) -> int | None:
    """The nano-USD of ``usage.estimated_cost``, rounded up as bills are; None if it is no amount.

    deepinfra gives it, in USD. $0 does not count, because it may stand for a missing amount.
    """
    if type(usd) not in (int, float):
        return None
    try:
        amount = nano(parse_rate(usd))
    except ValueError:
        return None
    return amount if 0 < amount <= MOST_TOLD else None


def _reasoning(usage: Mapping[str, Any]) -> int:
    details = usage.get("completion_tokens_details")
    nested = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return _number(nested) or _number(usage.get("reasoning_tokens")) or 0


def _tgi_usage(message: Mapping[str, Any]) -> Usage | None:
    """The usage at the end of a stream of text-generation-inference, or None."""
    details = message.get("details")
    if not isinstance(details, dict):
        return None
    counts = _number(details.get("input_length")), _number(details.get("generated_tokens"))
    return None if None in counts else Usage(counts[0] or 0, counts[1] or 0)


def usage_in(headers: Mapping[str, str], request: CallRequest) -> Usage | None:
    """The usage that an answer's headers tell, or None.

    text-generation-inference tells the tokens that it has read and generated;
    text-embeddings-inference those that it has read.
    """
    if request.generates:
        read, written = _count(headers, "x-prompt-tokens"), _count(headers, "x-generated-tokens")
        whole = not request.stream  # a stream's headers are sent before there is a count
        return Usage(read, written) if whole and read and written is not None else None
    read = _count(headers, "x-compute-tokens")
    return Usage(read) if read else None


def compute_time(headers: Mapping[str, str]) -> int | None:
    """The microseconds of computing that an answer's headers tell, or None.

    text-embeddings-inference tells milliseconds; only its headers have a count of tokens, too.
    """
    unit = 1000 if "x-compute-tokens" in headers else MICROSECONDS
    try:
        told = EXACT.multiply(Decimal(headers["x-compute-time"]), Decimal(unit))
    except (KeyError, ArithmeticError):
        return None
    if not told.is_finite() or not 0 < told < LONGEST:
        return None
    return int(told.to_integral_value(ROUND_CEILING))


def images_in(message: Mapping[str, Any]) -> int | None:
    """How many images an answer lists; None if it has no list of images."""
    lists = (message.get(name) for name in ("data", "images", "output"))
    return next((len(images) for images in lists if isinstance(images, list) and images), None)


def is_queued(message: Mapping[str, Any]) -> bool:
    """Whether an answer only says that the work is queued, so that its time is still to come."""
    data = message.get("data")
    words = (m.get(name) for m in (message, data) if isinstance(m, dict) for name in STATUS)
    return any(isinstance(word, str) and word.lower() in UNDER_WAY for word in words)


def written_bytes(message: Mapping[str, Any]) -> int:
    """The most tokens of what a model wrote in an answer or a chunk, with reasoning and tool calls.

    That is the number of bytes, or of tokens if the server tells it.
    """
    details, token = message.get("details"), message.get("token")
    if isinstance(details, dict) and (generated := _number(details.get("generated_tokens"))):
        return generated  # text-generation-inference counts them itself
    if isinstance(token, dict):
        return max(text_bytes(token.get("text") or ""), 1)
    if "sequence_number" in message:  # an event of the responses API, which repeats what it said
        delta = message.get("delta")
        return text_bytes(delta) if delta is not None else 0
    choices = message.get("choices")
    if isinstance(choices, list):
        parts = (c.get("message") or c.get("delta") or c for c in choices if isinstance(c, dict))
        return sum(map(text_bytes, parts))
    return text_bytes(message)


def writes(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk of a chat or a completion has a part of what the model writes."""
    choices = chunk.get("choices")
    steps = (
        [c.get("delta") or c for c in choices if isinstance(c, dict)]
        if isinstance(choices, list)
        else []
    )
    return any(step.get(name) for step in steps if isinstance(step, dict) for name in WRITTEN)


def size_of(body: object) -> int:
    """The bytes of an answer that is not JSON."""
    return len(body) if isinstance(body, (bytes, bytearray, str)) else 0


def inner(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer inside of an event of the responses API; any other chunk unchanged."""
    response = chunk.get("response")
    return response if isinstance(response, dict) else chunk


def finished(message: Mapping[str, Any]) -> set[str]:
    """The choices that have ended: the chunk has a reason for their end."""
    if isinstance(message.get("details"), dict):
        return {"0"}  # text-generation-inference's last event
    if message.get("type") in ENDS:
        return {"0"}
    choices = message.get("choices")
    found = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    return {str(c.get("index", 0)) for c in found if c.get("finish_reason") is not None}


def finished_by_length(message: Mapping[str, Any]) -> bool:
    """Whether an answer stopped because of its limit on tokens."""
    details = message.get("details")
    if isinstance(details, dict) and details.get("finish_reason") == "length":
        return True
    incomplete = message.get("incomplete_details")
    if isinstance(incomplete, dict) and incomplete.get("reason") == "max_output_tokens":
        return True
    choices = message.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "length" for choice in choices
    )


def _count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    plain = text.isascii() and text.isdecimal() and len(text) <= LONGEST_COUNT
    return int(text) if plain else None


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < MOST_TOKENS else None
