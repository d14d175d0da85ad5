"""Paid requests of aiohttp."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

from pytest_hfbudget.metering.instrumentation import genuine, paid_requests
from pytest_hfbudget.metering.instrumentation.http_layer import HttpLayer
from pytest_hfbudget.metering.instrumentation.paid_requests import (
    AsyncAdapter,
    HttpParameters,
    as_bytes,
    encoded,
)
from pytest_hfbudget.metering.request import Parameters
from pytest_hfbudget.metering.stream import AnswerBody


async def send(
    layer: HttpLayer, original: Callable[..., Any], session: Any, url: str, options: Any
) -> Any:
    """``ClientSession._request`` of a paid request.

    Args:
        url: in full, with the session's base.
    """
    __tracebackhide__ = True
    return await paid_requests.send_async(layer, AiohttpRequest(original, session, url, options))


class AiohttpRequest(AsyncAdapter):
    """A request that a session is asked to send.

    Args:
        original: sends it, to another URL if that is not None, with the given options.
    """

    def __init__(
        self, original: Callable[..., Any], session: Any, url: str, options: dict[str, Any]
    ) -> None:
        super().__init__(original, session, options)
        given = options.get("json")
        body = as_bytes(options.get("data"))
        self.parameters = HttpParameters.of(
            url, body, {**session.headers, **dict(options.get("headers") or {})}
        )
        if given is not None:
            self.parameters.json, self.parameters.data = given, b""
        timeout = options.get("timeout")
        self.timeout = getattr(timeout, "total", timeout)
        own = getattr(session, "_middlewares", ())
        self.altered = bool(options.get("middlewares", own))

    def session(self, client: Any) -> Any:
        return sending_class(client)

    async def send(self, parameters: Parameters) -> Any:
        asked, options = self.parameters, dict(self.options)
        if parameters.json != asked.json:
            if options.get("json") is not None:
                options["json"] = parameters.json
            else:
                options["data"] = encoded(parameters.json)
        if parameters.headers:
            options["headers"] = {**dict(options.get("headers") or {}), **parameters.headers}
        return await self.original(parameters.url if parameters.url != asked.url else None, options)

    def status(self, answer: Any) -> int:
        return int(answer.status)

    async def read(self, answer: Any) -> str:
        return str(await answer.text(errors="replace"))

    def body(self, answer: Any) -> bytes | None:
        body = answer._body
        return body if isinstance(body, bytes) else None

    def metered(self, answer: Any, body: AnswerBody) -> Any:
        source = answer.content
        if type(source) is not sys.modules["aiohttp"].StreamReader:
            body.close()  # a stand-in that has nothing to be read
            return answer
        answer.content = _reader_class(sys.modules["aiohttp"])(source, body)
        return answer


def sending_class(session: Any) -> Any:
    """The library's own class if a session sends as that does; else the session."""
    own = genuine(sys.modules["aiohttp.client"], "ClientSession")
    if own is None or not isinstance(session, own):
        return session
    return own if type(session)._request is own._request else session  # type: ignore[attr-defined]


@lru_cache
def _reader_class(module: ModuleType) -> Any:
    class MeteredReader(module.StreamReader):  # type: ignore[misc, name-defined]
        """The body of an answer, which the meter reads before the caller does."""

        def __init__(self, source: Any, body: AnswerBody) -> None:
            limit, _ = source.get_read_buffer_limits()
            super().__init__(source._protocol, limit, loop=source._loop)
            self._source, self._answer = source, body

        async def _wait(self, func_name: str) -> None:
            try:
                data = await self._source.readany()
            except BaseException as error:
                self._answer.failed(error)
                raise
            if data:
                self.feed_data(self._answer.feed(data))
                return
            self._end()

        def set_exception(self, exc: Any, *cause: Any) -> None:
            # aiohttp closes an answer so. The whole body may have come, though it was not read.
            if self._source.is_eof() and self._source.exception() is None and not self._eof:
                self._answer.feed(self._source.read_nowait())
                self._answer.end()
            self._answer.close()
            super().set_exception(exc, *cause)

        def _end(self) -> None:
            try:
                self.feed_data(self._answer.end())
            finally:
                self.feed_eof()

        def __del__(self) -> None:
            self._answer.dropped()

    return MeteredReader
