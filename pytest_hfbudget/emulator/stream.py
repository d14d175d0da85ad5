"""An answer as server-sent events, which the client or a fault may break off."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from pytest_hfbudget.emulator.exchange import Exchange

_DONE = b"data: [DONE]\n\n"
_SCRIPTED_ERROR = {"error": "scripted error in the stream", "error_type": "generation"}


@dataclass(frozen=True)
class Event:
    """One event, and how many completion tokens it carries."""

    data: Mapping[str, Any]
    tokens: int = 0


class EventStream:
    """An ASGI answer that sends events and keeps the invoice at what was written."""

    def __init__(
        self,
        exchange: Exchange,
        events: Sequence[Event],
        headers: Mapping[str, str],
        *,
        ends_with_done: bool = True,
    ) -> None:
        self._exchange = exchange
        self._end = _DONE if ends_with_done else b""
        self._events = events
        self._headers = {"content-type": "text/event-stream", **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        written = 0
        for count, event in enumerate(self._events):
            if not await self._may_go_on(count, send):
                self._break_off(written)
                return
            # Counted before it is sent: once the client has the bytes, they are billed.
            written += event.tokens
            self._exchange.chunks += 1
            await send(_body(_encoded(event.data)))
        await send(_body(self._end, more=False))

    async def _may_go_on(self, count: int, send: Send) -> bool:
        exchange, connection = self._exchange, self._exchange.connection
        await connection.sleep(exchange.world.switches.chunk_delay_s)
        if connection.gone.is_set():
            return False
        if exchange.action.cut_stream_after == count:
            connection.reset()
            return False
        if exchange.action.error_in_stream_after == count:
            await send(_body(_encoded(_SCRIPTED_ERROR), more=False))
            return False
        return True

    def _break_off(self, written: int) -> None:
        exchange = self._exchange
        if exchange.world.switches.disconnect_bills == "full":
            return
        call = exchange.the_call
        call.used = replace(call.used, completion_tokens=written)
        exchange.broken_off = True


def _encoded(data: Mapping[str, Any]) -> bytes:
    name = data.get("type")  # as the responses API names its events
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(data).encode() + b"\n\n"


def _body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
