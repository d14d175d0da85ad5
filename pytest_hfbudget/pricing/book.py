"""The price book: asks every source of prices in order; the first one wins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import ATTO_PER_USD, parse_rate
from pytest_hfbudget.pricing.catalogue import Catalogue, Offer
from pytest_hfbudget.pricing.price import FREE, Price
from pytest_hfbudget.pricing.quote import Quote, UnpricedPolicy
from pytest_hfbudget.pricing.request import READS, CallRequest
from pytest_hfbudget.pricing.table import PriceTable, is_below
from pytest_hfbudget.pricing.toml_file import TomlFile
from pytest_hfbudget.settings import Settings

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
    unpriced: UnpricedPolicy = field(default_factory=UnpricedPolicy)
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
    """Everything that is known about prices where ``root`` has the pyproject.toml.

    Raises:
        ConfigError: a table, a variable or ``--hf-unpriced`` that makes no sense.
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
    """The rows of pyproject.toml, under those of a file that is looked for ``here``, then there.

    Raises:
        ConfigError: one of them can't be used.
    """
    project, table = root / "pyproject.toml", PriceTable()
    # Whatever else is wrong with a pyproject.toml without our tables is not for us to say.
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


USED, OVERRIDDEN, SILENT = "used", "overridden", "silent"


@dataclass(frozen=True)
class SourceWord:
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
    words: tuple[SourceWord, ...]

    @property
    def used(self) -> tuple[SourceWord, ...]:
        """What counts: several prices where the router is free to choose."""
        return tuple(word for word in self.words if word.verdict == USED)


def explain(book: PriceBook, request: CallRequest) -> Explanation:
    """Ask every source, also those that come after the first with a price."""
    hook = _judged(_hook(book, request), settled=False)
    lists: list[SourceWord] = []
    for provider in book.routes(request):
        listed = [*_table(book, request, provider), *_catalogue(book, request, provider)]
        lists += _judged(listed, settled=_decided(hook))
    lists += _unlisted(book, request)
    rest = _judged(_fallbacks(book, request), settled=_decided([*hook, *lists]))
    return Explanation(book.quote(request), (*hook, *lists, *rest))


def _judged(said: Iterable[SourceWord], *, settled: bool) -> list[SourceWord]:
    """The first with a price counts, unless it is settled that somebody before them does."""
    judged: list[SourceWord] = []
    for word in said:
        if word.price is None or word.verdict != SILENT:
            judged.append(word)
        else:
            verdict = OVERRIDDEN if settled or _decided(judged) else USED
            judged.append(replace(word, verdict=verdict))
    return judged


def _decided(words: Iterable[SourceWord]) -> bool:
    return any(word.verdict == USED for word in words)


def _hook(book: PriceBook, request: CallRequest) -> Iterator[SourceWord]:
    if book.hook and (price := book.hook(request)):
        yield SourceWord(
            request.provider, price, "hook pytest_hfbudget_price", "asked before all lists"
        )


def _table(book: PriceBook, request: CallRequest, provider: str | None) -> Iterator[SourceWord]:
    for row in book.table.matches(request.model, provider):
        yield SourceWord(provider, row.price, row.where, row.rule)


def _catalogue(book: PriceBook, request: CallRequest, provider: str | None) -> Iterator[SourceWord]:
    for offer in book.catalogue.of(request.model):
        if offer.provider == provider:
            place = book.catalogue_place(request.model, offer)
            why = "listed for this provider" if offer.price else "lists it without a price"
            free = offer.price is not None and offer.price.free
            yield SourceWord(provider, offer.price, place, "a free promotion" if free else why)


def _unlisted(book: PriceBook, request: CallRequest) -> Iterator[SourceWord]:
    """What the catalogue knows and can't use, or why it knows nothing."""
    if request.is_url:
        return
    catalogue = book.catalogue
    offers = catalogue.offers.get(request.model, ())
    wanted = [one for one in offers if request.provider in (None, one.provider)]
    if not wanted:
        where = catalogue.source if catalogue.origin else "router catalogue"
        why = _absent(request, bool(offers)) if catalogue.origin else "has never been read"
        yield SourceWord(request.provider, None, where, why)
    for offer in wanted:
        if not offer.live:
            place = book.catalogue_place(request.model, offer)
            why = f"{offer.status or 'down'}, not live, so its price does not count"
            verdict = OVERRIDDEN if offer.price else SILENT
            yield SourceWord(offer.provider, offer.price, place, why, verdict)


def _absent(request: CallRequest, listed: bool) -> str:
    return f"does not list {request.provider} for it" if listed else "does not list this model"


def _fallbacks(book: PriceBook, request: CallRequest) -> Iterator[SourceWord]:
    if request.is_url:
        why = "not for servers that are addressed by URL"
        yield SourceWord(None, None, ENVIRONMENT, why)
    else:
        why = "any model without a price" if book.environment else "not set"
        yield SourceWord(None, book.environment, ENVIRONMENT, why)
    policy = book.unpriced
    why = "the last resort" if policy.price else "refuses a call without a price under a cap"
    yield SourceWord(None, policy.price, policy.source or "--hf-unpriced=refuse", why)
