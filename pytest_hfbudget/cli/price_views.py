"""What `hfbudget prices` shows: for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.cli import output
from pytest_hfbudget.money import show, usd_text
from pytest_hfbudget.pricing import CallRequest, Price, PriceBook, Usage
from pytest_hfbudget.pricing.book import ENVIRONMENT, toml_hint
from pytest_hfbudget.pricing.explain import USED, Explanation, Word, explain
from pytest_hfbudget.pricing.request import split_model
from pytest_hfbudget.text import public_url

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"used": "bold", "overridden": "dim", "silent": "dim"}


@dataclass(frozen=True)
class Refreshed:
    """How reading the catalogue anew went; times in Unix seconds, None where there was none."""

    before: float | None
    after: float | None
    error: str | None = None

    def json(self) -> dict[str, Any]:
        """For programs."""
        times = {"before": output.moment(self.before), "after": output.moment(self.after)}
        return {**times, "error": self.error}


@dataclass(frozen=True)
class Answer:
    """The price of one model, and who says what of it."""

    book: PriceBook
    request: CallRequest
    explanation: Explanation
    usage: Usage | None

    @classmethod
    def of(cls, book: PriceBook, name: str, usage: Usage | None) -> Answer:
        """What a book says of ``model``, ``model:provider`` or a URL."""
        model, provider = split_model(name)
        url = model if "://" in model else ""
        request = CallRequest("conversational", model, provider, url)
        return cls(book, request, explain(book, request), usage)

    @property
    def known(self) -> bool:
        """Whether anybody has a price."""
        return self.explanation.quote is not None

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "model": self.request.model,
            "provider": self.request.provider,
            "known": self.known,
            "at_most": self._cost_json(),
            "said": [_word_json(word) for word in self.explanation.words],
            "catalogue": catalogue_json(self.book),
        }

    def text(self) -> Iterator[RenderableType]:
        """For people."""
        yield self._headline()
        yield ""
        yield output.table(
            *("provider", "price", "", "source", "why"),
            rows=map(_cells, self.explanation.words),
            styles=(_STYLES[word.verdict] for word in self.explanation.words),
        )
        yield ""
        if not self.known:
            yield "Add it to [tool.hfbudget.prices] of pyproject.toml, or to a price file:\n"
            yield toml_hint(self.request) + "\n"
        elif self.usage:
            yield f"{_tokens(self.usage)} cost at most {show(self._cost()[0])}."
        yield catalogue_line(self.book)

    def _headline(self) -> str:
        by = f" by {self.request.provider}" if self.request.provider else ""
        name, used = f"{self.request.model}{by}", self.explanation.used
        if not used:
            return f"{name}: nobody knows its price. Under a cap a call is refused."
        if len({word.price for word in used}) == 1 and used[0].price:
            return f"{name}: {price_text(used[0].price)}"
        return (
            f"{name}: the router chooses who answers. The dearest of {len(used)} prices is held, "
            "that of whoever answers is charged."
        )

    def _cost(self) -> tuple[int, str]:
        quote = self.explanation.quote
        return quote.cost(self.usage) if quote and self.usage else (0, "")

    def _cost_json(self) -> dict[str, Any] | None:
        if not self.known or self.usage is None:
            return None
        nano, source = self._cost()
        used = {"input_tokens": self.usage.input_tokens, "output_tokens": self.usage.output_tokens}
        return {**used, "usd": usd_text(nano), "source": source}


@dataclass(frozen=True)
class Overview:
    """Everything that is configured, whatever model it is for."""

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
            "catalogue": catalogue_json(self.book),
        }

    def text(self) -> Iterator[RenderableType]:
        """For people."""
        rows = list(self._rows())
        if rows:
            yield output.table(
                *("name", "price", "source"),
                rows=((name, price_text(price), where) for name, price, where, _ in rows),
                styles=("dim" if hidden else "" for *_, hidden in rows),
            )
        else:
            yield "There is no price in pyproject.toml, and no file of prices."
        yield ""
        if self.book.environment:
            yield f"{ENVIRONMENT}: {price_text(self.book.environment)}"
        yield f"a call without a price: {self.book.unpriced.source or '--hf-unpriced=refuse'}"
        yield catalogue_line(self.book)

    def _rows(self) -> Iterator[tuple[str, Price, str, bool]]:
        for name, (price, where) in self.book.table.rows.items():
            yield public_url(name), price, where, False
        for name, (price, where) in self.book.table.hidden.items():
            yield public_url(name), price, f"{where}, hidden by the file's", True


def price_text(price: Price) -> str:
    """A price in a few words."""
    if price.free:
        return "free"
    row = price.as_row()
    tokens = [f"{key} ${row[key]}" for key in ("input", "output", "cached") if key in row]
    per_million = [f"{', '.join(tokens)} per 1M tokens"] if tokens else []
    others = [f"${row[key]} per {key}" for key in ("call", "image", "second") if key in row]
    return ", ".join((*per_million, *others))


def catalogue_line(book: PriceBook) -> str:
    """Which catalogue of the router is used, and how old it is."""
    catalogue = book.catalogue
    if not catalogue.origin:
        return "The router's catalogue has never been read; to read it: hfbudget prices --refresh"
    said = catalogue_json(book) or {}
    return (
        f"router catalogue of {catalogue.age(time.time())}, from {public_url(catalogue.origin)}; "
        f"models: {said['models']}, offers: {said['offers']}, with a price: {said['priced']}"
    )


def catalogue_json(book: PriceBook) -> dict[str, Any] | None:
    """The catalogue in figures; None where none has ever been read."""
    catalogue = book.catalogue
    if not catalogue.origin:
        return None
    offers = [offer for model in catalogue.offers.values() for offer in model]
    return {
        "origin": public_url(catalogue.origin),
        "read_at": output.moment(catalogue.read_at),
        "models": len(catalogue.offers),
        "offers": len(offers),
        "priced": sum(offer.price is not None for offer in offers),
        "free": sum(offer.price is not None and offer.price.free for offer in offers),
    }


def _cells(word: Word) -> tuple[str, ...]:
    price = "" if word.price is None else price_text(word.price)
    verdict = "" if word.price is None else word.verdict
    return word.provider or "any", price, verdict, word.where, word.why


def _word_json(word: Word) -> dict[str, Any]:
    return {
        "provider": word.provider,
        "price": None if word.price is None else word.price.as_row(),
        "source": word.where,
        "why": word.why,
        "used": word.verdict == USED,
    }


def _tokens(usage: Usage) -> str:
    return f"{usage.input_tokens:,} tokens in and {usage.output_tokens:,} out"
