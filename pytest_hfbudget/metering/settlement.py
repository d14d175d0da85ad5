"""How a call ended, what came back, whose price applies, and the charge. `call` settles by this."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_hfbudget.errors import ServiceRefusalError
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.pricing import DRAW, MICROSECONDS, CallRequest, Quote, Usage
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.settings import DEDICATED_HOST
from pytest_hfbudget.text import parse_json, printable

# Exceptions that say that there was no connection, so no request can have reached a server.
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

# Statuses of the proxy in front of an endpoint that is paused, scaled to zero or gone.
ASLEEP = frozenset({400, 404, 502, 503})
# Statuses by which servers refuse the content of a request.
REJECTED = frozenset({400, 422})
# aiohttp's error for an answer that it can't parse. It has a status of 400, which no server sent.
UNREADABLE = "HttpProcessingError"
# The price source of a charge whose amount the provider itself has told.
TOLD = "usage.estimated_cost of the answer"

CANCELLED = frozenset({"Cancelled", "CancelledError"})  # trio's and asyncio's
TIMED_OUT = frozenset({"InferenceTimeoutError", "ReadTimeout", "TimeoutError", "WriteTimeout"})
PAID_METHOD = "POST"
UNANSWERED = object()
CLIENT_ERROR, PAYMENT_REQUIRED, FORBIDDEN = 400, 402, 403
LONGEST_SAID = 300  # characters

NOTHING_USED = Usage()


class StatusError(Exception):
    """An answer with an error status, in the form that `status_of` reads."""

    def __init__(self, response: object, status: int, text: str) -> None:
        super().__init__(text)
        self.response, self.status = response, status


def status_of(error: BaseException) -> int | None:
    """The HTTP status 4xx or 5xx with which a call has failed; None if no status came back."""
    for link in _chain(error):
        if any(cls.__name__ == UNREADABLE for cls in type(link.__cause__).__mro__):
            return None
        response = _attribute(link, "response")
        if _is_redirected(_attribute(response, "request") or response):
            return None
        status = _attribute(response, "status_code") or _attribute(link, "status")
        if isinstance(status, int) and status >= CLIENT_ERROR:
            return status
    return None


def _is_redirected(request: object) -> bool:
    """Whether a redirect has led to this request, which then is not the paid one."""
    method = _attribute(request, "method")
    return isinstance(method, str) and method != PAID_METHOD


def never_sent(error: BaseException) -> bool:
    """Whether an exception proves that nothing was sent."""
    return any(type(link).__name__ in NEVER_CONNECTED for link in _chain(error))


def is_asleep(error: BaseException) -> bool:
    """Whether a call has failed as calls to an endpoint do that is paused or scaled to zero."""
    return status_of(error) in ASLEEP or never_sent(error)


def word_for(error: BaseException) -> str:
    """The status of a call without an answer, which may have been served, in one word."""
    for link in _chain(error):
        # The outermost decides: aiohttp's time-out is a cancellation inside.
        name = type(link).__name__
        if name in CANCELLED or name in TIMED_OUT:
            return "cancelled" if name in CANCELLED else "timeout"
    return "lost"


def service_refusal(
    status: int, error: BaseException, model: str, session: str
) -> ServiceRefusalError | None:
    """The refusal if a status means that every later call will fail, too; else None.

    A test that lacks credit counts as not run, as one does for which the session budget has too
    little left.

    Args:
        session: the key of the session budget.
    """
    if status not in (PAYMENT_REQUIRED, FORBIDDEN):
        return None
    said = _said(error)
    if status == PAYMENT_REQUIRED:
        return ServiceRefusalError(
            f"{model}: the service has answered 402, so there is no credit left: {said} Add credit "
            "(of Hugging Face: https://huggingface.co/settings/billing), or use the token of an "
            "account that has some.",
            scope_key=session,
            model=model,
        )
    if "permission" not in said.lower():
        return None
    calls = "your Inference Endpoints" if DEDICATED_HOST in model else "Inference Providers"
    refusal = ServiceRefusalError(
        f'{model}: the token lacks the permission "Make calls to {calls}": {said} Give it that '
        "at https://huggingface.co/settings/tokens, or use another token.",
        model=model,
    )
    refusal.used_up = False
    return refusal


def _said(error: BaseException) -> str:
    """The service's own words in an error, on one line."""
    body = _attribute(_attribute(error, "response"), "text")
    text = body if isinstance(body, str) and body else str(error)
    try:
        told = parse_json(text)
    except ValueError:
        told = text
    if isinstance(told, dict):
        told = told.get("error", told.get("message", text))
    if isinstance(told, dict):
        told = told.get("message", text)
    line = printable(" ".join(str(told).split()))[:LONGEST_SAID]
    return line if line.endswith((".", "!")) else f"{line}."


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of another library
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
        # requests hides urllib3's reason in args; the others name their cause. The context does not
        # count: it may be an earlier failure, after which the code has made this call.
        reasons = [_attribute(link, "reason"), *link.args]
        queue.append(link.__cause__)
        queue += [reason for reason in reasons if isinstance(reason, BaseException)]


