"""What a run writes down at its end: the JSON report, the terminal summary, the GitHub job."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.plugin.console import can_show, say
from pytest_hfbudget.reporting import Report, summary
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.controller import Controller
    from pytest_hfbudget.plugin.run import Run
    from pytest_hfbudget.reporting.github import RefusalPlace


def write(config: pytest.Config, report: Report, name: Path) -> None:
    """Write the JSON report; where that can't be done, say so and go on."""
    from pytest_hfbudget.reporting import json_report

    path = config.invocation_params.dir / name
    try:
        json_report.write(report, path)
    except OSError as error:
        say(config, f"hfbudget: the report {path} could not be written: {error}", red=True)


def show(
    terminal: Any, report: Report, blamed: Iterable[str], left: Iterable[str], file: Path | None
) -> None:
    """Print the section of a run.

    Args:
        blamed: refusals that belong to no test.
        left: what the budgets over many runs have left.
        file: where the JSON report is.
    """
    blocks = can_show("█░", sys.stdout.encoding)
    terminal.section("hf budget")
    for refusal in blamed:
        said = printable(refusal, keep="\n")
        terminal.write_line(f"refused outside of every test: {said}", red=True)
    for line in summary(report, blocks=blocks):
        terminal.write_line(printable(line.text), **({line.colour: True} if line.colour else {}))
    for budget in left:
        terminal.write_line(f"  {budget}")
    if file is not None:
        terminal.write_line(f"  report: {file}")


SUMMARY = "GITHUB_STEP_SUMMARY"


ACTIONS = "GITHUB_ACTIONS"


class GitHub:
    """Registered by the owner of a run, where one of the two variables is set."""

    def __init__(self, run: Run, owner: Controller) -> None:
        self.run, self.owner, self.config = run, owner, run.config
        self._summary = os.environ.get(SUMMARY, "")
        self._annotates = os.environ.get(ACTIONS) == "true"
        self._places: dict[str, RefusalPlace] = {}

    @classmethod
    def of(cls, run: Run) -> GitHub | None:
        """For the process that speaks for the run, inside of a job; otherwise None."""
        if not os.environ.get(SUMMARY) and os.environ.get(ACTIONS) != "true":
            return None
        from pytest_hfbudget.plugin.controller import Controller

        return cls(run, run.role) if isinstance(run.role, Controller) else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember where a test is that was refused a call."""
        if dict(report.user_properties).get("hfbudget.refused"):
            self._places[report.nodeid] = self._place(*report.location[:2])

    def _place(self, file: str, line: int | None) -> RefusalPlace:
        from pytest_hfbudget.reporting.github import RefusalPlace

        workspace = os.environ.get("GITHUB_WORKSPACE") or self.config.invocation_params.dir
        path = os.path.relpath(self.config.rootpath / file, workspace)
        return RefusalPlace(Path(path).as_posix(), (line or 0) + 1)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write an error for each refusal: GitHub shows it at the line of the test."""
        if self._annotates and (report := self._report()) is not None:
            from pytest_hfbudget.reporting.github import errors

            terminalreporter.ensure_newline()
            for line in errors(report, self._places):
                terminalreporter.write_line(line)

    # Outermost: when it goes on after its yield, the pauses are verified.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Append to the summary of the step, once. Failing at that fails no run."""
        try:
            return (yield)
        finally:
            path, self._summary = self._summary, ""
            if path and (report := self._report()) is not None:
                self._append(Path(path), report)

    def _append(self, path: Path, report: Report) -> None:
        from pytest_hfbudget.reporting.github import MOST_BYTES, step_summary

        text = step_summary(report).encode(errors="replace")
        try:
            before = path.stat().st_size if path.exists() else 0
            if before + len(text) < MOST_BYTES:
                with path.open("ab") as file:
                    file.write(text)
        except OSError as error:
            say(self.config, f"hfbudget: the step summary could not be written: {error}")

    def _report(self) -> Report | None:
        """The report of the run; None if it says nothing."""
        if self.owner.quiet or (report := self.owner.report(self.run.outcomes)).empty:
            return None
        return report
