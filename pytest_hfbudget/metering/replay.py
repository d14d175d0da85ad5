"""Whether a stand-in has replayed an answer, or the network was asked.

The probe sees what leaves by the transports that it knows. A session that is made only of these
can't send unseen: if the probe saw nothing, the answer was replayed. With a session of an unknown
kind, an answer counts as real.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from types import FunctionType, ModuleType, NoneType
from typing import Any

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.instrumentation import genuine
from pytest_hfbudget.metering.settlement import never_sent, status_of
from pytest_hfbudget.metering.transport_probe import (
    CURRENT,
    ProbedRequest,
    TransportProbe,
)

# httpx's own transports: two that end at connections which the probe watches, and three without
# a network.
own_transports = attrgetter(
    "HTTPTransport", "AsyncHTTPTransport", "MockTransport", "WSGITransport", "ASGITransport"
)


# They have transports of httpx that send by aiohttp; openai has the first one as an extra.
TO_AIOHTTP = ("httpx_aiohttp", "litellm")
# huggingface_hub's adapters of requests add a header, or refuse.
OWN_ADAPTERS = ("requests", "huggingface_hub")


def is_mock(value: object) -> bool:
    """Whether `unittest.mock` made it."""
    mock = sys.modules.get("unittest.mock")
    return mock is not None and isinstance(value, mock.NonCallableMock)


def result_of(make: Any) -> Any:
    """The result of a function. A mock is not called, because tests count its calls.

    Raises:
        LookupError: what a mock returns is not known before it is called.
    """
    if not is_mock(make):
        return make()
    if make.side_effect is not None or make._mock_wraps is not None:
        raise LookupError(make)
    return make.return_value


def sync_session(module: ModuleType) -> Callable[[Any], Any]:
    """A function that returns the HTTP session of a sync client, as its module makes it."""

    def session(client: Any) -> Any:
        make = module.get_session
        return make() if isinstance(make, FunctionType) else result_of(make)

    return session


def async_session(client: Any) -> Any:
    """The HTTP session of an async client; before 1.0 its class, as each call makes a new one."""
    if hasattr(client, "_get_async_client"):
        make = client._get_async_client
        return result_of(make) if is_mock(make) else client._async_client
    return sys.modules["aiohttp"].ClientSession


class SendWatch(ProbedRequest):
    """Watches how one call goes out; entered while it is posted.

    Args:
        session: returns the HTTP session of a client.

    Attributes:
        replayed: whether it was answered although no connection was opened for it.
        unsent: whether it is certain that nothing of it was sent, answered or not.
    """

    replayed = False
    unsent = False
    _token: Any = None

    def __init__(
        self, probe: TransportProbe, session: Callable[[Any], Any], client: Any, url: str
    ) -> None:
        self.url = url
        self._probe, self._session, self._client = probe, session, client

    def __enter__(self) -> None:
        # What is sent from now on is sent for this call.
        self._probe.in_flight.append(self)
        self._token = CURRENT.set(self)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # After a Ctrl-C it may be left a second time. And the garbage collector closes a coroutine
        # that was not awaited in another context.
        with suppress(RuntimeError, TypeError, ValueError):
            CURRENT.reset(self._token)
        with suppress(ValueError):
            self._probe.in_flight.remove(self)
        # Without this each call would be a reference cycle for the garbage collector.
        self.on_headers = self.on_resend = self.check_body = self.matches = None
        # If the probe saw that a connection was opened, it would have seen a POST on it.
        self.unsent = not self.posts and (self.tried or self.watched())
        # An error status is an answer, too.
        if self.unsent and not self.tried:
            self.replayed = error is None or status_of(error) is not None

    def never_left(self, error: BaseException, *, paid: bool) -> bool:
        """Whether nothing of a call that has raised can have reached a server.

        Under a cap, an exception that says so is not believed: a transport that retries may have
        sent the call before it failed to connect.

        Args:
            paid: whether the call is under a cap.
        """
        if self.unsent:
            return not self.replayed
        return not paid and not self.posts and never_sent(error)

    def watched(self) -> bool:
        """Whether nothing of this call can leave unseen."""
        try:
            return sees(self._probe, self._session(self._client))
        except Exception:
            return False  # a session of an unknown kind

    def may_change(self) -> bool:
        """Whether the user's own code may change the request after it was held."""
        try:
            session = self._session(self._client)
            return self.altered or not sees(self._probe, session) or _has_hooks(session)
        except Exception:
            return True  # a session of an unknown kind