@dataclass
class CallResult:
    """What came back from a call so far.

    Attributes:
        provider: who answered, by ``x-inference-provider``; until then the provider that was asked.
        compute_time: in microseconds.
        images: how many images the answer lists.
        queued: whether the answer says that the work is still to be done.
        written: bytes of what the model wrote, or its tokens if the server counts them.
        complete: whether the server said that it writes nothing more. Then the usage is final, even
            if the caller leaves before the end.
        answer: the body of a complete answer, once it is there; never that of a stream.
        ended: when it was answered, by the clock of the meter.
        counted: the usage from which the bounds of later calls are learned.
    """

    provider: str | None
    usage: Usage | None = None
    compute_time: int | None = None
    images: int | None = None
    queued: bool = False
    written: int = 0
    complete: bool = False
    answer: object = UNANSWERED
    ended: float | None = None
    counted: Usage | None = None


def price_of(
    book: PriceBook, request: CallRequest, quote: Quote | None, provider: str | None
) -> tuple[Quote | None, bool]:
    """The price of the provider that answered, and whether it is certain to be the right one.

    Args:
        quote: what the call was quoted before it was sent.
        provider: who answered a call that left the choice to the router; None if unknown.

    Raises:
        Exception: what a price hook raises.
    """
    if not provider or request.is_url:
        return quote, quote is None or quote.certain
    stated = book.stated(request._replace(provider=provider))
    return stated or quote, bool(stated) or not book.stated(request)


# --- the charge


def usage_without_count(request: CallRequest, written: int, output_bound: int | None) -> Usage:
    """The usage that is charged for a call whose answer has none.

    The output limit of an answer, ``output_bound``, counts in full, because a model may have
    reasoned without showing it. Without a limit, only the bytes that came back are known.
    """
    most = written if output_bound is None else output_bound * request.n
    return Usage(
        input_tokens=request.input_bound,
        output_tokens=most if request.generates else 0,
        estimated=True,
    )


def charge_of(
    draft: Charge,
    request: CallRequest,
    price: tuple[Quote | None, bool],
    outcome: CallResult,
    usage: Usage | None,
    status: str,
    seconds: float,
) -> Charge:
    """The charge of a call that was answered, or that failed with a status.

    Args:
        price: as `price_of` returns it.
    """
    quote, certain = price
    cost: int | None = None
    source, estimated = "unpriced", usage is not None and usage.estimated
    if quote is not None:
        if usage is not None and (estimated or request.task.endswith(DRAW) or quote.by_second):
            usage = _completed(usage, request, quote, outcome, seconds)
            estimated = usage.estimated
        cost, source = quote.cost(usage or NOTHING_USED)
    told = usage.reported_cost if usage is not None and not usage.estimated else None
    if told is not None and (quote is None or not quote.free):
        cost, source, certain = told, TOLD, True
    read, written, cached, *_ = usage or NOTHING_USED
    known = outcome.provider, read, written, cost, source, status, estimated or not certain
    # By position, from `provider` to `seconds`: `_replace` takes four times as long.
    return Charge._make((*draft[:3], *known, round(seconds, 6), *draft[11:21], cached))


def replayed(charge: Charge) -> Charge:
    """The charge of a call that a stand-in has answered: $0."""
    return charge._replace(nano_usd=0, price_source="replayed", replayed=True, endpoint=None)


def _completed(
    usage: Usage, request: CallRequest, quote: Quote, outcome: CallResult, seconds: float
) -> Usage:
    """A usage of tokens, completed by the images and the time that may be billed."""
    images = (outcome.images or request.n) if request.draws else 0
    usage = usage._replace(images=images, microseconds=_time(request, quote, outcome, seconds))
    if usage.estimated and not quote.by_token:
        # No price is by the token, and the number of calls or images is exact.
        usage = usage._replace(input_tokens=0, output_tokens=0, estimated=False)
    # Time that this machine has measured includes the network, so it is an estimate.
    timed = quote.by_second and outcome.compute_time is None
    return usage._replace(estimated=usage.estimated or timed)


def _time(request: CallRequest, quote: Quote, outcome: CallResult, seconds: float) -> int:
    if outcome.compute_time is not None:
        return outcome.compute_time
    taken = math.ceil(seconds * MICROSECONDS)
    # Queued work is computed after this call, and fetched by another one.
    return max(taken, quote.longest(request)) if outcome.queued else taken


def above_what_came(
    charge: Charge, request: CallRequest, quote: Quote | None, outcome: CallResult
) -> Charge:
    """An estimated charge, with its part ``above`` what provably came back.

    That is the usage that the server has told. Without one, it is the bound on the input and the
    bytes that were written.
    """
    if quote is None or not charge.nano_usd:
        return charge
    asked = request.for_provider(outcome.provider)
    came = outcome.usage or usage_without_count(asked, outcome.written, None)
    cost, _ = quote.cost(came._replace(estimated=False))
    return charge._replace(above=max(charge.nano_usd - cost, 0))
