"""The pytest hooks of the plugin, which hand over to `Run`, and its fixtures.

`HookSpecs` declares the hooks that others may implement. pytest imports this module in each run, so
it imports slow modules only when a run uses Hugging Face.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.run import RUN, Run
from pytest_hfbudget.settings import WORKERS

if TYPE_CHECKING:
    from huggingface_hub import InferenceEndpoint

    from pytest_hfbudget.ledger import Charge, Refusal
    from pytest_hfbudget.metering.budget import budget
    from pytest_hfbudget.plugin.endpoint_log import EndpointEvent
    from pytest_hfbudget.pricing import CallRequest, Price

OLDEST_PYTEST = (8,)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Raise our errors as pytest's usage errors: one line and exit code 4."""
    try:
        yield
    except HFBudgetError as error:
        raise pytest.UsageError(str(error)) from None


@contextmanager
def failures() -> Iterator[None]:
    """Raise our errors as test failures that show the message without a traceback."""
    try:
        yield
    except HFBudgetError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


# --- before there is a run


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that others may implement."""
    pluginmanager.add_hookspecs(HookSpecs)


class HookSpecs:
    """Hooks that a conftest or another plugin may implement; see docs/hooks.md.

    All but the price hook only notify. pytest's main thread calls them one at a time, after a test
    has ended and at the end of the run. Under pytest-xdist the controller calls them, for the calls
    of all workers.
    """

    @pytest.hookspec(firstresult=True)
    def pytest_hfbudget_price(self, request: CallRequest) -> Price | Mapping[str, object] | None:
        """Return the price of a request, as a `Price` or a row of a price table; None if unknown.

        A price of the block or marker comes first, then this hook, then all other price sources.
        The hook runs in the process and the thread that make the call. It is called again after the
        answer, with the provider that answered.
        """

    def pytest_hfbudget_charge(self, charge: Charge) -> None:
        """A call was settled; the charge has its cost in nano-USD and the source of the price."""

    def pytest_hfbudget_refusal(self, refusal: Refusal) -> None:
        """A call was refused: it was not sent, or its answer was cut off by the limit of a cap."""

    def pytest_hfbudget_endpoint(self, event: EndpointEvent) -> None:
        """Something happened to an endpoint of this run: resumed, ready, paused, and so on."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options and ini settings."""
    options.add(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin to hold and count calls, because conftest files may make some."""
    if pytest.version_tuple < OLDEST_PYTEST:
        raise pytest.UsageError(
            f"pytest-hfbudget needs pytest {OLDEST_PYTEST[0]} or newer, and this is pytest "
            f"{pytest.__version__}: pip install --upgrade pytest"
        )
    given = early_config.known_args_namespace
    try:
        Run.early(early_config)
    except HFBudgetError as error:
        if not (given.help or given.version):
            raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings and register the hooks of the run."""
    options.register_markers(config)
    if config.getoption("help", False) or config.getoption("version", False):
        return  # nothing runs, and --help has to work even with a wrong setting
    with usage_errors():
        options.check_rootdir(config)
        run = Run.of(config)
        run.open()
    if run.settings.plan:
        config.option.dist = "no"  # xdist configures itself after this; a plan needs no workers
    register = config.pluginmanager.register
    register(ControllerHooks(run) if run.role.reports else Hooks(run), "hfbudget-run")
    config.add_cleanup(run.role.last_words)  # after what other plugins print in `unconfigure`
    if run.settings.store_costs:
        register(run.costs_recorder, "hfbudget-costs")
    if config.get_verbosity() > 0:
        from pytest_hfbudget.plugin.console import CostOnLine, amounts

        register(
            CostOnLine(run.attribution.note_cost_so_far, amounts(config)), "hfbudget-cost-on-line"
        )
    if os.environ.get("GITHUB_STEP_SUMMARY") or os.environ.get("GITHUB_ACTIONS") == "true":
        from pytest_hfbudget.plugin.controller import Controller
        from pytest_hfbudget.plugin.report_writer import GitHubJob

        if isinstance(run.role, Controller):
            register(GitHubJob(run.role, run.outcomes), "hfbudget-github")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Pause, report and clean up, also if the session was cut short."""
    if (run := config.stash.get(RUN, None)) is not None and run.opened:
        run.close()


# --- fixtures


@pytest.fixture
def hf_endpoints(request: pytest.FixtureRequest) -> dict[str, InferenceEndpoint]:
    """The serving endpoints of this test by full name, those of the closest marker first."""
    return request.config.stash[RUN].requirements.live(request)


@pytest.fixture
def hf_endpoint(hf_endpoints: dict[str, InferenceEndpoint]) -> InferenceEndpoint:
    """The serving endpoint that this test needs; call it through ``hf_endpoint.client``.

    Named by ``@pytest.mark.hf_endpoint("namespace/name")``, or by ``--hf-endpoint``.
    """
    if not hf_endpoints:
        pytest.fail(
            'the fixture hf_endpoint needs @pytest.mark.hf_endpoint("namespace/name"), '
            "or --hf-endpoint namespace/name",
            pytrace=False,
        )
    return next(iter(hf_endpoints.values()))


@pytest.fixture
def hf_budget() -> Iterator[budget]:
    """What this test spends, without a cap of its own: ``hf_budget.spent``."""
    from pytest_hfbudget.metering.budget import budget

    with budget(name="hf_budget") as counter:
        yield counter


# --- during a run


_name = attrgetter("name")


class Hooks:
    """The hooks of one run. They are registered with their run, so no hook has to look it up."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # Cached for each fixture, because pytest looks the scope up in an enum each time.
        self._scope_of: Callable[[pytest.FixtureDef[Any]], str] = cache(attrgetter("scope"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # after every plugin that deselects or sorts
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        """Check the markers of the tests that will run."""
        collected = tuple(items)
        result = yield
        with usage_errors():
            self.run.plan(items, collected)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Bring up the endpoints of the whole run; or only show the plan (``--hf-plan``)."""
        with usage_errors():
            return self.run.begin(session)

    # The hooks of each test: a quiet run pays for every line of them.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Charge a test for the calls that are made while it runs."""
        self.run.attribution.enter(item)
        try:
            return (yield)
        finally:
            self.run.leave(item)

    # After pytest's own hook that skips, which is first, and before the one that sets fixtures up.
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Bring up the endpoints that a test needs."""
        # `awake` is set if any collected test has a marker. A marker that a fixture or a hook has
        # added since is in `own_markers`, which is quicker to search than all keywords.
        if self.run.awake or "hf_endpoint" in map(_name, item.own_markers):
            with failures():
                self.run.bring_up(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note that the test is being called, and apply markers that fixtures have added."""
        attribution = self.run.attribution
        attribution.called = True
        try:
            if self.run.awake and attribution.has_new_markers(item):
                with failures():
                    attribution.charge_anew(item)
            return (yield)
        finally:
            attribution.called = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Charge the session for the calls of fixtures that several tests share."""
        if (scope := self._scope_of(fixturedef)) == "function":
            if self.run.awake and self.run.requirements.open:
                with failures():
                    self.run.requirements.decide(fixturedef, request)
            return (yield)
        where = f"{scope} fixture {fixturedef.argname}"
        # pytest runs finalizers last in, first out: ours enclose the fixture's own tear-down.
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
        if call.excinfo is None and not self.run.awake:
            return (yield)
        if call.when == "teardown":
            self.run.attribution.note_cost(item)  # before the report copies the item's properties
        report = yield
        from pytest_hfbudget.plugin import verdicts

        verdicts.judge(self.run, item, call, report)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Ask for the pauses at once: tracebacks and the tear-down of fixtures may take long."""
        self.run.role.request_pause()

    # trylast: the innermost wrapper, so that its end runs before the terminal prints its summary.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Ask for the pauses first; wait for them and report after the other plugins."""
        self.run.role.request_pause()
        try:
            return (yield)
        finally:
            self.run.finish(session)


class ControllerHooks(Hooks):
    """The hooks of the controller, which gets the reports of all workers and prints."""

    def pytest_report_header(self, config: pytest.Config) -> list[str]:
        """Show caps and endpoints."""
        if not self.run.settings.worth_a_header:
            return []
        from pytest_hfbudget.plugin.console import fitted
        from pytest_hfbudget.reporting.terminal import header

        over_runs = (budget.line for budget in self.run.role.budgets_over_runs())
        return fitted(config, header(self.run.settings, over_runs) or "")

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Raise the errors that workers found: the controller itself collects nothing."""
        with usage_errors():
            self.run.role.raise_planning_error()

    @pytest.hookimpl(optionalhook=True, wrapper=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> Generator[None, Any, Any]:
        """Use our scheduler if tests need endpoints: it keeps workers on endpoints that serve."""
        from pytest_hfbudget.plugin.workers import LateScheduling

        return LateScheduling.around((yield), config)

    @pytest.hookimpl(trylast=True)  # after --lf, which here forgets tests that were skipped
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember how tests ended."""
        if report.outcome != "passed":
            from pytest_hfbudget.plugin import verdicts

            verdicts.as_printed(self.run.config, report)
        self.run.ended(report)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the budget section."""
        self.run.summarise(terminalreporter)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        """Put the ledger's address into the environment, for workers' first conftest file."""
        os.environ[WORKERS] = json.dumps(self.run.role.serve())

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker the address of the ledger."""
        node.workerinput["hfbudget"] = self.run.role.serve()
