"""What a call is charged: how it ended, what was used, at whose price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.pricing import Quote, Usage
from pytest_hfbudget.pricing.price import MICROSECONDS

if TYPE_CHECKING:
    from pytest_hfbudget.metering.call import Call


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


def charge_of(call: Call, usage: Usage | None, status: str) -> Charge:
    """What is booked for a call that was answered, or of which nothing is known but a status.

    Raises:
        Exception: what a price hook of somebody else's raises.
    """
    quote, certain = _final_quote(call)
    seconds = call.took()
    if usage is not None and quote is not None:
        usage = _completed(call, usage, quote, seconds)
    cost, source = quote.cost(usage or Usage()) if quote else (None, "unpriced")
    return call.draft._replace(
        provider=call.provider,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        nano_usd=cost,
        price_source=source,
        status=status,
        estimated=not certain or bool(usage and usage.estimated),
        seconds=round(seconds, 6),
        over=max((cost or 0) - call.hold.amount, 0) if call.capped else 0,
    )


def _completed(call: Call, usage: Usage, quote: Quote, seconds: float) -> Usage:
    """A usage of tokens with what else may be billed: images, and time."""
    if not (usage.estimated or call.request.draws or quote.by_second):
        return usage
    images = (call.images or call.request.n) if call.request.draws else 0
    usage = usage._replace(images=images, microseconds=_time(call, quote, seconds))
    if usage.estimated and not quote.by_token:
        # Counted by the call or by the image, which is exact; nothing is known of tokens.
        usage = usage._replace(input_tokens=0, output_tokens=0, estimated=False)
    # The clock of this machine has the network in it.
    timed = quote.by_second and call.compute_time is None
    return usage._replace(estimated=usage.estimated or timed)


def _time(call: Call, quote: Quote, seconds: float) -> int:
    if call.compute_time is not None:
        return call.compute_time
    taken = math.ceil(seconds * MICROSECONDS)
    # What is only queued is computed after this call, and fetched where nobody sees it.
    return max(taken, quote.longest(call.request)) if call.queued else taken


def _final_quote(call: Call) -> tuple[Quote | None, bool]:
    """The price of whoever answered; False where nobody knows who that is, or their price."""
    chosen = call.provider if call.request.provider is None else None
    if not chosen or call.request.is_url or call.explicit:
        return call.quote, call.quote is None or call.quote.certain
    book = call.meter.book
    stated = book.stated(call.request._replace(provider=chosen))
    return stated or call.quote, bool(stated) or not book.stated(call.request)
