"""The price book: every source of prices in order; the first one with a price counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_USD, parse_rate
from pytest_hfbudget.pricing import FREE, READS, CallRequest, Price, Quote, UnpricedPolicy
from pytest_hfbudget.pricing.catalogue import Catalogue, Offer
from pytest_hfbudget.pricing.table import PriceTable, TomlFile, is_below
from pytest_hfbudget.settings import UNKNOWN_TASK, Settings

PriceHook = Callable[[CallRequest], "Price | None"]

ENVIRONMENT = "environment: HUGGINGFACE_*_TOKEN_COST"
USED, OVERRIDDEN, SILENT = "used", "overridden", "silent"
# Most runs call a few models; the prices of more than this many are looked up at each call.
MOST_KEPT = 1000


class SourcePrice(NamedTuple):
    """The price that one source has for one provider.

    Attributes:
        provider: None for every provider that is not listed by name.
        price: None if the source has none.
        where: the source, as a charge names it in its ``price_source``.
        why: why the price applies to this model, or why there is none.
        verdict: `USED`; `OVERRIDDEN` by an earlier source; or `SILENT`, without a price.
    """

    provider: str | None
    price: Price | None
    where: str
    why: str
    verdict: str = SILENT


class Source(NamedTuple):
    """What one source of prices has for a request.

    Attributes:
        quote: its prices, which count if no earlier source has any; None if it has none.
        where, why: as in `SourcePrice`.
        listed: for a list of prices: returns its price for each provider.
    """

    quote: Quote | None
    where: str
    why: str
    listed: Callable[[], Iterable[SourcePrice]] | None = None

    def prices(self, *, decided: bool) -> Iterator[SourcePrice]:
        """All its prices; they are overridden if an earlier source has ``decided`` the price."""
        verdict = OVERRIDDEN if decided else USED
        if self.listed is not None:
            for each in self.listed():
                yield each._replace(verdict=verdict) if each.verdict == USED else each
        elif self.quote is None:
            yield SourcePrice(None, None, self.where, self.why)
        else:
            for price, where in self.quote.options:
                yield SourcePrice(None, price, where, self.why, verdict)


class Explanation(NamedTuple):
    """The quote for a request, and the prices of every source with the reasons."""

    quote: Quote | None
    prices: tuple[SourcePrice, ...]

    @property
    def used(self) -> tuple[SourcePrice, ...]:
        """The prices that count: several if the router is free to choose."""
        return tuple(each for each in self.prices if each.verdict == USED)


@dataclass
class PriceBook:
    """Explicit price > hook > project's table > router's catalogue > environment > policy.

    `quote` returns the price, and `explain` the reasons, too. Both walk the same sources.
    ``leased`` maps the URLs of this run's endpoints to their names. A call to such a URL is free,
    because the uptime of the endpoint pays for it. ``remote`` says that another process has the
    prices and these URLs.
    """

    table: PriceTable = field(default_factory=PriceTable)
    load_catalogue: Callable[[], Catalogue] = Catalogue
    environment: Price | None = None
    unpriced: UnpricedPolicy = field(default_factory=UnpricedPolicy)
    hook: PriceHook | None = None
    leased: dict[str, str] = field(default_factory=dict)
    remote: ClassVar[bool] = False
    _read: Catalogue | None = field(default=None, init=False)
    # The result of `_lists` for each model and provider, while table and catalogue stay the same.
    _kept: dict[tuple[str, str | None], Source] = field(default_factory=dict, init=False)
    _kept_of: tuple[PriceTable, Catalogue | None] | None = field(default=None, init=False)

    @property
    def catalogue(self) -> Catalogue:
        """The router's prices, loaded when the first call needs them."""
        # No cached_property: before Python 3.12 it has a lock, which may be taken in a fork.
        if self._read is None:
            self._read = self.load_catalogue()
        return self._read

    def quote(self, request: CallRequest, explicit: Quote | None = None) -> Quote | None:
        """The prices that may apply to a request; None if no source has one.

        If the router is free to choose, the quote has the prices of all providers that may answer.
        Then the call can't cost more than with the most expensive of them.
        """
        return _first(self._sources(request, explicit))

    def explain(self, request: CallRequest, explicit: Quote | None = None) -> Explanation:
        """What `quote` returns, and the prices of every source, also of those that don't count."""
        quote: Quote | None = None
        prices: list[SourcePrice] = []
        for source in self._sources(request, explicit):
            prices += source.prices(decided=quote is not None)
            quote = quote or source.quote
        return Explanation(quote, tuple(prices))

    def stated(self, request: CallRequest) -> Quote | None:
        """The price of the hook or of a list; None if at best the environment or policy has one."""
        return _first(self._stated(request))

    def leased_name(self, url: str) -> str | None:
        """The name of this run's endpoint that a URL belongs to; None if there is none."""
        for base, name in self.leased.items():
            if is_below(url, base):
                return name
        return None

    def _sources(self, request: CallRequest, explicit: Quote | None) -> Iterator[Source]:
        """Every source, in the order in which they count; each is read only when it is reached."""
        if self.leased and (name := self.leased_name(request.url)):
            yield _uptime(name)
        if explicit:
            yield Source(explicit, "", "given with the budget")
        yield from self._stated(request)
        if request.is_url:
            yield Source(None, ENVIRONMENT, "not for servers that are addressed by URL")
        elif self.environment:
            quote = Quote.of(self.environment, ENVIRONMENT)
            yield Source(quote, ENVIRONMENT, "any model without a price")
        else:
            yield Source(None, ENVIRONMENT, "not set")
        policy = self.unpriced
        if policy.price:
            yield Source(Quote.of(policy.price, policy.source), policy.source, "the last resort")
        else:
            why = "refuses a call without a price under a cap"
            yield Source(None, policy.source or "--hf-unpriced=refuse", why)

    def _stated(self, request: CallRequest) -> Iterator[Source]:
        if self.hook and (price := self.hook(request)):
            where = "hook pytest_hfbudget_price"
            yield Source(Quote.of(price, where), where, "asked before all lists")
        yield self._lists(request)

    def _lists(self, request: CallRequest) -> Source:
        """Table and catalogue as one source: each of them may have prices of some providers."""
        catalogue, of = self._read, self._kept_of
        if of is None or of[0] is not self.table or of[1] is not catalogue:
            self._kept, self._kept_of = {}, (self.table, catalogue)
        kept, key = self._kept, (request.model, request.provider)
        if (source := kept.get(key)) is None:
            source = self._look_up(request)
            if len(kept) < MOST_KEPT and catalogue is self._read:  # else it was loaded just now
                kept[key] = source
        return source

    def _look_up(self, request: CallRequest) -> Source:
        # Lazily: if the table has a price, the catalogue need not be loaded.
        used = [
            next((each for each in self._listed(request, provider) if each.verdict == USED), None)
            for provider in self._routes(request)
        ]
        priced = [(each, each.price) for each in used if each and each.price]
        options = tuple((price, each.where) for each, price in priced)
        quote = Quote(options, tuple(each.provider for each, _ in priced)) if options else None
        return Source(quote, "", "", partial(self._all_listed, request))

    def _all_listed(self, request: CallRequest) -> Iterator[SourcePrice]:
        for provider in self._routes(request):
            yield from self._listed(request, provider)
        yield from self._without_effect(request)

    def _listed(self, request: CallRequest, provider: str | None) -> Iterator[SourcePrice]:
        """The prices of the lists for one provider; the first one counts."""
        verdict = USED
        for each in chain(self._rows(request, provider), self._offers(request, provider)):
            if each.price is None:
                yield each
            else:
                yield each._replace(verdict=verdict)
                verdict = OVERRIDDEN

    def _routes(self, request: CallRequest) -> tuple[str | None, ...]:
        """The providers that may answer; None stands for any that is not listed."""
        if request.provider is not None or request.is_url:
            return (request.provider,)
        return (*sorted(self._providers(request.model)), None)

    def _providers(self, model: str) -> set[str]:
        """Every provider that may answer a call without one, and that could have its own price."""
        named = self.table.providers(model)
        if live := {offer.provider for offer in self.catalogue.of(model)}:
            return named | live
        # The catalogue does not list the model, so any provider with a price for all models may
        # serve it. Such prices alone do not bound the others, so then the policy decides.
        priced = bool(named) or self.table.find(model, None) is not None
        return named | self.table.providers("*") if priced else set()

    def _rows(self, request: CallRequest, provider: str | None) -> Iterator[SourcePrice]:
        for row in self.table.matches(request.model, provider):
            yield SourcePrice(provider, row.price, row.where, row.rule)

    def _offers(self, request: CallRequest, provider: str | None) -> Iterator[SourcePrice]:
        for offer in self.catalogue.of(request.model):
            if offer.provider == provider:
                why = "listed for this provider" if offer.price else "lists it without a price"
                free = offer.price is not None and offer.price.free
                place = self._place(request.model, offer)
                yield SourcePrice(provider, offer.price, place, "a free promotion" if free else why)

    def _without_effect(self, request: CallRequest) -> Iterator[SourcePrice]:
        """The offers of the catalogue that do not count; or why the catalogue has none."""
        if request.is_url:
            return
        catalogue = self.catalogue
        offers = catalogue.offers.get(request.model, ())
        wanted = [one for one in offers if request.provider in (None, one.provider)]
        if not wanted:
            where = catalogue.source if catalogue.origin else "router catalogue"
            why = _absent(request, bool(offers)) if catalogue.origin else "has never been read"
            yield SourcePrice(request.provider, None, where, why)
        for offer in wanted:
            if not offer.live:
                why = f"{offer.status or 'down'}, not live, so its price does not count"
                verdict = OVERRIDDEN if offer.price else SILENT
                place = self._place(request.model, offer)
                yield SourcePrice(offer.provider, offer.price, place, why, verdict)

    def _place(self, model: str, offer: Offer) -> str:
        """The name of an offer of the catalogue, as the source of a price."""
        return f"{self.catalogue.source}: {model}:{offer.provider}"


