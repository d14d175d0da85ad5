"""Hooks of one test run; every one is a line or two that hands over to `Run`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.plugin import verdicts

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.run import Run


@contextmanager
def usage_errors() -> Iterator[None]:
    """Our errors as pytest's usage errors: one line and exit code 4."""
    try:
        yield
    except HFBudgetError as error:
        raise pytest.UsageError(str(error)) from None


@contextmanager
def failures() -> Iterator[None]:
    """Our errors as the reason of a failure, without a traceback through here."""
    try:
        yield
    except HFBudgetError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


class Hooks:
    """Registered once a run is configured, so that no hook has to look its run up."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def pytest_report_header(self) -> str | None:
        """Show caps and endpoints."""
        return self.run.header()

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # after every plugin that deselects or sorts
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        """Check the markers of what will run."""
        collected = tuple(items)
        result = yield
        with usage_errors():
            self.run.plan(items, collected)
        return result

    def pytest_deselected(self) -> None:
        """Remember that this run has not all tests."""
        self.run.recording.narrowed = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """The same where a whole module was skipped."""
        self.run.recording.narrowed |= report.skipped

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Say from the controller what its workers found wrong: it collects nothing itself."""
        with usage_errors():
            self.run.planned()

    @pytest.hookimpl(optionalhook=True, wrapper=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> Generator[None, Any, Any]:
        """Have all workers on the endpoint that serves, if the tests need endpoints."""
        from pytest_hfbudget.plugin.late_scheduling import LateScheduling

        return LateScheduling.around((yield), config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Begin, now that it is certain that something runs; unless only the plan was asked for."""
        with usage_errors():
            return self.run.begin(session)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Charge a test for what happens while it runs."""
        self.run.enter(item)
        try:
            return (yield)
        finally:
            self.run.leave(item)

    # After pytest's own hook that skips, which is first, and before the one that sets fixtures up.
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Bring up the endpoints that a test needs."""
        with failures():
            self.run.bring_up(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell the reports of subtests from that of the test, and see markers of fixtures."""
        try:
            with failures():
                self.run.attribution.begin_call(item)
            return (yield)
        finally:
            self.run.attribution.called = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Charge the session for what several tests share."""
        if fixturedef.scope == "function":
            if self.run.requirements.open:
                with failures():
                    self.run.requirements.decide(fixturedef, request)
            return (yield)
        where = f"{fixturedef.scope} fixture {fixturedef.argname}"
        # Its own tear-down comes in between, since the last finalizer that was added is the first.
        end = ExitStack()
        fixturedef.addfinalizer(end.close)
        with self.run.attribution.shared(where):
            made = yield
        fixturedef.addfinalizer(lambda: end.enter_context(self.run.attribution.shared(where)))
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail a test that was refused a call, and note what it cost."""
        if self.run.quiet and call.excinfo is None:
            return (yield)
        if call.when == "teardown":
            self.run.attribution.note_cost(item)  # before the report copies the item's properties
        report = yield
        verdicts.judge(self.run, item, call, report)
        return report

    @pytest.hookimpl(trylast=True)  # --lf forgets here whatever was skipped
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember how tests ended."""
        self.run.ended(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Pause at the earliest moment: tracebacks and fixtures take their time."""
        self.run.ask_pause()

    # Innermost wrapper: before it yields no other plugin has done anything, after it the terminal
    # has not yet summed up.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Pause first, whatever the others do; report last."""
        self.run.ask_pause()
        try:
            return (yield)
        finally:
            self.run.finish(session)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show what it cost."""
        self.run.summarise(terminalreporter)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        """Have workers find the ledger before they import their first conftest file."""
        self.run.announce_to_workers()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker the address of the ledger."""
        node.workerinput["hfbudget"] = self.run.serve()
