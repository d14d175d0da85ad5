"""One test run, as one of its processes sees it: alone, as the controller, or as a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.metering.importing import PostImport
from pytest_hfbudget.money import usd_text
from pytest_hfbudget.plugin import options

if TYPE_CHECKING:
    from huggingface_hub import InferenceEndpoint

    from pytest_hfbudget.metering.payer import RunningTest
    from pytest_hfbudget.metering.runtime import Runtime
    from pytest_hfbudget.plugin.role import Role

RUN = pytest.StashKey["Run"]()

# Whoever imports one of these is about to spend, or to ask what was spent.
DOORBELLS = ("huggingface_hub", "pytest_hfbudget.metering.budget")


class Run:
    """Everything that the hooks of one config share.

    The meter is built when a doorbell rings, so that a suite without Hugging Face pays nothing.
    """

    def __init__(self, config: pytest.Config, role: Role) -> None:
        self.config, self.role, self.settings = config, role, role.settings
        self.runtime: Runtime | None = None
        self.outcomes: dict[str, str] = {}
        self._item: pytest.Item | None = None
        self._problem: HFBudgetError | None = None
        self._where = "before the first test"
        self._doorbell = PostImport(dict.fromkeys(DOORBELLS, self._ring))

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """The run of a config, in the role that its process has.

        Raises:
            ConfigError: a setting that makes no sense.
        """
        from pytest_hfbudget.plugin.role import role_of

        return cls(config, role_of(config, options.read(config)))

    # --- from configure to the first test

    def open(self) -> None:
        """Check the prices, and listen for the first use of Hugging Face."""
        self.role.open()
        self.settings = self.role.settings
        self._doorbell.install()

    def _ring(self, module: object) -> None:
        self.start()

    def start(self) -> Runtime:
        """Put the meter in place, once."""
        if self.runtime is None:
            self.runtime = self.role.make_runtime()
            self.runtime.meter.revive = self.role.revive
            self.runtime.meter.payer.where = self._where
            self.runtime.meter.payer.know_this_context()
            self.runtime.acquire()
            if self._item is not None:
                self._charge_to(self._item)
        return self.runtime

    def header(self) -> str | None:
        """The line for pytest's header."""
        if not self.settings.worth_a_header:
            return None
        from pytest_hfbudget.reporting.terminal import header

        return header(self.settings)

    def plan(self, items: list[pytest.Item]) -> None:
        """Check the markers of what will run, and tell which endpoints it needs.

        Raises:
            ConfigError: a marker that makes no sense.
        """
        marked = [item for item in items if _is_marked(item)]
        # A suite that imports budget() has caps that nobody sees before they are entered, and
        # prices are to be read before the first test, not in the middle of one.
        paid = (
            bool(marked) or self.settings.capped or "pytest_hfbudget.metering.budget" in sys.modules
        )
        if not items or not (paid or self.settings.endpoints):
            return
        from pytest_hfbudget.plugin import markers

        try:
            needed = markers.check(marked, self.settings)
            if not self._only_looking():
                self.role.declare(needed, paid=paid)
        except HFBudgetError as error:
            self.role.problem(error)

    def _only_looking(self) -> bool:
        """Whether this run shows what it would do, and does nothing."""
        option = self.config.option
        return bool(option.collectonly or getattr(option, "setupplan", False))

    def planned(self) -> None:
        """Raise what a worker found wrong with the plan."""
        self.role.planned()

    def begin(self) -> None:
        """Bring up what the whole run needs, right before its first test.

        Raises:
            EndpointError: one of them can't be brought up.
        """
        if not self._only_looking():
            self.role.begin()

    # --- around each test

    def enter(self, item: pytest.Item) -> None:
        """From now on calls are charged to this test."""
        self._item = item
        if self.runtime is not None:
            self._charge_to(item)

    def leave(self, item: pytest.Item) -> None:
        """Nothing that the test has opened stays held."""
        self._item, self._where = None, f"after {item.nodeid}"
        if self.runtime is not None:
            self.runtime.meter.settle_open(item.nodeid)
            self._charge(None)
        self.role.between()

    def _charge_to(self, item: pytest.Item) -> None:
        from pytest_hfbudget.plugin.markers import running_test

        try:
            self._charge(running_test(item, self.settings))
        except HFBudgetError as error:
            self._problem = error  # a marker that came after collection; raised where a test can

    def _test(self) -> RunningTest | None:
        return self.runtime.meter.payer.test if self.runtime else None

    @contextmanager
    def shared(self, where: str) -> Iterator[None]:
        """Charge the session meanwhile: what several tests share belongs to none of them."""
        item, before, test = self._item, self._where, self._test()
        self._item, self._where = None, where
        self._charge(None)
        try:
            yield
        finally:
            self._item, self._where = item, before
            if test is None and item is not None and self.runtime is not None:
                self._charge_to(item)  # the meter came about inside
            else:
                self._charge(test)
            self._own_refusals()

    def _own_refusals(self) -> None:
        """Let a test answer for what was refused to a fixture that was set up for it."""
        test = self._test()
        if self.runtime is not None and test is not None:
            unowned = self.runtime.meter.payer.unowned
            test.refusals += unowned
            unowned.clear()

    def _charge(self, test: RunningTest | None) -> None:
        if self.runtime is not None:
            payer = self.runtime.meter.payer
            payer.test, payer.where = test, self._where

    def note_cost(self, item: pytest.Item, *, last: bool = True) -> None:
        """Put a test's cost into its properties, from where JUnit takes it."""
        if self.runtime is None or (test := self._test()) is None:
            return
        if last:
            self.runtime.meter.settle_open(item.nodeid)
        total = self.runtime.meter.ledger.total(test.scopes[-1].key)
        if total.calls or total.refused:
            # A rerun counts on, so what its predecessor said is replaced.
            kept = [p for p in item.user_properties if not p[0].startswith("hfbudget.")]
            item.user_properties[:] = [
                *kept,
                ("hfbudget.usd", usd_text(total.spent)),
                ("hfbudget.calls", total.calls),
                ("hfbudget.refused", total.refused),
            ]

    def judge(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Fail a test that was refused a call, also where its code swallowed the refusal."""
        if report.when == "call" and report.passed and (paused := self._paused(item)):
            report.outcome, report.longrepr = "failed", paused
        test = self._test()
        if test is None or not test.refusals or test.on_exceed == "raise":
            return
        refusal, *more = test.refusals
        test.refusals.clear()
        if report.outcome == "failed":
            return  # it says why already, at the line that called
        report.outcome = "failed"
        also = f" ({len(more)} more calls were refused)" if more else ""
        report.longrepr = f"refused, though the test went on: {refusal}{also}"

    def _paused(self, item: pytest.Item) -> str | None:
        """Why an endpoint of a test is not running any more, if that is so."""
        if item.get_closest_marker("hf_endpoint") is None or self._only_looking():
            return None
        from pytest_hfbudget.plugin.markers import endpoints

        said = (self.role.paused(name) for name in endpoints(item, self.settings))
        return next((text for text in said if text), None)

    def ended(self, report: pytest.TestReport) -> None:
        """Remember how a test ended; one that never ended stays ``interrupted``."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
        elif report.when == "setup":
            self.outcomes[report.nodeid] = "interrupted"

    # --- endpoints

    def bring_up(self, item: pytest.Item) -> None:
        """Have the endpoints that a test needs running, before its own set-up begins.

        Raises:
            ConfigError: it has a cap, and calls can't be seen.
            EndpointError: an endpoint can't be brought up.
        """
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem
        if self.runtime is not None and self.runtime.meter.payer.capped():
            self.runtime.require_tap()
        if not _is_marked(item) or self._only_looking():
            return
        from pytest_hfbudget.plugin.markers import endpoints

        for name, keep_running in endpoints(item, self.settings).items():
            self.role.ensure(name, keep_running=keep_running)

    def live_endpoints(self, item: pytest.Item) -> dict[str, InferenceEndpoint]:
        """The endpoints of a test as huggingface_hub's objects."""
        from pytest_hfbudget.plugin.markers import endpoints
        from pytest_hfbudget.settings import full_name

        given = (full_name(name, self.settings.namespace) for name in self.settings.endpoints)
        names = {**dict.fromkeys(given, False), **endpoints(item, self.settings)}
        return {name: self._live(name, keep) for name, keep in names.items()}

    def _live(self, name: str, keep_running: bool) -> InferenceEndpoint:
        from huggingface_hub import HfApi, InferenceEndpoint

        raw = self.role.ensure(name, keep_running=keep_running)
        namespace = name.partition("/")[0]
        runtime = self.start()
        runtime.meter.book.leased[str(raw["status"]["url"])] = name
        return InferenceEndpoint.from_raw(raw, namespace=namespace, api=HfApi())

    def ask_pause(self) -> None:
        """Have everything paused now, without waiting for it."""
        self.role.ask_pause()

    # --- the end

    def finish(self, session: pytest.Session) -> None:
        """Wait for the verified pause, and write the report. A pause that fails fails the run."""
        self._settle_all()
        if not self.role.finish(self.outcomes) and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _settle_all(self) -> None:
        """Nothing is settled after this, so what is open is; refusals of nobody fail the run."""
        if self.runtime is None:
            return
        self.runtime.meter.settle_all()
        unowned = self.runtime.meter.payer.unowned
        if unowned:
            self.role.blame(tuple(unowned))
            unowned.clear()

    def summarise(self, terminal: Any) -> None:
        """The section in the terminal's summary."""
        self.role.summarise(terminal, self.outcomes)

    def serve(self) -> dict[str, Any]:
        """What a worker needs to know, and the counter that it is to call at."""
        return self.role.serve()

    def close(self) -> None:
        """Undo everything, also after an end that skipped `finish`."""
        self._doorbell.uninstall()
        try:
            self._settle_all()
            self.role.ask_pause()
            self.role.finish(self.outcomes)
        finally:
            if self.runtime is not None:
                runtime, self.runtime = self.runtime, None
                runtime.release()
            self.role.close()


def _is_marked(item: pytest.Item) -> bool:
    names = ("budget", "hf_endpoint")
    return any(item.get_closest_marker(name) is not None for name in names)


def worker_of(config: pytest.Config) -> str | None:
    """The name of this worker, or None in a process that is none."""
    workerinput: dict[str, Any] = getattr(config, "workerinput", {})
    return workerinput.get("workerid")
