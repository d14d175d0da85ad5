"""What a run knows of other runs: their share of its budgets, and the log that it adds to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import HFBudgetError, HistoryError
from pytest_hfbudget.history import RUN, windows
from pytest_hfbudget.ledger import SESSION
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.money import exact
from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.history.usage_schema import Durations
    from pytest_hfbudget.ledger import RunsBudget
    from pytest_hfbudget.metering.prompts import Fact
    from pytest_hfbudget.reporting import Report


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
    from pytest_hfbudget.ledger import RunsBudget

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


def counts(config: pytest.Config, settings: Settings, model: str) -> tuple[Fact, ...]:
    """What earlier runs have learned of a model's prompts. Never fails a run."""
    if not settings.log_days:
        return ()
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE, QueryResult

    try:
        return QueryResult(default_state_dir() / FILE).counts(model)
    except HistoryError as error:
        said = "token counts of earlier runs can't be read, so bytes bound the cost of prompts"
        say(config, f"hfbudget: {said}: {error}", yellow=True)
        return ()


def models(config: pytest.Config, settings: Settings) -> tuple[str, ...]:
    """The models of earlier runs, the most expensive first. Never fails a run."""
    if not settings.log_days:
        return ()
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE, QueryResult, UsageQuery

    asked = UsageQuery((("project", project(config, settings)),))
    with suppress(HistoryError):
        found = QueryResult(default_state_dir() / FILE).totals(asked, "model")
        return tuple(each.name for each in found)
    return ()


def add_to_log(
    config: pytest.Config,
    settings: Settings,
    run: str,
    started: float,
    report: Report,
    learned: Iterable[Fact],
) -> None:
    """Write down what a run was charged and has learned, unless that is nothing.

    Never fails a run.
    """
    if report.empty or settings.emulator or not settings.log_days:
        return
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE, LoggedRun, UsageLog, entries

    logged = LoggedRun(run, project(config, settings), started, time.time(), settings.session_id)
    try:
        log = UsageLog(default_state_dir() / FILE)
        log.write(logged, entries(report, logged), learned, keep_days=settings.log_days)
    except HistoryError as error:
        say(config, f"hfbudget: this run is not in the usage log: {error}", yellow=True)


def durations(config: pytest.Config, settings: Settings) -> Durations:
    """How long tests and cold starts took in earlier runs; nothing where that can't be read."""
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE
    from pytest_hfbudget.history.usage_schema import DurationLog, Durations

    if settings.log_days and not settings.emulator:
        with suppress(HistoryError):  # who writes it at the end says what is wrong with it
            return DurationLog(default_state_dir() / FILE).read(project(config, settings))
    return Durations({}, {})


def remember(config: pytest.Config, settings: Settings, measured: Durations) -> None:
    """Add what this run has measured. Never fails a run."""
    if settings.emulator or not settings.log_days:
        return
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE
    from pytest_hfbudget.history.usage_schema import DurationLog

    log, days = DurationLog(default_state_dir() / FILE), settings.log_days
    try:
        log.add(project(config, settings), measured, time.time(), keep_days=days)
    except HistoryError as error:
        say(config, f"hfbudget: the times of this run are not remembered: {error}", yellow=True)


def share_report(config: pytest.Config, settings: Settings, job: str, report: Report) -> None:
    """Have the report of this job at hand for `hfbudget report --shared`. Never fails a run."""
    if settings.shared is None or settings.emulator:
        return
    from pytest_hfbudget import shared
    from pytest_hfbudget.reporting.json_report import as_json

    try:
        server = shared.connect(settings)
        shared.keep_report(server, shared.run_name(settings), job, as_json(report))
    except HFBudgetError as error:
        say(config, f"hfbudget: this job's report is not shared: {error}", yellow=True)


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


class Ticker:
    """Looks at running endpoints every few seconds, whatever the tests do meanwhile.

    Without it, a run would not notice that others take what its next minutes were to be paid from,
    that someone lets an endpoint have more replicas, nor, in a controller of workers, that its
    reaper was killed.

    Args:
        every_s: seconds between two looks.
        tick: what to do each time.
    """

    TICKS = 4  # in a billed minute

    def __init__(self, every_s: float, tick: Callable[[], None]) -> None:
        self._every_s, self._tick = every_s, tick
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hfbudget-minutes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No tick begins after this."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            # What fails here fails again at the next call, where the caller can be told.
            with suppress(HFBudgetError, OSError):
                self._tick()


def project(config: pytest.Config, settings: Settings) -> str:
    """What the runs belong to that share a budget: its name, or the folder of this checkout."""
    return settings.project or str(config.rootpath.resolve())
