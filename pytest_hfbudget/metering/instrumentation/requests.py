"""Paid requests of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pytest_hfbudget.metering.instrumentation import paid_requests
from pytest_hfbudget.metering.instrumentation.http_layer import HttpLayer
from pytest_hfbudget.metering.instrumentation.paid_requests import (
    HttpParameters,
    SyncAdapter,
    as_bytes,
    encoded,
)
from pytest_hfbudget.metering.request import Parameters
from pytest_hfbudget.metering.stream import AnswerBody


def send(
    layer: HttpLayer, original: Callable[..., Any], session: Any, request: Any, options: Any
) -> Any:
    """``Session.send`` of a paid request."""
    __tracebackhide__ = True
    return paid_requests.send(layer, RequestsRequest(original, session, request, options))


class RequestsRequest(SyncAdapter):
    """A prepared request."""

    def __init__(
        self, original: Callable[..., Any], session: Any, request: Any, options: dict[str, Any]
    ) -> None:
        super().__init__(original, session, options)
        self._request = request
        self.parameters = HttpParameters.of(request.url, as_bytes(request.body), request.headers)
        given = options.get("timeout")
        self.timeout = given[1] if isinstance(given, tuple) and len(given) > 1 else given
        self.whole = self.parameters.streams and not options.get("stream", session.stream)

    def send(self, parameters: Parameters) -> Any:
        return self.original(self.client, self._to_send(parameters), **self.sent_options())

    def load(self, answer: Any) -> None:
        answer.content  # noqa: B018 - reads it

    def body(self, answer: Any) -> bytes | None:
        return answer.content if answer._content is not False else None

    def metered(self, answer: Any, body: AnswerBody) -> Any:
        answer.raw = MeteredRaw(answer.raw, body)
        return answer

    def _to_send(self, parameters: Parameters) -> Any:
        asked = self.parameters
        if parameters == asked:
            return self._request
        request = self._request.copy()
        request.url = parameters.url
        request.headers.update(parameters.headers)
        if parameters.json != asked.json:
            request.body = encoded(parameters.json)
            request.headers["Content-Length"] = str(len(request.body))
            request.headers.pop("Transfer-Encoding", None)
        return request


class MeteredRaw:
    """The body of an answer of urllib3, which the meter reads before the caller does."""

    def __init__(self, raw: Any, body: AnswerBody) -> None:
        self._raw, self._body = raw, body

    def stream(
        self, amt: int | None = 65536, decode_content: bool | None = None
    ) -> Iterator[bytes]:
        """The body in pieces."""
        try:
            for data in self._raw.stream(amt, decode_content):
                if shown := self._body.feed(data):
                    yield shown
        except GeneratorExit:
            raise
        except BaseException as error:
            self._body.failed(error)
            raise
        if shown := self._body.end():
            yield shown

    def read(self, amt: int | None = None, *args: Any, **kwargs: Any) -> bytes:
        """About ``amt`` bytes, because lines of a stream are not split; all without ``amt``."""
        while True:
            try:
                data: bytes = self._raw.read(amt, *args, **kwargs)
            except BaseException as error:
                self._body.failed(error)
                raise
            shown = self._body.feed(data) if data else b""
            if not data or amt is None:
                return shown + self._body.end()
            if shown:
                return shown

    def close(self) -> None:
        """Read no further."""
        try:
            self._raw.close()
        finally:
            self._body.close()

    def __iter__(self) -> Iterator[bytes]:
        return self.stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def __del__(self) -> None:
        self._body.dropped()
