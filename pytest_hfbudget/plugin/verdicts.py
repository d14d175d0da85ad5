"""How a test ended, as far as its budgets have a say in it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import BudgetExceededError, HFBudgetWarning, UnaffordableEndpointError
from pytest_hfbudget.plugin import tracebacks
from pytest_hfbudget.reporting.model import NOT_RUN

if TYPE_CHECKING:
    from pytest_hfbudget.errors import BudgetExceededError
    from pytest_hfbudget.plugin.run import Run


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


INTERRUPTED = "interrupted"


FROM_BEST_TO_WORST = ("rerun", "passed", "skipped", NOT_RUN, "failed")


class Outcomes(Mapping[str, str]):
    """By node id; of one that several workers run (``--dist each``) the worst of all.

    A test begins anew with its set-up, and is interrupted until the end of its call is told.
    """

    def __init__(self, *, each: bool) -> None:
        self._each = each
        self._worst: dict[str, dict[str, str]] = {}

    def note(self, report: pytest.TestReport) -> None:
        """Take in what is told of one phase, or of a part of one."""
        worker = getattr(report, "worker_id", "") if self._each else ""
        of_test = self._worst.get(report.nodeid, {})
        outcome = NOT_RUN if marked(report) else str(report.outcome)
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


def judge(
    run: Run, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Fail a test that was refused a call, also where its code swallowed the refusal.

    If it was a budget of the run that refused, the test was not run, unless it was to fail. Each
    subtest has a report of its own; what was refused to one was refused to the test as well.
    """
    if call.excinfo is not None and report.failed:
        tracebacks.shorten(item, call.excinfo, report)
    if report.when == "call" and report.passed and (paused := run.paused(item)):
        _fail(item, report, paused)
    test = run.charging.test()
    on_exceed = test.on_exceed if test else "fail"
    subtest = run.charging.called
    refusals = test.take_refusals(of_subtest=subtest) if test else []
    warned = list(_warn(run, item))
    handled = on_exceed == "raise" and report.passed
    if run.settings.on_exhausted != "fail" and not handled:
        raised = _raised(call) if subtest or call.when == "setup" else ()
        errors = itertools.chain(refusals, run.needs.take_blocked(), raised)
        if (error := used_up_by(errors, run.budgets())) is not None:
            mark(report, item, error)
            run.role.use_up()
            return
    if refusals and on_exceed != "raise":
        _fail(item, report, _hidden(refusals, report))
    if dearer := run.charging.dearer(item, report):
        _fail(item, report, dearer)
    if (beyond := run.needs.beyond()) is not None:
        _fail(item, report, beyond)
    if warned:
        _fail(item, report, warned[0])


def _raised(call: pytest.CallInfo[None]) -> Iterator[BaseException]:
    """What stopped a set-up, or a subtest, though it is not among what was refused to it.

    A shared fixture raises to each test what it once was told. Before Python 3.11 unittest reports
    subtests at the end of their test: the first has all the refusals then.
    """
    if call.excinfo is not None:
        yield from chain(call.excinfo.value)


def _warn(run: Run, item: pytest.Item) -> Iterator[str]:
    """Raise the warnings that are due, in the test that crossed; yields those that are errors."""
    path, line, _ = item.reportinfo()
    for text in run.charging.take_notices():
        try:
            warnings.warn_explicit(text, HFBudgetWarning, str(path), (line or 0) + 1)
        except HFBudgetWarning as error:
            yield f"{type(error).__name__}: {error}"


def _hidden(refusals: list[BudgetExceededError], report: pytest.TestReport) -> str:
    """What to say of refusals that would not fail a test otherwise, and how to let it have them."""
    refusal, *more = refusals
    calls = "1 more call was" if len(more) == 1 else f"{len(more)} more calls were"
    also = f" {calls} refused." if more else ""
    return (
        f"refused, though {_ending(report)}: {refusal}{also} "
        "If the test is to handle refusals itself, mark it with "
        '@pytest.mark.budget(on_exceed="raise").'
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
