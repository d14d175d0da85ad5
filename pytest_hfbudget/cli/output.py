"""Prints tables, sentences and JSON for the subcommands."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.money import rate_shown
from pytest_hfbudget.text import printable, public_url, shortened

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

    from pytest_hfbudget.pricing import Price
    from pytest_hfbudget.pricing.book import PriceBook


SCHEMA = 1
# The width if the output is no terminal: a log of CI has none, and names need more than 80 columns.
_LOG_WIDTH = 200
# Spaces between two columns.
_GAP = 2


class BadInput(click.ClickException):
    """An invalid value. It prints one line; click's own usage errors print the synopsis too."""

    exit_code = 2


def console() -> Console:
    """A console on standard output, as wide as the terminal, COLUMNS, or `_LOG_WIDTH`."""
    from rich.console import Console

    return Console(highlight=False, width=None if _has_width() else _LOG_WIDTH)


def say(text: str) -> None:
    """Print a sentence, wrapped between words if the output has a width."""
    lines = _wrapped(text, console().width, "") if _has_width() else [printable(text)]
    for line in lines:
        click.echo(line)


def _has_width() -> bool:
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


@dataclass(frozen=True)
class TextTable:
    """A table that breaks no word, however narrow the terminal is.

    Texts are wrapped between words. If the terminal is too narrow for that, each row is a
    paragraph: the first cell is on a line of its own, and the other cells follow with the names of
    their columns.

    Attributes:
        right: the names of right-aligned columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...] = ()
    right: frozenset[str] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, or paragraphs if the console is too narrow for it."""
        widths = self._widths(options.max_width)
        if widths is None:
            yield from self._paragraphs(options.max_width)
        else:
            yield self._table(widths)

    def _widths(self, most: int) -> list[int] | None:
        """The width of each column; None if the longest words do not fit side by side."""
        from rich.cells import cell_len

        cells = list(zip(*((self.columns, *self.rows)), strict=True))
        wanted = [max(map(cell_len, column)) for column in cells]
        least = [
            max((cell_len(word) for text in column for word in text.split()), default=0)
            for column in cells
        ]
        least[:1] = wanted[:1]  # the first column has names or times, which are not wrapped
        left = most - sum(least) - _GAP * (len(cells) - 1)
        if left < 0:
            return None
        widths = least
        while left and widths != wanted:
            narrow = min(
                (n for n in range(len(cells)) if widths[n] < wanted[n]), key=widths.__getitem__
            )
            widths[narrow] += 1
            left -= 1
        return widths

    def _table(self, widths: list[int]) -> Table:
        from rich.table import Table
        from rich.text import Text

        made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column, width in zip(self.columns, widths, strict=True):
            made.add_column(
                column, width=width, justify="right" if column in self.right else "left"
            )
        for row, style in self._styled():
            # As `Text`, so that rich finds no markup in texts of servers and files.
            made.add_row(*map(Text, row), style=style)
        return made

    def _paragraphs(self, width: int) -> Iterator[Text]:
        from rich.text import Text

        for (first, *others), style in self._styled():
            named = zip(self.columns[1:], others, strict=True)
            said = "; ".join(f"{label} {cell}".strip() for label, cell in named if cell)
            for line in (*_wrapped(first, width, ""), *_wrapped(said, width, " " * 4)):
                yield Text(line, style=style)

    def _styled(self) -> Iterator[tuple[tuple[str, ...], str]]:
        return zip(self.rows, self.styles or [""] * len(self.rows), strict=True)


def table(
    *columns: str,
    rows: Iterable[tuple[str, ...]],
    styles: Iterable[str] = (),
    right: Iterable[str] = (),
) -> TextTable:
    """A table without control characters; ``right``: the names of right-aligned columns."""
    cells = tuple(tuple(map(printable, row)) for row in rows)
    return TextTable(columns, cells, tuple(styles), frozenset(right))


def print_json(content: dict[str, Any]) -> None:
    """Print a JSON object with a schema number, on one line."""
    click.echo(as_json(content))


def as_json(content: dict[str, Any]) -> str:
    """The line that `print_json` prints."""
    return dumped({"schema": SCHEMA, **content})


def dumped(value: object) -> str:
    """JSON on one line, with control characters escaped."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def moment(unix_s: float | None) -> str | None:
    """A time as RFC 3339 in UTC, for JSON; None for None."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="seconds")


def clock_time(unix_s: float | None) -> str:
    """A local time for tables: without the date if it is today; empty for None."""
    if unix_s is None:
        return ""
    then, now = datetime.fromtimestamp(unix_s), datetime.now()
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def _parts(word: str, most: int) -> Iterator[str]:
    part = ""
    for more in re.split(r"(?<=::)", word):
        if part and len(part) + len(more) > most:
            yield part
            part = ""
        part += more
    yield part


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """The lines of a text, wrapped between words.

    A word that is longer than a line is broken after ``::``. If that is not enough, its beginning
    is cut off.
    """
    most = width - len(indent)
    words = (
        part
        for word in printable(text).split()
        for part in (_parts(word, most) if len(word) > most else (word,))
    )
    fitting = " ".join(shortened(word, most) for word in words)
    return textwrap.wrap(
        fitting,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def price_text(price: Price) -> str:
    """A price in words, such as "input 0.1, output 0.2 per 1M tokens"."""
    if price.free:
        return "free"
    row = {key: rate_shown(str(rate)) for key, rate in price.as_row().items()}
    tokens = [f"{key} {row[key]}" for key in ("input", "output", "cached") if key in row]
    per_million = [f"{', '.join(tokens)} per 1M tokens"] if tokens else []
    others = [f"{row[key]} per {key}" for key in ("call", "image", "second") if key in row]
    return ", ".join((*per_million, *others))


def catalogue_line(book: PriceBook) -> str:
    """The line that says which catalogue of the router is used, and how old it is."""
    catalogue = book.catalogue
    if not catalogue.origin:
        return "The router's catalogue has never been read; to read it: hfbudget prices --refresh"
    said = catalogue_json(book) or {}
    return (
        f"router catalogue of {catalogue.age(time.time())}, from {public_url(catalogue.origin)}; "
        f"models: {said['models']}, offers: {said['offers']}, with a price: {said['priced']}"
    )


def catalogue_json(book: PriceBook) -> dict[str, Any] | None:
    """The figures of the catalogue for JSON; None if no catalogue was ever read."""
    catalogue = book.catalogue
    if not catalogue.origin:
        return None
    offers = [offer for model in catalogue.offers.values() for offer in model]
    return {
        "origin": public_url(catalogue.origin),
        "read_at": moment(catalogue.read_at),
        "models": len(catalogue.offers),
        "offers": len(offers),
        "priced": sum(offer.price is not None for offer in offers),
        "free": sum(offer.price is not None and offer.price.free for offer in offers),
    }
