"""`hfbudget prices`: what a call costs, who says so, and what that overrides."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_hfbudget.cli import access, output
from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.text import public_url

if TYPE_CHECKING:
    from pytest_hfbudget.cli.price_views import Answer, Overview, Refreshed
    from pytest_hfbudget.pricing import PriceBook, Usage

FETCH_S = 10.0
ONLY_PYTEST = (
    "Before all these, pytest asks the price of a budget() and the hook pytest_hfbudget_price."
)


@click.command()
@click.argument("model", required=False, metavar="[MODEL[:PROVIDER]]")
@click.option("--refresh", is_flag=True, help="Read the router's catalogue anew before.")
@click.option(
    "--prices",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="As pytest's --hf-prices. Default: HFBUDGET_PRICES.",
)
@click.option(
    "--unpriced", metavar="HOW", help="As pytest's --hf-unpriced. Default: HFBUDGET_UNPRICED."
)
@click.option("--tokens", metavar="IN/OUT", help="Also what so many tokens cost, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def prices(
    model: str | None,
    refresh: bool,
    file: Path | None,
    unpriced: str | None,
    tokens: str | None,
    as_json: bool,
) -> None:
    """Explain the price of MODEL: what counts, where it is written, and what it overrides.

    MODEL may be a URL. Without it, everything that is configured is listed. Nothing is fetched
    without --refresh: the router's catalogue is the one that was read last, and its age is shown.
    The ini file, the project's tables and the environment are those that pytest reads here.

    Exit codes: 0 the price is known, or no MODEL was asked for; 1 nobody knows it, or the
    catalogue could not be read; 2 wrong usage, also a price file or a variable that can't be used.
    """
    from pytest_hfbudget.cli.price_views import Answer, Overview

    usage = _usage(tokens, model)
    book = _book(file, unpriced)
    refreshed = _refresh() if refresh else None
    told = Overview(book) if model is None else Answer.of(book, model, usage)
    if as_json:
        output.print_json({**told.json(), "refreshed": refreshed and refreshed.json()})
    else:
        _show(told, refreshed)
    unread = refreshed is not None and refreshed.error is not None
    sys.exit(int(unread or (isinstance(told, Answer) and not told.known)))


def _show(told: Answer | Overview, refreshed: Refreshed | None) -> None:
    from rich.text import Text

    console = output.console()
    for part in told.text():
        # What a file says is never read as rich's markup.
        console.print(Text(part) if isinstance(part, str) else part)
    console.print(ONLY_PYTEST)
    if refreshed is None:
        return
    if refreshed.error:
        click.echo(f"Error: {refreshed.error}", err=True)
    else:
        before = output.clock_time(refreshed.before) or "never"
        click.echo(f"read anew; before: {before}")


def _usage(tokens: str | None, model: str | None) -> Usage | None:
    from pytest_hfbudget.pricing import Usage

    if tokens is None:
        return None
    if model is None:
        raise output.BadInput("--tokens is for one model: name it.")
    given, slash, wanted = tokens.partition("/")
    if not (slash and given.isdecimal() and wanted.isdecimal()):
        raise output.BadInput(f"--tokens {tokens}: write IN/OUT, for example 1000/500.")
    return Usage(int(given), int(wanted))


def _book(file: Path | None, unpriced: str | None) -> PriceBook:
    from pytest_hfbudget.pricing.catalogue import kept_catalogue
    from pytest_hfbudget.pricing.project import project_book

    settings, here = access.services(), Path.cwd()
    given = replace(
        settings, prices=file or settings.prices, unpriced=unpriced or settings.unpriced
    )
    try:
        return project_book(
            given,
            os.environ,
            root=access.configuration().root,
            here=here,
            load_catalogue=partial(kept_catalogue, settings.router),
        )
    except ConfigError as error:
        raise output.BadInput(str(error)) from None


def _refresh() -> Refreshed:
    from pytest_hfbudget.cli.price_views import Refreshed
    from pytest_hfbudget.endpoints.document import read_document
    from pytest_hfbudget.pricing.catalogue import CatalogueFile

    router, now = access.services().router, time.time()
    file = CatalogueFile.of(router)
    kept = file.load(router)
    before = kept.read_at if kept else None
    try:
        read = file.refresh(router, partial(read_document, within_s=FETCH_S), now)
    except (OSError, ValueError) as error:
        used = f"that of {kept.age(now)} is used" if kept else "there is none yet"
        why = f"could not read the prices of {public_url(router)} ({error}); {used}"
        return Refreshed(before, before, why)
    if file.load(router) != read:
        return Refreshed(before, now, f"the prices were read, but {file.path} can't be written")
    return Refreshed(before, now)
