"""Writes what a run leaves behind: the JSON report, a row in the usage log, terminal lines.

It also calls the hooks of other plugins, and reports to a job of GitHub Actions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_hfbudget.errors import HistoryError
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.console import amounts, can_show, columns, say
from pytest_hfbudget.settings import NOT_RUN, Settings
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from pytest_hfbudget.metering.prompts import Fact
    from pytest_hfbudget.plugin.outcomes import Outcomes
    from pytest_hfbudget.reporting import EndpointLine, Report
    from pytest_hfbudget.reporting.ci import SourceLocation


class ReportWriter:
    """Writes the report of one run to the terminal, a file and the usage log.

    Attributes:
        announcer: calls the hooks of other plugins.
        unowned: the texts of refusals that belong to no test; each fails the run.
    """

    def __init__(self, config: pytest.Config, run_id: str, started: float) -> None:
        """``started`` is the time at which the run began, in unix seconds."""
        self._config, self._run_id, self._started = config, run_id, started
        self.announcer = Announcer(config)
        self.unowned: list[str] = []
        self._written: Path | None = None
        self._why_red = ""

    def conclude(
        self,
        settings: Settings,
        outcomes: Mapping[str, str],
        make: Callable[[], Report],
        learned: Callable[[], Iterable[Fact]],
        *,
        eventful: bool,
    ) -> None:
        """Write the JSON file and, for an eventful run, the row of the usage log.

        Args:
            make: makes the report; called only if needed, because it is slow.
            learned: returns the token counts of servers in this run.
            eventful: whether the run has charges, refusals or endpoints to report.
        """
        self._why_red = self._reason(outcomes, make) if eventful or self.unowned else ""
        # A run that runs no test must not replace the report of one that did.
        if settings.report is not None and not options.only_look(self._config, settings):
            with suppress(HistoryError):  # pytest ends with that line, before the first test
                self._write(make(), settings.report)
        if eventful:
            from pytest_hfbudget.plugin import run_history

            begun, report = (self._run_id, self._started), make()
            run_history.add_to_log(self._config, settings, *begun, report, learned())
            run_history.share_report(self._config, settings, self._run_id, report)

    def _reason(self, outcomes: Mapping[str, str], make: Callable[[], Report]) -> str:
        """Why budgets fail the run; empty if they don't, or if the run was interrupted."""
        found = set(outcomes.values())
        if "interrupted" in found:
            return ""
        reasons = []
        if found & {"failed", NOT_RUN}:
            from pytest_hfbudget.reporting.terminal import not_run, refused

            report = make()
            reasons = [refused(report)]
            if "failed" not in found or reasons[0]:  # another failure is reason enough
                reasons.append(not_run(report))
        if self.unowned and "failed" not in found:
            calls = "1 call was" if len(self.unowned) == 1 else f"{len(self.unowned)} calls were"
            reasons.append(f"{calls} refused outside of every test.")
        return " ".join(filter(None, reasons))

    def _write(self, report: Report, name: Path) -> None:
        from pytest_hfbudget.reporting import json_report

        path = self._config.invocation_params.dir / name
        try:
            json_report.write(report, path)
        except OSError as error:
            say(
                self._config,
                f"hfbudget: the report {path} could not be written: {error}",
                red=True,
            )
        else:
            self._written = name

    def show(self, terminal: Any, report: Report) -> None:
        """Print the section "hf budget" of the terminal summary."""
        from pytest_hfbudget.reporting.terminal import summary

        block_characters = can_show("█░", sys.stdout.encoding)
        terminal.write_sep("=", "hf budget")
        for refusal in self.unowned:
            said = printable(refusal, keep="\n")
            terminal.write_line(f"refused outside of every test: {said}", red=True)
        width, usd = columns(self._config), amounts(self._config)
        for line in summary(report, block_characters=block_characters, width=width, usd=usd):
            colour = {line.colour: True} if line.colour else {}
            terminal.write_line(printable(line.text), **colour)
        for budget in report.over_runs:
            terminal.write_line(f"  {budget.line}")
        if report.on_the_bill:
            terminal.write_line(f"  session id: {report.session_id} (hfbudget bill)")
        if self._written is not None:
            terminal.write_line(f"  report: {self._written}")

    def last_lines(self, endpoints: Iterable[EndpointLine]) -> None:
        """Print why the run failed, and which endpoints still cost.

        These lines come last, because people read the last lines first.
        """
        if self._why_red:
            say(self._config, f"hfbudget: the run failed: {self._why_red}", red=True, bold=True)
        for line in endpoints:
            if not line.in_order:
                say(self._config, f"{line.name}: {line.to_do}", red=True, bold=True)


