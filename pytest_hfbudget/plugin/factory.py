"""Makes the meter of a process, and the settings of endpoints, from the settings of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.history import windows
from pytest_hfbudget.ledger import SESSION, LedgerLike, Scope
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.metering.bounds import TokenCounts
from pytest_hfbudget.metering.budget_context import BudgetContext
from pytest_hfbudget.metering.instrumentation import Addresses
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.runtime import Runtime
from pytest_hfbudget.plugin import price_sources
from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings


@off_loop()  # price files are read, also where a test imports huggingface_hub in its event loop
def make_meter(
    config: pytest.Config,
    settings: Settings,
    ledger: LedgerLike,
    leased: dict[str, str],
    load_catalogue: Callable[[], Catalogue],
    counts: TokenCounts,
    *,
    worker: str = "",
) -> Runtime:
    """The meter of one process.

    This happens while huggingface_hub is being imported, which must not fail for a price that is
    none: under a cap that has ended the run before, and without one it is merely not counted.
    """
    shared = tuple(window.scope() for window in windows(settings))
    session, session_id = session_scope(settings), settings.session_id
    budgets = BudgetContext(session=session, over_runs=shared, session_id=session_id)
    try:
        book = price_sources.book(config, settings, leased, off_loop()(load_catalogue))
    except ConfigError as error:
        say(config, f"hfbudget: no prices are known: {error}", yellow=True)
        book = PriceBook(leased=leased)
    meter = Meter(
        ledger,
        book,
        budgets,
        router=settings.router,
        emulator=settings.emulator or "",
        hold_wait=settings.hold_wait,
        counts=counts,
    )
    prefix = f"{worker}/" if worker else ""
    return Runtime(meter, worker=prefix, addresses=Addresses.of(settings))


def session_scope(settings: Settings) -> Scope:
    """The budget of the whole run."""
    return Scope(SESSION, "session budget", settings.own_cap)


def endpoint_settings(settings: Settings, run_id: str) -> EndpointSettings:
    """What the endpoints of a run are resumed and paused by."""
    from huggingface_hub import get_token

    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
    from pytest_hfbudget.endpoints.retry import RunTimings, Timings
    from pytest_hfbudget.plugin import run_history

    terms = EndpointSettings(
        api=settings.endpoints_api,
        token=get_token(),
        run=run_id,
        capped=bool(run_history.caps(settings)),
        reopens=settings.endpoint_gaps == "pause",
        idle_timeout_min=settings.idle_timeout,
        billing_minute_s=settings.billing_minute,
        waits=RunTimings(wait_timeout_s=settings.endpoint_wait),
        timings=Timings(looks_s=settings.endpoint_looks),
    )
    if settings.shared is not None:
        from pytest_hfbudget import shared

        terms = replace(terms, shared=shared.place(settings))
    # A rehearsal's endpoints start in no time; its control plane is not in doubt, and ends with it.
    if settings.emulator:
        return replace(
            terms,
            waits=replace(terms.waits, poll_s=0.05),
            timings=replace(terms.timings, deadline_s=10.0, doubt_s=0.5, settle_s=5.0, looks_s=()),
        )
    return terms
