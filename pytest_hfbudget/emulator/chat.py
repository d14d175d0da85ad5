"""The emulated language model: the same request always gets the same words and token counts.

What a message may contain to steer the answer:

    [[tokens=N]]      N words instead of the natural length
    [[reasoning=N]]   N tokens of reasoning before the answer
    [[tool=NAME]]     a call of that tool, if it is offered; [[tool=NAME {"x": 1}]] with arguments
"""

from __future__ import annotations

import binascii
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_hfbudget.emulator.refusal import refused_by_model
from pytest_hfbudget.emulator.switches import Switches

IMAGE_TOKENS = 85
TOOL_CALL_TOKENS = 12
_MESSAGE_OVERHEAD = 4
_PROMPT_OVERHEAD = 3
_BYTES_PER_TOKEN = 4
_PATCH = 28  # pixels, as of Qwen2.5-VL
_CONTENT_TOKENS = 20  # what differs between images whose content counts
_TALE = (
    "the sun rose over a calm sea and all boats left their quiet harbour for new "
    "shores where old songs are sung by day and told by night in every house"
)
_WORDS = _TALE.split()
_PLAIN = Switches()


@dataclass(frozen=True)
class Ask:
    """A parsed request and the size of its prompt. `limit` is in tokens per choice."""

    prompt_tokens: int
    limit: int
    natural: int
    reasoning: int = 0
    choices: int = 1
    tool: str | None = None
    arguments: str = "{}"
    as_json: bool = False
    seed: int = 0
    cached: int = 0  # of the prompt's tokens


@dataclass(frozen=True)
class Piece:
    """One step of an answer: what a stream sends as a delta, and the tokens that it costs."""

    delta: Mapping[str, Any]
    tokens: int = 1


@dataclass(frozen=True)
class Choice:
    """One complete answer."""

    pieces: Sequence[Piece]
    finish_reason: str

    @property
    def tokens(self) -> int:
        """Completion tokens, reasoning included."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def reasoning_tokens(self) -> int:
        """The part of `tokens` that is reasoning."""
        return sum(piece.tokens for piece in self.pieces if "reasoning" in piece.delta)

    def text(self, key: str) -> str:
        """All of `content` or `reasoning`."""
        return "".join(piece.delta.get(key) or "" for piece in self.pieces)

    def message(self) -> dict[str, Any]:
        """As an answer that is not streamed shows it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text("content")}
        if reasoning := self.text("reasoning"):
            message["reasoning"] = reasoning
        calls = [call for piece in self.pieces for call in piece.delta.get("tool_calls", ())]
        if calls:
            message |= {"content": None, "tool_calls": calls}
        return message


