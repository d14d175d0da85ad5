"""How a call ended when it did not end in an answer, over three HTTP libraries.

huggingface_hub 0.x posts through requests and aiohttp, 1.x through httpx, 2.x through httpx2.
Their exceptions share no base class, but they share names, and they name their causes.
"""

from __future__ import annotations

from collections.abc import Iterator

# No connection came about, so no request can have reached anybody.
NEVER_CONNECTED = frozenset(
    {
        "ClientConnectorDNSError",
        "ClientConnectorError",
        "ConnectError",
        "ConnectTimeout",
        "ConnectTimeoutError",
        "ConnectionRefusedError",
        "InvalidSchema",
        "InvalidURL",
        "LocalProtocolError",
        "MissingSchema",
        "NameResolutionError",
        "NewConnectionError",
        "OfflineModeIsEnabled",
        "PoolTimeout",
        "ProxyError",
        "SSLCertVerificationError",
        "UnsupportedProtocol",
        "gaierror",
    }
)
CANCELLED = frozenset({"Cancelled", "CancelledError"})  # trio's and asyncio's
TIMED_OUT = frozenset({"InferenceTimeoutError", "ReadTimeout", "TimeoutError", "WriteTimeout"})

CLIENT_ERROR = 400


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception reports, if it is one of 4xx or 5xx."""
    for link in _chain(error):
        response = _attribute(link, "response")
        status = _attribute(response, "status_code") or _attribute(link, "status")
        if isinstance(status, int) and status >= CLIENT_ERROR:
            return status
    return None


def never_sent(error: BaseException) -> bool:
    """Whether an exception proves that nothing was sent."""
    return any(type(link).__name__ in NEVER_CONNECTED for link in _chain(error))


def word_for(error: BaseException) -> str:
    """One word for a call that may have been served though no answer arrived."""
    for link in _chain(error):
        # The outermost decides: aiohttp's time-out is a cancellation inside.
        name = type(link).__name__
        if name in CANCELLED or name in TIMED_OUT:
            return "cancelled" if name in CANCELLED else "timeout"
    return "lost"


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of somebody else's
        return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        link = queue.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        # requests hides urllib3's reason in args; the others name their cause. The context is not
        # asked: it may be an earlier failure that this call was made in answer to.
        reasons = [_attribute(link, "reason"), *link.args]
        queue.append(link.__cause__)
        queue += [reason for reason in reasons if isinstance(reason, BaseException)]
