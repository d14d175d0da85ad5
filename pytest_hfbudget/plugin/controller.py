"""The role of the process that owns the ledger, the endpoints and the report of a run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import NO_ENDPOINTS, ConfigError
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.role import ORDER, Role
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.values import full_name

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import RunsBudget, Scope
    from pytest_hfbudget.ledger.ledger import Ledger
    from pytest_hfbudget.metering.bounds import TokenCounts
    from pytest_hfbudget.metering.budget_args import WarnedOnce
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.endpoints import RunEndpoints
    from pytest_hfbudget.plugin.outcomes import Outcomes
    from pytest_hfbudget.plugin.price_sources import RunPrices
    from pytest_hfbudget.plugin.rehearsal import Rehearsal
    from pytest_hfbudget.plugin.report_writer import ReportWriter
    from pytest_hfbudget.plugin.role import StoreCosts
    from pytest_hfbudget.plugin.schedule import EndpointSchedule
    from pytest_hfbudget.plugin.test_order import Suite
    from pytest_hfbudget.plugin.workers import ControllerServer
    from pytest_hfbudget.pricing.catalogue import Catalogue
    from pytest_hfbudget.reporting import Report

DAY_S = 86_400.0


class Controller(Role):
    """A run in one process, or the controller of one with workers."""

    reports = True

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config, self.run_id, self._started = config, os.urandom(6).hex(), time.time()
        sends = settings.session_header == "on"
        super().__init__(settings.replaced(session_id=f"hfbudget-{self.run_id}" if sends else ""))
        self.leased: dict[str, str] = {}
        self._lock = threading.RLock()
        self._ledger: Ledger | None = None
        self._endpoints: RunEndpoints | None = None
        self._server_for_workers: ControllerServer | None = None
        self._rehearsal: Rehearsal | None = None
        self._run_prices: RunPrices | None = None
        self._made_writer: ReportWriter | None = None
        self._once: WarnedOnce | None = None
        self._used_up = False
        self._verified: bool | None = None  # None until the endpoints are finished

    # --- before the tests

    def open(self) -> None:
        if self.settings.emulator:
            from pytest_hfbudget.plugin.rehearsal import Rehearsal

            self._rehearsal = Rehearsal.start(self.settings.emulator)
            self.settings = self._rehearsal.settings(self.settings)
        if self.settings.capped or self.settings.prices:
            from pytest_hfbudget.plugin import price_sources

            price_sources.check(self.config, self.settings)
        if self.settings.shared is not None and not self.settings.emulator:
            from pytest_hfbudget.plugin import run_ledger

            run_ledger.check_shared(self.settings)
        self.budgets_over_runs()  # an unusable store ends the run before the collection

    def budgets_over_runs(self) -> tuple[RunsBudget, ...]:
        if not self.settings.capped_over_runs:
            return ()
        from pytest_hfbudget.plugin import run_ledger

        return run_ledger.budgets_over_runs(self.ledger, self.settings)

    def make_runtime(self) -> Runtime:
        from pytest_hfbudget.plugin.run_ledger import make_meter

        return make_meter(
            self.config, self.settings, self.ledger, self.leased, self._catalogue, self.counts
        )

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run, made when it is first needed."""
        with self._lock:
            if self._ledger is None:
                from pytest_hfbudget.plugin import run_ledger

                self._ledger = run_ledger.ledger_of(self.config, self.settings, self.run_id)
                self._ledger.open(run_ledger.session_scope(self.settings))
            return self._ledger

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        needed = tuple(dict.fromkeys((*self._named(), *names)))
        with self._lock:  # several workers declare at once
            if needed:
                self.endpoints.check(needed)
            if paid:
                self._prices.prepare()

    def _named(self) -> tuple[str, ...]:
        """The full names of the endpoints that the whole run needs (``--hf-endpoint``)."""
        return tuple(full_name(n, self.settings.namespace) for n in self.settings.endpoints)

    def note_suite(self, items: list[pytest.Item], suite: Suite) -> None:
        from pytest_hfbudget.plugin.schedule import EndpointSchedule, SerialOrder

        order = SerialOrder(self._schedule(suite, EndpointSchedule), items)
        self.config.pluginmanager.register(order, ORDER)

    def _schedule(self, suite: Suite, kind: type[EndpointSchedule]) -> EndpointSchedule:
        from pytest_hfbudget.plugin import run_history

        known = run_history.durations(self.config, self.settings)
        minute_s = self.settings.billing_minute if self.settings.endpoint_gaps == "pause" else None
        cold_start = self.settings.cold_start
        return kind(suite, known, self.endpoints, assumed=cold_start, gap_minute_s=minute_s)

    def prefetch_prices(self, expected: bool) -> None:
        from pytest_hfbudget.files import cache_file, fetched_at

        # The first call reads a copy of today; so nothing has to be imported for it now.
        age_s = time.time() - fetched_at(cache_file("catalogue", self.settings.router))
        if self.settings.emulator or not 0 <= age_s < DAY_S:
            with self._lock:
                self._prices.prefetch(expected)

    def _notes(self) -> tuple[str, ...]:
        if self._run_prices is None or not (learned := self.counts.facts):
            return ()
        from pytest_hfbudget.metering.prompts import notes

        return tuple(notes(learned))

    @property
    def counts(self) -> TokenCounts:
        """The token counts of servers that any process of this run has seen."""
        with self._lock:
            return self._prices.counts

    @property
    def _prices(self) -> RunPrices:
        if self._run_prices is None:
            from pytest_hfbudget.plugin.price_sources import RunPrices

            self._run_prices = RunPrices(self.config, self.settings)
        return self._run_prices

    def _catalogue(self) -> Catalogue:
        return self._prices.catalogue()

    def raise_planning_error(self) -> None:
        server, plugins = self._server_for_workers, self.config.pluginmanager
        if server is not None and server.problem is not None:
            raise server.problem
        if server is None or server.suite is None or plugins.has_plugin(ORDER):
            return
        from pytest_hfbudget.plugin.schedule import ThreadedSchedule
        from pytest_hfbudget.plugin.workers import WorkersOrder

        schedule = self._schedule(server.suite, ThreadedSchedule)
        plugins.register(WorkersOrder(self.config, schedule), ORDER)

    def begin(self) -> None:
        names = self._named()
        if names and self._server_for_workers is not None:
            self.endpoints.check(names)  # workers ask for this check as well, but later
        for name in names:
            self.ensure(name)

    # --- endpoints

    @property
    def endpoints(self) -> RunEndpoints:
        """The endpoints of the run; the first access makes them.

        Raises:
            ConfigError: this system has no process that could outlive pytest to pause them.
        """
        if not hasattr(os, "fork"):
            raise ConfigError(NO_ENDPOINTS)
        with self._lock:
            if self._endpoints is None:
                from pytest_hfbudget.plugin.endpoints import RunEndpoints

                self._endpoints = RunEndpoints(
                    self.config, self.settings, self.run_id, self.ledger, self._rehearsal
                )
                if self._server_for_workers is not None:
                    self._endpoints.tend_alone()  # tests end in the workers, not here
                if self._verified is not None:
                    self._endpoints.finish()  # the report is written, and gets no more lines
            return self._endpoints

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        endpoint = self.endpoints.ensure(name, keep_running=keep_running)
        if endpoint.url:
            self.leased[endpoint.url] = name
        return dict(endpoint.raw)

    def revive(self, name: str) -> bool:
        return self._endpoints is not None and self._endpoints.revive(name)

    def take_over(self, name: str, form: Mapping[str, Any] | None) -> bool:
        return self.endpoints.take_over(name, form)

    def answered(self, name: str, status: int, stops: bool) -> None:
        if self._endpoints is not None:
            self._endpoints.answered(name, status, stops=stops)

    def addresses(self) -> Mapping[str, str]:
        if self._endpoints is not None:
            self.leased.update(self._endpoints.addresses(self.leased))
        return self.leased

    def begin_use(self, test: str, name: str, scopes: tuple[Scope, ...], worker: str = "") -> None:
        self.endpoints.begin_use(test, name, scopes, worker)

    def end_use(self, test: str, worker: str | None = None) -> None:
        if self._endpoints is not None:
            self._endpoints.end_use(test, worker)

    def share(self, test: str) -> int:
        return self._endpoints.share(test) if self._endpoints is not None else 0

    def paused(self, name: str) -> str | None:
        error = self._endpoints.paused(name) if self._endpoints is not None else None
        return str(error) if error else None

    def note_unowned(self, refusals: tuple[str, ...]) -> None:
        self._writer.unowned += refusals

    @property
    def _writer(self) -> ReportWriter:
        """The report writer, made when there is something to report."""
        with self._lock:  # several workers may report refusals at once
            if self._made_writer is None:
                from pytest_hfbudget.plugin.report_writer import ReportWriter

                self._made_writer = ReportWriter(self.config, self.run_id, self._started)
            return self._made_writer

    def warn(self, text: str) -> None:
        from pytest_hfbudget.plugin.console import say

        say(self.config, text, yellow=True)

    def claim(self, key: str) -> bool:
        with self._lock:
            if self._once is None:
                from pytest_hfbudget.metering.budget_args import WarnedOnce

                self._once = WarnedOnce()
        return self._once(key)

    def use_up(self) -> None:
        self._used_up = True

    def used_up(self) -> bool:
        return self._used_up

    def announce(self) -> None:
        if (ledger := self._ledger) is not None:
            tell = self._writer.announcer.tell
            tell("pytest_hfbudget_charge", "charge", ledger.charges)
            tell("pytest_hfbudget_refusal", "refusal", ledger.refusals)
        if (endpoints := self._endpoints) is not None:
            self._writer.announcer.tell("pytest_hfbudget_endpoint", "event", endpoints.log.all)

    def between_tests(self) -> None:
        if self._endpoints is not None:
            self._endpoints.tend()

    def request_pause(self) -> None:
        if self._endpoints is not None:
            self._endpoints.request_pause()

    # --- after the tests

    def finish(self, outcomes: Outcomes) -> bool:
        self._dismiss()
        if self._verified is None:
            try:
                self._verified = self._endpoints is None or self._endpoints.finish()
            finally:
                eventful, make = not self.uneventful(outcomes), partial(self.report, outcomes)
                if eventful or self._made_writer is not None or self.settings.report is not None:
                    known = self.settings, outcomes, make, lambda: self.counts.facts
                    self._writer.conclude(*known, eventful=eventful)
                self._remember()
        return self._verified and not (self._made_writer and self._made_writer.unowned)

    def _remember(self) -> None:
        order: Any = self.config.pluginmanager.get_plugin(ORDER)
        if order is not None:
            from pytest_hfbudget.plugin import run_history

            run_history.remember(self.config, self.settings, order.schedule.measured())

    def uneventful(self, outcomes: Outcomes) -> bool:
        """Whether there is nothing to report. Cheap: it makes no report."""
        if self._endpoints is not None or outcomes.incomplete:
            return False
        ledger = self._ledger
        return ledger is None or not (ledger.charges() or ledger.refusals() or ledger.unmetered())

    def report(self, outcomes: Mapping[str, str]) -> Report:
        """The report as it stands now."""
        from pytest_hfbudget.reporting import Report

        lines = self._endpoints.lines() if self._endpoints is not None else ()
        order: Any = self.config.pluginmanager.get_plugin(ORDER)
        return replace(
            Report.of(self.ledger, self.settings.own_cap, outcomes, lines),
            notes=self._notes(),
            run=self.run_id,
            project=self.settings.project or self.config.rootpath.name,
            session_id=self.settings.session_id,
            rehearsal=self.settings.emulator is not None,
            over_runs=self.budgets_over_runs(),
            timeline=order and order.schedule.timeline(self.settings.billing_minute),
        )

    def record(self, store: StoreCosts, session: pytest.Session) -> None:
        if self.settings.store_costs:
            cold_starts = self._endpoints.log.cold_starts() if self._endpoints else {}
            store(session, self.ledger, cold_starts, self.counts.facts)

    def summarise(self, terminal: Any, outcomes: Outcomes) -> None:
        if self.uneventful(outcomes):
            # Under a cap say that nothing was spent, unless this run could spend nothing.
            capped = self.settings.own_cap is not None or self.settings.capped_over_runs
            if self._ledger is None or not capped or options.only_look(self.config, self.settings):
                return
        self._writer.show(terminal, self.report(outcomes))

    def last_words(self) -> None:
        if self._verified is not None and self._made_writer is not None:
            lines = self._endpoints.lines() if self._endpoints is not None else ()
            self._made_writer.last_lines(lines)

    def finish_late(self) -> bool:
        return self._endpoints is None or self._endpoints.finish_late()

    # --- workers

    def serve(self) -> dict[str, Any]:
        if self._server_for_workers is None:
            own: dict[str, Callable[..., Any]] = {
                "counts": lambda model: self.counts.facts_about(model),  # noqa: PLW0108 - made when asked
                "learn": self._learn,
                "leased": lambda: self.leased,
                "catalogue": lambda: self._catalogue().as_read(),
            }
            from pytest_hfbudget.plugin.workers import ControllerServer

            self._server_for_workers = ControllerServer(self, self.ledger, own)
        return {
            "socket": self._server_for_workers.path,
            "router": self.settings.router,
            "endpoints_api": self.settings.endpoints_api,
            "hub": self.settings.hub or "",
            "session_id": self.settings.session_id,
            "emulator": self.settings.emulator or "",
        }

    def _learn(self, origin: str, facts: list[Any], heard: int) -> Any:
        from pytest_hfbudget.metering.prompts import Fact

        return self.counts.shared_by(origin, [Fact(*one) for one in facts], heard)

    def _dismiss(self) -> None:
        """Stop serving workers, and charge the holds of dead ones."""
        if self._server_for_workers is not None:
            self._server_for_workers.close()
            self._server_for_workers = None

    def close(self) -> None:
        self._dismiss()
        if self._ledger is not None:
            from pytest_hfbudget.plugin import run_ledger

            run_ledger.close(self.config, self.settings, self._ledger)
        if self._rehearsal is not None:
            self._rehearsal.stop()
            self._rehearsal = None
