"""The limit on output that a cap sets; and refusals of calls that no cap can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pytest_hfbudget.errors import BudgetExceededError, Figures, UnpricedCallError
from pytest_hfbudget.ledger import Hold, LedgerLike, Scope
from pytest_hfbudget.metering.budget_context import RunningTest
from pytest_hfbudget.money import beside, show
from pytest_hfbudget.pricing import BYTES, MICROSECONDS, SIZED, CallRequest, Quote, QuotedOffer
from pytest_hfbudget.pricing.book import toml_hint
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.settings import DEDICATED_HOST

# Tokens of prompt and answer that any model in use can take, where its context is not known.
UNKNOWN_CONTEXT = 8192

# A prompt that leaves room for less than this fills the context by itself.
SMALLEST = 16
NAMES = ("max_tokens", "max_completion_tokens")

# From these a refusal estimates what a server will count: the tokens that a bound adds to the bytes
# of one message, and the bytes of a usual token.
TEMPLATE_BYTES, BYTES_PER_TOKEN = 272, 4

# What a refusal adds if an image makes a call too large.
FIRST_IMAGE = (
    "if your images make fewer tokens, set hf_image_tokens to the most that one makes; after the "
    "first answer, pytest-hfbudget holds images of the same size by the server's own count"
)

# How servers say that a limit is too high for them, as opposed to unknown.
TOO_HIGH = ("context", "too large", "too long", "exceed", "must be <=", "less than or equal")


class OutputLimit(NamedTuple):
    """``tokens`` of output for each answer; ``by_cap`` if a cap pays for no more of them."""

    tokens: int
    by_cap: bool


class RequestVariant(NamedTuple):
    """How a call is sent, as far as a server may ask for a change.

    Attributes:
        ask_usage: whether a stream is asked for its usage.
        limit_name: the name of the output limit; None if this server takes no limit.
        at_most: a limit to try, after this server has refused a higher one.
    """

    ask_usage: bool = True
    limit_name: str | None = NAMES[0]
    at_most: int | None = None

    def after(self, refused: str, limit: int) -> RequestVariant | None:
        """The variant to try after a server refused ``limit`` in these words; None without one."""
        words = refused.lower()
        if any(sign in words for sign in TOO_HIGH):
            smaller = limit // 4
            return self._replace(at_most=smaller) if smaller >= SMALLEST else None
        if not any(name in words for name in (*NAMES, "max_new_tokens")):
            return None
        other = self.limit_name == NAMES[0] and "max_new_tokens" not in words
        return self._replace(limit_name=NAMES[1] if other else None)


DEFAULT_VARIANT = RequestVariant()


def most(request: CallRequest, quote: Quote, catalogue: Catalogue) -> int:
    """The most nano-USD that a call without a limit of its own can cost."""
    longest = catalogue.contexts(request.model, request.provider).longest
    if longest:
        return quote.most_within(request, longest)
    return quote.most(request, ceiling(request, catalogue))


def limit_of(
    request: CallRequest, quote: Quote, held: int, catalogue: Catalogue, variant: RequestVariant
) -> OutputLimit | None:
    """The limit with which a call costs at most ``held`` nano-USD; None if it needs no limit."""
    if request.max_output is not None or not request.generates or quote.free:
        return None
    longest = catalogue.contexts(request.model, request.provider).longest
    if longest and held >= most(request, quote, catalogue):
        return None
    paid = quote.affordable_output(request, held)
    if paid is None:
        return None
    highest = ceiling(request, catalogue)
    if variant.at_most is not None:
        highest = min(highest, variant.at_most)
    return OutputLimit(min(paid, highest), by_cap=paid < highest)


def ceiling(request: CallRequest, catalogue: Catalogue) -> int:
    """The highest limit with which prompt and answer should still fit into the context.

    A bound by bytes counts a token for each byte; two bytes are closer, and safe for most.
    """
    shortest = catalogue.contexts(request.model, request.provider).shortest or UNKNOWN_CONTEXT
    prompt = request.input_bound // 2 if request.basis == BYTES else request.input_bound
    return max(shortest - prompt, shortest // 8)


def put_limit(payload: dict[str, Any], limit: int, variant: RequestVariant) -> None:
    """Write an output limit into a payload, under the name that its server reads."""
    if "inputs" in payload:
        payload["parameters"] = {**(payload.get("parameters") or {}), "max_new_tokens": limit}
        return
    if "input" in payload:  # the responses API
        payload["max_output_tokens"] = limit
        return
    for name in NAMES:  # one of 0 or less, which servers read as no limit
        payload.pop(name, None)
    payload[variant.limit_name or NAMES[0]] = limit


def without_limit(request: CallRequest, highest: int, catalogue: Catalogue) -> tuple[int, int]:
    """The least and the most to hold if a server takes no limit: both ``highest``, in nano-USD.

    Raises:
        BudgetExceededError: the length of the model's context is not known.
    """
    if catalogue.contexts(request.model, request.provider).longest:
        return highest, highest
    raise BudgetExceededError(
        f"{request.model} takes no limit on its output under the names that pytest-hfbudget tries, "
        "and the length of its context is not known, so no cap can hold the call. The server "
        "refused the call. Pass max_new_tokens or max_output_tokens if the server reads one of "
        "these, or give a price per call.",
        model=request.model,
    )


def explain(
    error: BudgetExceededError, request: CallRequest, quote: Quote | None, images: int
) -> None:
    """Add to a refusal what the call would have held, if that was the reason to refuse it.

    Args:
        images: how many images its messages have.
    """
    if not error.figures.needed or quote is None or error.details:
        return
    output = request.max_output or 1
    offers = quote.offers(request, output)
    most = max(offers, key=lambda offer: offer.nano_usd)
    named = [offer for offer in offers if offer.provider and request.provider is None]
    least = min(named, key=lambda offer: offer.nano_usd, default=most)
    cap, *told = error.figures  # the message has them: the same amounts look the same below it
    at_most, at_least, *_ = beside(cap, most.nano_usd, least.nano_usd, error.figures.left, *told)
    parts = [f"at most {at_most}: {_made_of(most, request, output, images)}"]
    if least.nano_usd < most.nano_usd:
        parts.append(f"{request.model}:{least.provider} would hold {at_least}")
    if images and most.request.basis in (BYTES, SIZED) and most.price.by_token:
        parts.append(FIRST_IMAGE)
    error.explain("; ".join(parts))


def _made_of(offer: QuotedOffer, request: CallRequest, output: int, images: int) -> str:
    parts, asked = [], offer.request
    if offer.price.by_token:
        basis = asked.basis
        if basis == BYTES and images:
            basis = "bytes, and the most that an image makes"
        elif basis == BYTES:
            after = max((asked.input_bound - TEMPLATE_BYTES) // BYTES_PER_TOKEN, 1)
            basis = f"bytes; about {after:,} after the first answer"
        parts.append(f"{asked.input_bound:,} tokens in ({basis})")
        if request.generates:
            parts.append(f"{output * request.n:,} out")
    if request.draws:
        parts.append("1 image" if request.n == 1 else f"{request.n:,} images")
    if seconds := request.longest(offer.price):
        parts.append(f"{seconds / MICROSECONDS:g} s")
    provider = offer.provider or request.provider
    parts.append(f"at {provider}'s price" if provider else "at its price")
    return ", ".join(parts)


def unpriced(request: CallRequest, scopes: tuple[Scope, ...]) -> UnpricedCallError:
    """The refusal of a call under a cap that has no known price."""
    capped = next(scope for scope in reversed(scopes) if scope.cap is not None)
    via = f" by {request.provider}" if request.provider else ""
    return UnpricedCallError(
        f"{capped.name}: {request.model}{via} has no known price for a "
        f"{request.task} call, so no cap can hold it. The call was not sent. "
        "Give its price as budget(price=…), in [tool.hfbudget.prices] of pyproject.toml, or "
        f"in the file of --hf-prices:\n\n{toml_hint(request)}\n{_endpoint_hint(request)}",
        scope=capped.name,
        scope_key=capped.key,
        model=request.model,
        figures=Figures(cap=capped.cap or 0),
    )


def _endpoint_hint(request: CallRequest) -> str:
    if DEDICATED_HOST not in request.url:
        return ""
    return (
        "\nIt is a dedicated endpoint. With @pytest.mark.hf_endpoint("
        '"namespace/name") its price is its uptime, and it is paused at the end.\n'
    )


def tightest(scopes: Iterable[Scope], ledger: LedgerLike) -> Scope:
    """The capped scope with the least room."""

    def room(scope: Scope) -> int:
        return (scope.cap or 0) - ledger.total(scope.key).spent

    return min((scope for scope in scopes if scope.cap is not None), key=room)


def changed_after_hold(model: str, held: int, tightest: Scope) -> BudgetExceededError:
    """The refusal of a request that was changed after its amount was held.

    Args:
        held: in nano-USD.
        tightest: the scope with the least room.
    """
    return BudgetExceededError(
        f"{tightest.name}: a hook or a transport of the HTTP client has changed the request to "
        f"{model} after {show(held)} were held for it, and it may cost more now. The request was "
        "not sent. Change the request before the call instead.",
        scope=tightest.name,
        scope_key=tightest.key,
        model=model,
        figures=Figures(cap=tightest.cap or 0, held=held),
    )


def cut_off(model: str, limit: OutputLimit, held: int, tightest: Scope) -> BudgetExceededError:
    """The refusal of an answer that ran into the output limit which the plugin had set.

    Args:
        held: in nano-USD.
        tightest: the scope with the least room.
    """
    why = (
        f"because the {show(held)} left in the budget pays for no more. "
        "Raise the cap, or set max_tokens to what the answer needs."
        if limit.by_cap
        else "because its longest answer is not known, and pytest-hfbudget sets this limit then. "
        "Set max_tokens to what the answer needs."
    )
    error = BudgetExceededError(
        f"{tightest.name}: {model} was stopped after {limit.tokens} tokens, {why}",
        scope=tightest.name,
        scope_key=tightest.key,
        model=model,
        figures=Figures(cap=tightest.cap or 0, held=held, needed=held),
    )
    error.used_up = limit.by_cap
    return error


def check_share(ledger: LedgerLike, test: RunningTest | None, hold: Hold, name: str) -> None:
    """Release the hold of a call to an endpoint whose uptime has taken its test over a cap.

    Raises:
        BudgetExceededError: it has. The minute that runs can't be stopped, but the test can.
    """
    for scope in reversed(test.scopes if test else ()):
        total = ledger.total(scope.key)
        if scope.cap is not None and total.spent > scope.cap:
            ledger.release(hold.id)
            spent, cap = beside(scope.cap, total.spent)
            raise BudgetExceededError(
                f"{scope.name}: {spent} of {cap} is spent, including the test's share of the "
                f"uptime of {name}, and each further second on it costs more. "
                "The call was not sent. Raise the cap.",
                scope=scope.name,
                scope_key=scope.key,
                model=name,
                figures=Figures(cap=scope.cap, spent=total.spent, held=total.held),
            )
