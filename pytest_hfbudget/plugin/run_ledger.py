"""Makes the ledger, the meter and the endpoint settings of a run from its settings."""

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
    """The ledger of a run; one that it shares with other runs, if a budget is over many runs.

    Raises:
        HistoryError: the store of shared budgets can't be read.
    """
    shared = windows(settings)
    if not shared:
        return Ledger()
    if settings.shared is not None and not settings.emulator:
        return _ledger_of_job(settings, run)
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.database import FILE, MemoryStore, SqliteStore
    from pytest_hfbudget.history.window_ledger import WindowLedger

    if settings.emulator:
        return WindowLedger(MemoryStore(), shared)
    path = default_state_dir() / FILE
    return WindowLedger(SqliteStore(path, project(config, settings), run), shared)


def check_shared(settings: Settings) -> None:
    """Check that the Redis server of ``--hf-shared`` answers.

    Raises:
        ConfigError: redis-py is missing, or the run that this job belongs to is unknown.
        HistoryError: the server can't be used.
    """
    from pytest_hfbudget import shared

    shared.run_name(settings)
    shared.connect(settings).run("return 1", [], [])


def _ledger_of_job(settings: Settings, job: str) -> Ledger:
    """The ledger of one of many jobs, each of which may run on a machine of its own.

    Raises:
        ConfigError: the run or the project that the job belongs to is unknown.
        HistoryError: the server can't be used.
    """
    from pytest_hfbudget import shared
    from pytest_hfbudget.history.shared_store import JobNames, shared_ledger

    over_runs = windows(settings)
    named = shared.project_name if any(w.length != RUN for w in over_runs) else lambda _: ""
    names = JobNames(job, shared.run_name(settings), named(settings))
    server = shared.connect(settings)
    return shared_ledger(server, names, over_runs, expiry_s=settings.shared_expiry)


def budgets_over_runs(ledger: Ledger, settings: Settings) -> tuple[RunsBudget, ...]:
    """The budgets over many runs, each with what is left of it."""
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
    """Nano-USD that the whole run may still spend, by its tightest cap; None without a cap."""
    caps = [(SESSION, settings.own_cap), *((w.key, w.cap) for w in windows(settings))]
    left = (
        cap - total.spent - total.held
        for key, cap in caps
        if cap is not None
        for total in (ledger.total(key),)
    )
    return min(left, default=None)


def caps(settings: Settings) -> str:
    """The names and amounts of the caps on the whole run, for messages; empty without a cap."""
    named = [("session budget", settings.own_cap)]
    named += ((window.label, window.cap) for window in windows(settings))
    return " or ".join(f"the {name} of {exact(cap)}" for name, cap in named if cap is not None)


def reached(settings: Settings) -> str:
    """Why an endpoint was paused early, and what to do; it is not known which limit it was."""
    named, most_s = caps(settings), settings.max_uptime
    cap = f"its next minute does not fit into {named}"
    if most_s is None:
        return f"{cap}. Raise the cap, or select fewer tests."
    time = f"the run reached --hf-max-uptime={most_s / 60:g} minutes"
    if not named:
        return f"{time}. Raise it, or select fewer tests."
    return f"{cap}, or {time}. Raise what was reached, or select fewer tests."


def close(config: pytest.Config, settings: Settings, ledger: Ledger) -> None:
    """Close the ledger, so that other runs no longer count what this one holds."""
    if not settings.capped_over_runs:
        return
    from pytest_hfbudget.history.window_ledger import WindowLedger

    try:
        if isinstance(ledger, WindowLedger):
            ledger.close()
    except HistoryError as error:
        said = "what this run held still counts as spent for other runs"
        say(config, f"hfbudget: {said}: {error}", yellow=True)


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

    An invalid price raises nothing, because this may run while huggingface_hub is imported. Under a
    cap, an invalid price has ended the run before. Without one, calls have no known price.

    Args:
        leased: the names of the run's endpoints by their URLs; it grows during the run.
        worker: the id of this worker of xdist, else empty.
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
    """The settings by which the endpoints of a run are resumed and paused."""
    from huggingface_hub import get_token

    from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
    from pytest_hfbudget.endpoints.retry import RunTimings, Timings

    made = EndpointSettings(
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

        made = replace(made, shared=shared.place(settings))
    # The emulator starts endpoints at once, answers reliably, and ends with the rehearsal.
    if settings.emulator:
        return replace(
            made,
            waits=replace(made.waits, poll_s=0.05),
            timings=replace(
                made.timings, deadline_s=10.0, doubt_s=0.5, late_resume_s=5.0, looks_s=()
            ),
        )
    return made
