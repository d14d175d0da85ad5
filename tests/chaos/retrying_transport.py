"""A transport of a user's own, which sends a request once more when a server was at fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http

FIRST_SERVER_ERROR = 500


@contextmanager
def retrying() -> Iterator[None]:
    """Have huggingface_hub's sync client send by such a transport meanwhile."""
    httpx: Any = getattr(_http, "httpx2", None) or getattr(_http, "httpx", None)

    class Retrying(httpx.HTTPTransport):  # type: ignore[misc] # either library's
        def handle_request(self, request: Any) -> Any:
            answer = super().handle_request(request)
            if answer.status_code < FIRST_SERVER_ERROR:
                return answer
            answer.close()
            return super().handle_request(request)

    def client() -> Any:
        made = _http.default_client_factory()
        made._transport = Retrying()
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(_http.default_client_factory)
