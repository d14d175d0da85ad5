"""Fails or skips a test that was refused a call, and has pytest show the refusal.

pytest then shows the lines of the user's code and our message, not the source of huggingface_hub.
"""

from __future__ import annotations

import bdb
import functools
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError, HFBudgetWarning, ServiceRefusalError
from pytest_hfbudget.plugin import options
from pytest_hfbudget.plugin.outcomes import mark, used_up_by

if TYPE_CHECKING:
    from _pytest._code.code import Traceback, TracebackEntry
    from _pytest.outcomes import Failed

    from pytest_hfbudget.errors import BudgetExceededError
    from pytest_hfbudget.plugin.run import Run

else:
    Failed = pytest.fail.Exception

INSTALLED = ("site-packages", "dist-packages")
SENDERS = ("huggingface_hub", "pytest_hfbudget")

# The attribute of a test report for the place of a refusal; xdist sends it to the controller.
_PLACE = "hfbudget_refused_at"


def judge(
    run: Run, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Fail a test that was refused a call, even if its code swallowed the refusal.

    If a budget of the run refused the call, the test counts as not run, unless
    ``--hf-on-exhausted=fail``. A subtest is judged by its own report; its refusals count for the
    test as well.
    """
    if call.excinfo is not None and report.failed:
        shorten(item, call.excinfo, report)
    if not run.awake:
        return
    if report.when == "call" and report.passed and (paused := _paused(run, item)):
        _fail(item, call, report, paused)
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
    if report.failed:  # add our messages, because the exception itself may not say what to do
        told = (str(each) for each in refusals if isinstance(each, ServiceRefusalError))
        report.sections.extend(("hf budget", text) for text in told)
    if refusals and on_exceed != "raise":
        _fail(item, call, report, _hidden(refusals, report))
    if costlier := _costlier(run, item, report):
        _fail(item, call, report, costlier)
    if (beyond := run.requirements.beyond()) is not None:
        _fail(item, call, report, beyond)
    if warned:
        _fail(item, call, report, warned[0])


def _budgets(run: Run) -> tuple[str, ...]:
    """The ledger's keys of the budgets on the whole run."""
    if run.runtime is None:
        return ()
    budgets = run.runtime.meter.budgets
    return (budgets.session.key, *(scope.key for scope in budgets.over_runs))


def _costlier(run: Run, item: pytest.Item, report: pytest.TestReport) -> str | None:
    """Why a test fails --hf-max-increase; None if it does not, or without that option."""
    test = run.attribution.test()
    if run.settings.max_increase is None or run.runtime is None or test is None:
        return None
    run.runtime.meter.drain()
    ledger = run.runtime.meter.ledger
    return run.costs_recorder.costlier(item, report, ledger, test.scopes[-1].key)


def _paused(run: Run, item: pytest.Item) -> str | None:
    """Why an endpoint of a test was paused early; None if none was."""
    if item.get_closest_marker("hf_endpoint") is None or options.only_look(
        run.config, run.settings
    ):
        return None
    from pytest_hfbudget.plugin.markers import endpoints

    said = (run.role.paused(name) for name in endpoints(item, run.settings))
    return next((text for text in said if text), None)


def _raised(call: pytest.CallInfo[None]) -> Iterator[BaseException]:
    """The exception that stopped a set-up or a subtest, and its causes.

    The test's own list of refusals may lack it. A shared fixture raises its one refusal again for
    each test. Before Python 3.11, unittest reports all subtests at the end of their test, and the
    first report takes all refusals.
    """
    if call.excinfo is not None:
        yield from causes(call.excinfo.value)


def _warn(run: Run, item: pytest.Item) -> Iterator[str]:
    """Issue the ``warn_at`` warnings of a test; yields those that ``-W error`` makes errors."""
    notices = run.attribution.take_notices()
    if not notices:
        return  # `reportinfo` is slow, and most tests have no warning
    path, line, _ = item.reportinfo()
    for text in notices:
        try:
            warnings.warn_explicit(text, HFBudgetWarning, str(path), (line or 0) + 1)
        except HFBudgetWarning as error:
            yield f"{type(error).__name__}: {error}"


def _hidden(refusals: list[BudgetExceededError], report: pytest.TestReport) -> str:
    """The message for refusals that the test swallowed; says how a test may handle refusals."""
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
    """How a phase that did not fail ended, in words."""
    if hasattr(report, "wasxfail"):
        return "the test was expected to fail (xfail)"
    what = {"setup": "the set-up", "teardown": "the tear-down"}.get(str(report.when), "the test")
    return f"{what} {'was skipped' if report.skipped else 'passed'}"


class _HiddenRefusalError(Failed, bdb.BdbQuit):
    """A failure without a line of code to show; as a `BdbQuit`, ``--pdb`` starts no debugger."""


def _give_up(why: str) -> None:
    raise _HiddenRefusalError(why, pytrace=False)


def _fail(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, why: str
) -> None:
    if report.outcome != "failed":  # a failed report already shows why, at the line of the call
        report.outcome, report.longrepr = "failed", why
        # Some plugins, such as flaky, look only at `excinfo` to see whether a test failed.
        call.excinfo = pytest.CallInfo.from_call(lambda: _give_up(why), call.when).excinfo
        put_on_one_line(report, place_of(item))
        vars(report).pop("wasxfail", None)  # it did not fail for the expected reason


# --- tracebacks


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors in its chain of causes and contexts."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def shorten(
    item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException], report: pytest.TestReport
) -> None:
    """Shorten the traceback of a refusal to the user's own lines, for ``--tb=auto``.

    With ``--tb=line``, show the user's line. Any other ``--tb`` is left as it is.
    """
    style = item.config.getoption("tbstyle", "auto")
    refused = [error for error in causes(excinfo.value) if isinstance(error, HFBudgetError)]
    full = item.config.getoption("fulltrace", False)
    if not refused or full or not isinstance(item, pytest.Function):
        return
    if isinstance(excinfo.value, pytest.fail.Exception) and not excinfo.value.pytrace:
        return  # pytest shows only the message of these
    if style == "line" and refused[0] is excinfo.value:
        entry = list(_own(excinfo))[-1]
        report.longrepr = excinfo.exconly()
        put_on_one_line(report, f"{_relative(item, entry.path)}:{entry.lineno + 1}")
    elif style == "auto":
        report.longrepr = excinfo.getrepr(
            style="long",
            showlocals=item.config.getoption("showlocals", False),
            abspath=os.getcwd() != str(item.config.invocation_params.dir),
            tbfilter=lambda each: _shown(item, each),
        )


