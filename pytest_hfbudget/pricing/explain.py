"""Why a call has the price that it has: what every source says of it, in the order of asking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pytest_hfbudget.pricing.book import ENVIRONMENT, PriceBook
from pytest_hfbudget.pricing.price import Price
from pytest_hfbudget.pricing.quote import Quote
from pytest_hfbudget.pricing.request import CallRequest

USED, OVERRIDDEN, SILENT = "used", "overridden", "silent"


@dataclass(frozen=True)
class Word:
    """What one source says of one provider.

    Attributes:
        provider: None for whoever is not listed by name.
        price: None where the source says nothing.
        where: the source, as a charge names it in its ``price_source``.
        why: how it comes to speak of this model, or why it says nothing.
    """

    provider: str | None
    price: Price | None
    where: str
    why: str
    verdict: str = SILENT


@dataclass(frozen=True)
class Explanation:
    """The prices that count, and all that was said on the way there."""

    quote: Quote | None
    words: tuple[Word, ...]

    @property
    def used(self) -> tuple[Word, ...]:
        """What counts: several prices where the router is free to choose."""
        return tuple(word for word in self.words if word.verdict == USED)


def explain(book: PriceBook, request: CallRequest) -> Explanation:
    """Ask every source, also those that come after the first with a price."""
    hook = _judged(_hook(book, request), settled=False)
    lists: list[Word] = []
    for provider in book.routes(request):
        listed = [*_table(book, request, provider), *_catalogue(book, request, provider)]
        lists += _judged(listed, settled=_decided(hook))
    lists += _unlisted(book, request)
    rest = _judged(_fallbacks(book, request), settled=_decided([*hook, *lists]))
    return Explanation(book.quote(request), (*hook, *lists, *rest))


def _judged(said: Iterable[Word], *, settled: bool) -> list[Word]:
    """The first with a price counts, unless it is settled that somebody before them does."""
    judged: list[Word] = []
    for word in said:
        if word.price is None or word.verdict != SILENT:
            judged.append(word)
        else:
            verdict = OVERRIDDEN if settled or _decided(judged) else USED
            judged.append(replace(word, verdict=verdict))
    return judged


def _decided(words: Iterable[Word]) -> bool:
    return any(word.verdict == USED for word in words)


def _hook(book: PriceBook, request: CallRequest) -> Iterator[Word]:
    if book.hook and (price := book.hook(request)):
        yield Word(request.provider, price, "hook pytest_hfbudget_price", "asked before all lists")


def _table(book: PriceBook, request: CallRequest, provider: str | None) -> Iterator[Word]:
    for row in book.table.matches(request.model, provider):
        yield Word(provider, row.price, row.where, row.rule)


def _catalogue(book: PriceBook, request: CallRequest, provider: str | None) -> Iterator[Word]:
    for offer in book.catalogue.of(request.model):
        if offer.provider == provider:
            place = book.catalogue_place(request.model, offer)
            why = "listed for this provider" if offer.price else "lists it without a price"
            free = offer.price is not None and offer.price.free
            yield Word(provider, offer.price, place, "a free promotion" if free else why)


def _unlisted(book: PriceBook, request: CallRequest) -> Iterator[Word]:
    """What the catalogue knows and can't use, or why it knows nothing."""
    if request.is_url:
        return
    catalogue = book.catalogue
    offers = catalogue.offers.get(request.model, ())
    wanted = [one for one in offers if request.provider in (None, one.provider)]
    if not wanted:
        where = catalogue.source if catalogue.origin else "router catalogue"
        why = _absent(request, bool(offers)) if catalogue.origin else "has never been read"
        yield Word(request.provider, None, where, why)
    for offer in wanted:
        if not offer.live:
            place = book.catalogue_place(request.model, offer)
            why = f"{offer.status or 'down'}, not live, so its price does not count"
            verdict = OVERRIDDEN if offer.price else SILENT
            yield Word(offer.provider, offer.price, place, why, verdict)


def _absent(request: CallRequest, listed: bool) -> str:
    return f"does not list {request.provider} for it" if listed else "does not list this model"


def _fallbacks(book: PriceBook, request: CallRequest) -> Iterator[Word]:
    if request.is_url:
        why = "not for servers that are addressed by URL"
        yield Word(None, None, ENVIRONMENT, why)
    else:
        why = "any model without a price" if book.environment else "not set"
        yield Word(None, book.environment, ENVIRONMENT, why)
    policy = book.unpriced
    why = "the last resort" if policy.price else "refuses a call without a price under a cap"
    yield Word(None, policy.price, policy.source or "--hf-unpriced=refuse", why)
