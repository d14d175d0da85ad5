"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.text import printable, public_url

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pytest_hfbudget.pricing import Price, PriceBook


SCHEMA = 1
# A log of CI has no width of its own; names are worth more than 80 columns.
_LOG_WIDTH = 200


class BadInput(click.ClickException):
    """A value that can't be used: one line, where click's own usage errors show the synopsis."""

    exit_code = 2


def console() -> Console:
    """Standard output; wide when it is not a terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)


def table(*columns: str, rows: Iterable[tuple[str, ...]], styles: Iterable[str] = ()) -> Table:
    """A table whose first column is never cut."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, no_wrap=number == 0, overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        made.add_row(*map(_plain, row), style=style)
    return made


def print_json(content: dict[str, Any]) -> None:
    """One line with a schema number."""
    click.echo(as_json(content))


def as_json(content: dict[str, Any]) -> str:
    """The line of `print_json`."""
    return dumped({"schema": SCHEMA, **content})


def dumped(value: object) -> str:
    """JSON on one line, with its own escapes for what a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def moment(unix_s: float | None) -> str | None:
    """A time for programs: RFC 3339 in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="seconds")


def clock_time(unix_s: float | None) -> str:
    """A time for people: of the day if it is today, local."""
    if unix_s is None:
        return ""
    then, now = datetime.fromtimestamp(unix_s), datetime.now()
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def _plain(text: str) -> Any:
    # What a server or a file says is never read as rich's markup, nor obeyed by the terminal.
    from rich.text import Text

    return Text(printable(text))


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
        "read_at": moment(catalogue.read_at),
        "models": len(catalogue.offers),
        "offers": len(offers),
        "priced": sum(offer.price is not None for offer in offers),
        "free": sum(offer.price is not None and offer.price.free for offer in offers),
    }
