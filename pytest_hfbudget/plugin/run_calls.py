"""The calls of a run: from when to when its meter counts them, and which test pays for them.

Without a cap the first call makes the meter, unless a marker needs it earlier. After the report
calls are refused under a cap, else counted on a last line. That depends on what the process was
started for, as does where it finds its ledger.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

MARKERS = ("budget", "hf_endpoint")
INSTRUMENTATION = "pytest_hfbudget.metering.instrumentation.hub"

# A test that imports one of these is about to spend, or to ask what was spent.
BUDGET_MODULE = "pytest_hfbudget.metering.budget"
HTTP_MODULES = ("httpx", "httpx2", "requests", "aiohttp", "http.client")
SPENDING_MODULES = ("huggingface_hub", BUDGET_MODULE, *HTTP_MODULES)
# What is there to call models. Too many suites that never do have an HTTP library.
MODEL_CLIENTS = ("openai", "litellm")
# HF_TOKEN, HUGGINGFACE_API_KEY (litellm), HUGGINGFACEHUB_API_TOKEN (LangChain) and the like.
CREDENTIAL = r"(HF|HUGGING_?FACE(HUB)?)_(\w+_)?(TOKEN|KEY)"


def imported_already() -> ModuleType | None:
    """One of these modules, if the process has imported any."""
    return next((sys.modules[name] for name in SPENDING_MODULES if name in sys.modules), None)


class FirstCall:
    """Waits for it, if that was asked for."""

    def __init__(self, start: Callable[[], object]) -> None:
        """``start`` makes the meter and puts it in place."""
        self._start = start
        self._redirect: Redirect | None = None

    def wait_for(self, settings: Settings) -> bool:
        """Have the first call start the meter; False where another run would get that call."""
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
        """Wait no longer, and have another meter, if given, put in place; harmless if not waiting.

        The clients stay wrapped meanwhile: what has wrapped them again can't be undone.
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
    def foreseen(self) -> bool:
        """Whether one of huggingface_hub's clients was imported, so that calls are expected."""
        module: Any = sys.modules.get(INSTRUMENTATION)
        return module is not None and bool(module.INSTRUMENTATION.in_place)

    @property
    def possible(self) -> bool:
        """Whether calls by other clients may come: one is there, and so is a token for them."""
        clients = any(name in sys.modules for name in MODEL_CLIENTS)
        return clients and any(
            re.fullmatch(CREDENTIAL, name) and os.environ[name] for name in os.environ
        )


def has_price_table(settings: Settings, root: Path) -> bool:
    """Whether the project may have prices of its own: read now, since a test may replace `open`."""
    project = root / "pyproject.toml"
    try:
        return settings.prices is not None or b"hfbudget" in project.read_bytes()
    except OSError:
        return False


