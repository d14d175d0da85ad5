"""One test run in one of its processes: the only one, the controller, or a worker."""

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
    started_as,
    with_markers,
    worker_input,
)
from pytest_hfbudget.settings import WORKERS

if TYPE_CHECKING:
    from types import ModuleType

    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.endpoint_requirements import EndpointRequirements
    from pytest_hfbudget.plugin.role import Role
    from pytest_hfbudget.plugin.run_history import CostsRecorder
    from pytest_hfbudget.settings import Settings

RUN = pytest.StashKey["Run"]()


class Run:
    """What the hooks of one config share.

    Importing a module of `SPENDING_MODULES` makes the meter; without a cap, the first call does.

    Attributes:
        awake: whether a call or an endpoint is possible, so that hooks have to do their work.
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
        """The role of this process. A child that a test has forked can end up in our hooks, too."""
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
    def costs_recorder(self) -> CostsRecorder:
        """The costs file: what tests have cost in earlier runs."""
        from pytest_hfbudget.plugin.run_history import CostsRecorder

        return CostsRecorder(self.config, self.settings, self.outcomes)

    def _share(self) -> int:
        return self.requirements.share()

    # --- from the moment that the plugin is loaded to the first test

    @classmethod
    def early(cls, config: pytest.Config) -> None:
        """Begin a run before the first conftest file is imported, because it may make calls.

        Raises:
            ConfigError: a setting is invalid.
        """
        run = cls._begun(config, options.read_early(config))
        given = config.known_args_namespace
        if given.help or given.version:
            run.opened, run._problem = True, ConfigError(ONLY_HELP)
        elif run.role.reports and started_as() == "worker":
            run.opened, run._problem = True, ConfigError(NOT_YET)

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """The run of a config, with all settings, in place of the one that `early` has begun.

        An early run with a working meter is kept.

        Raises:
            ConfigError: a setting is invalid.
        """
        settings = options.read(config)
        early = config.stash.get(RUN, None)
        if early is not None and early.runtime is not None and not early._problem:
            return early  # calls may have been made already
        refused = early._discard() if early is not None else ()
        run = cls._begun(config, settings)
        if refused:
            run.role.note_unowned(refused)
        return run

    def _discard(self) -> tuple[str, ...]:
        """Undo the beginning of a run that could hold no call; returns the refusals it made."""
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
        """Check prices, shared budgets, and the costs file where it is needed.

        Raises:
            HFBudgetError: one of them can't be used.
        """
        self._open()
        if self._problem is not None:
            raise self._problem
        if self.runtime is None and (known := imported_already()) is not None:
            self._imported(known)
        given = self.settings
        asked = given.store_costs or given.plan or given.max_increase is not None
        if asked or given.session_cap is not None:
            self.costs_recorder.check()

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
            return  # our own `open` has imported the module; `open` checks again at its end
        # This runs inside an import, which must not fail. `open` raises the problem later.
        self._open()
        # Without a cap, nothing has to hold the first call: that call can make the meter.
        bare = not (self.settings.capped or self.settings.endpoints or self._problem)
        later = bare and self.runtime is None and module.__name__ != BUDGET_MODULE
        tables = later and has_price_table(self.settings, self.config.rootpath)
        if not later or tables or not self._first_call.wait_for(self.settings):
            self.start()

    def start(self) -> Runtime:
        """Put the meter in place, once."""
        if self.runtime is None:
            self.runtime, self.awake = self.role.make_runtime(), True
            self.runtime.meter.endpoints = self.requirements.callbacks()
            self.runtime.meter.watcher.claim = self.role.claim
            self.runtime.meter.budgets.know_this_context()
            if self._problem is not None:
                self.runtime.meter.budgets.closed_because = str(self._problem)
            self._end.set_runtime(self.runtime)
            self._first_call.cancel(self.runtime.acquire)
            self.attribution.begin()
            if self.settings.capped:
                self.runtime.require_hub()
        return self.runtime

    def plan(self, items: list[pytest.Item], collected: tuple[pytest.Item, ...]) -> None:
        """Check the markers of the tests that will run, and declare the endpoints they need.

        Args:
            collected: the items before other plugins have deselected or sorted them.

        Raises:
            ConfigError: a marker is invalid, or under a cap the installed release of
                huggingface_hub can't be metered.
        """
        try:
            if self.runtime is not None and self.settings.capped:
                self.runtime.require_hub()
        except HFBudgetError as error:
            self.role.abort(error)
            return
        bounded, self._collected = with_markers(items), collected
        # The caps of budget() blocks are unknown until a test enters them. Their prices have to be
        # read now, before the first test.
        paid = bool(bounded) or self.settings.capped or BUDGET_MODULE in sys.modules
        if not items or not (paid or self.settings.endpoints):
            self._prefetch_prices(items)
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

                    known = items, collected, self.settings, self.costs_recorder.known
                    self.role.note_suite(items, test_order.suite_of(*known))
        except HFBudgetError as error:
            self.role.abort(error)

    def _prefetch_prices(self, items: list[pytest.Item]) -> None:
        """Read prices for a run without caps, so that its report can show costs.

        A suite that has imported no client during its collection reads no prices, also not later:
        nothing is fetched while a test runs.
        """
        expected = self._first_call.is_expected or bool(self.settings.emulator)
        if items and (expected or self._first_call.is_possible) and not self._only_looking():
            self.role.prefetch_prices(expected)

    def _compare_with_budget(self, items: list[pytest.Item]) -> None:
        if self.settings.session_cap is not None and self.settings.plan_gate != "off":
            from pytest_hfbudget.plugin import planning

            planning.gate(items, self.settings, self.costs_recorder.costs, self.role)

    def _only_looking(self) -> bool:
        """Whether this run only shows something, and runs no test."""
        return options.only_look(self.config, self.settings)

    def begin(self, session: pytest.Session) -> bool | None:
        """Resume the endpoints that the whole run needs, right before its first test.

        Nothing is resumed if pytest will run no test. Returns True after ``--hf-plan``, so that
        pytest runs nothing; else None.

        Raises:
            EndpointError: an endpoint can't be brought up.
        """
        given_up = session.testsfailed and not self.config.option.continue_on_collection_errors
        empty = not session.testscollected and self.config.getoption("dist", "no") == "no"
        if not (given_up or empty) and not self._only_looking():
            self.role.begin()
        if not self.settings.plan:
            return None
        from pytest_hfbudget.plugin import planning

        costs = self.costs_recorder.costs
        return planning.present(session, self._collected, self.settings, costs)

    # --- around each test

    def leave(self, item: pytest.Item) -> None:
        """Settle the calls that a test has left open, and end its use of endpoints."""
        self.attribution.leave(item)
        if not self.awake:
            return
        self.requirements.end()
        self.role.between_tests()
        if self.settings.on_exhausted == "stop" and self.role.used_up():
            item.session.shouldfail = outcomes.STOPPED

    def ended(self, report: pytest.TestReport) -> None:
        """Remember how a test ended; one that never ended stays ``interrupted``."""
        self.outcomes.note(report)
        if report.outcome != "passed" and outcomes.was_marked_not_run(report):
            outcomes.keep_for_next_time(self.config, report.nodeid)
        if report.when == "teardown":
            self.role.announce()
        elif report.when == "call":
            if self.settings.store_costs:
                self.costs_recorder.note(report)
        elif report.when != "setup":
            self.role.end_use(report.nodeid)  # its worker crashed, and can't end it itself

    # --- endpoints

    def bring_up(self, item: pytest.Item) -> None:
        """Bring up the endpoints of a test before its set-up.

        Raises:
            ConfigError: the test has a cap, and its calls can't be metered.
            EndpointError: an endpoint can't be brought up.
        """
        self.attribution.check()
        if self.runtime is not None and self.runtime.meter.budgets.capped():
            self.runtime.require_hub()
        if self.settings.endpoints and not self._only_looking():
            self.role.learn_addresses()
        if "hf_endpoint" in item.keywords and not self._only_looking():
            self.awake = True
            self.requirements.bring_up(item)

    # --- the end

    def finish(self, session: pytest.Session) -> None:
        """Wait for the pauses and write the report; fail the run for a pause not verified."""
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
            self.role.record(self.costs_recorder.store, session)
        self.role.announce()
        self._end.write_report(session)

    def _settle_all(self) -> None:
        """Settle all open calls, and report refusals outside of tests, which fail the run."""
        if self.runtime is None:
            return
        self.runtime.children.close()
        self.runtime.meter.settle_all()
        unowned = self.runtime.meter.budgets.unowned
        if unowned:
            self.role.note_unowned(tuple(map(str, unowned)))
            unowned.clear()

    def summarise(self, terminal: Any) -> None:
        """Print the section "hf budget" of the terminal summary."""
        if not self.settings.plan:
            self.role.summarise(terminal, self.outcomes)
        if self.settings.store_costs:
            self.costs_recorder.summarise(terminal)

    def close(self) -> None:
        """Pause, report and close everything but the meter, also if `finish` was skipped."""
        try:
            if not (self._end.report_written and self.role.reports):
                self._settle_all()  # otherwise `end` prints what was refused after the report
            self.role.request_pause()
            self.role.finish(self.outcomes)
        finally:
            self._end.write_report()
            self.role.close()

    def end(self) -> None:
        """Print calls made after the report; remove the meter if the process outlives the run."""
        os.environ.pop(WORKERS, None)
        if os.getpid() != self._pid:
            return
        if self.runtime is not None and not self._end.report_written:
            self.close()  # a conftest file made a call and then failed, before pytest_configure
        self._end.tell(paused=self.role.finish_late())
        if self.runtime is not None and not self._end.owns_process:
            runtime, self.runtime = self.runtime, None
            runtime.release()
        if not self._end.owns_process:
            self._import_hook.uninstall()
            self._first_call.cancel()


def _end(config: pytest.Config) -> None:
    config.stash[RUN].end()


def _role_of(config: pytest.Config, settings: Settings) -> Role:
    """The role of the process that this config belongs to."""
    given = worker_input(config)
    if given:
        from pytest_hfbudget.plugin.role import Worker

        return Worker(config, settings, given)
    from pytest_hfbudget.plugin.controller import Controller

    return Controller(config, settings)
