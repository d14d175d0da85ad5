"""A run inside of a GitHub Actions job: its step summary, and a line at each refused test."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.plugin.console import say

if TYPE_CHECKING:
    from pytest_hfbudget.plugin.controller import Controller
    from pytest_hfbudget.plugin.run import Run
    from pytest_hfbudget.reporting import Report
    from pytest_hfbudget.reporting.github import RefusalPlace


SUMMARY = "GITHUB_STEP_SUMMARY"
ACTIONS = "GITHUB_ACTIONS"


class GitHub:
    """Registered by the controller of a run, where one of the two variables is set."""

    def __init__(self, run: Run, controller: Controller) -> None:
        self.run, self.controller, self.config = run, controller, run.config
        self._summary = os.environ.get(SUMMARY, "")
        self._annotates = os.environ.get(ACTIONS) == "true"
        self._places: dict[str, RefusalPlace] = {}
        self._session: pytest.Session | None = None

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

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Keep the session, which knows at its end whether the run is green."""
        self._session = session

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write an error or a warning for each refusal: GitHub shows it at the line of the test."""
        if self._annotates and (report := self._report()) is not None:
            from pytest_hfbudget.reporting.github import notices

            terminalreporter.ensure_newline()
            green = self._session is not None and self._session.exitstatus == pytest.ExitCode.OK
            for line in notices(report, self._places, green=green):
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
        """The report of the run; None if it is empty."""
        if self.controller.uneventful(self.run.outcomes):
            return None
        report = self.controller.report(self.run.outcomes)
        return None if report.empty else report
