"""The connection of one request: reads its body, notices a hang-up, and can break it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from starlette.types import Message, Receive, Scope, Send


class Connection:
    """Wraps the server's receive and send for the length of one request."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()  # the client hung up before the answer was complete
        self.cut = False  # we hung up
        self.status: int | None = None  # what was sent, if anything was
        self.complete = False
        self.seconds_per_byte = 0.0
        self.muted = False  # swallow the answer: the client is never to see it

    async def read_body(self) -> bytes:
        """The whole request body; from here on a hang-up of the client is noticed."""
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return body
            body += bytes(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self._watcher = asyncio.create_task(self._watch())
        return body

    async def send(self, message: Message) -> None:
        """Send a part of the answer; slowly, if a fault says so."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not self.muted and not self.cut:
            await self._deliver(message, last)
        # Into the void is not complete: the client had hung up before.
        self.complete = self.complete or (last and not self.gone.is_set())

    async def receive(self) -> Message:
        """The `receive` of an ASGI response; it reports a disconnect and nothing else."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def sleep(self, seconds: float) -> None:
        """Sleep, but end early if the client hangs up."""
        if seconds <= 0:
            # Even without a delay the loop must get a turn, or a hang-up would go unnoticed.
            await asyncio.sleep(0)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.gone.wait(), seconds)

    def reset(self) -> None:
        """Break the TCP connection so that the client sees a reset."""
        self.cut = True
        transport = self._transport()
        if transport is None:
            return  # Not uvicorn: returning without an answer makes any server hang up.
        raw: socket.socket | None = transport.get_extra_info("socket")
        if raw is not None:
            # Lingering for zero seconds turns the close into a reset. A client that has hung up
            # meanwhile has closed the socket: there is nothing left to reset.
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def drip(self, seconds_per_byte: float) -> None:
        """Answer with headers that don't end, until the client hangs up."""
        self.cut = True
        transport = self._transport()
        if transport is None:
            return
        line = b"HTTP/1.1 200 OK\r\nx-slow: "
        while not self.gone.is_set():
            transport.write(line[:1] or b"a")
            line = line[1:]
            await self.sleep(seconds_per_byte)
        transport.close()

    def close(self) -> None:
        """Close the connection normally, without an answer."""
        self.cut = True
        transport = self._transport()
        if transport is not None:
            transport.close()

    def stop_watching(self) -> None:
        """The request is over."""
        if self._watcher is not None:
            self._watcher.cancel()

    def _transport(self) -> Any:
        # uvicorn hands out a bound method of the object that owns the transport.
        return getattr(getattr(self._send, "__self__", None), "transport", None)

    async def _watch(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.gone.set()

    async def _deliver(self, message: Message, last: bool) -> None:
        body = message.get("body", b"")
        if not self.seconds_per_byte or not body:
            await self._send(message)
            return
        for at in range(len(body)):
            await self.sleep(self.seconds_per_byte)
            more = not last or at < len(body) - 1
            part = body[at : at + 1]
            await self._send({"type": "http.response.body", "body": part, "more_body": more})


def bearer(scope: Scope) -> str | None:
    """The token of the Authorization header."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value.lower().startswith(b"bearer "):
            return str(value[7:].decode("latin-1").strip())
    return None