@lru_cache
def _uptime(name: str) -> Source:
    return Source(Quote.of(FREE, f"uptime of {name}"), "", "an endpoint of this run")


def _first(sources: Iterable[Source]) -> Quote | None:
    for source in sources:
        if source.quote is not None:
            return source.quote
    return None


def _absent(request: CallRequest, listed: bool) -> str:
    return f"does not list {request.provider} for it" if listed else "does not list this model"


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
    """The TOML lines that give this request a price."""
    if request.is_url:
        whole = request.task == UNKNOWN_TASK  # other paths of that server have other prices
        server = request.model if whole else "/".join(request.model.split("/")[:3])
        return f'["{server}"]\n{_row(request)}\n# or, where it costs nothing:\n# free = true'
    model = f"{request.model}:{request.provider}" if request.provider else request.model
    name = json.dumps(model, ensure_ascii=False)  # TOML escapes what a name may hold as JSON does
    return f"[{name}]\n{_row(request)}"


def _row(request: CallRequest) -> str:
    # A price of 0.00 is refused when it is read, so the user has to fill in these lines.
    if request.draws:
        return "image = 0.00           # USD each"
    if request.task in READS:
        return "input = 0.00           # USD per 1M tokens"
    if request.generates:
        return (
            "input = 0.00           # USD per 1M tokens\noutput = 0.00          # USD per 1M tokens"
        )
    return "call = 0.00            # USD each"


