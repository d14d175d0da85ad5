"""Reads what earlier runs have stored, and stores it for later ones: usage log, costs file."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import ConfigError, HFBudgetError, HistoryError
from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.plugin.outcomes import is_part
from pytest_hfbudget.settings import Settings

if TYPE_CHECKING:
    from pytest_hfbudget.history.usage_schema import Durations
    from pytest_hfbudget.ledger import Charge, LedgerLike
    from pytest_hfbudget.ledger.ledger import Ledger
    from pytest_hfbudget.metering.prompts import Fact
    from pytest_hfbudget.reporting import Report
    from pytest_hfbudget.reporting.costs import Cost, Costs


def counts(config: pytest.Config, settings: Settings, model: str) -> tuple[Fact, ...]:
    """The token counts of a model's prompts from earlier runs. Never raises."""
    recorded = _recorded(config, settings)
    return (
        *_logged(config, settings, model),
        *(fact for fact in recorded if fact.model == model),
    )


def _logged(config: pytest.Config, settings: Settings, model: str) -> tuple[Fact, ...]:
    if not settings.log_days:
        return ()
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE, LogReader

    try:
        return LogReader(default_state_dir() / FILE).counts(model)
    except HistoryError as error:
        said = "token counts of earlier runs can't be read, so bytes bound the cost of prompts"
        say(config, f"hfbudget: {said}: {error}", yellow=True)
        return ()


def models(config: pytest.Config, settings: Settings) -> Iterator[str]:
    """The models of the costs file, then of the log, the most expensive first. Never raises."""
    yield from (fact.model for fact in _recorded(config, settings))
    if not settings.log_days:
        return
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE, LogReader, UsageQuery

    asked = UsageQuery((("project", project(config, settings)),))
    with suppress(HistoryError):
        found = LogReader(default_state_dir() / FILE).totals(asked, "model")
        yield from (each.name for each in found)


def add_to_log(
    config: pytest.Config,
    settings: Settings,
    run: str,
    started: float,
    report: Report,
    learned: Iterable[Fact],
) -> None:
    """Add a run's charges and token counts to the usage log, unless its report is empty.

    Never raises; a problem is printed.
    """
    if report.empty or settings.emulator or not settings.log_days:
        return
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE, LoggedRun, UsageLog, entries

    logged = LoggedRun(run, project(config, settings), started, time.time(), settings.session_id)
    try:
        log = UsageLog(default_state_dir() / FILE)
        log.write(logged, entries(report, logged), learned, keep_days=settings.log_days)
    except HistoryError as error:
        say(config, f"hfbudget: this run is not in the usage log: {error}", yellow=True)


def durations(config: pytest.Config, settings: Settings) -> Durations:
    """The seconds of tests and cold starts in earlier runs; empty if they can't be read."""
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE
    from pytest_hfbudget.history.usage_schema import DurationLog, Durations

    if settings.log_days and not settings.emulator:
        with suppress(HistoryError):  # `remember` prints the problem at the end of the run
            return DurationLog(default_state_dir() / FILE).read(project(config, settings))
    return Durations({}, {})


def remember(config: pytest.Config, settings: Settings, measured: Durations) -> None:
    """Add the seconds that this run has measured to the usage log. Never raises."""
    if settings.emulator or not settings.log_days:
        return
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import FILE
    from pytest_hfbudget.history.usage_schema import DurationLog

    log, days = DurationLog(default_state_dir() / FILE), settings.log_days
    try:
        log.add(project(config, settings), measured, time.time(), keep_days=days)
    except HistoryError as error:
        say(config, f"hfbudget: the times of this run are not remembered: {error}", yellow=True)


def share_report(config: pytest.Config, settings: Settings, job: str, report: Report) -> None:
    """Store the report of this job for `hfbudget report --shared`. Never raises."""
    if settings.shared is None or settings.emulator:
        return
    from pytest_hfbudget import shared
    from pytest_hfbudget.reporting.json_report import as_json

    try:
        server = shared.connect(settings)
        shared.keep_report(server, shared.run_name(settings), job, as_json(report))
    except HFBudgetError as error:
        say(config, f"hfbudget: this job's report is not shared: {error}", yellow=True)


def project(config: pytest.Config, settings: Settings) -> str:
    """The project whose runs share budgets: its configured name, or the root directory."""
    return settings.project or str(config.rootpath.resolve())


# --- the costs file: read where something needs it, written where that was asked for

DEFAULT = "hf-costs.json"