def put_on_one_line(report: pytest.TestReport, place: str) -> None:
    """Have ``--tb=line`` show the report's message once, after ``place`` (``file:line``)."""
    setattr(report, _PLACE, place)


def place_of(item: pytest.Item) -> str:
    """The ``file:line`` at which a test begins."""
    path, line, _ = item.reportinfo()
    return f"{_relative(item, path)}:{(line or 0) + 1}"


def as_printed(config: pytest.Config, report: Any) -> None:
    """Under ``--tb=line``, replace a report's message by one that pytest does not cut short."""
    place = getattr(report, _PLACE, "")
    if not place or config.getoption("tbstyle", "auto") != "line":
        return
    if config.pluginmanager.hasplugin("terminalreporter"):  # a worker hands its reports on
        report.longrepr = OneLine(place, report.longrepr, config)


class Crash:
    """The line that ``--tb=line`` prints for a failure."""

    def __init__(self, place: str, message: str) -> None:
        self.path, _, line = place.rpartition(":")
        self.lineno, self.message = int(line), message

    def __str__(self) -> str:
        return f"{self.path}:{self.lineno}: {self.message}"


class OneLine:
    """A message that ``--tb=line`` prints in its crash line, and not a second time above it."""

    def __init__(self, place: str, sentence: str, config: pytest.Config) -> None:
        self.reprcrash, self._terminal = Crash(place, sentence), config.get_terminal_writer()

    def toterminal(self, writer: Any) -> None:
        """Write the message for other reports, as JUnit XML; the terminal has it already."""
        if writer is not self._terminal:
            writer.line(self.reprcrash.message)

    def __str__(self) -> str:
        return self.reprcrash.message


def _shown(item: pytest.Function, excinfo: pytest.ExceptionInfo[BaseException]) -> Traceback:
    """The traceback entries to show for one error of a chain.

    For a refusal: the line of the test, and the last line of user code. For other errors: what
    pytest would show.
    """
    if not isinstance(excinfo.value, HFBudgetError):
        return item._traceback_filter(excinfo)
    first, *rest = _own(excinfo)
    ends = (first, *rest[-1:])
    return type(excinfo.traceback)(entry.with_repr_style("short") for entry in ends)


def _own(excinfo: pytest.ExceptionInfo[BaseException]) -> Iterator[TracebackEntry]:
    """The entries in the user's code; if there are none, the last one outside of `SENDERS`."""
    steps = excinfo.traceback
    others = [step for step in steps if not _of(step, SENDERS)]
    own = [step for step in others if _is_own(str(step.path))]
    return iter(own or others[-1:] or steps[-1:])


def _of(step: TracebackEntry, packages: Iterable[str]) -> bool:
    name = str(step.frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in packages


@functools.cache
def _libraries() -> tuple[str, ...]:
    """The folders of the standard library."""
    import sysconfig  # takes 3 ms that only a failure needs

    return tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})


def _is_own(path: str) -> bool:
    installed = any(folder in path.split(os.sep) for folder in INSTALLED)
    return not installed and not path.startswith(("<", *_libraries()))


def _relative(item: pytest.Item, path: object) -> str:
    return os.path.relpath(str(path), item.config.invocation_params.dir)
