"""How a test ended, as far as its budgets have a say in it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetWarning
from pytest_hfbudget.plugin import options, tracebacks
from pytest_hfbudget.plugin.outcomes import mark, used_up_by

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
    if call.excinfo is not None and report.failed:
        tracebacks.shorten(item, call.excinfo, report)
    if run.quiet:
        return
    if report.when == "call" and report.passed and (paused := _paused(run, item)):
        _fail(item, report, paused)
    test = run.attribution.test()
    on_exceed = test.on_exceed if test else "fail"
    subtest = run.attribution.called
    refusals = test.take_refusals(of_subtest=subtest) if test else []
    warned = list(_warn(run, item))
    handled = on_exceed == "raise" and report.passed
    if run.settings.on_exhausted != "fail" and not handled:
        raised = _raised(call) if subtest or call.when == "setup" else ()
        errors = itertools.chain(refusals, run.requirements.take_blocked(), raised)
        if (error := used_up_by(errors, _budgets(run))) is not None:
            mark(report, item, error)
            run.role.use_up()
            return
    if refusals and on_exceed != "raise":
        _fail(item, report, _hidden(refusals, report))
    if costlier := _costlier(run, item, report):
        _fail(item, report, costlier)
    if (beyond := run.requirements.beyond()) is not None:
        _fail(item, report, beyond)
    if warned:
        _fail(item, report, warned[0])


def _budgets(run: Run) -> tuple[str, ...]:
    """The keys of the budgets that are the run's own, and no test's."""
    if run.runtime is None:
        return ()
    budgets = run.runtime.meter.budgets
    return (budgets.session.key, *(scope.key for scope in budgets.over_runs))


def _costlier(run: Run, item: pytest.Item, report: pytest.TestReport) -> str | None:
    """Why a test fails for what it costs, if --hf-max-increase was given and it does."""
    test = run.attribution.test()
    if run.settings.max_increase is None or run.runtime is None or test is None:
        return None
    run.runtime.meter.drain()
    ledger = run.runtime.meter.ledger
    return run.recording.costlier(item, report, ledger, test.scopes[-1].key)


def _paused(run: Run, item: pytest.Item) -> str | None:
    """Why an endpoint of a test is not running any more, if that is so."""
    if item.get_closest_marker("hf_endpoint") is None or options.only_look(
        run.config, run.settings
    ):
        return None
    from pytest_hfbudget.plugin.markers import endpoints

    said = (run.role.paused(name) for name in endpoints(item, run.settings))
    return next((text for text in said if text), None)


def _raised(call: pytest.CallInfo[None]) -> Iterator[BaseException]:
    """What stopped a set-up, or a subtest, though it is not among what was refused to it.

    A shared fixture raises to each test what it once was told. Before Python 3.11 unittest reports
    subtests at the end of their test: the first has all the refusals then.
    """
    if call.excinfo is not None:
        yield from tracebacks.causes(call.excinfo.value)


def _warn(run: Run, item: pytest.Item) -> Iterator[str]:
    """Raise the warnings that are due, in the test that crossed; yields those that are errors."""
    notices = run.attribution.take_notices()
    if not notices:
        return  # pytest takes longer to find the place than the rest of a quiet test's verdict
    path, line, _ = item.reportinfo()
    for text in notices:
        try:
            warnings.warn_explicit(text, HFBudgetWarning, str(path), (line or 0) + 1)
        except HFBudgetWarning as error:
            yield f"{type(error).__name__}: {error}"


def _hidden(refusals: list[BudgetExceededError], report: pytest.TestReport) -> str:
    """What to say of refusals that would not fail a test otherwise, and how to let it have them."""
    refusal, *more = refusals
    calls = "1 more call was" if len(more) == 1 else f"{len(more)} more calls were"
    also = f" {calls} refused." if more else ""
    details = f"\n{refusal.details}" if refusal.details else ""
    return (
        f"refused, though {_ending(report)}: {refusal}{also} "
        "If the test is to handle refusals itself, mark it with "
        f'@pytest.mark.budget(on_exceed="raise").{details}'
    )


def _ending(report: pytest.TestReport) -> str:
    """How a phase ended that did not fail."""
    if hasattr(report, "wasxfail"):
        return "the test was expected to fail (xfail)"
    what = {"setup": "the set-up", "teardown": "the tear-down"}.get(str(report.when), "the test")
    return f"{what} {'was skipped' if report.skipped else 'passed'}"


def _fail(item: pytest.Item, report: pytest.TestReport, why: str) -> None:
    if report.outcome != "failed":  # else it says why already, at the line that called
        report.outcome, report.longrepr = "failed", why
        tracebacks.put_on_one_line(report, tracebacks.place_of(item))
        vars(report).pop("wasxfail", None)  # it failed for another reason than was expected
