"""How a phase of a test ended, as far as its budgets have a say in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import HFBudgetWarning
from pytest_hfbudget.plugin import exhaustion

if TYPE_CHECKING:
    from pytest_hfbudget.errors import BudgetExceededError
    from pytest_hfbudget.plugin.run import Run


def judge(
    run: Run, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Fail a test that was refused a call, also where its code swallowed the refusal.

    If it was a budget of the run that refused, the test was not run, unless it was to fail.
    """
    if report.when == "call" and report.passed and (paused := run.paused(item)):
        _fail(report, paused)
    test = run.charging.test()
    on_exceed = test.on_exceed if test else "fail"
    refusals = list(test.refusals) if test else []
    if test:
        test.refusals.clear()
    warned = list(_warn(run, item))
    handled = on_exceed == "raise" and report.passed
    if run.settings.on_exhausted != "fail" and not handled:
        errors = chain(refusals, run.needs.take_blocked(), _raised_before_the_test(call))
        if (error := exhaustion.used_up_by(errors, run.budgets())) is not None:
            exhaustion.mark(report, item, error)
            run.role.use_up()
            return
    if refusals and on_exceed != "raise":
        _fail(report, _swallowed(refusals))
    if dearer := run.charging.dearer(item, report):
        _fail(report, dearer)
    if (beyond := run.needs.beyond()) is not None:
        _fail(report, beyond)
    if warned:
        _fail(report, warned[0])


def _raised_before_the_test(call: pytest.CallInfo[None]) -> Iterator[BaseException]:
    """What stopped a test's set-up; a shared fixture raises to each test what it once was told."""
    if call.when == "setup" and call.excinfo is not None:
        yield from exhaustion.chain(call.excinfo.value)


def _warn(run: Run, item: pytest.Item) -> Iterator[str]:
    """Raise the warnings that are due, in the test that crossed; yields those that are errors."""
    path, line, _ = item.reportinfo()
    for text in run.charging.take_notices():
        try:
            warnings.warn_explicit(text, HFBudgetWarning, str(path), (line or 0) + 1)
        except HFBudgetWarning as error:
            yield f"{type(error).__name__}: {error}"


def _swallowed(refusals: list[BudgetExceededError]) -> str:
    refusal, *more = refusals
    also = f" ({len(more)} more calls were refused)" if more else ""
    return f"refused, though the test went on: {refusal}{also}"


def _fail(report: pytest.TestReport, why: str) -> None:
    if report.outcome != "failed":  # else it says why already, at the line that called
        report.outcome, report.longrepr = "failed", why
        vars(report).pop("wasxfail", None)  # it failed for another reason than was expected
