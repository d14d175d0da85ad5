"""One test run, as one of its processes sees it: alone, as the controller, or as a worker."""

from __future__ import annotations

import os
import sys
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import NOT_YET, ONLY_HELP, ConfigError, HFBudgetError
from pytest_hfbudget.metering.instrumentation import PostImport
from pytest_hfbudget.plugin import options, outcomes
from pytest_hfbudget.plugin.outcomes import Outcomes
from pytest_hfbudget.plugin.run_calls import (
    BUDGET_MODULE,
    SPENDING_MODULES,
    Attribution,
    FirstCall,
    RunEnd,
    has_price_table,
    imported_already,
    known_to_worker,
    marked,
    started_as,
)
from pytest_hfbudget.settings import WORKERS

if TYPE_CHECKING:
    from types import ModuleType

    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.endpoint_requirements import EndpointRequirements
    from pytest_hfbudget.plugin.role import Role
    from pytest_hfbudget.plugin.run_history import Recording
    from pytest_hfbudget.settings import Settings

RUN = pytest.StashKey["Run"]()


class Run:
    """Everything that the hooks of one config share.

    The meter is built when a module that spends is imported; without a cap, for the first call.

    Attributes:
        awake: whether a test can have been refused anything, or have used an endpoint.
    """

    def __init__(self, config: pytest.Config, role: Role) -> None:
        self.config, self.settings = config, role.settings
        self._role, self._pid = role, os.getpid()
        self.runtime: Runtime | None = None
        each = getattr(config.known_args_namespace, "dist", None) == "each"
        self.outcomes = Outcomes(each=each)
        self.attribution = Attribution(self, self._share)
        self._import_hook = PostImport(dict.fromkeys(SPENDING_MODULES, self._imported))
        self._first_call = FirstCall(self.start)
        self.opened = self._opening = False
        self.awake = bool(self.settings.endpoints)
        self._collected = tuple[pytest.Item, ...]()
        self._problem: HFBudgetError | None = None
        self._end = RunEnd(config)

    @property
    def role(self) -> Role:
        """What this process is. A child that a test has forked may run into pytest's end, too."""
        if os.getpid() == self._pid:
            return self._role
        from pytest_hfbudget.plugin.role import ForkedChild

        return ForkedChild(self.settings)

    @cached_property
    def requirements(self) -> EndpointRequirements:
        """The endpoints of the running test."""
        from pytest_hfbudget.plugin.endpoint_requirements import EndpointRequirements

        return EndpointRequirements(self)

    @cached_property
    def recording(self) -> Recording:
        """What tests have cost before, where something asks for that."""
        from pytest_hfbudget.plugin.run_history import Recording

        return Recording(self.config, self.settings, self.outcomes)

    def _share(self) -> int:
        return self.requirements.share()

    # --- from the moment that the plugin is loaded to the first test

    @classmethod
    def early(cls, config: pytest.Config) -> None:
        """Begin before the first conftest file is imported, which may make calls.

        Raises:
            ConfigError: a setting that makes no sense.
        """
        run = cls._begun(config, options.read_early(config))
        given = config.known_args_namespace
        if given.help or given.version:
            run.opened, run._problem = True, ConfigError(ONLY_HELP)
        elif run.role.reports and started_as() == "worker":
            run.opened, run._problem = True, ConfigError(NOT_YET)

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """The run of a config, in the role that its process has.

        Raises:
            ConfigError: a setting that makes no sense.
        """
        settings = options.read(config)
        early = config.stash.get(RUN, None)
        if early is not None and early.runtime is not None and not early._problem:
            return early  # calls may have been made already
        refused = early._give_way() if early is not None else ()
        run = cls._begun(config, settings)
        if refused:
            run.role.blame(refused)
        return run

    def _give_way(self) -> tuple[str, ...]:
        """Undo the beginning of a run that could hold no call; what it has refused."""
        self._import_hook.uninstall()
        self._first_call.cancel()
        self.role.close()
        if self.runtime is None:
            return ()
        self.runtime.release()
        return tuple(map(str, self.runtime.meter.budgets.unowned))

    @classmethod
    def _begun(cls, config: pytest.Config, settings: Settings) -> Run:
        if RUN not in config.stash:
            config.add_cleanup(partial(_end, config))  # the first to come is the last to go
        run = config.stash[RUN] = cls(config, _role_of(config, settings))
        run._import_hook.install()
        return run

    def open(self) -> None:
        """Check the prices and what was recorded.

        Raises:
            ConfigError: one of them can't be used.
        """
        self._open()
        if self._problem is not None:
            raise self._problem
        if self.runtime is None and (known := imported_already()) is not None:
            self._imported(known)
        given = self.settings
        asked = given.store_costs or given.plan or given.max_increase is not None
        if asked or given.session_cap is not None:
            self.recording.check()

    def _open(self) -> None:
        if not self.opened:
            self.opened = self._opening = True
            try:
                self.role.open()
            except HFBudgetError as error:
                self._problem = error
            self.settings, self._opening = self.role.settings, False

    def _imported(self, module: ModuleType) -> None:
        if self._opening:
            return  # the plugin itself has imported it: it looks again when all is open
        # In an import, which must not fail: what is wrong ends the run when it is configured.
        self._open()
        # No cap has to hold the first call, so the meter can come about with it.
        bare = not (self.settings.capped or self.settings.endpoints or self._problem)
        later = bare and self.runtime is None and module.__name__ != BUDGET_MODULE
        tables = later and has_price_table(self.settings, self.config.rootpath)
        if not later or tables or not self._first_call.wait_for(self.settings):
            self.start()

    def start(self) -> Runtime:
        """Put the meter in place, once."""
        if self.runtime is None:
            self.runtime, self.awake = self.role.make_runtime(), True
            self.runtime.meter.endpoints = self.requirements.hooks()
            self.runtime.meter.watcher.first = self.role.first
            self.runtime.meter.budgets.know_this_context()
            if self._problem is not None:
                self.runtime.meter.budgets.over = str(self._problem)
            self._end.watch(self.runtime)
            self._first_call.cancel(self.runtime.acquire)
            self.attribution.begin()
            if self.settings.capped:
                self.runtime.require_hub()
        return self.runtime

    def plan(self, items: list[pytest.Item], collected: tuple[pytest.Item, ...]) -> None:
        """Check the markers of what will run, and tell which endpoints it needs.

        Args:
            collected: the items as pytest has collected them.

        Raises:
            ConfigError: a marker that makes no sense, or a huggingface_hub that is not known.
        """
        try:
            if self.runtime is not None and self.settings.capped:
                self.runtime.require_hub()
        except HFBudgetError as error:
            self.role.problem(error)
            return
        bounded, self._collected = marked(items), collected
        # A suite that imports budget() has caps that can't be seen before they are entered, and
        # prices are to be read before the first test, not in the middle of one.
        paid = bool(bounded) or self.settings.capped or BUDGET_MODULE in sys.modules
        if not items or not (paid or self.settings.endpoints):
            self._foresee(items)
            return
        from pytest_hfbudget.plugin import markers

        try:
            needed = markers.check(bounded, self.settings)
            if not self._only_looking():
                self.role.declare(needed, paid=paid)
                if paid:
                    self.start().children.export()
                    self._compare_with_budget(items)
                if any("hf_endpoint" in item.keywords for item in bounded):
                    from pytest_hfbudget.plugin import test_order

                    known = items, collected, self.settings, self.recording.known
                    self.role.expect(items, test_order.expected(*known))
        except HFBudgetError as error:
            self.role.problem(error)

    def _foresee(self, items: list[pytest.Item]) -> None:
        """Have prices for calls that no cap waits for: what is not counted can't be reported.

        A suite that has imported no client by now reads nothing, and neither does it later: nothing
        is fetched while a test runs.
        """
        sure = self._first_call.foreseen or bool(self.settings.emulator)
        if items and (sure or self._first_call.possible) and not self._only_looking():
            self.role.foresee(sure)

    def _compare_with_budget(self, items: list[pytest.Item]) -> None:
        if self.settings.session_cap is not None and self.settings.plan_gate != "off":
            from pytest_hfbudget.plugin import planning

            planning.gate(items, self.settings, self.recording.costs, self.role)

    def _only_looking(self) -> bool:
        """Whether this run shows what it would do, and does nothing."""
        return options.only_look(self.config, self.settings)

    def begin(self, session: pytest.Session) -> bool | None:
        """Bring up what the whole run needs, right before its first test.

        True where that is all, since only the plan was asked for. After errors of the collection,
        or without a test, pytest will run nothing, so nothing is brought up.

        Raises:
            EndpointError: one of them can't be brought up.
        """
        given_up = session.testsfailed and not self.config.option.continue_on_collection_errors
        empty = not session.testscollected and self.config.getoption("dist", "no") == "no"
        if not (given_up or empty) and not self._only_looking():
            self.role.begin()
        if not self.settings.plan:
            return None
        from pytest_hfbudget.plugin import planning

        costs = self.recording.costs
        return planning.present(session, self._collected, self.settings, costs)

    # --- around each test

    def leave(self, item: pytest.Item) -> None:
        """Nothing that the test has opened stays held."""
        self.attribution.leave(item)
        if not self.awake:
            return
        self.requirements.end()
        self.role.between()
        if self.settings.on_exhausted == "stop" and self.role.used_up():
            item.session.shouldfail = outcomes.STOPPED

    def ended(self, report: pytest.TestReport) -> None:
        """Remember how a test ended; one that never ended stays ``interrupted``."""
        self.outcomes.note(report)
        if report.outcome != "passed" and outcomes.marked(report):
            outcomes.keep_for_next_time(self.config, report.nodeid)
        if report.when == "teardown":
            self.role.announce()
        elif report.when == "call":
            if self.settings.store_costs:
                self.recording.note(report)
        elif report.when != "setup":
            self.role.end_use(report.nodeid)  # its worker crashed, and says no more

    # --- endpoints

    def bring_up(self, item: pytest.Item) -> None:
        """Have the endpoints that a test needs running, before its own set-up begins.

        Raises:
            ConfigError: it has a cap, and calls can't be seen.
            EndpointError: an endpoint can't be brought up.
        """
        self.attribution.check()
        if self.runtime is not None and self.runtime.meter.budgets.capped():
            self.runtime.require_hub()
        if self.settings.endpoints and not self._only_looking():
            self.role.meet()
        if "hf_endpoint" in item.keywords and not self._only_looking():
            self.awake = True
            self.requirements.bring_up(item)

    # --- the end

    def finish(self, session: pytest.Session) -> None:
        """Wait for the verified pause, and write the report. A pause that fails fails the run."""
        self._settle_all()
        in_order = self.role.finish(self.outcomes)
        if self.outcomes.incomplete:
            in_order = False
        if not in_order and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.settings.store_costs and not self._only_looking():
            self.role.record(self.recording.store, session)
        self.role.announce()
        self._end.begin(session)

    def _settle_all(self) -> None:
        """Settle what is open: nothing is settled later. Refusals outside tests fail the run."""
        if self.runtime is None:
            return
        self.runtime.children.close()
        self.runtime.meter.settle_all()
        unowned = self.runtime.meter.budgets.unowned
        if unowned:
            self.role.blame(tuple(map(str, unowned)))
            unowned.clear()

    def summarise(self, terminal: Any) -> None:
        """The section in the terminal's summary."""
        if not self.settings.plan:
            self.role.summarise(terminal, self.outcomes)
        if self.settings.store_costs:
            self.recording.summarise(terminal)

    def close(self) -> None:
        """Undo everything but the metering, also after an end that skipped `finish`."""
        try:
            if not (self._end.begun and self.role.reports):
                self._settle_all()  # else the end tells of what was refused since
            self.role.ask_pause()
            self.role.finish(self.outcomes)
        finally:
            self._end.begin()
            self.role.close()

    def end(self) -> None:
        """Tell what came after the report; go on with calls where the process ends with the run."""
        os.environ.pop(WORKERS, None)
        if os.getpid() != self._pid:
            return
        if self.runtime is not None and not self._end.begun:
            self.close()  # a conftest file that called and then failed: nothing was configured
        self._end.tell()
        if self.runtime is not None and not self._end.lasts:
            runtime, self.runtime = self.runtime, None
            runtime.release()
        if not self._end.lasts:
            self._import_hook.uninstall()
            self._first_call.cancel()


def _end(config: pytest.Config) -> None:
    config.stash[RUN].end()


def _role_of(config: pytest.Config, settings: Settings) -> Role:
    """The role of the process that this config belongs to."""
    given = known_to_worker(config)
    if given:
        from pytest_hfbudget.plugin.role import Worker

        return Worker(config, settings, given)
    from pytest_hfbudget.plugin.controller import Controller

    return Controller(config, settings)