TABLE = ("tool", "hfbudget", "prices")


def project_book(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    root: Path,
    here: Path,
    load_catalogue: Callable[[], Catalogue],
    hook: PriceHook | None = None,
    leased: dict[str, str] | None = None,
) -> PriceBook:
    """The price book of a project, whose pyproject.toml is in ``root``.

    Raises:
        ConfigError: a table, a variable or ``--hf-unpriced`` is invalid.
    """
    try:
        environment = price_from_environment(environ)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return PriceBook(
        table=project_table(settings.prices, root=root, here=here),
        load_catalogue=load_catalogue,
        environment=environment,
        unpriced=UnpricedPolicy.parse(settings.unpriced),
        hook=hook,
        leased={} if leased is None else leased,
    )


def project_table(file: Path | None, *, root: Path, here: Path) -> PriceTable:
    """The rows of a price file over those of pyproject.toml in ``root``.

    The file is looked for in ``here``, then in ``root``.

    Raises:
        ConfigError: one of them is invalid.
    """
    project, table = root / "pyproject.toml", PriceTable()
    # Errors in a pyproject.toml without our tables are left to other tools.
    if project.is_file() and b"hfbudget" in project.read_bytes():
        table = PriceTable.load(project, *TABLE, source="pyproject.toml")
        _refuse_other_keys(TomlFile.read(project))
    if file is None:
        return table
    path = next((path for path in (here / file, root / file) if path.exists()), here / file)
    return PriceTable.load(path, source=str(file)).over(table)


def _refuse_other_keys(file: TomlFile) -> None:
    *above, prices = TABLE
    for key in file.below(*above):
        if key != prices:
            raise ConfigError(
                f"pyproject.toml: unknown key {key!r} in [{'.'.join(above)}], which holds "
                f"{prices} alone{file.line((*above, key))}. Budgets are settings of pytest, such "
                "as hf_session_budget in [tool.pytest.ini_options]."
            )
