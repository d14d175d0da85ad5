"""The ledger of a run, which other runs may fill too; its meter, and what its endpoints go by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import ConfigError, HistoryError
from pytest_hfbudget.history import RUN, windows
from pytest_hfbudget.ledger import SESSION, LedgerLike, RunsBudget, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.money import exact
from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.plugin.run_history import project
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
    from pytest_hfbudget.metering.bounds import TokenCounts
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.pricing.catalogue import Catalogue


def ledger_of(config: pytest.Config, settings: Settings, run: str) -> Ledger:
    """The ledger of a run; one that others fill too, if it has a budget over many runs.

    Raises:
        HistoryError: what the other runs have spent can't be read.
    """
    shared = windows(settings)
    if not shared:
        return Ledger()
    if settings.shared is not None and not settings.emulator:
        return _ledger_of_job(settings, run)
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.database import FILE, MemoryStore, SqliteStore
    from pytest_hfbudget.history.shared_ledger import SharedLedger

    if settings.emulator:
        return SharedLedger(MemoryStore(), shared)
    path = default_state_dir() / FILE
    return SharedLedger(SqliteStore(path, project(config, settings), run), shared)


def check_shared(settings: Settings) -> None:
    """Look whether the server answers over which machines share budgets and endpoints.

    Raises:
        ConfigError: redis-py is missing, or it is not known which run this job belongs to.
        HistoryError: the server can't be used.
    """
    from pytest_hfbudget import shared

    shared.run_name(settings)
    shared.connect(settings).run("return 1", [], [])


def _ledger_of_job(settings: Settings, job: str) -> Ledger:
    """The ledger of one of many jobs, each of which may run on a machine of its own.

    Raises:
        ConfigError: it is not known which run it belongs to, or which project.
        HistoryError: the server can't be used.
    """
    from pytest_hfbudget import shared
    from pytest_hfbudget.history.shared_store import JobNames, shared_ledger

    over_runs = windows(settings)
    named = shared.project_name if any(w.length != RUN for w in over_runs) else lambda _: ""
    names = JobNames(job, shared.run_name(settings), named(settings))
    server = shared.connect(settings)
    return shared_ledger(server, names, over_runs, expiry_s=settings.shared_expiry)


def standing(ledger: Ledger, settings: Settings) -> tuple[RunsBudget, ...]:
    """What is left of each budget over many runs."""
    if settings.shared is not None and not settings.emulator:
        from pytest_hfbudget.history.shared_store import SharedJobLedger

        if isinstance(ledger, SharedJobLedger):
            return tuple(
                RunsBudget(each.label, each.cap, max(ledger.left(each.key), 0), ledger.jobs(each))
                for each in windows(settings)
            )
    totals = ((window, ledger.total(window.key)) for window in windows(settings))
    return tuple(
        RunsBudget(window.label, window.cap, max(window.cap - total.spent - total.held, 0))
        for window, total in totals
    )


def room(ledger: Ledger, settings: Settings) -> int | None:
    """Nano-USD that the run as a whole may still spend; None where nothing caps that."""
    caps = [(SESSION, settings.own_cap), *((w.key, w.cap) for w in windows(settings))]
    left = (
        cap - total.spent - total.held
        for key, cap in caps
        if cap is not None
        for total in (ledger.total(key),)
    )
    return min(left, default=None)


def caps(settings: Settings) -> str:
    """The budgets of the run as a whole, as messages call them; empty if there are none."""
    named = [("session budget", settings.own_cap)]
    named += ((window.label, window.cap) for window in windows(settings))
    return " or ".join(f"the {name} of {exact(cap)}" for name, cap in named if cap is not None)


def close(config: pytest.Config, settings: Settings, ledger: Ledger) -> None:
    """Let the other runs know that this one holds nothing any more."""
    if not settings.capped_over_runs:
        return
    from pytest_hfbudget.history.shared_ledger import SharedLedger

    try:
        if isinstance(ledger, SharedLedger):
            ledger.close()
    except HistoryError as error:
        say(config, f"hfbudget: other runs count as spent what this run held: {error}", yellow=True)


def session_scope(settings: Settings) -> Scope:
    """The budget of the whole run."""
    return Scope(SESSION, "session budget", settings.own_cap)


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
    from pytest_hfbudget.metering.budget_context import BudgetContext
    from pytest_hfbudget.metering.instrumentation import Addresses
    from pytest_hfbudget.metering.meter import Meter
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin import price_sources
    from pytest_hfbudget.pricing.book import PriceBook

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


def endpoint_settings(settings: Settings, run_id: str) -> EndpointSettings:
    """What the endpoints of a run are resumed and paused by."""
    from huggingface_hub import get_token

    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
    from pytest_hfbudget.endpoints.retry import RunTimings, Timings

    terms = EndpointSettings(
        api=settings.endpoints_api,
        token=get_token(),
        run=run_id,
        capped=bool(caps(settings)),
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
