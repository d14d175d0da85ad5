"""urllib3 with one time-out for a whole answer; its own starts anew with each byte.

Apart from `transport`, because whoever imports that should not have to import urllib3.
"""

from __future__ import annotations

import io
import socket
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from pytest_hfbudget.endpoints.pace import SYSTEM_CLOCK

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class _Received(io.RawIOBase):
    """What a socket receives within the time that it is given for one read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        timeout_s = sock.gettimeout()
        self._ends = None if timeout_s is None else SYSTEM_CLOCK.monotonic() + timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        if self._ends is not None:
            left = self._ends - SYSTEM_CLOCK.monotonic()
            if left <= 0:
                raise TimeoutError("the answer did not end")
            self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Source:
    """As much of a socket as a response needs."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._sock))


class _Response(HTTPResponse):
    """Status line, headers and body, also of a proxy's answer to CONNECT."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Source(sock), *args, **kwargs)  # type: ignore[arg-type]  # see _Source


class _Plain(HTTPConnection):
    response_class = _Response


class _Tls(HTTPSConnection):
    response_class = _Response


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _Tls


# For `urllib3.PoolManager.pool_classes_by_scheme`.
POOLS = {"http": _PlainPool, "https": _TlsPool}
