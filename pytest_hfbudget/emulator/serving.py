"""Text models over HTTP: chat and plain completions, whole or as a stream, with usage or without.

Where usage shows up in a stream differs between servers; each way that is publicly documented is
a style that a provider's offer, or a switch, can have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from pytest_hfbudget.emulator import chat
from pytest_hfbudget.emulator.catalogue import DEFAULT_CONTEXT
from pytest_hfbudget.emulator.chat import Ask, Choice
from pytest_hfbudget.emulator.clock import MICROSECONDS
from pytest_hfbudget.emulator.exchange import Exchange
from pytest_hfbudget.emulator.price import NANO, Consumed, Price, nano_usd
from pytest_hfbudget.emulator.refusal import refused_by_model
from pytest_hfbudget.emulator.stream import Event, EventStream
from pytest_hfbudget.emulator.switches import Switches


@dataclass(frozen=True)
class Server:
    """Who answers: a provider's deployment of a model, or a dedicated endpoint."""

    model: str
    provider: str | None = None
    price: Price | None = None
    context: int = DEFAULT_CONTEXT
    stream_usage: str = "on_request"
    seconds: Fraction = Fraction(0)  # compute time, where that is what is billed

    def headers(self, exchange: Exchange) -> dict[str, str]:
        """The headers that say who answered, and after how much computing."""
        switches, headers = exchange.world.switches, {}
        if self.provider and switches.provider_header:
            headers["x-inference-provider"] = self.provider
        if self.seconds and switches.compute_time_header:
            headers["x-compute-time"] = str(float(self.seconds))
        return headers

    def usage(self, used: Consumed, counted: dict[str, Any], switches: Switches) -> dict[str, Any]:
        """The usage of a whole answer, with its cost where this provider tells it, in USD."""
        if self.provider in switches.cost_in_usage and self.price is not None:
            counted["estimated_cost"] = nano_usd(self.price, used) / NANO
        return counted

    def book(self, exchange: Exchange, used: Consumed) -> None:
        """Put what the answer consumes on the invoice."""
        call = exchange.the_call
        call.model, call.provider, call.price = self.model, self.provider, self.price
        call.used = used


async def serve_chat(exchange: Exchange, server: Server) -> ASGIApp:
    """Answer a chat request. Raises Refusal (400)."""
    body, switches = exchange.json(), exchange.world.switches
    ask = chat.read_chat(body, server.context, switches.natural_tokens, switches)
    ask = replace(ask, prompt_tokens=ask.prompt_tokens + _beside(exchange, server, body))
    return await _serve(exchange, server, ask, _CHAT)


def _beside(exchange: Exchange, server: Server, body: dict[str, Any]) -> int:
    """Prompt tokens that another server would not have counted."""
    world, beside = exchange.world, 0
    for each in world.switches.template_tokens:
        provider, _, tokens = each.partition("=")
        beside += int(tokens) if provider == server.provider else 0
    if world.switches.recount == "more":
        prompt = json.dumps([server.model, server.provider, body.get("messages")])
        beside += world.counted[prompt]
        world.counted[prompt] += 1
    return beside


async def serve_completion(exchange: Exchange, server: Server) -> ASGIApp:
    """Answer a plain completion request of the OpenAI API. Raises Refusal (400)."""
    body, switches = exchange.json(), exchange.world.switches
    limit = body.get("max_tokens", body.get("max_new_tokens"))
    given, natural = body.get("prompt", ""), switches.natural_tokens
    prompts = given if isinstance(given, list) else [given]  # each of them is answered
    text = "".join(map(str, prompts))
    ask = chat.read_completion(text, limit, server.context, natural, body.get("n", 1))
    ask = replace(ask, choices=ask.choices * max(len(prompts), 1))
    return await _serve(exchange, server, ask, _TEXT)


@dataclass(frozen=True)
class _Form:
    """The field names and the nesting of one API."""

    whole: str
    chunk: str
    inside: Callable[[Choice], dict[str, Any]]
    step: Callable[[dict[str, Any]], dict[str, Any]]


_CHAT = _Form(
    "chat.completion",
    "chat.completion.chunk",
    lambda choice: {"message": choice.message()},
    lambda delta: {"delta": delta},
)
_TEXT = _Form(
    "text_completion",
    "text_completion",
    lambda choice: {"text": choice.text("content")},
    lambda delta: {"text": delta.get("content", "")},
)


async def _serve(exchange: Exchange, server: Server, ask: Ask, form: _Form) -> ASGIApp:
    body, switches = exchange.json(), exchange.world.switches
    by_provider = switches.stream_usage == "by_provider"
    style = server.stream_usage if by_provider else switches.stream_usage
    if style == "rejects_options" and "stream_options" in body:
        raise refused_by_model(400, "stream_options is not supported", "unsupported_parameter")
    choices = chat.answer(ask)
    tokens = sum(choice.tokens for choice in choices)
    used = Consumed(ask.prompt_tokens, tokens, 0, server.seconds, ask.cached)
    server.book(exchange, used)
    await exchange.connection.sleep(switches.answer_delay_s)
    headers, head = server.headers(exchange), _head(exchange, server)
    if body.get("stream"):
        asked = bool((body.get("stream_options") or {}).get("include_usage"))
        head |= {"object": form.chunk}
        whole = server.usage(used, _total(ask, choices, switches), switches)
        events = _Events(head, ask, choices, form, style, asked, switches, whole)
        return EventStream(exchange, list(events), headers)
    answer = head | {"object": form.whole, "choices": _whole(choices, form)}
    if switches.usage == "always":
        answer["usage"] = server.usage(used, _total(ask, choices, switches), switches)
    return JSONResponse(answer, headers=headers)


def _whole(choices: Sequence[Choice], form: _Form) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            **form.inside(choice),
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]


def _head(exchange: Exchange, server: Server) -> dict[str, Any]:
    world = exchange.world
    return {
        "id": f"emulated-{next(world.ids)}",
        "created": world.clock.now() // MICROSECONDS,
        "model": server.model,
        "system_fingerprint": "emulator",
    }


def _total(ask: Ask, choices: Sequence[Choice], switches: Switches) -> dict[str, Any]:
    reasoning = sum(choice.reasoning_tokens for choice in choices)
    return chat.usage(ask, sum(choice.tokens for choice in choices), reasoning, switches)


@dataclass(frozen=True)
class _Events:
    """The events of one streamed answer, in order; `asked` is for usage."""

    head: dict[str, Any]
    ask: Ask
    choices: Sequence[Choice]
    form: _Form
    style: str
    asked: bool
    switches: Switches
    whole: dict[str, Any]  # the usage of all

    def __iter__(self) -> Iterator[Event]:
        written = 0
        for index, choice in enumerate(self.choices):
            for at, piece in enumerate(choice.pieces):
                written += piece.tokens
                role = {} if at else {"role": "assistant"}
                data = self._data(index, {**role, **piece.delta}, None)
                first = written == piece.tokens
                if self.style == "every_chunk" or (self.style == "first_chunk" and first):
                    data["usage"] = chat.usage(self.ask, written, 0, self.switches)
                yield Event(data, piece.tokens)
            data = self._data(index, {}, choice.finish_reason)
            last = index == len(self.choices) - 1
            if last and self.style in ("every_chunk", "finish_chunk"):
                data["usage"] = self.whole
            yield Event(data)
        if self.style == "on_request" and self.asked:
            yield Event({**self.head, "choices": [], "usage": self.whole})

    def _data(self, index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        step = {"index": index, **self.form.step(delta), "finish_reason": finish}
        return {**self.head, "choices": [step]}
