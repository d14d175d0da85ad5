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

    If it was a budget of the run that refused, the test was not run, unless it was to fail. Each
    subtest has a report of its own; what was refused to one was refused to the test as well.
    """
    if report.when == "call" and report.passed and (paused := run.paused(item)):
        _fail(report, paused)
    test = run.charging.test()
    on_exceed = test.on_exceed if test else "fail"
    subtest = run.charging.called
    refusals = test.take_refusals(of_subtest=subtest) if test else []
    warned = list(_warn(run, item))
    handled = on_exceed == "raise" and report.passed
    if run.settings.on_exhausted != "fail" and not handled:
        raised = _raised(call) if subtest or call.when == "setup" else ()
        errors = chain(refusals, run.needs.take_blocked(), raised)
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


def _raised(call: pytest.CallInfo[None]) -> Iterator[BaseException]:
    """What stopped a set-up, or a subtest, though it is not among what was refused to it.

    A shared fixture raises to each test what it once was told. Before Python 3.11 unittest reports
    subtests at the end of their test: the first has all the refusals then.
    """
    if call.excinfo is not None:
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
