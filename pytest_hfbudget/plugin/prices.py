"""The price book of a run: tables of the project, the catalogue on disk, the environment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import pytest

from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.plugin.voice import say
from pytest_hfbudget.pricing import (
    CallRequest,
    Catalogue,
    Price,
    PriceBook,
    PriceTable,
    Unpriced,
    parse_price,
)
from pytest_hfbudget.pricing.book import price_from_environment
from pytest_hfbudget.pricing.catalogue import DAY_S, CatalogueFile
from pytest_hfbudget.pricing.table import read_toml
from pytest_hfbudget.settings import Settings

FETCH_S = 10.0


def book(
    config: pytest.Config,
    settings: Settings,
    leased: dict[str, str],
    load_catalogue: Callable[[], Catalogue] = Catalogue,
) -> PriceBook:
    """Everything that is known about prices.

    Raises:
        ConfigError: a table, a variable or ``--hf-unpriced`` that makes no sense.
    """
    try:
        environment = price_from_environment(os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return PriceBook(
        table=_table(config, settings),
        load_catalogue=load_catalogue,
        environment=environment,
        unpriced=Unpriced.parse(settings.unpriced),
        hook=partial(_ask_hook, config),
        leased=leased,
    )


def check(config: pytest.Config, settings: Settings) -> None:
    """Find a wrong price before the first test, not in the middle of the run.

    Raises:
        ConfigError: as `book`.
    """
    book(config, settings, {})


def refresh(config: pytest.Config, settings: Settings) -> Catalogue | None:
    """Read the router's catalogue anew when the copy on disk is older than a day.

    Without a network the old copy is used; what it does not know is refused. Where the copy can't
    be written, what was read serves this run all the same.
    """
    file = CatalogueFile.of(settings.router)
    kept = file.load(settings.router)
    if kept and 0 <= time.time() - kept.read_at < DAY_S and not settings.emulator:
        return kept
    try:
        return file.refresh(settings.router, _fetch, time.time())
    except (OSError, ValueError) as error:
        age = f"that of {kept.source.rpartition(' ')[2]} is used" if kept else "there is none yet"
        say(
            config,
            f"hfbudget: could not read the prices of {settings.router} ({error}); {age}",
            yellow=True,
        )
        return kept


def _fetch(url: str) -> bytes:
    import urllib3

    try:
        with urllib3.PoolManager(timeout=FETCH_S, retries=2) as pool:
            answer = pool.request("GET", url)
    except urllib3.exceptions.HTTPError as error:
        raise OSError(f"{type(error).__name__}") from None
    if answer.status != 200:  # noqa: PLR2004 - OK
        raise OSError(f"status {answer.status}")
    return answer.data


def _table(config: pytest.Config, settings: Settings) -> PriceTable:
    project = config.rootpath / "pyproject.toml"
    table = PriceTable()
    if project.is_file() and b"tool.hfbudget" in project.read_bytes():
        tool = read_toml(project).get("tool", {}).get("hfbudget", {})
        table = PriceTable.parse(tool.get("prices", {}), "pyproject.toml")
    if settings.prices is None:
        return table
    below = (config.invocation_params.dir / settings.prices, config.rootpath / settings.prices)
    path = next((path for path in below if path.is_file()), below[0])
    return PriceTable.load(path).over(table)


def _ask_hook(config: pytest.Config, request: CallRequest) -> Price | None:
    hook = config.hook.pytest_hfbudget_price
    if not hook.get_hookimpls():
        return None  # asking nobody takes longer than all the rest of a call
    try:
        answer: object = hook(request=request)
    except Exception as error:
        plugins = ", ".join(each.plugin_name for each in hook.get_hookimpls())
        raise HFBudgetError(
            f"the hook pytest_hfbudget_price raised {type(error).__name__}: {error} "
            f"({plugins}), so nobody knows what this call costs. Under a cap it is not sent."
        ) from error
    if answer is None or isinstance(answer, Price):
        return answer
    return parse_price(answer, "hook pytest_hfbudget_price")
