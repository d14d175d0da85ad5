"""What becomes of a test when the session budget has too little left for one of its calls.

The session budget is used up for a call that it refuses. There is no state beyond that: whoever
calls less may still fit, and a test that never calls has nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pytest_hfbudget.errors import BudgetExceededError, UnaffordableEndpointError

NOT_RUN = "not run"  # as an outcome in the report
REASON = "not run: session budget"
STOPPED = "the session budget is used up (--hf-on-exhausted=stop)"

# On a report, where it travels from a worker to its controller.
_MARK = "hfbudget_not_run"


def used_up_by(errors: Iterable[BaseException]) -> BaseException | None:
    """The first of these errors that says that the session budget had too little left."""
    return next(filter(_used_up, errors), None)


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
    said = str(why).removeprefix("session budget: ")  # the reason begins with it already
    report.outcome = "skipped"
    report.longrepr = (str(path), (line or 0) + 1, f"Skipped: {REASON}: {said}")
    vars(report).pop("wasxfail", None)  # it did not fail as expected: nobody knows
    setattr(report, _MARK, True)


def marked(report: Any) -> bool:
    """Whether a report, of this process or of a worker, says so."""
    return bool(getattr(report, _MARK, False))


def _used_up(error: BaseException) -> bool:
    from pytest_hfbudget.ledger.scope import SESSION

    if isinstance(error, BudgetExceededError):
        return error.used_up and error.scope_key == SESSION
    return isinstance(error, UnaffordableEndpointError)
