"""`hfbudget prices`: shows the price of a call, its source, and the sources that it overrides."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints.transport import read_public_json
from pytest_hfbudget.errors import ConfigError, HistoryError
from pytest_hfbudget.money import beside, show, usd_text
from pytest_hfbudget.pricing import CallRequest, Price, Usage, split_model
from pytest_hfbudget.pricing.book import (
    ENVIRONMENT,
    USED,
    Explanation,
    PriceBook,
    SourcePrice,
    project_book,
    toml_hint,
)
from pytest_hfbudget.pricing.catalogue import CatalogueFile, kept_catalogue
from pytest_hfbudget.reporting.bill import drift_text
from pytest_hfbudget.text import printable, public_url

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pytest_hfbudget.history.bills import Suggestion


_STYLES = {"used": "bold", "overridden": "dim", "silent": "dim"}


@dataclass(frozen=True)
class Refreshed:
    """The result of reading the catalogue anew.

    Attributes:
        before, after: when the catalogue in use was read, in unix seconds; None if never.
        error: why it could not be read, or not be written to disk.
    """

    before: float | None
    after: float | None
    error: str | None = None

    def json(self) -> dict[str, Any]:
        """The result as JSON."""
        times = {"before": output.moment(self.before), "after": output.moment(self.after)}
        return {**times, "error": self.error}


@dataclass(frozen=True)
class PriceAnswer:
    """The price of one model, and what each price source says about it."""

    book: PriceBook
    request: CallRequest
    explanation: Explanation
    usage: Usage | None

    @classmethod
    def of(cls, book: PriceBook, name: str, usage: Usage | None) -> PriceAnswer:
        """Ask the price book about ``model``, ``model:provider`` or a URL."""
        model, provider = split_model(name)
        url = model if "://" in model else ""
        request = CallRequest("conversational", model, provider, url)
        return cls(book, request, book.explain(request), usage)

    @property
    def known(self) -> bool:
        """Whether any source has a price."""
        return self.explanation.quote is not None

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "model": self.request.model,
            "provider": self.request.provider,
            "known": self.known,
            "at_most": self._cost_json(),
            "said": [_word_json(word) for word in self.explanation.prices],
            "catalogue": output.catalogue_json(self.book),
        }

    def text(self) -> Iterator[RenderableType]:
        """For people."""
        yield self._headline()
        yield ""
        yield output.table(
            *("provider", "price", "", "source", "why"),
            rows=map(_cells, self.explanation.prices),
            styles=(_STYLES[word.verdict] for word in self.explanation.prices),
        )
        yield ""
        if not self.known:
            yield "Add it to [tool.hfbudget.prices] of pyproject.toml, or to a price file:\n"
            yield toml_hint(self.request) + "\n"
        elif self.usage:
            yield f"{_tokens(self.usage)} cost at most {show(self._cost()[0])}.{self._choice()}"
        yield output.catalogue_line(self.book)

    def _headline(self) -> str:
        by = f" by {self.request.provider}" if self.request.provider else ""
        name, used = f"{self.request.model}{by}", self.explanation.used
        if not used:
            return f"{name} has no known price. Under a cap a call is refused."
        if len({word.price for word in used}) == 1 and used[0].price:
            return f"{name}: {output.price_text(used[0].price)}"
        return (
            f"{name}: the router chooses the provider. pytest-hfbudget holds a call's cost at the "
            f"most expensive of {len(used)} prices, and charges the price of the provider that "
            "answers."
        )

    def _cost(self) -> tuple[int, str]:
        quote = self.explanation.quote
        return quote.cost(self.usage) if quote and self.usage else (0, "")

    def _choice(self) -> str:
        """A sentence on the provider whose price decides the hold, and on the cheapest one.

        Empty unless the router chooses between providers with different prices.
        """
        by_provider = self._by_provider()
        if len(set(by_provider.values())) <= 1:  # nothing to choose from
            return ""
        most = max(by_provider, key=by_provider.__getitem__)
        least = min(by_provider, key=by_provider.__getitem__)
        cheaper, _ = beside(None, by_provider[least], by_provider[most])
        return (
            f" That is {most}'s price; {self.request.model}:{least} would hold "
            f"{cheaper}. :cheapest, :fastest and :preferred hold as much as no "
            "suffix, because the router still chooses."
        )

    def _by_provider(self) -> dict[str, int]:
        """Nano-USD of the usage at each provider that the router may choose."""
        quote = self.explanation.quote
        if quote is None or self.usage is None or self.request.provider is not None:
            return {}
        named = zip(quote.providers, quote.options, strict=False)
        return {name: price.cost(self.usage) for name, (price, _) in named if name}

    def _cost_json(self) -> dict[str, Any] | None:
        if not self.known or self.usage is None:
            return None
        nano, source = self._cost()
        used = {"input_tokens": self.usage.input_tokens, "output_tokens": self.usage.output_tokens}
        by_provider = {name: usd_text(cost) for name, cost in self._by_provider().items()}
        return {**used, "usd": usd_text(nano), "source": source, "by_provider": by_provider}


@dataclass(frozen=True)
class Overview:
    """All configured prices."""

    book: PriceBook
    now: float = field(default_factory=time.time)

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "rows": [
                {"name": name, "price": price.as_row(), "source": where, "hidden": hidden}
                for name, price, where, hidden in self._rows()
            ],
            "environment": self.book.environment and self.book.environment.as_row(),
            "unpriced": self.book.unpriced.source or "--hf-unpriced=refuse",
            "catalogue": output.catalogue_json(self.book),
        }

    def text(self) -> Iterator[RenderableType]:
        """For people."""
        rows = list(self._rows())
        if rows:
            yield output.table(
                *("name", "price", "source"),
                rows=((name, output.price_text(price), where) for name, price, where, _ in rows),
                styles=("dim" if hidden else "" for *_, hidden in rows),
            )
        else:
            yield "There is no price in pyproject.toml, and no file of prices."
        yield ""
        if self.book.environment:
            yield f"{ENVIRONMENT}: {output.price_text(self.book.environment)}"
        yield f"a call without a price: {self.book.unpriced.source or '--hf-unpriced=refuse'}"
        yield output.catalogue_line(self.book)

    def _rows(self) -> Iterator[tuple[str, Price, str, bool]]:
        for name, (price, where) in self.book.table.rows.items():
            yield public_url(name), price, where, False
        for name, (price, where) in self.book.table.hidden.items():
            yield public_url(name), price, f"{where}, hidden by the file's", True


def _cells(word: SourcePrice) -> tuple[str, ...]:
    price = "" if word.price is None else output.price_text(word.price)
    verdict = "" if word.price is None else word.verdict
    return word.provider or "any", price, verdict, word.where, word.why


def _word_json(word: SourcePrice) -> dict[str, Any]:
    return {
        "provider": word.provider,
        "price": None if word.price is None else word.price.as_row(),
        "source": word.where,
        "why": word.why,
        "used": word.verdict == USED,
    }


def _tokens(usage: Usage) -> str:
    return f"{usage.input_tokens:,} tokens in and {usage.output_tokens:,} out"


FETCH_S = 10.0
ONLY_PYTEST = (
    "In a run, the price of a budget() and the hook pytest_hfbudget_price come before all these. "
    "This command can't see them."
)


@click.command("prices")
@click.argument("model", required=False, metavar="[MODEL[:PROVIDER]]")
@click.option("--refresh", is_flag=True, help="Read the router's catalogue anew first.")
@click.option(
    "--prices",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Like pytest's --hf-prices. Default: HFBUDGET_PRICES.",
)
@click.option(
    "--unpriced", metavar="HOW", help="Like pytest's --hf-unpriced. Default: HFBUDGET_UNPRICED."
)
@click.option("--tokens", metavar="IN/OUT", help="Show what so many tokens cost at most.")
@click.option("--suggest", is_flag=True, help="Print the rows that would have matched the bills.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(
    model: str | None,
    refresh: bool,
    file: Path | None,
    unpriced: str | None,
    tokens: str | None,
    suggest: bool,
    as_json: bool,
) -> None:
    """Explain what a call costs, and which source says so.

    MODEL may be a URL. Without MODEL, the command lists all prices that are configured. It reads
    the ini file, price tables and variables that pytest reads in this folder. It fetches nothing
    without --refresh: it uses the last catalogue of the router, and shows its age.

    With --suggest it prints a price file. That is made of the runs with one model whose bills
    `hfbudget bill` has read.

    Exit codes: 0 the price is known, or no MODEL was given; 1 MODEL has no known price, or the
    catalogue could not be read; 2 wrong usage, also a price file or a variable that can't be used.
    """
    usage = _usage(tokens, model)
    book = _book(file, unpriced)
    refreshed = _refresh() if refresh else None
    if suggest:
        if tokens is not None:
            raise output.BadInput("--suggest does not take --tokens.")
        _suggest(book, model, as_json)
        return
    told = Overview(book) if model is None else PriceAnswer.of(book, model, usage)
    if as_json:
        output.print_json({**told.json(), "refreshed": refreshed and refreshed.json()})
    else:
        _show(told, refreshed)
    unread = refreshed is not None and refreshed.error is not None
    sys.exit(int(unread or (isinstance(told, PriceAnswer) and not told.known)))


def _show(told: PriceAnswer | Overview, refreshed: Refreshed | None) -> None:
    from rich.text import Text

    console = output.console()
    for part in told.text():
        # As `Text`, so that rich finds no markup in texts of files.
        console.print(Text(part) if isinstance(part, str) else part)
    console.print(ONLY_PYTEST)
    if refreshed is None:
        return
    if refreshed.error:
        click.echo(f"Error: {refreshed.error}", err=True)
    else:
        before = output.clock_time(refreshed.before) or "never"
        click.echo(f"The catalogue was read just now. Last read before that: {before}")


def _suggest(book: PriceBook, model: str | None, as_json: bool) -> None:
    """Print a price file in TOML, with explanations as comments."""
    from pytest_hfbudget.history.bills import log_bills, suggestions

    try:
        found = suggestions(log_bills().evidence(), book)
    except HistoryError as error:
        raise click.ClickException(str(error)) from None
    if model is not None:
        found = [one for one in found if one.name == model or one.name.startswith(f"{model}:")]
    if as_json:
        output.print_json({"suggestions": [one.json() for one in found]})
        return
    if not found:
        click.echo(
            "# No run with only one model has a complete bill yet. Read bills: hfbudget bill"
        )
    for line in (line for one in found for line in _suggestion_lines(one)):
        click.echo(printable(line))


def _suggestion_lines(one: Suggestion) -> Iterator[str]:
    name = output.dumped(one.name)
    if one.listed is None or one.price is None:
        yield f"# {name}: no single price to compare with"
    elif one.right:
        yield f"# {name}: {output.price_text(one.listed)} is right ({one.source})"
    else:
        spread = "" if one.exact else "; the runs differ, so this is their mean"
        yield f"# {name}: was {output.price_text(one.listed)} ({one.source}){spread}"
    for use in one.uses:
        bill, booked = use.bill, use.bill.booked
        if booked is not None:
            cached = f" ({use.cached_tokens:,} cached)" if use.cached_tokens else ""
            ledger, billed = bill.sums
            yield (
                f"#   run {bill.run}: {bill.requests:,} requests, {use.input_tokens:,} in{cached}, "
                f"{use.output_tokens:,} out; ledger {ledger}, billed {billed} "
                f"{drift_text(bill.drift)}".rstrip()
            )
    if one.price is not None and not one.right:
        yield f"[{name}]"
        yield from (f"{key} = {rate}" for key, rate in one.price.as_row().items())


def _usage(tokens: str | None, model: str | None) -> Usage | None:
    if tokens is None:
        return None
    if model is None:
        raise output.BadInput("--tokens is for one model: name it.")
    given, slash, wanted = tokens.partition("/")
    if not (slash and given.isdecimal() and wanted.isdecimal()):
        raise output.BadInput(f"--tokens {tokens}: write IN/OUT, for example 1000/500.")
    return Usage(int(given), int(wanted))


def _book(file: Path | None, unpriced: str | None) -> PriceBook:
    settings, here = cli.services(), Path.cwd()
    given = settings.replaced(
        prices=file or settings.prices, unpriced=unpriced or settings.unpriced
    )
    try:
        return project_book(
            given,
            os.environ,
            root=cli.configuration().root,
            here=here,
            load_catalogue=partial(kept_catalogue, settings.router),
        )
    except ConfigError as error:
        raise output.BadInput(str(error)) from None


def _refresh() -> Refreshed:
    router, now = cli.services().router, time.time()
    file = CatalogueFile.of(router)
    kept = file.load(router)
    before = kept.read_at if kept else None
    try:
        read = file.refresh(router, partial(read_public_json, within_s=FETCH_S), now)
    except (OSError, ValueError) as error:
        used = f"those of {kept.age(now)} are used" if kept else "no prices were read before"
        why = f"could not read the prices of {public_url(router)} ({error}); {used}"
        return Refreshed(before, before, why)
    if file.load(router) != read:
        return Refreshed(before, now, f"the prices were read, but {file.path} can't be written")
    return Refreshed(before, now)
