"""The calls of a run: when its meter starts and ends, and which test pays for a call.

Without a cap the first call makes the meter, unless a marker needs it earlier. After the report,
calls are refused under a cap; without one they are counted and printed on a last line. How long the
meter stays, and where the ledger is, depends on what the process was started for (`started_as`).
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import AFTER_THE_REPORT, HFBudgetError
from pytest_hfbudget.money import usd_text
from pytest_hfbudget.settings import WORKERS

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from _pytest.nodes import Node

    from pytest_hfbudget.metering.budget_context import RunningTest
    from pytest_hfbudget.metering.instrumentation import Redirect
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.role import RunContext
    from pytest_hfbudget.settings import Settings

MARKERS = frozenset({"budget", "hf_endpoint"})
INSTRUMENTATION = "pytest_hfbudget.metering.instrumentation.hub"

# A test that imports one of these modules may make paid calls, or ask what was spent.
BUDGET_MODULE = "pytest_hfbudget.metering.budget"
HTTP_MODULES = ("httpx", "httpx2", "requests", "aiohttp", "http.client")
SPENDING_MODULES = ("huggingface_hub", BUDGET_MODULE, *HTTP_MODULES)
# A suite that imports one of these probably calls models. An HTTP library alone says little.
MODEL_CLIENTS = ("openai", "litellm")
# HF_TOKEN, HUGGINGFACE_API_KEY (litellm), HUGGINGFACEHUB_API_TOKEN (LangChain) and the like.
CREDENTIAL = r"(HF|HUGGING_?FACE(HUB)?)_(\w+_)?(TOKEN|KEY)"


def imported_already() -> ModuleType | None:
    """One of `SPENDING_MODULES` that the process has imported; None if it has imported none."""
    return next((sys.modules[name] for name in SPENDING_MODULES if name in sys.modules), None)


class FirstCall:
    """Has the first call of a run without caps make the meter."""

    def __init__(self, start: Callable[[], object]) -> None:
        """``start`` makes the meter and puts it in place."""
        self._start = start
        self._redirect: Redirect | None = None

    def wait_for(self, settings: Settings) -> bool:
        """Have the first call make the meter.

        Returns False, and does nothing, if an enclosing run already meters the calls.
        """
        from pytest_hfbudget.metering.instrumentation import Addresses, Redirect
        from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION

        if INSTRUMENTATION.meter is not None:
            return False
        if self._redirect is None:
            addresses = Addresses.of(settings)
            self._redirect = Redirect(addresses)
            self._redirect.install()
            INSTRUMENTATION.http.hosts = addresses.paid_hosts_with(settings.router)
            INSTRUMENTATION.wakers.append(self._start)
            INSTRUMENTATION.install()
        return True

    def cancel(self, put_in_place: Callable[[], object] | None = None) -> None:
        """Stop waiting for the first call. May be called at any time.

        Args:
            put_in_place: puts a meter in place. It is called before the clients are unwrapped, so
                that they stay wrapped all the time: another library may have wrapped them again.
        """
        redirect, self._redirect = self._redirect, None
        if redirect is not None:
            redirect.uninstall()  # the meter has one of its own
        if put_in_place is not None:
            put_in_place()
        if redirect is not None:
            from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION

            INSTRUMENTATION.wakers.remove(self._start)
            INSTRUMENTATION.uninstall()

    @property
    def is_expected(self) -> bool:
        """Whether a client of huggingface_hub was imported, so that calls are likely."""
        module: Any = sys.modules.get(INSTRUMENTATION)
        return module is not None and bool(module.INSTRUMENTATION.in_place)

    @property
    def is_possible(self) -> bool:
        """Whether another client for models was imported, and the environment has a token."""
        clients = any(name in sys.modules for name in MODEL_CLIENTS)
        return clients and any(
            re.fullmatch(CREDENTIAL, name) and os.environ[name] for name in os.environ
        )


def has_price_table(settings: Settings, root: Path) -> bool:
    """Whether the project may have prices of its own. Asked early: a test may replace `open`."""
    project = root / "pyproject.toml"
    try:
        return settings.prices is not None or b"hfbudget" in project.read_bytes()
    except OSError:
        return False


def with_markers(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items with a marker of the plugin's, of their own or of a class, module or package."""
    known: dict[Node, bool] = {}  # without the items themselves, because a node's hash is slow

    def is_marked(node: Node | None) -> bool:
        if node is None:
            return False
        if node not in known:
            known[node] = _has_marker(node) or is_marked(node.parent)
        return known[node]

    return [item for item in items if _has_marker(item) or is_marked(item.parent)]


