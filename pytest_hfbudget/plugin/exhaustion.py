"""What becomes of a test when a budget of the run has too little left for one of its calls.

The session budget, and those over many runs, are used up for a call that they refuse. There is no
state beyond that: whoever calls less may still fit, and a test that never calls has nothing to do
with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pytest

from pytest_hfbudget.errors import BudgetExceededError, UnaffordableEndpointError

NOT_RUN = "not run"  # as an outcome in the report
STOPPED = "the budget of the run is used up (--hf-on-exhausted=stop)"

# On a report, where it travels from a worker to its controller.
_MARK = "hfbudget_not_run"


def used_up_by(errors: Iterable[BaseException], keys: Collection[str]) -> BaseException | None:
    """The first of these errors that says that one of these budgets had too little left."""
    return next((error for error in errors if _used_up(error, keys)), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def mark(report: pytest.TestReport, item: pytest.Item, why: object) -> None:
    """Make a report one of a test that was not run, which is no failure of what it tests."""
    path, line, _ = item.reportinfo()
    report.outcome = "skipped"
    report.longrepr = (str(path), (line or 0) + 1, f"Skipped: {NOT_RUN}: {why}")
    vars(report).pop("wasxfail", None)  # it did not fail as expected: nobody knows
    setattr(report, _MARK, True)


def keep_for_next_time(config: pytest.Config, test: str) -> None:
    """Have ``--lf`` select a test that was not run, and not forget that it failed before."""
    last = getattr(config.pluginmanager.get_plugin("lfplugin"), "lastfailed", None)
    if isinstance(last, dict):
        last[test] = True


def marked(report: Any) -> bool:
    """Whether a report, of this process or of a worker, says so."""
    return bool(getattr(report, _MARK, False))


def _used_up(error: BaseException, keys: Collection[str]) -> bool:
    if isinstance(error, BudgetExceededError):
        return error.used_up and error.scope_key in keys
    return isinstance(error, UnaffordableEndpointError)