# --- other plugins

RAISED = (Exception, pytest.fail.Exception, pytest.skip.Exception)


class Announcer:
    """Calls other plugins' hooks, once for each record, in the order of the records."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._told: dict[str, int] = {}
        self._complaints: set[tuple[str, str]] = set()

    def tell(self, hook_name: str, argument: str, records: Callable[[], Sequence[object]]) -> None:
        """Call a hook for each record since the last call.

        ``records`` is not called if no plugin implements the hook.
        """
        hook: Any = getattr(self._config.hook, hook_name)
        if not hook.get_hookimpls():
            return
        every = records()
        while (told := self._told.get(hook_name, 0)) < len(every):
            self._told[hook_name] = told + 1
            self._call_each(hook_name, hook.get_hookimpls(), {argument: every[told]})

    def _call_each(
        self, hook_name: str, impls: Sequence[Any], arguments: dict[str, object]
    ) -> None:
        """Call the plugins one by one, so that the others are called even if one raises."""
        manager = self._config.pluginmanager
        for impl in impls:
            others = [other.plugin for other in impls if other.plugin is not impl.plugin]
            try:
                manager.subset_hook_caller(hook_name, others)(**arguments)
            except pytest.exit.Exception:
                raise  # a plugin ends the run
            except RAISED as error:
                self._complain(hook_name, impl.plugin_name, error)

    def _complain(self, hook_name: str, plugin: str, error: BaseException) -> None:
        if (hook_name, plugin) not in self._complaints:
            self._complaints.add((hook_name, plugin))
            said = " ".join(str(error).split())
            text = f"hfbudget: {hook_name} of {plugin} raised {type(error).__name__}: {said}"
            say(self._config, text, yellow=True)


# --- GitHub Actions

SUMMARY = "GITHUB_STEP_SUMMARY"
ACTIONS = "GITHUB_ACTIONS"


class Reporter(Protocol):
    """The part of the controller that `GitHubJob` uses."""

    config: pytest.Config

    def uneventful(self, outcomes: Outcomes) -> bool: ...

    def report(self, outcomes: Mapping[str, str]) -> Report: ...


class GitHubJob:
    """Writes the step summary of a GitHub Actions job, and an annotation at each refused test.

    Registered in the controller, if one of the variables `SUMMARY` and `ACTIONS` is set.
    """

    def __init__(self, controller: Reporter, outcomes: Outcomes) -> None:
        self._controller, self._outcomes = controller, outcomes
        self._config = controller.config
        self._summary = os.environ.get(SUMMARY, "")
        self._annotates = os.environ.get(ACTIONS) == "true"
        self._places: dict[str, SourceLocation] = {}
        self._session: pytest.Session | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the file and line of a test that was refused a call."""
        if dict(report.user_properties).get("hfbudget.refused"):
            self._places[report.nodeid] = self._place(*report.location[:2])

    def _place(self, file: str, line: int | None) -> SourceLocation:
        from pytest_hfbudget.reporting.ci import SourceLocation

        workspace = os.environ.get("GITHUB_WORKSPACE") or self._config.invocation_params.dir
        path = os.path.relpath(self._config.rootpath / file, workspace)
        return SourceLocation(Path(path).as_posix(), (line or 0) + 1)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Keep the session: its exit status tells whether the run has passed."""
        self._session = session

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print an annotation for each refusal, which GitHub shows at the line of the test."""
        if self._annotates and (report := self._report()) is not None:
            from pytest_hfbudget.reporting.ci import notices

            terminalreporter.ensure_newline()
            green = self._session is not None and self._session.exitstatus == pytest.ExitCode.OK
            for line in notices(report, self._places, green=green):
                terminalreporter.write_line(line)

    # tryfirst: the outermost wrapper, so that the pauses are verified when its `yield` returns.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Append to the step summary, once. An error in doing so does not fail the run."""
        try:
            return (yield)
        finally:
            path, self._summary = self._summary, ""
            if path and (report := self._report()) is not None:
                self._append(Path(path), report)

    def _append(self, path: Path, report: Report) -> None:
        from pytest_hfbudget.reporting.ci import MOST_BYTES, step_summary

        text = step_summary(report).encode(errors="replace")
        try:
            before = path.stat().st_size if path.exists() else 0
            if before + len(text) < MOST_BYTES:
                with path.open("ab") as file:
                    file.write(text)
        except OSError as error:
            say(self._config, f"hfbudget: the step summary could not be written: {error}")

    def _report(self) -> Report | None:
        """The report of the run; None if it is empty."""
        if self._controller.uneventful(self._outcomes):
            return None
        report = self._controller.report(self._outcomes)
        return None if report.empty else report
