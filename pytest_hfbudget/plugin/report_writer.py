"""What a run leaves behind at its end: a JSON file, a row in the usage log, terminal lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.console import amounts, can_show, columns, say
from pytest_hfbudget.plugin.events import Announcer
from pytest_hfbudget.settings import NOT_RUN, Settings
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from pytest_hfbudget.metering.prompts import Fact
    from pytest_hfbudget.reporting import Report


class ReportWriter:
    """Writes the report of one run to wherever it is wanted.

    Attributes:
        announcer: tells other plugins what happens.
        blamed: refusals that belong to no test; each fails the run.
    """

    def __init__(self, config: pytest.Config, run_id: str, started: float) -> None:
        """``started`` is the time at which the run began, in unix seconds."""
        self._config, self._run_id, self._started = config, run_id, started
        self.announcer = Announcer(config)
        self.blamed: list[str] = []
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
            make: makes the report, which takes a moment.
            learned: returns what servers have counted in this run.
        """
        self._why_red = self._reason(outcomes, make) if eventful or self.blamed else ""
        # A look spends nothing, and what the last run has spent is worth keeping.
        if settings.report is not None and not options.only_look(self._config, settings):
            self._write(make(), settings.report)
        if eventful:
            from pytest_hfbudget.plugin import run_history

            begun, report = (self._run_id, self._started), make()
            run_history.add_to_log(self._config, settings, *begun, report, learned())
            run_history.share_report(self._config, settings, self._run_id, report)

    def _reason(self, outcomes: Mapping[str, str], make: Callable[[], Report]) -> str:
        """Why the run fails, as far as budgets are the reason."""
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
        if self.blamed and "failed" not in found:
            calls = "1 call was" if len(self.blamed) == 1 else f"{len(self.blamed)} calls were"
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
        """Print the section of a run."""
        from pytest_hfbudget.reporting.terminal import summary

        blocks = can_show("█░", sys.stdout.encoding)
        terminal.write_sep("=", "hf budget")
        for refusal in self.blamed:
            said = printable(refusal, keep="\n")
            terminal.write_line(f"refused outside of every test: {said}", red=True)
        width, usd = columns(self._config), amounts(self._config)
        for line in summary(report, blocks=blocks, width=width, usd=usd):
            colour = {line.colour: True} if line.colour else {}
            terminal.write_line(printable(line.text), **colour)
        for budget in report.over_runs:
            terminal.write_line(f"  {budget.line}")
        if report.on_the_bill:
            terminal.write_line(f"  session id: {report.session_id} (hfbudget bill)")
        if self._written is not None:
            terminal.write_line(f"  report: {self._written}")

    def last_line(self) -> None:
        """Say why the run fails: the last lines are what people read first."""
        if self._why_red:
            say(self._config, f"hfbudget: the run failed: {self._why_red}", red=True, bold=True)
