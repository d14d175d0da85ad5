"""The requests to paid hosts by HTTP libraries: of all clients but huggingface_hub's own.

Of each library, one method is wrapped that all its requests pass. A request that is not a POST to a
paid host goes on at once. What a paid one goes through is in `paid_requests`, which is imported
for the first of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pytest_hfbudget.errors import (
    BudgetExceededError,
    HFBudgetError,
    RunOverError,
    UnaffordableEndpointError,
    UnseenCallError,
)
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.instrumentation import ImportCallback, Patches, genuine, watch_names
from pytest_hfbudget.metering.paid_hosts import NEW_REPOSITORY, STOPS, PaidHosts, UptimeRequest
from pytest_hfbudget.metering.transport_probe import (
    CURRENT,
    PAID_METHOD,
    ProbedRequest,
    TransportProbe,
)

if TYPE_CHECKING:
    from pytest_hfbudget.metering.meter import Meter

HERE = __name__.rpartition(".")[0]
UNHELD = "no budget holds its cost, and nothing stops it at the end"
AFTER = "the report does not have its cost, and the last lines say whether it is paused again"


class WakeableInstrumentation(Protocol):
    """The installed instrumentation, as in `calls`, and how to have a meter."""

    meter: Meter | None
    probe: TransportProbe

    def wake(self) -> None:
        """Make the meter, if a run has put that off until the first call."""


class HttpLayer:
    """Wraps the methods of HTTP libraries while it is installed; ``hosts`` are the paid ones."""

    def __init__(self, instrumentation: WakeableInstrumentation) -> None:
        self.instrumentation, self.hosts = instrumentation, PaidHosts()
        self._patches = Patches()

    def import_callbacks(self) -> dict[str, ImportCallback]:
        """For each module to wrap, the function to call once it is imported."""
        probe = self.instrumentation.probe
        probe.stray, probe.bills = self.stray, self._bills
        return {**{point.module: self._wrap for point in POINTS}, "socket": self._wrap_names}

    def uninstall(self) -> None:
        """Put back all methods that were not wrapped again since."""
        self._patches.restore()

    def meters(self, url: str, *, again: bool = False) -> bool:
        """Whether a POST is to be metered here, or what it starts is to be taken over.

        What is sent for a call of huggingface_hub's client is metered in `calls`.

        Args:
            again: whether the library follows a redirect.
        """
        own = self.instrumentation.probe.own()
        if own is not None and (again or _is_for(own, url)):
            return False
        if not self._bills(url):
            return self._changes_uptime(self.hosts.uptime_request(url))
        return self._awake() is not None

    def _awake(self) -> Meter | None:
        """The meter, which the first paid request puts in place; None if there is none to put."""
        if self.instrumentation.meter is None:
            self.instrumentation.wake()
        return self.instrumentation.meter

    def may_bill(self, host: str) -> bool:
        """Whether `meters` has to be asked."""
        if self.hosts.may_bill(host):
            return True
        return bool((meter := self.instrumentation.meter) and meter.book.leased)

    def _bills(self, url: str) -> bool:
        meter = self.instrumentation.meter
        leased = meter is not None and meter.book.leased and meter.book.leased_name(url)
        return bool(leased) or self.hosts.bills(url)

    @contextmanager
    def passing(self, url: str) -> Iterator[None]:
        """Let a request out that can't be metered; meanwhile nothing of it counts as stray."""
        request, in_flight = ProbedRequest(url), self.instrumentation.probe.in_flight
        in_flight.append(request)
        token = CURRENT.set(request)
        try:
            yield
        finally:
            CURRENT.reset(token)
            in_flight.remove(request)

    def stray(self, host: str, url: Callable[[], str]) -> None:
        """Meter or refuse a POST that no known client has made.

        Raises:
            UnseenCallError: it goes to a paid host, and a cap would have to hold it.
            BudgetExceededError: as `take_over`.
        """
        if not self.may_bill(host) or not self.meters(address := url()):
            return
        request = self.hosts.uptime_request(address)
        if request is None:
            self._unseen(host, "a request")
        else:
            self.take_over(request, None)  # its answer won't be seen, so it counts as started

    def resolving(self, host: object, port: object) -> None:
        """Count or refuse the lookup of a paid host that is not made for a known connection.

        Raises:
            UnseenCallError: as `stray`.
        """
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        if not isinstance(name, str) or not self.hosts.may_bill(name):
            return
        if not self.hosts.bills_on(name, port):
            return
        probe = self.instrumentation.probe
        if name.lower() in probe.opening or probe.is_sending():
            return
        self._awake()
        self._unseen(name, "a connection")

    def _changes_uptime(self, request: UptimeRequest | None) -> bool:
        """Whether an endpoint is about to be started or paused. What else is started is only named.

        Raises:
            BudgetExceededError: a rehearsal would start it at a real service.
        """
        if request is None:
            return False
        meter = self._awake()
        if request.endpoint == NEW_REPOSITORY:
            return meter is not None
        self._stay_in(request)
        if not request.endpoint:
            self._name_unmetered(request, UNHELD)
        return bool(request.endpoint) and meter is not None

    def _stay_in(self, request: UptimeRequest) -> None:
        """Refuse a request of a rehearsal that would reach a real service.

        Raises:
            BudgetExceededError: it would.
        """
        meter = self.instrumentation.meter
        if meter is not None and meter.leaves(request.url, paid=True):
            raise meter.refuse_to_leave(request.url)

    def take_over(self, request: UptimeRequest, form: object) -> str:
        """Have the run pause an endpoint at its end that the code under test is about to start.

        Args:
            form: the body of the request, if that is a JSON object.

        Returns:
            The name of the endpoint; empty if the run will not pause it.

        Raises:
            BudgetExceededError: no budget can pay for it.
        """
        __tracebackhide__ = True
        meter, name = self.instrumentation.meter, request.name
        if meter is None or request.endpoint == STOPS:
            return name
        form = form if isinstance(form, dict) else {}
        if request.endpoint == NEW_REPOSITORY:
            if (hardware := request.hardware(form)) is not None:
                self._stay_in(request)
                self._name_unmetered(hardware, UNHELD)
            return ""
        name, new = request.named(form)
        if meter.budgets.closed_because and (meter.budgets.capped() or meter.emulator):
            error = RunOverError(f"{request.what}: {meter.budgets.closed_because}", model=name)
            meter.budgets.record_refusal(error, None)
            raise error
        try:
            ours = meter.endpoints.take_over(name, new if request.creates else None)
        except BudgetExceededError:
            raise
        except HFBudgetError as error:
            budgets = meter.budgets.active()
            if isinstance(error, UnaffordableEndpointError) or budgets.capped:
                raise meter.refuse_start(error, name) from None
            self._name_unmetered(request, f"it can't be paused at the end: {error}")
            return ""
        if ours is None and name not in meter.book.leased.values():
            self._name_unmetered(request, UNHELD)
        elif ours and meter.budgets.closed_because:
            self._name_unmetered(request, AFTER)
        return name if ours else ""

    def answered(self, request: UptimeRequest, name: str, status: int) -> None:
        """Tell the run how a request was answered, for which `take_over` has returned ``name``."""
        meter = self.instrumentation.meter
        with suppress(HFBudgetError):  # if the process is gone, its reaper pauses by now
            if name and meter is not None:
                meter.endpoints.answered(name, status, request.endpoint == STOPS)

    def _name_unmetered(self, request: UptimeRequest, why: str) -> None:
        meter = self.instrumentation.meter
        if meter is not None:
            meter.count_unmetered(f"the code under test has started {request.what}; {why}")

    def _unseen(self, host: str, what: str) -> None:
        meter = self.instrumentation.meter
        if meter is None:
            return
        budgets = meter.budgets.active()
        if meter.leaves(f"https://{host}", paid=True):
            raise meter.refuse_to_leave(f"https://{host}")
        if not budgets.capped:
            meter.count_unmetered(f"{what} to {host} by a client that pytest-hfbudget can't read")
            return
        capped = [s for s in budgets.scopes if s.cap is not None or s.max_calls is not None]
        error = UnseenCallError(
            f"{capped[-1].name}: {what} to {host} comes from a client that pytest-hfbudget can't "
            "read, so no cap can hold its cost. It was not sent. Use huggingface_hub, openai, "
            "httpx, requests or aiohttp.",
            scope=capped[-1].name,
            scope_key=capped[-1].key,
            model=host,
        )
        raise meter.refuse_unread(error, host)

    def _wrap_names(self, module: ModuleType) -> None:
        watch_names(module, self._patches, self.resolving)

    def _wrap(self, module: ModuleType) -> None:
        for point in POINTS:
            if point.module != module.__name__:
                continue
            owner: Any = genuine(module, point.owner) if point.owner else module
            original = vars(owner).get(point.method) if owner is not None else None
            if original is not None:
                self._patches.replace(owner, point.method, point.wrapper(self, original))