class UptimeWatch(SendWatch):
    """Watches an `UptimeRequest`, and does something before it leaves.

    Args:
        before: called once, before anything of the request leaves, but not if a stand-in answers
            it. Raises `HFBudgetError` to keep the request from leaving.

    Attributes:
        result: what ``before`` has returned; empty before that.
    """

    def __init__(
        self,
        probe: TransportProbe,
        session: Callable[[Any], Any],
        client: Any,
        url: str,
        before: Callable[[], str],
    ) -> None:
        super().__init__(probe, session, client, url)
        self.result, self._before = "", [before]
        self._refusal: HFBudgetError | None = None
        self.stop = self._leaves

    def __enter__(self) -> None:
        if not self.watched() and (refusal := self._leaves()) is not None:
            raise refusal
        super().__enter__()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        self.stop = None
        if self._refusal is not None:
            raise self._refusal.with_traceback(None) from None

    @off_loop()  # a task that waits here does so for a second, and rarely
    def _leaves(self) -> HFBudgetError | None:
        while self._before:
            try:
                self.result = self._before.pop()()
            except HFBudgetError as refusal:
                self._refusal = refusal
        return self._refusal


def _has_hooks(session: Any) -> bool:
    """Whether a session has hooks or adapters of the user's, which may change what it sends."""
    hooks = getattr(session, "event_hooks", None)
    if not isinstance(hooks, dict):  # httpx alone has some, but a method may have been replaced
        adapters = getattr(session, "adapters", {}).values()
        return any(_library(adapter.send) not in OWN_ADAPTERS for adapter in adapters)
    own = all(_library(hook) == "huggingface_hub" for hook in hooks.get("request", ()))
    return not own or session.auth is not None


def _library(made: Any) -> str:
    """The name of the library that has defined a class or a function."""
    return str(getattr(made, "__module__", "")).partition(".")[0]


def sees(probe: TransportProbe, session: Any) -> bool:
    """Whether all that a session can send passes the probe."""
    for library, check in (("httpx", _httpx), ("httpx2", _httpx), ("requests", _requests)):
        module = sys.modules.get(library)
        if module is not None and check(module, session):
            return library not in probe.blind
    # aiohttp's session is made anew for each call, so only its class is known here.
    aiohttp = sys.modules.get("aiohttp.client")
    if aiohttp is not None and session is genuine(aiohttp, "ClientSession"):
        return "aiohttp" not in probe.blind
    return is_mock(session)  # sends nothing itself


def _httpx(httpx: ModuleType, session: Any) -> bool:
    kinds = httpx.Client, httpx.AsyncClient
    sends = httpx.Client.send, httpx.AsyncClient.send
    if not isinstance(session, kinds) or getattr(type(session), "send", None) not in sends:
        return False
    # Asked of the client itself, not of the method that finds one of these for a URL: that is
    # where a mock may stand, in front of them.
    made_of = {type(session._transport), *map(type, session._mounts.values())}
    return all(map(_sends_by_aiohttp, made_of - {*own_transports(httpx), NoneType}))


def _sends_by_aiohttp(transport: type) -> bool:
    """Whether a transport of httpx ends at connections of aiohttp, which the probe watches, too."""
    return _library(transport) in TO_AIOHTTP and "aiohttp" in transport.__module__


def _requests(requests: ModuleType, session: Any) -> bool:
    session_class, adapter_class = requests.Session, requests.adapters.HTTPAdapter
    if (
        not isinstance(session, session_class)
        or getattr(type(session), "send", None) is not session_class.send
    ):
        return False
    return all(
        isinstance(adapter, adapter_class) and _library(type(adapter)) in OWN_ADAPTERS
        for adapter in session.adapters.values()
    )