def text_tokens(text: str) -> int:
    """Tokens of a text: one for every four bytes of UTF-8, begun ones included."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def prompt_tokens(body: Mapping[str, Any], images: str = "flat") -> int:
    """Tokens of a chat prompt; ``images`` is how those are counted, as the switch names it.

    Of text alone there are never more than its bytes of UTF-8, plus 16 per message, plus 16.
    """
    messages = body.get("messages") or []
    count = sum(_MESSAGE_OVERHEAD + _message_tokens(message, images) for message in messages)
    return count + _PROMPT_OVERHEAD + _json_tokens(body.get("tools"))


def read_chat(
    body: Mapping[str, Any], context: int, natural: int, switches: Switches = _PLAIN
) -> Ask:
    """Understand a chat request. Raises Refusal (400) for one that cannot be answered."""
    _check_names(body, switches.limit_names)
    if switches.lenient_numbers:
        body = {name: _lenient(value) for name, value in body.items()}
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise refused_by_model(400, "messages must be an array of messages", "invalid_messages")
    said = _last_user_text(messages)
    tool, arguments = _wanted_tool(said, body.get("tools") or [])
    answered = messages[-1].get("role") == "tool"
    size = prompt_tokens(body, switches.image_tokens)
    given = body.get("max_completion_tokens", body.get("max_tokens"))
    if given == 0 and switches.zero_limit == "none":
        given = None
    return Ask(
        prompt_tokens=size,
        limit=_limit(given, size, context),
        natural=_directive(said, "tokens", natural),
        reasoning=_directive(said, "reasoning", 0),
        cached=min(switches.cached_tokens, size),
        choices=_positive(body.get("n", 1), "n"),
        tool=None if answered else tool,
        arguments=arguments,
        as_json=(body.get("response_format") or {}).get("type", "text") not in ("text", None),
        seed=zlib.crc32(said.encode("utf-8", "surrogatepass")),
    )


def read_completion(
    prompt: str, limit: object, context: int, natural: int, choices: object = 1
) -> Ask:
    """Understand a plain text-generation request. Raises Refusal (400)."""
    size = text_tokens(prompt) + _PROMPT_OVERHEAD
    return Ask(
        prompt_tokens=size,
        limit=_limit(limit, size, context),
        natural=_directive(prompt, "tokens", natural),
        choices=_positive(choices, "n"),
        seed=zlib.crc32(prompt.encode("utf-8", "surrogatepass")),
    )


def answer(ask: Ask) -> list[Choice]:
    """The answers to a request; each stops by itself, or because of the limit."""
    return [_choice(ask, index) for index in range(ask.choices)]


def usage(
    ask: Ask, completion_tokens: int, reasoning_tokens: int = 0, switches: Switches = _PLAIN
) -> dict[str, Any]:
    """The usage object of the OpenAI API."""
    beside = reasoning_tokens if switches.reasoning_usage == "beside" else 0
    counted: dict[str, Any] = {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": completion_tokens - beside,
        "total_tokens": ask.prompt_tokens + completion_tokens,
    }
    if switches.cached_usage == "flat":
        counted["cached_tokens"] = ask.cached
    elif switches.cached_usage == "null":
        counted["prompt_tokens_details"] = None
    elif ask.cached:
        counted["prompt_tokens_details"] = {"cached_tokens": ask.cached}
    if ask.reasoning:
        counted["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return counted


def _choice(ask: Ask, index: int) -> Choice:
    thoughts = [Piece({"reasoning": word}) for word in _words(ask.seed + index, ask.reasoning)]
    if ask.tool is not None:
        call = {
            "index": 0,
            "id": f"call_{ask.seed:08x}",
            "type": "function",
            "function": {"name": ask.tool, "arguments": ask.arguments},
        }
        pieces, reason = [Piece({"tool_calls": [call]}, TOOL_CALL_TOKENS)], "tool_calls"
    else:
        words = _words(ask.seed + index, ask.natural)
        pieces = [Piece({"content": word}) for word in (_quoted(words) if ask.as_json else words)]
        reason = "stop"
    everything = [*thoughts, *pieces]
    kept = list(_within(everything, ask.limit))
    return Choice(kept, reason if len(kept) == len(everything) else "length")


def _within(pieces: Iterable[Piece], limit: int) -> Iterable[Piece]:
    for piece in pieces:
        limit -= piece.tokens
        if limit < 0:
            return
        yield piece


def _words(seed: int, count: int) -> list[str]:
    return [(" " if at else "") + _WORDS[(seed + 7 * at) % len(_WORDS)] for at in range(count)]


def _quoted(words: list[str]) -> list[str]:
    """The words as one JSON object, without another token."""
    if not words:
        return words
    opened = ['{"answer": "' + words[0], *words[1:]]
    return [*opened[:-1], opened[-1] + '"}']


def _is_message(message: object) -> bool:
    content = message.get("content") if isinstance(message, dict) else 0
    if isinstance(content, list):
        return all(isinstance(part, dict) for part in content)
    return content is None or isinstance(content, str)


def _message_tokens(message: Mapping[str, Any], images: str) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    count = _json_tokens(message.get("tool_calls"))
    for part in parts:
        is_text = part.get("type") == "text"
        count += text_tokens(str(part.get("text", ""))) if is_text else _image(part, images)
    return count


def _image(part: Mapping[str, Any], how: str) -> int:
    if how == "by_content":
        return IMAGE_TOKENS + zlib.crc32(json.dumps(part).encode()) % _CONTENT_TOKENS
    size = None if how == "flat" else _png_size(part)
    if size is None:
        return IMAGE_TOKENS
    if how == "qwen3_vl":
        return _qwen3_vl(*size)
    width, height = size
    if how == "by_tiles":  # the formula in Together's documentation of vision models
        return 1601 * min(2, max(width // 560, 1)) * min(2, max(height // 560, 1))
    return -(-width // _PATCH) * -(-height // _PATCH)


def _png_size(part: Mapping[str, Any]) -> tuple[int, int] | None:
    shown = part.get("image_url")
    url = str(shown.get("url")) if isinstance(shown, dict) else ""
    try:
        head = binascii.a2b_base64(url.partition(";base64,")[2][:32])
    except ValueError:
        return None
    if not head.startswith(b"\x89PNG"):
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _qwen3_vl(width: int, height: int) -> int:
    """The tokens of an image for Qwen3-VL: `smart_resize` of transformers, and two markers."""
    least, most, side = 256 * 256, 4096 * 4096, 32
    across, down = (max(round(length / side), 1) for length in (width, height))
    if across * down * side**2 > most:
        scale = math.sqrt(most / (width * height)) / side
        across, down = (max(math.floor(length * scale), 1) for length in (width, height))
    elif across * down * side**2 < least:
        scale = math.sqrt(least / (width * height)) / side
        across, down = (math.ceil(length * scale) for length in (width, height))
    return across * down + 2


def _json_tokens(value: Any) -> int:
    if not value:
        return 0
    return text_tokens(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return " ".join(str(part.get("text", "")) for part in content)
            return str(content or "")
    return ""


def _wanted_tool(said: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
    found = re.search(r"\[\[tool=([\w.-]+)(?:\s+(\{.*?\}))?\]\]", said)
    names = [(tool.get("function") or {}).get("name") for tool in tools]
    if not found or found[1] not in names:
        return None, "{}"
    return found[1], found[2] or "{}"


def _directive(said: str, name: str, default: int) -> int:
    found = re.search(rf"\[\[{name}=(\d+)\]\]", said)
    return int(found[1]) if found else default


def _check_names(body: Mapping[str, Any], known: str) -> None:
    """Refuse a limit by a name that this server does not know, as OpenAI's newer models do."""
    for name in ("max_tokens", "max_completion_tokens"):
        if known not in ("any", name) and name in body:
            hint = "" if known == "none" else f" Use '{known}' instead."
            message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
            raise refused_by_model(400, message, "unsupported_parameter")


def _lenient(value: object) -> object:
    """A whole number that is written as a float or as a string."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _positive(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refused_by_model(400, f"{name} must be a positive integer", f"invalid_{name}")
    return value


def _limit(given: object, size: int, context: int) -> int:
    asked = _positive(given, "max_tokens") if given is not None else 0
    if size + asked > context or size >= context:
        message = (
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{size + asked} tokens ({size} in the messages, {asked} in the completion)."
        )
        raise refused_by_model(400, message, "context_length_exceeded")
    return asked or context - size
