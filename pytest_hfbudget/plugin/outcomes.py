"""Remembers how each test ended, and marks the tests that a used-up budget kept from running."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import BudgetExceededError, UnaffordableEndpointError
from pytest_hfbudget.settings import NOT_RUN

if TYPE_CHECKING:
    from pytest_hfbudget.errors import BudgetExceededError


STOPPED = "the budget of the run is used up (--hf-on-exhausted=stop)"

# The attribute of a test report that marks it; xdist sends it from a worker to the controller.
_MARK = "hfbudget_not_run"


def used_up_by(errors: Iterable[BaseException], keys: Collection[str]) -> BaseException | None:
    """The first of these errors that says that a budget of the run has too little left.

    Args:
        keys: the ledger's keys of the budgets of the run.
    """
    return next((error for error in errors if _used_up(error, keys)), None)


def mark(report: pytest.TestReport, item: pytest.Item, why: object) -> None:
    """Turn a report into "skipped: not run", since the code under test has not failed."""
    path, line, _ = item.reportinfo()
    report.outcome = "skipped"
    report.longrepr = (str(path), (line or 0) + 1, f"Skipped: {NOT_RUN}: {why}")
    vars(report).pop("wasxfail", None)  # it did not run, so it is neither xfail nor xpass
    setattr(report, _MARK, True)


def keep_for_next_time(config: pytest.Config, test: str) -> None:
    """Have ``--lf`` select a test that was not run, as if it had failed."""
    last = getattr(config.pluginmanager.get_plugin("lfplugin"), "lastfailed", None)
    if isinstance(last, dict):
        last[test] = True


def was_marked_not_run(report: Any) -> bool:
    """Whether a report, of this process or of a worker, was marked as not run."""
    return bool(getattr(report, _MARK, False))


def _used_up(error: BaseException, keys: Collection[str]) -> bool:
    if isinstance(error, BudgetExceededError):
        return error.used_up and error.scope_key in keys
    return isinstance(error, UnaffordableEndpointError)


INTERRUPTED = "interrupted"
FROM_BEST_TO_WORST = ("rerun", "passed", "skipped", NOT_RUN, "failed")


class Outcomes(Mapping[str, str]):
    """The outcome of each test, by node id.

    A test is ``interrupted`` from its set-up until its call is reported. A rerun starts over. If
    each worker runs all tests (``--dist each``), the worst outcome counts.
    """

    def __init__(self, *, each: bool) -> None:
        self._each, self._refused = each, False
        self._worst: dict[str, dict[str, str]] = {}

    @property
    def incomplete(self) -> bool:
        """Whether a used-up budget kept a test from running."""
        return self._refused and NOT_RUN in self.values()

    def note(self, report: pytest.TestReport) -> None:
        """Take in the report of one phase of a test, or of a subtest."""
        if report.outcome == "passed" and not self._each:
            if report.when == "teardown":
                return
            if report.when == "setup":
                self._worst[report.nodeid] = {"": INTERRUPTED}
                return
            if self._worst.get(report.nodeid) == {"": INTERRUPTED} and not is_part(report):
                self._worst[report.nodeid] = {"": "passed"}
                return
        worker = getattr(report, "worker_id", "") if self._each else ""
        of_test = self._worst.get(report.nodeid, {})
        outcome = NOT_RUN if was_marked_not_run(report) else str(report.outcome)
        self._refused |= outcome == NOT_RUN
        if report.when == "setup":
            of_test[worker] = INTERRUPTED if outcome == "passed" else outcome
        elif outcome != "passed" or (report.when == "call" and not is_part(report)):
            of_test[worker] = _worse(of_test.get(worker, INTERRUPTED), outcome)
        if of_test:
            self._worst[report.nodeid] = of_test

    def __getitem__(self, test: str) -> str:
        outcomes = list(self._worst[test].values())
        worst = outcomes[0]
        for outcome in outcomes[1:]:
            worst = INTERRUPTED if INTERRUPTED in (worst, outcome) else _worse(worst, outcome)
        return worst

    def __iter__(self) -> Iterator[str]:
        return iter(self._worst)

    def __len__(self) -> int:
        return len(self._worst)


def is_part(report: pytest.TestReport) -> bool:
    """Whether a report is of a subtest: the test itself goes on."""
    return hasattr(report, "context")


def _worse(one: str, other: str) -> str:
    return max(one, other, key=lambda outcome: _RANKS.get(outcome, -1))


_RANKS = {outcome: rank for rank, outcome in enumerate(FROM_BEST_TO_WORST)}
