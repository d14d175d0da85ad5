"""The responses API: the same models as in chat, with other request and answer formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from pytest_hfbudget.emulator import chat
from pytest_hfbudget.emulator.chat import Ask, Choice
from pytest_hfbudget.emulator.clock import MICROSECONDS
from pytest_hfbudget.emulator.exchange import Exchange
from pytest_hfbudget.emulator.price import Consumed
from pytest_hfbudget.emulator.serving import Server
from pytest_hfbudget.emulator.stream import Event, EventStream


async def serve_response(exchange: Exchange, server: Server) -> ASGIApp:
    """Answer a request of the responses API. Raises Refusal (400)."""
    body, switches = exchange.json(), exchange.world.switches
    ask = chat.read_chat(_as_chat(body), server.context, switches.natural_tokens, switches)
    (choice,) = chat.answer(ask)
    server.book(exchange, Consumed(ask.prompt_tokens, choice.tokens, cached_tokens=ask.cached))
    await exchange.connection.sleep(switches.answer_delay_s)
    counted = switches.usage == "always"
    answer = _answer(exchange, server, body) | _end(ask, choice, counted)
    headers = server.headers(exchange)
    if body.get("stream"):
        return EventStream(exchange, list(_events(answer, choice)), headers, ends_with_done=False)
    return JSONResponse(answer, headers=headers)


def _as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request as a chat request."""
    given = body.get("input", "")
    items = given if isinstance(given, list) else [{"role": "user", "content": given}]
    messages = [_message(item) for item in items if "role" in item]
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    tools = [{"type": "function", "function": tool} for tool in body.get("tools") or []]
    asked: dict[str, Any] = {"messages": messages, "tools": tools}
    if body.get("max_output_tokens") is not None:
        asked["max_tokens"] = body["max_output_tokens"]
    if (body.get("text") or {}).get("format", {}).get("type", "text") != "text":
        asked["response_format"] = {"type": "json_object"}
    return asked


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    content = item.get("content", "")
    if isinstance(content, list):
        content = [{**part, "type": "text"} if "text" in part else part for part in content]
    return {"role": item["role"], "content": content}


def _answer(exchange: Exchange, server: Server, body: Mapping[str, Any]) -> dict[str, Any]:
    world = exchange.world
    return {
        "id": f"resp_emulated{next(world.ids)}",
        "object": "response",
        "created_at": world.clock.now() // MICROSECONDS,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": server.model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "usage": None,
    }


def _end(ask: Ask, choice: Choice, counted: bool) -> dict[str, Any]:
    """What is added to an answer when it is complete."""
    cut = choice.finish_reason == "length"
    text = {"type": "output_text", "text": choice.text("content"), "annotations": []}
    message = {
        "type": "message",
        "id": "msg_emulated",
        "status": "incomplete" if cut else "completed",
        "role": "assistant",
        "content": [text],
    }
    usage = {
        "input_tokens": ask.prompt_tokens,
        "input_tokens_details": {"cached_tokens": ask.cached},
        "output_tokens": choice.tokens,
        "output_tokens_details": {"reasoning_tokens": choice.reasoning_tokens},
        "total_tokens": ask.prompt_tokens + choice.tokens,
    }
    return {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [message],
        "usage": usage if counted else None,
    }


def _events(answer: Mapping[str, Any], choice: Choice) -> Iterator[Event]:
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    (message,) = answer["output"]
    (text,) = message["content"]
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    item = {**message, "status": "in_progress", "content": []}
    told: list[tuple[str, dict[str, Any], int]] = [
        ("response.created", {"response": begun}, 0),
        ("response.output_item.added", {"output_index": 0, "item": item}, 0),
        ("response.content_part.added", {**place, "part": {**text, "text": ""}}, 0),
    ]
    for piece in choice.pieces:
        if delta := piece.delta.get("content"):
            told.append(("response.output_text.delta", {**place, "delta": delta}, piece.tokens))
    told += [
        ("response.output_text.done", {**place, "text": text["text"]}, 0),
        ("response.content_part.done", {**place, "part": text}, 0),
        ("response.output_item.done", {"output_index": 0, "item": message}, 0),
        (f"response.{answer['status']}", {"response": answer}, 0),
    ]
    for number, (kind, data, tokens) in enumerate(told):
        yield Event({"type": kind, "sequence_number": number, **data}, tokens)
