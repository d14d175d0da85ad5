"""From where to where the calls of a run go through its meter.

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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import AFTER_THE_REPORT
from pytest_hfbudget.settings import WORKERS

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from _pytest.nodes import Node

    from pytest_hfbudget.metering.instrumentation import Redirect
    from pytest_hfbudget.metering.runtime import Runtime
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