_name_of = attrgetter("name")


def _has_marker(node: Node) -> bool:
    return not MARKERS.isdisjoint(map(_name_of, node.own_markers))


# --- which test pays


class Attribution:
    """Tells the meter which test is running, and gets the cost of a test from it.

    Attributes:
        called: whether the test function is running; a report that comes then is of a subtest.
    """

    def __init__(self, run: RunContext, share: Callable[[], int]) -> None:
        """``share`` is what the running test owes for uptime by now, in nano-USD."""
        self._run, self._share = run, share
        self._item: pytest.Item | None = None
        self._where = "before the first test"
        self._markers = 0
        self._problem: HFBudgetError | None = None
        self.called = False

    def begin(self) -> None:
        """Tell a new meter which test is running, if one is."""
        self._charge(None)
        if self._item is not None:
            self._charge_to(self._item)

    def enter(self, item: pytest.Item) -> None:
        """Charge calls to this test from now on."""
        self._item, self._markers = item, len(item.own_markers)
        if self._run.runtime is not None:
            self._run.runtime.meter.budgets.know_this_context()
            self._charge_to(item)

    def has_new_markers(self, item: pytest.Item) -> bool:
        """Whether a fixture has added markers to a test."""
        return len(item.own_markers) != self._markers

    def charge_anew(self, item: pytest.Item) -> None:
        """Apply the budget markers that the fixtures of a test have added.

        Raises:
            ConfigError: such a marker is invalid.
        """
        if (before := self.test()) is not None:
            self._charge_to(item)
            if (now := self.test()) is not None:
                now.refusals += before.refusals
            self.check()

    def leave(self, item: pytest.Item) -> None:
        """Settle the calls that a test has left open, and charge the session from now on."""
        self._item, self._where = None, f"after {item.nodeid}"
        if self._run.runtime is not None:
            self._run.runtime.meter.settle_open(item.nodeid)
            self._charge(None)

    def check(self) -> None:
        """Raise the error of an invalid marker that was added after the collection.

        Raises:
            HFBudgetError: the running test has such a marker.
        """
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    @contextmanager
    def shared(self, where: str) -> Iterator[None]:
        """Charge the session, not the test, for the calls of a fixture that tests share."""
        item, before, test = self._item, self._where, self.test()
        unowned = len(self._run.runtime.meter.budgets.unowned) if self._run.runtime else 0
        self._item, self._where = None, where
        self._charge(None)
        try:
            yield
        finally:
            self._item, self._where = item, before
            if test is None and item is not None and self._run.runtime is not None:
                self._charge_to(item)  # the meter was made inside the fixture
            else:
                self._charge(test)
            self._own_refusals(unowned)

    def test(self) -> RunningTest | None:
        """The test that is charged now; None without a meter, or outside of tests."""
        return self._run.runtime.meter.budgets.test if self._run.runtime else None

    def note_cost(self, item: pytest.Item, *, last: bool = True) -> None:
        """Write a test's cost into its user properties, which JUnit reports contain.

        Args:
            last: whether the test is over, so that its open calls are settled.
        """
        if self._run.runtime is None or (test := self.test()) is None:
            return
        meter = self._run.runtime.meter
        meter.settle_open(item.nodeid) if last else meter.drain()
        share, key = self._share(), test.scopes[-1].key
        if not share and not meter.ledger.touched(key):
            return  # saves a worker from asking its controller for each test without calls
        total = meter.ledger.total(key)
        if total.calls or total.refused or share:
            # A rerun shares the budget of the attempt before, so it replaces that one's figures.
            kept = [p for p in item.user_properties if not str(p[0]).startswith("hfbudget.")]
            item.user_properties[:] = [
                *kept,
                ("hfbudget.usd", usd_text(total.spent - share)),
                *([("hfbudget.uptime_usd", usd_text(share))] if share else []),
                ("hfbudget.calls", total.calls),
                ("hfbudget.refused", total.refused),
            ]

    def note_cost_so_far(self, item: pytest.Item) -> None:
        """As `note_cost`, while the test goes on."""
        self.note_cost(item, last=False)

    def take_notices(self) -> list[str]:
        """The warnings (``warn_at``) that are due, each once."""
        return self._run.runtime.meter.watcher.take() if self._run.runtime else []

    def _charge_to(self, item: pytest.Item) -> None:
        from pytest_hfbudget.plugin.markers import running_test

        try:
            self._charge(running_test(item, self._run.settings))
        except HFBudgetError as error:
            self._problem = error  # of a marker added after the collection; `check` raises it

    def _own_refusals(self, since: int) -> None:
        """Count the refusals in a shared fixture as those of the test that set it up."""
        test = self.test()
        if self._run.runtime is not None and test is not None:
            unowned = self._run.runtime.meter.budgets.unowned
            test.refusals += unowned[since:]
            del unowned[since:]

    def _charge(self, test: RunningTest | None) -> None:
        if self._run.runtime is not None:
            budgets = self._run.runtime.meter.budgets
            budgets.test, budgets.where = test, self._where