def marked(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items with a marker of the plugin's, of their own or of a class, module or package."""
    known: dict[Node, bool] = {}

    def is_marked(node: Node) -> bool:
        if node not in known:
            own = any(mark.name in MARKERS for mark in node.own_markers)
            known[node] = own or (node.parent is not None and is_marked(node.parent))
        return known[node]

    return [item for item in items if is_marked(item)]


# --- whose they are


class Attribution:
    """Tells the meter which test it is, from when there is a meter, and asks it what that cost.

    Attributes:
        called: whether the test itself is being called: what is reported meanwhile is a subtest.
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
        """There is a meter now, maybe in the middle of a test."""
        self._charge(None)
        if self._item is not None:
            self._charge_to(self._item)

    def enter(self, item: pytest.Item) -> None:
        """From now on calls are charged to this test."""
        self._item, self._markers = item, len(item.own_markers)
        if self._run.runtime is not None:
            self._run.runtime.meter.budgets.know_this_context()
            self._charge_to(item)

    def has_new_markers(self, item: pytest.Item) -> bool:
        """Whether a fixture has added some."""
        return len(item.own_markers) != self._markers

    def charge_anew(self, item: pytest.Item) -> None:
        """Have calls held by the budgets that the fixtures of a test have added, too.

        Raises:
            ConfigError: one of them makes no sense.
        """
        if (before := self.test()) is not None:
            self._charge_to(item)
            if (now := self.test()) is not None:
                now.refusals += before.refusals
            self.check()

    def leave(self, item: pytest.Item) -> None:
        """Nothing that the test has opened stays held."""
        self._item, self._where = None, f"after {item.nodeid}"
        if self._run.runtime is not None:
            self._run.runtime.meter.settle_open(item.nodeid)
            self._charge(None)

    def check(self) -> None:
        """Raise what is wrong with a marker of the running test, where that fails the test.

        Raises:
            ConfigError: one that came after the collection makes no sense.
        """
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    @contextmanager
    def shared(self, where: str) -> Iterator[None]:
        """Charge the session meanwhile: what several tests share belongs to none of them."""
        item, before, test = self._item, self._where, self.test()
        unowned = len(self._run.runtime.meter.budgets.unowned) if self._run.runtime else 0
        self._item, self._where = None, where
        self._charge(None)
        try:
            yield
        finally:
            self._item, self._where = item, before
            if test is None and item is not None and self._run.runtime is not None:
                self._charge_to(item)  # the meter came about inside
            else:
                self._charge(test)
            self._own_refusals(unowned)

    def test(self) -> RunningTest | None:
        """The test that is charged now, where there is a meter."""
        return self._run.runtime.meter.budgets.test if self._run.runtime else None

    def note_cost(self, item: pytest.Item, *, last: bool = True) -> None:
        """Put a test's cost into its properties, from where JUnit takes it."""
        if self._run.runtime is None or (test := self.test()) is None:
            return
        meter = self._run.runtime.meter
        meter.settle_open(item.nodeid) if last else meter.drain()
        share, key = self._share(), test.scopes[-1].key
        if not share and not meter.ledger.touched(key):
            return  # a worker would ask its controller, for each test that never calls
        total = meter.ledger.total(key)
        if total.calls or total.refused or share:
            # A rerun counts on, so what its predecessor said is replaced.
            kept = [p for p in item.user_properties if not str(p[0]).startswith("hfbudget.")]
            item.user_properties[:] = [
                *kept,
                ("hfbudget.usd", usd_text(total.spent - share)),
                *([("hfbudget.uptime_usd", usd_text(share))] if share else []),
                ("hfbudget.calls", total.calls),
                ("hfbudget.refused", total.refused),
            ]

    def note_cost_so_far(self, item: pytest.Item) -> None:
        """The same while the test goes on."""
        self.note_cost(item, last=False)

    def take_notices(self) -> list[str]:
        """The warnings that its budgets have to raise."""
        return self._run.runtime.meter.watcher.take() if self._run.runtime else []

    def _charge_to(self, item: pytest.Item) -> None:
        from pytest_hfbudget.plugin.markers import running_test

        try:
            self._charge(running_test(item, self._run.settings))
        except HFBudgetError as error:
            self._problem = error  # a marker that came after collection; raised where a test can

    def _own_refusals(self, since: int) -> None:
        """Let a test answer for what was refused to a fixture that was set up for it."""
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
        begun: whether the report is written.
        lasts: whether the process ends with this run, so that all its calls are the run's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._pid = config, os.getpid()
        self._session: pytest.Session | None = None
        self._runtime: Runtime | None = None
        self._told = 0
        self.begun = False
        self.lasts = started_as() in ("pytest", "worker")
        if self.lasts:
            atexit.register(self._at_exit)  # the earlier it is registered, the later it runs

    def watch(self, runtime: Runtime) -> None:
        """Have calls go through this meter, which may come about after the end."""
        self._runtime = runtime
        if self.begun:
            runtime.meter.budgets.over = AFTER_THE_REPORT

    def begin(self, session: pytest.Session | None = None) -> None:
        """From now on no budget holds a call."""
        self._session = session or self._session
        if not self.begun:
            self.begun = True
            if self._runtime is not None:
                self._told = _calls(self._runtime)
                self._runtime.meter.budgets.over = AFTER_THE_REPORT

    def tell(self) -> None:
        """Say what was called since, and fail the run for what was refused."""
        lines, refused = self._lines()
        if not lines:
            return
        from pytest_hfbudget.plugin.console import say

        for line in lines:
            say(self._config, line, red=refused, yellow=not refused)
        codes = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if refused and self._session is not None and self._session.exitstatus in codes:
            self._session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _lines(self) -> tuple[list[str], bool]:
        """What to say, and whether any of it is a refusal."""
        if self._runtime is None:
            return [], False
        self._runtime.meter.settle_all()
        unowned = self._runtime.meter.budgets.unowned
        lines = [f"refused after the report: {refusal}" for refusal in unowned]
        unowned.clear()
        refused, calls = bool(lines), _calls(self._runtime)
        if self.begun and (late := calls - self._told) > 0:
            self._told = calls
            what = "1 call came" if late == 1 else f"{late} calls came"
            lines.append(f"hfbudget: {what} after the report, which does not count them")
        return lines, refused

    def _at_exit(self) -> None:
        if self.begun and os.getpid() == self._pid:
            for line in self._lines()[0]:
                from pytest_hfbudget.text import printable

                sys.stderr.write(f"{printable(line)}\n")


def _calls(runtime: Runtime) -> int:
    from pytest_hfbudget.ledger.ledger import Ledger

    ledger, budgets = runtime.meter.ledger, runtime.meter.budgets
    # The ledger of others, which may be gone, is told of no call after the end.
    return ledger.total(budgets.session.key).calls if isinstance(ledger, Ledger) else 0


def started_as() -> str:
    """What this process was started for: ``pytest``, a ``worker`` of xdist, or another program."""
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


def known_to_worker(config: pytest.Config) -> dict[str, Any]:
    """What a worker of xdist knows of its run; nothing in another process.

    The controller's environment tells a worker of it before xdist itself does.
    """
    told = os.environ.pop(WORKERS, None) if started_as() == "worker" else None
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if given or not told:
        return given
    return {"hfbudget": json.loads(told), "workerid": os.environ["PYTEST_XDIST_WORKER"]}
