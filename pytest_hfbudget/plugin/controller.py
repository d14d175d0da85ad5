"""The process that owns the ledger, the endpoints and the report of a run."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.files import cache_file, read_at
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.plugin.events import Announcer
from pytest_hfbudget.plugin.report_writer import ReportWriter
from pytest_hfbudget.plugin.role import ORDER, Role
from pytest_hfbudget.settings import NOT_RUN, Settings
from pytest_hfbudget.values import full_name

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import Ledger, Scope
    from pytest_hfbudget.metering.budget_args import WarnedOnce
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.endpoints import RunEndpoints
    from pytest_hfbudget.plugin.price_sources import RunPrices
    from pytest_hfbudget.plugin.rehearsal import Rehearsal
    from pytest_hfbudget.plugin.role import StoreCosts
    from pytest_hfbudget.plugin.schedule import EndpointSchedule
    from pytest_hfbudget.plugin.test_order import Expected
    from pytest_hfbudget.pricing import Catalogue
    from pytest_hfbudget.reporting import Report


DAY_S = 86_400.0


class ControllerServer:
    """The ledger of a run, and its controller, behind a socket.

    Attributes:
        path: the socket's.
        problem: the first thing that a worker found wrong with what it was asked to run.
        expected: which tests need which endpoints, if any does.
    """

    def __init__(self, controller: Controller) -> None:
        from pytest_hfbudget.ledger.rpc.server import LedgerServer

        self._controller = controller
        self.problem: HFBudgetError | None = None
        self.expected: Expected | None = None
        self._server = LedgerServer(controller.ledger, self._questions())
        self._server.resume()

    @property
    def path(self) -> str:
        return self._server.path

    def close(self) -> None:
        """Stop serving workers."""
        self._server.close()

    def _questions(self) -> dict[str, Callable[..., Any]]:
        controller = self._controller
        return {
            "declare": self._declare,
            "problem": self._note,
            "begin_use": self._begin_use,
            "ensure": lambda name, keep: controller.ensure(name, keep_running=keep),
            "leased": lambda: controller.leased,
            "foresee": controller.foresee,
            "expect": self._expect,
            "revive": controller.revive,
            "paused": controller.paused,
            "end_use": controller.end_use,
            "share": controller.share,
            "blame": controller.blame,
            "warn": controller.warn,
            "first": controller.first,
            "use_up": controller.use_up,
            "used_up": controller.used_up,
            "catalogue": controller.catalogue_as_read,
        }

    def _declare(self, names: list[str], paid: bool) -> None:
        try:
            self._controller.declare(tuple(names), paid=paid)
        except HFBudgetError as error:
            self._note(str(error))

    def _expect(self, expected: list[Any]) -> None:
        from pytest_hfbudget.plugin.test_order import Expected
        from pytest_hfbudget.scheduling import Task

        tests, *others = expected
        known = tuple(Task(id, tuple(needs), *more) for id, needs, *more in tests)
        self.expected = Expected(known, *others)

    def _begin_use(self, test: str, name: str, scopes: list[Any], worker: str) -> None:
        from pytest_hfbudget.ledger import Scope

        self._controller.begin_use(test, name, tuple(Scope(*scope) for scope in scopes), worker)

    def _note(self, message: str) -> None:
        self.problem = self.problem or HFBudgetError(message)


class Controller(Role):
    """A run in one process, or the controller of one with workers."""

    reports = True

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        super().__init__(settings)
        self.config, self.run_id = config, uuid.uuid4().hex[:12]
        self.leased: dict[str, str] = {}
        self._lock = threading.RLock()
        self._ledger: Ledger | None = None
        self._endpoints: RunEndpoints | None = None
        self._server_for_workers: ControllerServer | None = None
        self._rehearsal: Rehearsal | None = None
        self._run_prices: RunPrices | None = None
        self._writer = ReportWriter(config, self.run_id)
        self._once: WarnedOnce | None = None
        self._used_up = False
        self._announcer = Announcer(config)
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
        self.standing()  # a store that can't be used ends the run before anything is collected

    def standing(self) -> tuple[str, ...]:
        if not self.settings.capped_over_runs:
            return ()
        from pytest_hfbudget.plugin import run_history

        return run_history.standing(self.ledger, self.settings)

    def make_runtime(self) -> Runtime:
        from pytest_hfbudget.plugin.factory import make_meter

        return make_meter(self.config, self.settings, self.ledger, self.leased, self._catalogue)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run, made when it is first needed."""
        with self._lock:
            if self._ledger is None:
                from pytest_hfbudget.plugin import run_history
                from pytest_hfbudget.plugin.factory import session_scope

                self._ledger = run_history.ledger_of(self.config, self.settings, self.run_id)
                self._ledger.open(session_scope(self.settings))
            return self._ledger

    def declare(self, names: tuple[str, ...], *, paid: bool) -> None:
        given = (full_name(name, self.settings.namespace) for name in self.settings.endpoints)
        needed = tuple(dict.fromkeys((*given, *names)))
        with self._lock:  # several workers declare at once
            if needed:
                self.endpoints.check(needed)
            if paid:
                self._prices.prepare()

    def expect(self, items: list[pytest.Item], expected: Expected) -> None:
        from pytest_hfbudget.plugin.schedule import EndpointSchedule, SerialOrder

        order = SerialOrder(self._schedule(expected, EndpointSchedule), items)
        self.config.pluginmanager.register(order, ORDER)

    def _schedule(self, expected: Expected, kind: type[EndpointSchedule]) -> EndpointSchedule:
        from pytest_hfbudget.plugin import run_history

        known = run_history.durations(self.config, self.settings)
        return kind(expected, known, self.endpoints, assumed=self.settings.cold_start)

    def foresee(self) -> None:
        # The copy of today is read with the first call, so nothing is imported for it now.
        age_s = time.time() - read_at(cache_file("catalogue", self.settings.router))
        if self.settings.emulator or not 0 <= age_s < DAY_S:
            with self._lock:
                self._prices.foresee()

    @property
    def _prices(self) -> RunPrices:
        if self._run_prices is None:
            from pytest_hfbudget.plugin.price_sources import RunPrices

            self._run_prices = RunPrices(self.config, self.settings)
        return self._run_prices

    def _catalogue(self) -> Catalogue:
        return self._prices.catalogue()

    def planned(self) -> None:
        server, plugins = self._server_for_workers, self.config.pluginmanager
        if server is not None and server.problem is not None:
            raise server.problem
        if server is None or server.expected is None or plugins.has_plugin(ORDER):
            return
        from pytest_hfbudget.plugin.xdist_order import ThreadedSchedule, WorkersOrder

        schedule = self._schedule(server.expected, ThreadedSchedule)
        plugins.register(WorkersOrder(self.config, schedule), ORDER)

    def begin(self) -> None:
        names = [full_name(name, self.settings.namespace) for name in self.settings.endpoints]
        if names and self._server_for_workers is not None:
            self.endpoints.check(tuple(names))  # workers have that done too, but later than now
        for name in names:
            self.ensure(name)

    # --- endpoints

    @property
    def endpoints(self) -> RunEndpoints:
        """The endpoints of the run, known since the first one was declared."""
        with self._lock:
            if self._endpoints is None:
                from pytest_hfbudget.plugin.endpoints import RunEndpoints

                self._endpoints = RunEndpoints(
                    self.config, self.settings, self.run_id, self.ledger, self._rehearsal
                )
                if self._server_for_workers is not None:
                    self._endpoints.tend_alone()  # tests end in the workers, not here
            return self._endpoints

    def ensure(self, name: str, *, keep_running: bool = False) -> dict[str, Any]:
        endpoint = self.endpoints.ensure(name, keep_running=keep_running)
        if endpoint.url:
            self.leased[endpoint.url] = name
        return dict(endpoint.raw)

    def revive(self, name: str) -> bool:
        return self._endpoints is not None and self._endpoints.revive(name)

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

    def blame(self, refusals: tuple[str, ...]) -> None:
        self._writer.blamed += refusals

    def warn(self, text: str) -> None:
        say(self.config, text, yellow=True)

    def first(self, key: str) -> bool:
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
            tell = self._announcer.tell
            tell("pytest_hfbudget_charge", "charge", ledger.charges)
            tell("pytest_hfbudget_refusal", "refusal", ledger.refusals)
        if (endpoints := self._endpoints) is not None:
            self._announcer.tell("pytest_hfbudget_endpoint", "event", endpoints.log.all)

    def between(self) -> None:
        if self._endpoints is not None:
            self._endpoints.tend()

    def ask_pause(self) -> None:
        if self._endpoints is not None:
            self._endpoints.ask_pause()

    # --- after the tests

    def finish(self, outcomes: Mapping[str, str]) -> bool:
        if self._verified is None:
            try:
                self._verified = self._endpoints is None or self._endpoints.finish()
            finally:
                eventful, make = not self.uneventful(outcomes), partial(self.report, outcomes)
                self._writer.conclude(self.settings, outcomes, make, eventful=eventful)
                self._remember()
        return self._verified and not self._writer.blamed

    def _remember(self) -> None:
        order: Any = self.config.pluginmanager.get_plugin(ORDER)
        if order is not None:
            from pytest_hfbudget.plugin import run_history

            run_history.remember(self.config, self.settings, order.schedule.measured())

    def uneventful(self, outcomes: Mapping[str, str]) -> bool:
        """Whether there is nothing to tell of the run; known without making a report."""
        if self._endpoints is not None or NOT_RUN in outcomes.values():
            return False
        ledger = self._ledger
        return ledger is None or not (ledger.charges() or ledger.refusals() or ledger.unmetered())

    def report(self, outcomes: Mapping[str, str]) -> Report:
        """The report as it stands now."""
        from pytest_hfbudget.reporting import Report

        lines = self._endpoints.lines() if self._endpoints is not None else ()
        order: Any = self.config.pluginmanager.get_plugin(ORDER)
        minute_s = self.settings.billing_minute
        report = Report.of(self.ledger, self.settings.session_cap, outcomes, lines)
        return replace(
            report,
            run=self.run_id,
            rehearsal=self.settings.emulator is not None,
            over_runs=self.settings.capped_over_runs,
            timeline=order.schedule.timeline(minute_s) if order is not None else None,
        )

    def record(self, store: StoreCosts, session: pytest.Session) -> None:
        if self.settings.store_costs:
            endpoints = self._endpoints
            store(session, self.ledger, endpoints.log.cold_starts() if endpoints else {})

    def summarise(self, terminal: Any, outcomes: Mapping[str, str]) -> None:
        if self.uneventful(outcomes):
            # A budget of which nothing was spent says so, unless this run only looked.
            capped = self.settings.session_cap is not None or self.settings.capped_over_runs
            looks = options.only_look(self.config, self.settings)
            if self._ledger is None or looks or not capped:
                return
        self._writer.show(terminal, self.report(outcomes), self.standing())

    def last_words(self) -> None:
        if self._verified is None:
            return
        self._writer.last_line()
        if self._endpoints is not None:
            for line in self._endpoints.lines():
                if not line.in_order:
                    say(self.config, f"{line.name}: {line.to_do}", red=True, bold=True)

    # --- workers

    def serve(self) -> dict[str, Any]:
        if self._server_for_workers is None:
            self._server_for_workers = ControllerServer(self)
        return {
            "socket": self._server_for_workers.path,
            "router": self.settings.router,
            "endpoints_api": self.settings.endpoints_api,
            "hub": self.settings.hub or "",
            "emulator": self.settings.emulator or "",
        }

    def catalogue_as_read(self) -> Any:
        """What the catalogue was made of, for a worker that makes its own of it."""
        return self._catalogue().as_read()

    def close(self) -> None:
        if self._server_for_workers is not None:
            self._server_for_workers.close()
            self._server_for_workers = None
        if self._ledger is not None:
            from pytest_hfbudget.plugin import run_history

            run_history.close(self.config, self.settings, self._ledger)
        if self._rehearsal is not None:
            self._rehearsal.stop()
            self._rehearsal = None
