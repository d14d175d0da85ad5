"""Sees what HTTP libraries send for a call: whether, how often and what left this process."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pytest_hfbudget.metering.instrumentation import ImportCallback, Patches, genuine


class ProbedRequest:
    """One request on its way out of this process.

    Attributes:
        host: the host that it is meant for.
        tried: whether a connection was opened for it.
        posts: how many POST requests were written to a connection. A redirect that keeps the method
            sends another, and so does a transport that retries by itself.
        booked: how many of these `on_resend` has booked, each before the next one left.
        settled: whether its call is settled. What a plain thread sends after that is not for it.
        altered: whether it may be changed on its way, or another request be taken for it.
        entered: whether a client has been asked to send it.
        aside: whether the body that is written next decides if the last POST belongs to it.
        on_headers: receives the headers of every response to it.
        on_resend: called before each POST after the first; raises to keep it from leaving.
        check_body: called before each POST leaves, with its body (None if that can't be read), and
            with whether it may be another request than this one; raises to keep it from leaving.
        matches: returns whether a body asks for what this request asks for, or for less.
        stop: called before anything of it leaves; returns the error that keeps it from leaving, or
            None.
    """

    tried = False
    posts = 0
    booked = 0
    settled = aside = altered = entered = False
    on_headers: Callable[[Mapping[str, str]], None] | None = None
    on_resend: Callable[[], None] | None = None
    check_body: Callable[[bytes | None, bool], None] | None = None
    matches: Callable[[bytes | None], bool] | None = None
    stop: Callable[[], BaseException | None] | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    def connecting(self) -> None:
        """Note that a connection is about to be opened for it.

        Raises:
            BaseException: it is not to leave.
        """
        self.tried = True
        if self.stop is not None and (error := self.stop()) is not None:
            raise error

    def leaving(self, body: Body, *, own: bool, free: bool) -> None:
        """Note that a POST for it is about to be written to a connection.

        Args:
            own: whether it is certainly for this request; a plain thread may send one of its own.
            free: whether the place that it goes to does not bill. Then it is for this request only
                if a redirect sends the same once more.

        Raises:
            BaseException: it is not to leave.
        """
        if free and self.posts and self.matches is not None:
            self.aside = body() == FOLLOWS
            if self.aside or not self.matches(body()):
                return
        if self.check_body is not None and (content := body()) != FOLLOWS:
            self.check_body(content, self.posts > 0 or not own)
        self._count()

    def _count(self) -> None:
        if self.posts and self.on_resend is not None:
            self.on_resend()
            self.booked += 1
        self.posts += 1

    def writing(self, body: bytes, *, own: bool) -> None:
        """Note that the body of such a POST is about to be written.

        Raises:
            BaseException: it is not to leave.
        """
        if self.aside:
            self.aside = False
            if self.matches and self.matches(body):
                self._count()
        elif self.check_body is not None and self.posts:
            try:
                self.check_body(body, self.posts > 1 or not own)
            except BaseException:
                self.posts -= 1  # nothing of it but its head has left
                raise


PAID_METHOD = "POST"  # only these are billed
# The body of a request, as far as it can be read without using it up.
Body = Callable[[], "bytes | None"]

# Stands for a body that is written later than the head of its request.
FOLLOWS = b""
HTTPS_PORT = 443

# The request that this context sends: all that the context sends meanwhile is for it.
CURRENT: ContextVar[ProbedRequest | None] = ContextVar("hfbudget_request", default=None)

# What ``http.client`` writes first of each request; it writes the body later.
REQUEST_LINE = rb"([A-Z]+) ([^\r\n]*) HTTP/1\.[01]\r\n"
Wrapper = Callable[["TransportProbe", Any], Any]
HeadersListener = Callable[[Mapping[str, str]], None]


def headers_listener() -> HeadersListener | None:
    """The function that receives the headers of responses in this context, or None."""
    request = CURRENT.get()
    return request.on_headers if request is not None else None


class ProbePoint(NamedTuple):
    """A method that every request of an HTTP library passes."""

    library: str
    module: str
    owner: str
    method: str
    wrapper: Wrapper


class TransportProbe:
    """Watches `POINTS` while it is installed.

    Attributes:
        blind: libraries in which a point was not found, so that they may send unseen.
        stray: called with the host, and a function that returns the URL, of a POST that is for no
            known call; raises to keep it from leaving.
        bills: whether a POST to a URL may cost money.
        opening: the hosts to which the libraries open connections now, one entry for each.
        in_flight: the requests that are being sent.
    """

    def __init__(self) -> None:
        self.blind: set[str] = set()
        self.stray: Callable[[str, Callable[[], str]], None] | None = None
        self.bills: Callable[[str], bool] = lambda url: True
        self.opening: list[str] = []
        self.in_flight: list[ProbedRequest] = []
        self._patches = Patches()

    def import_callbacks(self) -> dict[str, ImportCallback]:
        """For each module to watch, the function to call once it is imported."""
        return dict.fromkeys((point.module for point in POINTS), self._wrap)

    def uninstall(self) -> None:
        """Stop watching."""
        self._patches.restore()
        self.blind.clear()

    def is_sending(self) -> bool:
        """Whether this context sends for a call that is known."""
        return self.own() is not None

    def connecting(self) -> None:
        """Note that a connection is about to be opened in this context."""
        if (own := self.own()) is not None:
            own.connecting()

    def leaving(self, host: str, method: str, body: Body, url: Callable[[], str]) -> None:
        """Note that a request is about to be written to a connection to a host.

        Raises:
            BaseException: it is not to leave.
        """
        requests = self._requests_to(host) if method == PAID_METHOD else self._only_own()
        for request in requests:
            request.connecting()
        if requests and method == PAID_METHOD:
            # Any of several may have sent it. The first POSTs count one for each of them; a POST
            # beyond that counts as one of them sent again.
            request = min(requests, key=lambda request: request.posts)
            free = request.posts > 0 and not self.bills(url())
            request.leaving(body, own=request is self.own(), free=free)
        elif method == PAID_METHOD and self.stray is not None:
            self.stray(host, url)

    @contextmanager
    def open_to(self, host: str) -> Iterator[None]:
        """While it is open, a watched library opens a connection to this host."""
        name = host.lower()
        self.opening.append(name)  # threads add and remove at any time
        try:
            yield
        finally:
            self.opening.remove(name)

    def writing(self, host: str, body: bytes) -> None:
        """Note that the body of a request is about to be written, after its head."""
        for request in self._requests_to(host):
            request.writing(body, own=request is self.own())

    def own(self) -> ProbedRequest | None:
        """The request that this context sends, or None."""
        own = CURRENT.get()
        return own if own in self.in_flight else None

    def _only_own(self) -> tuple[ProbedRequest, ...]:
        own = self.own()
        return () if own is None else (own,)

    def _requests_to(self, host: str) -> tuple[ProbedRequest, ...]:
        """The requests that a POST to a host may belong to.

        A plain thread has no context. If it posts to the host of a request that is being sent, the
        POST may be that request, which a stand-in for the network has handed on.
        """
        return self._only_own() or tuple(
            request
            for request in self.in_flight
            if not request.settled and request.host == host.lower()
        )

    def _wrap(self, module: ModuleType) -> None:
        for point in POINTS:
            if point.module != module.__name__:
                continue
            owner = genuine(module, point.owner)
            original = vars(owner).get(point.method) if owner is not None else None
            if original is None:
                self.blind.add(point.library)
            else:
                self._patches.replace(owner, point.method, point.wrapper(self, original))


def _opens(probe: TransportProbe, original: Any) -> Any:
    """httpcore's and urllib3's method that opens a connection."""

    @functools.wraps(original)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        probe.connecting()
        with probe.open_to(_host(self)):
            return original(self, *args, **kwargs)

    return connect


def _opens_async(probe: TransportProbe, original: Any) -> Any:
    """The method that opens one of httpcore's async connections."""

    @functools.wraps(original)
    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        probe.connecting()
        with probe.open_to(_host(self)):
            return await original(self, *args, **kwargs)

    return connect


def _host(connection: Any) -> str:
    """The host that a connection of httpcore or of urllib3 is opened to."""
    origin = getattr(connection, "_origin", None)
    if origin is None:
        return str(getattr(connection, "host", ""))
    return str(origin.host.decode("ascii"))


def _address(connection: Any, target: bytes) -> str:
    if not target.startswith(b"/"):
        return target.decode("ascii", "replace")  # to a proxy
    scheme = "https" if connection.default_port == HTTPS_PORT else "http"
    port = getattr(connection, "_tunnel_port", None) or connection.port
    return f"{scheme}://{_far_host(connection)}:{port}{target.decode('ascii', 'replace')}"


def _far_host(connection: Any) -> str:
    """The host at the other end of a connection of ``http.client``, behind a proxy or not."""
    return getattr(connection, "_tunnel_host", None) or str(connection.host)


def _sends_httpcore(probe: TransportProbe, original: Any) -> Any:
    """httpcore's method that sends the head of a request; in async ones it makes a coroutine.

    Not its ``handle_request``: a pool also calls that on connections that turn out to be taken.
    """

    @functools.wraps(original)
    def send_request_headers(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        url, method = request.url, request.method.decode("ascii")
        if url.target.startswith(b"http"):  # to a proxy
            url = type(url)(url.target)
        host, body = url.host.decode("ascii"), functools.partial(_replayable, request.stream)
        probe.leaving(host, method, body, lambda: bytes(url).decode("ascii", "replace"))
        return original(self, request, *args, **kwargs)

    return send_request_headers


def _sends_http_client(probe: TransportProbe, original: Any) -> Any:
    """The method of ``http.client`` that sends bytes; urllib3's connections are derived from it."""

    @functools.wraps(original)
    def send(self: Any, data: Any) -> Any:
        if getattr(self, "of_pytest_hfbudget", False):
            return original(self, data)
        if self.sock is None and self.auto_open:
            # Connect first, as it would: if that fails, the request was never sent.
            probe.connecting()
            with probe.open_to(self.host):
                self.connect()
        try:
            _tell_what_leaves(probe, self, data)
        except BaseException:
            self.close()
            raise
        return original(self, data)

    return send


def _tell_what_leaves(probe: TransportProbe, connection: Any, data: Any) -> None:
    if not isinstance(data, (bytes, bytearray)):
        probe.connecting()
    elif (line := re.match(REQUEST_LINE, data)) is not None:
        method, target = line[1].decode("ascii"), line[2]
        far = target.startswith(b"/") or method == "CONNECT"
        host = _far_host(connection) if far else urlsplit(target.decode("ascii")).hostname or ""
        probe.leaving(host, method, lambda: FOLLOWS, lambda: _address(connection, target))
    else:
        probe.writing(_far_host(connection), bytes(data))


def _sends_aiohttp(probe: TransportProbe, original: Any) -> Any:
    """aiohttp's method that gets a connection, new or pooled, to which it writes at once."""

    @functools.wraps(original)
    async def connect(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        host = req.url.host or ""
        probe.connecting()
        with probe.open_to(host):
            connection = await original(self, req, *args, **kwargs)
        try:
            probe.leaving(host, req.method, lambda: _written(req.body), lambda: str(req.url))
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def _written(body: Any) -> bytes | None:
    """The body of a request of aiohttp; None if it is not bytes."""
    value = getattr(body, "_value", body)
    return value if isinstance(value, bytes) else None


def _replayable(stream: Any) -> bytes | None:
    """The body that httpx gives to its transport; None if it can't be read twice."""
    if type(stream).__name__ != "ByteStream":
        return None
    return b"".join(stream)


def _httpcore(library: str, core: str) -> tuple[ProbePoint, ...]:
    return tuple(
        ProbePoint(library, f"{core}.{kind}.{module}", prefix + owner, method, wrapper)
        for kind, prefix in (("_sync", ""), ("_async", "Async"))
        for module, owner, method, wrapper in (
            ("connection", "HTTPConnection", "_connect", _opens_async if prefix else _opens),
            ("http11", "HTTP11Connection", "_send_request_headers", _sends_httpcore),
            ("http2", "HTTP2Connection", "_send_request_headers", _sends_httpcore),
        )
    )


POINTS = (
    ProbePoint("requests", "http.client", "HTTPConnection", "send", _sends_http_client),
    ProbePoint("requests", "http.client", "HTTPConnection", "connect", _opens),
    ProbePoint("requests", "urllib3.connection", "HTTPConnection", "_new_conn", _opens),
    ProbePoint("aiohttp", "aiohttp.connector", "BaseConnector", "connect", _sends_aiohttp),
    *_httpcore("httpx", "httpcore"),
    *_httpcore("httpx2", "httpcore2"),
)
