"""Paid requests of httpx and httpx2, which differ in their name alone."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

from pytest_hfbudget.errors import BudgetExceededError
from pytest_hfbudget.metering.instrumentation import paid_requests
from pytest_hfbudget.metering.instrumentation.http_layer import HttpLayer
from pytest_hfbudget.metering.instrumentation.paid_requests import (
    Adapter,
    AsyncAdapter,
    HttpParameters,
    SyncAdapter,
    encoded,
)
from pytest_hfbudget.metering.request import Parameters
from pytest_hfbudget.metering.stream import AnswerBody

# The openai SDK and clients built on it send such headers. They send again if sending raises.
SDK = "x-stainless-lang"
LITELLM = "litellm/"
PAYMENT_REQUIRED = 402


def send(
    layer: HttpLayer, original: Callable[..., Any], client: Any, request: Any, options: Any
) -> Any:
    """``Client.send`` of a paid request."""
    __tracebackhide__ = True
    return paid_requests.send(layer, HttpxRequest(original, client, request, options))


async def send_async(
    layer: HttpLayer, original: Callable[..., Any], client: Any, request: Any, options: Any
) -> Any:
    """``AsyncClient.send`` of a paid request."""
    __tracebackhide__ = True
    await request.aread()
    asked = AsyncHttpxRequest(original, client, request, options)
    return await paid_requests.send_async(layer, asked)


class AnyHttpxRequest(Adapter):
    """What is the same for a request of either client."""

    def __init__(
        self, original: Callable[..., Any], client: Any, request: Any, options: dict[str, Any]
    ) -> None:
        super().__init__(original, client, options)
        self._request = request
        self._module = _library(request)
        self.parameters = HttpParameters.of(str(request.url), request.read(), request.headers)
        timeouts = request.extensions.get("timeout")
        self.timeout = timeouts.get("read") if isinstance(timeouts, dict) else None
        self.whole = self.parameters.streams and not options.get("stream")
        self.altered = isinstance(options.get("auth"), self._module.Auth)

    def body(self, answer: Any) -> bytes | None:
        # None while the body is unread; a stand-in for the network may have read it before.
        return answer.content if hasattr(answer, "_content") else None

    def refused(self, error: BudgetExceededError) -> Any:
        headers = self._request.headers
        if SDK not in headers and not headers.get("user-agent", "").startswith(LITELLM):
            return super().refused(error)
        answer = _refusal_class(self._module)
        told = {"message": str(error), "type": "budget_exceeded", "code": "budget_exceeded"}
        made = answer(
            PAYMENT_REQUIRED,
            headers={"x-should-retry": "false"},
            json={"error": {**told, "param": None}},
            request=self._request,
        )
        made.refusal = error
        return made

    def _to_send(self, parameters: Parameters) -> Any:
        asked, request = self.parameters, self._request
        if parameters == asked:
            return request
        headers = self._module.Headers(request.headers)
        content = request.content
        if parameters.json != asked.json:
            content = encoded(parameters.json)
            headers["content-length"] = str(len(content))
            headers.pop("transfer-encoding", None)
        if parameters.url != asked.url:
            headers["host"] = self._module.URL(parameters.url).netloc.decode()
        headers.update(parameters.headers)
        return self._module.Request(
            request.method,
            parameters.url,
            headers=headers,
            content=content,
            extensions=request.extensions,
        )


class HttpxRequest(AnyHttpxRequest, SyncAdapter):
    """A request of ``Client``."""

    def send(self, parameters: Parameters) -> Any:
        return self.original(self.client, self._to_send(parameters), **self.sent_options())

    def load(self, answer: Any) -> None:
        answer.read()

    def metered(self, answer: Any, body: AnswerBody) -> Any:
        answer.stream = _stream_class(self._module)(answer.stream, body, _decoder(answer))
        return answer


class AsyncHttpxRequest(AnyHttpxRequest, AsyncAdapter):
    """A request of ``AsyncClient``."""

    async def send(self, parameters: Parameters) -> Any:
        request = self._to_send(parameters)
        return await self.original(self.client, request, **self.sent_options())

    async def load(self, answer: Any) -> None:
        await answer.aread()

    def metered(self, answer: Any, body: AnswerBody) -> Any:
        answer.stream = _async_stream_class(self._module)(answer.stream, body, _decoder(answer))
        return answer


def _library(request: Any) -> ModuleType:
    """The library that a request, or what it is derived from, belongs to."""
    for cls in type(request).__mro__:
        if (name := cls.__module__.partition(".")[0]) in ("httpx", "httpx2"):
            return sys.modules[name]
    raise TypeError(type(request))


@lru_cache
def _refusal_class(module: ModuleType) -> Any:
    class RefusedResponse(module.Response):  # type: ignore[misc, name-defined]
        """The answer that the plugin makes for a request which it has refused to send."""

        refusal: BudgetExceededError

        def raise_for_status(self) -> Any:
            try:
                return super().raise_for_status()
            except Exception as error:
                raise error from self.refusal

    return RefusedResponse


def _decoder(answer: Any) -> list[Any]:
    """The decoders for the body of an answer. Its ``content-encoding`` header is removed."""
    names = [name.strip().lower() for name in answer.headers.get("content-encoding", "").split(",")]
    names = [name for name in reversed(names) if name not in ("", "identity")]
    if not names:
        return []
    module = sys.modules[f"{_library(answer).__name__}._decoders"]
    known = module.SUPPORTED_DECODERS
    if not all(name in known for name in names):
        return []  # no client of this library can read it either
    del answer.headers["content-encoding"]
    return [known[name]() for name in names]


def _joined(decoded: Any) -> bytes:
    """What a decoder returns: bytes in httpx, an iterator of them in httpx2."""
    return decoded if isinstance(decoded, bytes) else b"".join(decoded)


class ReadThrough:
    """The bytes of an answer, which the meter reads before the caller does."""

    def __init__(self, stream: Any, body: AnswerBody, decoders: list[Any]) -> None:
        self._stream, self._body, self._decoders = stream, body, decoders

    def _shown(self, data: bytes) -> bytes:
        for decoder in self._decoders:
            data = _joined(decoder.decode(data))
        return self._body.feed(data)

    def _rest(self) -> bytes:
        data = b""
        for decoder in self._decoders:
            data = (_joined(decoder.decode(data)) if data else b"") + _joined(decoder.flush())
        shown = self._body.feed(data) if data else b""
        return shown + self._body.end()

    def __del__(self) -> None:
        self._body.dropped()


@lru_cache
def _stream_class(module: ModuleType) -> Any:
    class MeteredByteStream(ReadThrough, module.SyncByteStream):  # type: ignore[misc, name-defined]
        """The body of an answer of ``Client``."""

        def __iter__(self) -> Iterator[bytes]:
            try:
                for data in self._stream:
                    if shown := self._shown(data):
                        yield shown
            except GeneratorExit:
                raise
            except BaseException as error:
                self._body.failed(error)
                raise
            if shown := self._rest():
                yield shown

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                self._body.close()

    return MeteredByteStream


@lru_cache
def _async_stream_class(module: ModuleType) -> Any:
    class AsyncMeteredByteStream(ReadThrough, module.AsyncByteStream):  # type: ignore[misc, name-defined]
        """The body of an answer of ``AsyncClient``."""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for data in self._stream:
                    if shown := self._shown(data):
                        yield shown
            except GeneratorExit:
                raise
            except BaseException as error:
                self._body.failed(error)
                raise
            if shown := self._rest():
                yield shown

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._body.close()

    return AsyncMeteredByteStream
