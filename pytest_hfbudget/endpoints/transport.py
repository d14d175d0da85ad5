"""Sends one HTTP request, with limits on the time and the size of the answer."""

from __future__ import annotations

import importlib
import io
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from pytest_hfbudget import __version__
from pytest_hfbudget.endpoints.retry import STALE_CONNECTION_S
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    import urllib3
    from _typeshed import WriteableBuffer


class _Deadline(io.RawIOBase):
    """Reads a whole answer from a socket within the socket's time-out for one read."""

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
    """The part of a socket that `HTTPResponse` uses."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Deadline(self._sock))


class _Response(HTTPResponse):
    """A response with a deadline for status line, headers and body, also of a proxy's CONNECT."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Source(sock), *args, **kwargs)  # type: ignore[arg-type]  # see _Source


class _Plain(HTTPConnection):
    response_class = _Response
    of_pytest_hfbudget = True  # tells these requests from those of the code under test


class _Tls(HTTPSConnection):
    response_class = _Response
    of_pytest_hfbudget = True


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _Tls


# For `urllib3.PoolManager.pool_classes_by_scheme`.
POOLS = {"http": _PlainPool, "https": _TlsPool}
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class HttpAnswer:
    """An answer; header names are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NoAnswerError(Exception):
    """A request without a usable answer.

    Attributes:
        sent: False if the request was certainly not sent, so that it can't have had an effect.
        lasting: whether another try would fail in the same way.
    """

    def __init__(self, message: str, *, sent: bool, lasting: bool = False) -> None:
        super().__init__(message)
        self.sent, self.lasting = sent, lasting


class Transport(Protocol):
    """Sends requests; tests may replace it."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, try_s: float
    ) -> HttpAnswer:
        """Send a request once, and follow no redirect.

        Args:
            try_s: seconds to connect, and again for the whole answer.

        Raises:
            NoAnswerError: no connection, no answer within that time, or half an answer.
        """


@dataclass(frozen=True)
class Route:
    """How this machine reaches the internet; the pytest process sends it to the reaper.

    Attributes:
        ca_file: a bundle of certificate authorities; None for the system's.
        proxy: the URL of a proxy. Never shown, because it may contain a password.
    """

    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)

    @classmethod
    def find(cls, url: str) -> Route:
        """Read the usual environment variables, as other HTTP clients do."""
        from urllib.request import getproxies, proxy_bypass  # slow to import

        parts = urlsplit(url)
        bypass = proxy_bypass(parts.hostname or "")
        proxies = {} if bypass else getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        # urllib3 can use HTTP proxies only, so ignore another kind.
        usable = proxy if proxy and proxy.startswith("http") else None
        return cls(ca_file=_ca_file(), proxy=usable)


def _ca_file() -> str | None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        path = os.environ.get(variable)
        if path and os.path.isfile(path):
            return path
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return None
    try:  # a Python without a certificate store, as python.org's for macOS
        return str(importlib.import_module("certifi").where())
    except ImportError:
        return None


class Urllib3Transport:
    """The real transport. Safe to share between threads."""

    def __init__(self, route: Route | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        import urllib3  # importing this package must stay cheap

        self._urllib3, self._clock, self._used = urllib3, clock, clock.monotonic()
        route = route or Route()
        options: dict[str, Any] = {"maxsize": 16, "retries": False, "ca_certs": route.ca_file}
        self._pool: urllib3.PoolManager = (
            urllib3.ProxyManager(route.proxy, **options)
            if route.proxy
            else urllib3.PoolManager(**options)
        )
        self._pool.pool_classes_by_scheme = POOLS

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, try_s: float
    ) -> HttpAnswer:
        """See `Transport.send`."""
        if self._clock.monotonic() - self._used > STALE_CONNECTION_S:
            self._pool.clear()
        errors = self._urllib3.exceptions
        unsent = (errors.NewConnectionError, errors.ConnectTimeoutError, errors.NameResolutionError)
        try:
            answer = self._send(method, url, headers, body, try_s)
        except unsent as error:
            raise NoAnswerError(_reason(error), sent=False) from None
        except (errors.HTTPError, OSError) as error:
            distrust = _is_distrust(error)
            raise NoAnswerError(_reason(error), sent=not distrust, lasting=distrust) from None
        self._used = self._clock.monotonic()
        return answer

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, try_s: float
    ) -> HttpAnswer:
        response = self._pool.request(
            method,
            url,
            headers=headers,
            body=body,
            timeout=self._urllib3.Timeout(connect=try_s, read=try_s),
            redirect=False,  # a redirect could send the token to another address
            preload_content=False,
        )
        try:
            content = _read(response)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpAnswer(response.status, content, headers)


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    content = b""
    while chunk := response.read(65536):
        content += chunk
        if len(content) > _MOST_BYTES:
            raise OSError("the answer is too long")
    return content


def _is_distrust(error: BaseException | None) -> bool:
    """Whether the server's certificate was refused; nothing has been sent then."""
    while error is not None:
        inner = (error, *error.args, getattr(error, "reason", None))
        if any(isinstance(each, ssl.SSLCertVerificationError) for each in inner):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: BaseException) -> str:
    # urllib3 prefixes its texts with the repr of the connection: "<...>: text" or "Host(...): text"
    return str(error).rpartition(">: ")[2].rpartition("): ")[2] or type(error).__name__


_OK = 200
_TRIES = 2


def read_public_json(url: str, *, within_s: float) -> bytes:
    """The body of a URL's answer. Without an answer, it is asked a second time.

    Args:
        within_s: seconds for connecting in both tries together, and again for both answers.

    Raises:
        OSError: the server did not answer, or not with status 200.
    """
    transport = Urllib3Transport(Route.find(url))
    headers = {
        "accept": "application/json",
        "user-agent": f"pytest-hfbudget/{__version__} (prices)",
    }
    for left in reversed(range(_TRIES)):
        try:
            answer = transport.send("GET", url, headers, None, within_s / _TRIES)
        except NoAnswerError as error:
            if error.lasting or not left:
                raise OSError(str(error)) from None
            continue
        if answer.status == _OK:
            return answer.body
        raise OSError(f"status {answer.status}")
    raise OSError("no answer")