def _is_for(own: ProbedRequest, url: str) -> bool:
    """Whether what a client sends is the request ``own`` that this context is sending.

    After that has left, or if the URL differs, it is another call: of a hook, or of a signal
    handler. If that is not certain, the body will be compared.
    """
    first, same = not own.entered, url == own.url
    own.entered = True
    if own.posts or not (first or same):
        return False
    own.altered = own.altered or not (first and same)
    return True


Wrapper = Callable[[HttpLayer, Any], Any]


class HttpPoint(NamedTuple):
    """A method, or a function if ``owner`` is empty, that every request of a library passes."""

    module: str
    owner: str
    method: str
    wrapper: Wrapper


def _adapter(name: str) -> Any:
    """The adapter module of a library, which is imported for its first paid request."""
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
        # Without redirects allowed, requests itself sends the next request of a redirect.
        if may_bill and layer.meters(request.url, again=not options.get("allow_redirects", True)):
            return _adapter("requests").send(layer, original, self, request, options)
        return original(self, request, **options)

    return send


def _aiohttp(layer: HttpLayer, original: Any) -> Any:
    @functools.wraps(original)
    async def _request(self: Any, method: str, str_or_url: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if method.upper() != PAID_METHOD or not (url := paid_url(layer, self, str_or_url)):
            return await original(self, method, str_or_url, **options)

        async def send(changed: str | None, options: dict[str, Any]) -> Any:
            return await original(self, method, changed or str_or_url, **options)

        return await _adapter("aiohttp").send(layer, send, self, url, options)

    return _request


def _aioresponses(layer: HttpLayer, original: Any) -> Any:
    """Wrap what aioresponses puts in the place of aiohttp's own method."""

    @functools.wraps(original)
    async def _request_mock(
        self: Any, session: Any, method: str, url: Any, *args: Any, **options: Any
    ) -> Any:
        if method.upper() != PAID_METHOD or not (full := paid_url(layer, session, url)):
            return await original(self, session, method, url, *args, **options)

        async def send(changed: str | None, options: dict[str, Any]) -> Any:
            return await original(self, session, method, changed or url, *args, **options)

        return await _adapter("aiohttp").send(layer, send, session, full, options)

    return _request_mock


def _vcr_aiohttp(layer: HttpLayer, original: Any) -> Any:
    """Wrap what makes vcrpy's stand-in for aiohttp's method, so that the stand-in is wrapped."""

    @functools.wraps(original)
    def vcr_request(*args: Any, **options: Any) -> Any:
        return _aiohttp(layer, original(*args, **options))

    return vcr_request


def host_of(url: object) -> str:
    """The host in a URL, found quickly; empty if it is not text or has no host."""
    if not isinstance(url, str):
        return ""
    authority = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return authority.partition(":")[0] if authority[:1] != "[" else authority[1:].partition("]")[0]


def paid_url(layer: HttpLayer, session: Any, given: Any) -> str:
    """The URL to which a session of aiohttp posts, if that is to be metered; else empty."""
    if isinstance(given, str) and "://" in given and not layer.may_bill(host_of(given)):
        return ""  # the quick way for most requests
    try:
        url = session._build_url(given)
    except Exception:
        return ""  # aiohttp will raise the error itself
    return str(url) if layer.may_bill(url.host or "") and layer.meters(str(url)) else ""


POINTS = (
    HttpPoint("httpx._client", "Client", "send", _httpx),
    HttpPoint("httpx._client", "AsyncClient", "send", _httpx_async),
    HttpPoint("httpx2._client", "Client", "send", _httpx),
    HttpPoint("httpx2._client", "AsyncClient", "send", _httpx_async),
    HttpPoint("requests.sessions", "Session", "send", _requests),
    HttpPoint("aiohttp.client", "ClientSession", "_request", _aiohttp),
    HttpPoint("vcr.stubs.aiohttp_stubs", "", "vcr_request", _vcr_aiohttp),
    HttpPoint("aioresponses.core", "aioresponses", "_request_mock", _aioresponses),
)