# --- the end


class RunEnd:
    """What happens to calls that come after the report.

    Attributes:
        report_written: whether the report is written.
        owns_process: whether the process ends with this run, so that all its calls are the run's.
            False if a program has called ``pytest.main()``.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._pid = config, os.getpid()
        self._session: pytest.Session | None = None
        self._runtime: Runtime | None = None
        self._told = 0
        self.report_written = False
        self.owns_process = started_as() in ("pytest", "worker")
        if self.owns_process:
            atexit.register(self._at_exit)  # the earlier it is registered, the later it runs

    def set_runtime(self, runtime: Runtime) -> None:
        """Take in the meter of the run. It may be made after the report."""
        self._runtime = runtime
        if self.report_written:
            runtime.meter.budgets.closed_because = AFTER_THE_REPORT

    def write_report(self, session: pytest.Session | None = None) -> None:
        """The report is written: refuse capped calls and count the others from now on."""
        self._session = session or self._session
        if not self.report_written:
            self.report_written = True
            if self._runtime is not None:
                self._told = _calls(self._runtime)
                self._runtime.meter.budgets.closed_because = AFTER_THE_REPORT

    def tell(self, *, paused: bool) -> None:
        """Print the calls since the report, and fail the run if any was refused.

        Args:
            paused: whether all that was started since the report is verified as paused.
        """
        lines, refused = self._lines()
        if not lines and paused:
            return
        from pytest_hfbudget.plugin.console import say

        for line in lines:
            say(self._config, line, red=refused, yellow=not refused)
        codes, session = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), self._session
        if (refused or not paused) and session is not None and session.exitstatus in codes:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            say(self._config, "hfbudget: the run fails for this (exit code 1)", red=True)

    def _lines(self) -> tuple[list[str], bool]:
        """The lines to print, and whether any is about a refusal."""
        if self._runtime is None:
            return [], False
        self._runtime.meter.settle_all()
        unowned = self._runtime.meter.budgets.unowned
        lines = [f"refused after the report: {refusal}" for refusal in unowned]
        unowned.clear()
        refused, calls = bool(lines), _calls(self._runtime)
        if self.report_written and (late := calls - self._told) > 0:
            self._told = calls
            one = "1 call came after the report, so it is"
            some = f"{late} calls came after the report, so they are"
            lines.append(f"hfbudget: {one if late == 1 else some} missing there")
        return lines, refused

    def _at_exit(self) -> None:
        if self.report_written and os.getpid() == self._pid:
            for line in self._lines()[0]:
                from pytest_hfbudget.text import printable

                sys.stderr.write(f"{printable(line)}\n")


def _calls(runtime: Runtime) -> int:
    from pytest_hfbudget.ledger.ledger import Ledger

    ledger, budgets = runtime.meter.ledger, runtime.meter.budgets
    # A ledger in another process may be gone by now, so it is not asked.
    if not isinstance(ledger, Ledger):
        return 0
    return ledger.total(budgets.session.key).calls + sum(ledger.unmetered().values())


def started_as() -> str:
    """What this process was started for: ``"pytest"``, ``"worker"`` (of xdist), else ``""``."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module, caller = frame.f_globals.get("__name__"), frame.f_back
        if module == "__channelexec__":
            return "worker"
        if module == "_pytest.config" and frame.f_code.co_name in ("main", "_main"):
            by = caller.f_code.co_name if caller is not None else ""
            return "pytest" if by in ("console_main", "_console_main") else ""
        frame = caller
    return ""


def worker_input(config: pytest.Config) -> dict[str, Any]:
    """What the controller has told this worker of xdist; empty in any other process.

    The environment has it first, for conftest files; later xdist's ``workerinput`` has it.
    """
    told = os.environ.pop(WORKERS, None) if started_as() == "worker" else None
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if given or not told:
        return given
    return {"hfbudget": json.loads(told), "workerid": os.environ["PYTEST_XDIST_WORKER"]}