class CostsRecorder:
    """The costs file as it was before this run, and what this run adds to it.

    Args:
        outcomes: the outcome of each test, by node id; filled during the run.
    """

    def __init__(
        self, config: pytest.Config, settings: Settings, outcomes: Mapping[str, str]
    ) -> None:
        self._config, self._settings, self._outcomes = config, settings, outcomes
        self.path = _path(config, settings)
        self.narrowed = False  # whether tests were deselected
        self._costs: Costs | None = None
        self._stored = ""
        self._seconds: dict[str, float] = defaultdict(float)
        self._on_endpoint: set[str] = set()
        self._told: set[str] = set()

    def pytest_deselected(self) -> None:
        """Remember that this run has only a part of the tests."""
        self.narrowed = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember the same if a whole module was skipped."""
        self.narrowed |= report.skipped

    def check(self) -> None:
        """Read the file before anything is collected, if it will be needed.

        Raises:
            ConfigError: the file is damaged, or missing where an option needs it.
        """
        settings = self._settings
        if settings.store_costs or settings.plan or settings.max_increase is not None:
            missing = not self.path.is_file()
            needed = settings.costs is not None or settings.max_increase is not None
            if missing and needed and not settings.store_costs:
                raise ConfigError(
                    f"{self.path}: there is no such file; pytest --hf-store-costs writes it"
                )
            _ = self.costs
        elif settings.session_cap is not None and settings.plan_gate != "off":
            _ = self.costs

    @property
    def costs(self) -> Costs:
        """The recorded costs, read once; empty without a file.

        Raises:
            ConfigError: the file is damaged.
        """
        if self._costs is None:
            self._costs = _load(self.path)
        return self._costs

    @property
    def known(self) -> Costs:
        """The recorded costs for an estimate; empty if the file is damaged."""
        try:
            return self.costs
        except ConfigError:
            from pytest_hfbudget.reporting.costs import Costs

            return Costs()

    # --- an increase

    def costlier(
        self, item: pytest.Item, report: pytest.TestReport, ledger: LedgerLike, key: str
    ) -> str | None:
        """Why a test fails ``--hf-max-increase``; None if it does not, or was told before.

        Called after the call and after the teardown, because a stream may end in the teardown.
        """
        most, recorded = self._settings.max_increase, self.costs.tests.get(item.nodeid)
        if report.when == "setup":
            self._told.discard(item.nodeid)  # another attempt
        elif not report.passed:
            self._told.add(item.nodeid)  # it has failed for another reason
        elif most is not None and recorded is not None and item.nodeid not in self._told:
            from pytest_hfbudget.reporting.costs import increase

            charges = partial(ledger.charges_in, key)
            charged = ledger.total(key).spent
            if said := increase(charged, recorded, most, charges, where=self.path.name):
                self._told.add(item.nodeid)
                return said
        return None

    # --- writing

    def note(self, report: pytest.TestReport) -> None:
        """Remember how long the call of a test took; used only if the test needs an endpoint."""
        if self._settings.store_costs and not is_part(report):
            self._seconds[report.nodeid] += report.duration
            if "hf_endpoint" in report.keywords:
                self._on_endpoint.add(report.nodeid)

    def store(
        self,
        session: pytest.Session,
        ledger: Ledger,
        cold_starts: Mapping[str, float],
        learned: Iterable[Fact],
    ) -> None:
        """Write the file. Tests that passed get a new entry; all others keep theirs."""
        tests = self._passed(ledger)
        try:
            # Read anew: another run may have written meanwhile.
            starts = {name: math.ceil(seconds) for name, seconds in cold_starts.items()}
            exist, known = self._existing(session), _load(self.path)
            known = known.with_run(tests, starts, exist)
            if not self._settings.emulator:
                known = known.with_counts(learned, whole=exist is not None)
            known.write(self.path)
        except (OSError, ConfigError) as error:
            say(self._config, f"hfbudget: no costs could be stored: {error}", red=True)
            return
        count = "1 test" if len(tests) == 1 else f"{len(tests)} tests"
        self._stored = f"hfbudget: stored in {self.path.name} what {count} cost"

    def summarise(self, terminal: Any) -> None:
        """Say what was stored."""
        if self._stored:
            terminal.write_line(self._stored)

    def _passed(self, ledger: Ledger) -> dict[str, Cost]:
        """The cost of each test that passed without a refusal and without replayed calls."""
        from pytest_hfbudget.reporting.costs import Cost

        charges: dict[str | None, list[Charge]] = defaultdict(list)
        for charge in ledger.charges():
            charges[charge.test].append(charge)
            if charge.test and charge.endpoint:
                self._on_endpoint.add(charge.test)
        refused = {refusal.test for refusal in ledger.refusals()}
        passed = (
            test
            for test, outcome in self._outcomes.items()
            if outcome == "passed" and test not in refused
        )
        costs = {test: Cost.of(charges[test], self._endpoint_s(test)) for test in passed}
        return {test: cost for test, cost in costs.items() if cost is not None}

    def _endpoint_s(self, test: str) -> int:
        return math.ceil(self._seconds[test]) if test in self._on_endpoint else 0

    def _existing(self, session: pytest.Session) -> frozenset[str] | None:
        """The ids of all tests of the project; None if this run may have had only a part of them.

        With xdist always None: workers don't report what they deselect.
        """
        config = session.config
        narrowing = ("lf", "ignore", "ignore_glob", "continue_on_collection_errors")
        narrowed = (
            self.narrowed
            or any(config.getoption(name, None) for name in narrowing)
            or config.args_source is config.ArgsSource.ARGS
            or config.invocation_params.dir != config.rootpath
            or config.pluginmanager.hasplugin("dsession")
        )
        ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if narrowed or not ended or session.shouldfail or session.shouldstop:
            return None
        return frozenset(item.nodeid for item in session.items)


def _recorded(config: pytest.Config, settings: Settings) -> Iterable[Fact]:
    """The token counts of prompts in the costs file; empty if it can't be read."""
    try:
        return _load(_path(config, settings)).counts
    except ConfigError:
        return ()


def _path(config: pytest.Config, settings: Settings) -> Path:
    """The path of the costs file.

    A relative path is looked up in the working directory first. Otherwise the file belongs into the
    root directory, because node ids are relative to it.
    """
    name = settings.costs or Path(DEFAULT)
    here = config.invocation_params.dir / name
    return here if settings.costs and here.exists() else config.rootpath / name


def _load(path: Path) -> Costs:
    from pytest_hfbudget.reporting.costs import Costs

    return Costs.load(path) if path.exists() else Costs()
