"""The requests that HTTP libraries send to paid hosts, whichever client has made them.

Every client of the services, but huggingface_hub's own, is met here: one method of each library
that all its requests pass. A request that is not a POST to a paid host goes on at once. What a
paid one goes through is in `paid_requests`, which is imported for the first of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pytest_hfbudget.metering.instrumentation.patching import Patches, PostImport
from pytest_hfbudget.metering.paid_hosts import PaidHosts
from pytest_hfbudget.metering.transport_probe import (
    CURRENT,
    PAID_METHOD,
    ProbedRequest,
    TransportProbe,
    genuine,
)
from pytest_hfbudget.off_loop import off_loop

if TYPE_CHECKING:
    from pytest_hfbudget.metering.meter import Meter

HERE = __name__.rpartition(".")[0]


class Metering(Protocol):
    """What knows where calls go now."""

    meter: Meter | None
    probe: TransportProbe

    def wake(self) -> None:
        """Have a meter, if a run has left that to the first call."""


@dataclass
class HttpLayer:
    """Wraps the methods of the HTTP libraries while it is installed.

    Attributes:
        hosts: where calls are paid.
    """

    hub: Metering
    hosts: PaidHosts = field(default_factory=PaidHosts)
    _patches: Patches = field(default_factory=Patches)
    _watch: PostImport | None = None

    def install(self) -> None:
        """Wrap the libraries that are imported already, and the others as soon as they are."""
        self._watch = PostImport(dict.fromkeys((point.module for point in POINTS), self._wrap))
        self._watch.install()

    def uninstall(self) -> None:
        """Put back what was there, unless it was wrapped again since."""
        if self._watch is not None:
            self._watch.uninstall()
            self._watch = None
        self._patches.restore()

    def meters(self, url: str) -> bool:
        """Whether a POST to a possibly paid host is to be metered here and now.

        What is sent for a call of huggingface_hub's client is metered there.
        """
        if self.hub.probe.is_sending() or not self._bills(url):
            return False
        if self.hub.meter is None:
            self.hub.wake()
        return self.hub.meter is not None

    def may_bill(self, host: str) -> bool:
        """Whether `meters` has to be asked."""
        if self.hosts.may_bill(host):
            return True
        meter = self.hub.meter
        return meter is not None and bool(meter.book.leased)

    def _bills(self, url: str) -> bool:
        meter = self.hub.meter
        leased = meter is not None and meter.book.leased and meter.book.leased_name(url)
        return bool(leased) or self.hosts.bills(url)

    @contextmanager
    def passing(self, url: str) -> Iterator[None]:
        """Let a request out that was looked at and can't be metered."""
        request, in_flight = ProbedRequest(url), self.hub.probe.in_flight
        in_flight.append(request)
        token = CURRENT.set(request)
        try:
            yield
        finally:
            CURRENT.reset(token)
            in_flight.remove(request)

    def _wrap(self, module: ModuleType) -> None:
        for point in POINTS:
            if point.module != module.__name__:
                continue
            owner = genuine(module, point.owner)
            original = vars(owner).get(point.method) if owner is not None else None
            if original is not None:
                self._patches.replace(owner, point.method, point.wrapper(self, original))


Wrapper = Callable[[HttpLayer, Any], Any]


class HttpPoint(NamedTuple):
    """A method that every request of an HTTP library passes."""

    module: str
    owner: str
    method: str
    wrapper: Wrapper


def _adapter(name: str) -> Any:
    """The module that knows a library; it is imported for the first paid request."""
    with off_loop():
        return import_module(f"{HERE}.{name}")


def _httpx(layer: HttpLayer, original: Any) -> Any:
    @functools.wraps(original)
    def send(self: Any, request: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        may_bill = request.method == PAID_METHOD and layer.may_bill(request.url.host)
        if may_bill and layer.meters(str(request.url)):
            return _adapter("httpx").send(layer, original, self, request, options)
        return original(self, request, **options)

    return send


def _httpx_async(layer: HttpLayer, original: Any) -> Any:
    @functools.wraps(original)
    async def send(self: Any, request: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        may_bill = request.method == PAID_METHOD and layer.may_bill(request.url.host)
        if may_bill and layer.meters(str(request.url)):
            return await _adapter("httpx").send_async(layer, original, self, request, options)
        return await original(self, request, **options)

    return send


def _requests(layer: HttpLayer, original: Any) -> Any:
    @functools.wraps(original)
    def send(self: Any, request: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        may_bill = request.method == PAID_METHOD and layer.may_bill(host_of(request.url))
        if may_bill and layer.meters(request.url):
            return _adapter("requests").send(layer, original, self, request, options)
        return original(self, request, **options)

    return send


def _aiohttp(layer: HttpLayer, original: Any) -> Any:
    @functools.wraps(original)
    async def _request(self: Any, method: str, str_or_url: Any, **options: Any) -> Any:
        __tracebackhide__ = True

        async def send(changed: str | None, options: dict[str, Any]) -> Any:
            return await original(self, method, changed or str_or_url, **options)

        url = full_url(self, str_or_url) if method == PAID_METHOD else None
        if url is not None and layer.may_bill(url.host or "") and layer.meters(str(url)):
            return await _adapter("aiohttp").send(layer, send, self, str(url), options)
        return await original(self, method, str_or_url, **options)

    return _request


def _aioresponses(layer: HttpLayer, original: Any) -> Any:
    """What aioresponses puts in the place of aiohttp's own method."""

    @functools.wraps(original)
    async def _request_mock(
        self: Any, session: Any, method: str, url: Any, *args: Any, **options: Any
    ) -> Any:
        async def send(changed: str | None, options: dict[str, Any]) -> Any:
            return await original(self, session, method, changed or url, *args, **options)

        full = full_url(session, url) if method == PAID_METHOD else None
        if full is not None and layer.may_bill(full.host or "") and layer.meters(str(full)):
            return await _adapter("aiohttp").send(layer, send, session, str(full), options)
        return await original(self, session, method, url, *args, **options)

    return _request_mock


def host_of(url: object) -> str:
    """The host in a URL, or nothing, found quickly."""
    if not isinstance(url, str):
        return ""
    authority = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return authority.partition(":")[0] if authority[:1] != "[" else authority[1:].partition("]")[0]


def full_url(session: Any, given: Any) -> Any:
    """The URL behind the one that a session of aiohttp is given; None if it can't be read."""
    try:
        return session._build_url(given)
    except Exception:
        return None


POINTS = (
    HttpPoint("httpx._client", "Client", "send", _httpx),
    HttpPoint("httpx._client", "AsyncClient", "send", _httpx_async),
    HttpPoint("httpx2._client", "Client", "send", _httpx),
    HttpPoint("httpx2._client", "AsyncClient", "send", _httpx_async),
    HttpPoint("requests.sessions", "Session", "send", _requests),
    HttpPoint("aiohttp.client", "ClientSession", "_request", _aiohttp),
    HttpPoint("aioresponses.core", "aioresponses", "_request_mock", _aioresponses),
)
