"""Whether an answer was replayed: whether the network can have been asked at all.

That nothing was seen leaving proves something only of a session which could not have sent
anything unseen. So what a session is made of has to be known; whatever is not is taken for real.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Token
from operator import attrgetter
from types import ModuleType, NoneType, TracebackType
from typing import Any

from pytest_hfbudget.metering.mocks import is_mock
from pytest_hfbudget.metering.settlement import status_of
from pytest_hfbudget.metering.transport_probe import ProbedRequest, TransportProbe, genuine

# What httpx itself offers: two that end at its watched connections, and some without a network.
own_transports = attrgetter(
    "HTTPTransport", "AsyncHTTPTransport", "MockTransport", "WSGITransport", "ASGITransport"
)


class SendWatch:
    """How one call goes out, and what is known of it afterwards: entered while it is posted.

    Attributes:
        replayed: whether it was answered without anybody having asked for a connection.
        unsent: whether it is certain that nothing of it was sent, answered or not.
    """

    __slots__ = ("_client", "_session", "_token", "_traffic", "passage", "replayed", "unsent")

    def __init__(
        self, traffic: TransportProbe, session: Callable[[Any], Any], client: Any, url: str
    ) -> None:
        self.passage = ProbedRequest(url)
        self.replayed = self.unsent = False
        self._traffic, self._session, self._client = traffic, session, client

    def __enter__(self) -> None:
        self._token: Token[ProbedRequest | None] = self._traffic.enter(self.passage)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._traffic.leave(self.passage, self._token)
        # Or each call would be a circle, left to the garbage collector.
        self.passage.heard = self.passage.again = self.passage.check = None
        # An error status is an answer, too.
        answered = error is None or status_of(error) is not None
        # A connection that was asked for where traffic is watched would have been used there.
        self.unsent = not self.passage.posts and (self.passage.tried or self.watched())
        self.replayed = self.unsent and answered and not self.passage.tried

    def watched(self) -> bool:
        """Whether nothing of this call can leave unseen."""
        try:
            return sees(self._traffic, self._session(self._client))
        except Exception:
            return False  # a session of a kind that nobody has thought of

    def may_change(self) -> bool:
        """Whether something of the user's may change the request after it was held."""
        try:
            session = self._session(self._client)
            return not sees(self._traffic, session) or _has_hooks(session)
        except Exception:
            return True  # a session of an unknown kind


def _has_hooks(session: Any) -> bool:
    """Whether a session of httpx has hooks of its own; no other library lets them see a request."""
    hooks = getattr(session, "event_hooks", None)
    if not isinstance(hooks, dict):
        return False
    own = all(
        getattr(hook, "__module__", "").partition(".")[0] == "huggingface_hub"
        for hook in hooks.get("request", ())
    )
    return not own or session.auth is not None


def sees(traffic: TransportProbe, session: Any) -> bool:
    """Whether all that a session can send goes by where traffic is watched."""
    if is_mock(session):
        return True  # sends nothing itself
    for library, check in (("httpx", _httpx), ("httpx2", _httpx), ("requests", _requests)):
        module = sys.modules.get(library)
        if module is not None and check(module, session):
            return library not in traffic.blind
    # The one that is made anew for each call, hence its class.
    aiohttp = sys.modules.get("aiohttp.client")
    if aiohttp is not None and session is genuine(aiohttp, "ClientSession"):
        return "aiohttp" not in traffic.blind
    return False


def _httpx(httpx: ModuleType, session: Any) -> bool:
    kinds = httpx.Client, httpx.AsyncClient
    sends = httpx.Client.send, httpx.AsyncClient.send
    if not isinstance(session, kinds) or type(session).send not in sends:
        return False
    # Asked of the client itself, not of the method that finds one of these for a URL: that is
    # where a mock may stand, in front of them.
    made_of = {type(session._transport), *map(type, session._mounts.values())}
    return made_of <= {*own_transports(httpx), NoneType}


def _requests(requests: ModuleType, session: Any) -> bool:
    session_class, adapter_class = requests.Session, requests.adapters.HTTPAdapter
    if not isinstance(session, session_class) or type(session).send is not session_class.send:
        return False
    # huggingface_hub's own adapters add a header, or refuse.
    return all(
        isinstance(adapter, adapter_class)
        and type(adapter).__module__.partition(".")[0] in ("requests", "huggingface_hub")
        for adapter in session.adapters.values()
    )
