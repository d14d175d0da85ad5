"""The price book: every place a price can come from, asked in order; the first one wins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_hfbudget.money import ATTO_PER_USD, parse_rate
from pytest_hfbudget.pricing.catalogue import Catalogue, Offer
from pytest_hfbudget.pricing.price import FREE, Price
from pytest_hfbudget.pricing.quote import Quote
from pytest_hfbudget.pricing.request import READS, CallRequest
from pytest_hfbudget.pricing.table import PriceTable, is_below
from pytest_hfbudget.pricing.unpriced import Unpriced

PriceHook = Callable[[CallRequest], "Price | None"]

ENVIRONMENT = "environment: HUGGINGFACE_*_TOKEN_COST"
DEDICATED_HOST = ".endpoints.huggingface.cloud"


@dataclass
class PriceBook:
    """Explicit price > hook > project's table > router's catalogue > environment > policy.

    ``leased`` maps the URLs of this run's endpoints to their names: a call to one of those
    costs no tokens, its price is the endpoint's uptime.
    """

    table: PriceTable = field(default_factory=PriceTable)
    load_catalogue: Callable[[], Catalogue] = Catalogue
    environment: Price | None = None
    unpriced: Unpriced = field(default_factory=Unpriced)
    hook: PriceHook | None = None
    leased: dict[str, str] = field(default_factory=dict)
    _read: Catalogue | None = None

    @property
    def catalogue(self) -> Catalogue:
        """The router's prices, loaded when the first call asks."""
        # No cached_property: before Python 3.12 it has a lock, which may be taken in a fork.
        if self._read is None:
            self._read = self.load_catalogue()
        return self._read

    def quote(self, request: CallRequest, explicit: Quote | None = None) -> Quote | None:
        """What this request can cost, or None where nobody knows a price.

        Where the router is free to choose, the quote holds every provider that has one and may
        answer: settled at whoever did, no call can cost more than the dearest of them.
        """
        if leased := self.leased_name(request.url):
            return Quote.of(FREE, f"uptime of {leased}")
        if explicit:
            return explicit
        return self.stated(request) or self._fallback(request)

    def stated(self, request: CallRequest) -> Quote | None:
        """What somebody says of just this request: the hook or a list, no policy for the rest."""
        if self.hook and (price := self.hook(request)):
            return Quote.of(price, "hook pytest_hfbudget_price")
        return self._listed(request)

    def leased_name(self, url: str) -> str | None:
        """The endpoint of this run that a URL belongs to, if it does."""
        for base, name in self.leased.items():
            if is_below(url, base):
                return name
        return None

    def _listed(self, request: CallRequest) -> Quote | None:
        if request.provider is not None or request.is_url:
            return self._from_lists(request.model, request.provider)
        quotes = [self._from_lists(request.model, provider) for provider in self.routes(request)]
        return Quote.any_of([quote for quote in quotes if quote])

    def routes(self, request: CallRequest) -> tuple[str | None, ...]:
        """Who may answer, each to be priced by itself; None stands for one that is not listed."""
        if request.provider is not None or request.is_url:
            return (request.provider,)
        return (*sorted(self._routes(request.model)), None)

    def catalogue_place(self, model: str, offer: Offer) -> str:
        """Where a price of the router's catalogue is written."""
        return f"{self.catalogue.source}: {model}:{offer.provider}"

    def _routes(self, model: str) -> set[str]:
        """Every provider that may answer a call which names none, as far as its price goes."""
        named = self.table.providers(model)
        if live := {offer.provider for offer in self.catalogue.of(model)}:
            return named | live
        # Nobody knows who serves it, so it may be any provider that has a price for all models.
        # Those prices alone say nothing of the others, and leave the call to the policy.
        priced = bool(named) or self.table.find(model, None) is not None
        return named | self.table.providers("*") if priced else set()

    def _from_lists(self, model: str, provider: str | None) -> Quote | None:
        if found := self.table.find(model, provider):
            return Quote.of(*found)
        for offer in self.catalogue.of(model):
            if provider == offer.provider and offer.price:
                return Quote.of(offer.price, self.catalogue_place(model, offer))
        return None

    def _fallback(self, request: CallRequest) -> Quote | None:
        if self.environment and not request.is_url:
            return Quote.of(self.environment, ENVIRONMENT)
        if self.unpriced.price:
            return Quote.of(self.unpriced.price, self.unpriced.source)
        return None


def price_from_environment(environ: Mapping[str, str]) -> Price | None:
    """The two ``HUGGINGFACE_*_TOKEN_COST`` variables, in USD per single token.

    Where only one is set, the other has its documented default: $1 in, $3 out per 1M tokens.

    Raises:
        ValueError: a variable is not a price.
    """
    names = {"input": "HUGGINGFACE_INPUT_TOKEN_COST", "output": "HUGGINGFACE_OUTPUT_TOKEN_COST"}
    rates = {"input": ATTO_PER_USD // 10**6, "output": 3 * ATTO_PER_USD // 10**6}
    if not any(environ.get(name) for name in names.values()):
        return None
    for kind, name in names.items():
        if text := environ.get(name):
            try:
                rates[kind] = parse_rate(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return Price(input=rates["input"], output=rates["output"])


def toml_hint(request: CallRequest) -> str:
    """The exact TOML lines that would give this request a price."""
    if request.is_url:
        server = "/".join(request.model.split("/")[:3])
        return f'["{server}"]\n{_row(request)}\n# or, where it costs nothing:\n# free = true'
    model = f"{request.model}:{request.provider}" if request.provider else request.model
    name = json.dumps(model, ensure_ascii=False)  # TOML escapes what a name may hold as JSON does
    return f"[{name}]\n{_row(request)}"


def _row(request: CallRequest) -> str:
    # A price of 0.00 is refused where it is read, so that lines pasted as they are count nothing.
    if request.draws:
        return "image = 0.00           # USD each"
    if request.task in READS:
        return "input = 0.00           # USD per 1M tokens"
    if request.generates:
        return (
            "input = 0.00           # USD per 1M tokens\noutput = 0.00          # USD per 1M tokens"
        )
    return "call = 0.00            # USD each"
