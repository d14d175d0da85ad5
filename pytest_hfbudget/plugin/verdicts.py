"""Decides how a test ends that was refused a call, and how pytest shows the refusal.

It shows the user's own lines and our sentence, not huggingface_hub's source.
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

# On a report, where it travels from a worker to its controller.
_PLACE = "hfbudget_refused_at"


def judge(
    run: Run, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Fail a test that was refused a call, also where its code swallowed the refusal.

    If it was a budget of the run that refused, the test was not run, unless it was to fail. Each
    subtest has a report of its own; what was refused to one was refused to the test as well.
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
    if report.failed:  # the exception that failed it may not say what to do
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
        yield from causes(call.excinfo.value)


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


class _HiddenRefusalError(Failed, bdb.BdbQuit):
    """A failure that has no place in the code to show, so that ``--pdb`` starts no debugger."""


def _give_up(why: str) -> None:
    raise _HiddenRefusalError(why, pytrace=False)


def _fail(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, why: str
) -> None:
    if report.outcome != "failed":  # else it says why already, at the line that called
        report.outcome, report.longrepr = "failed", why
        # Some plugins, as flaky, tell by this alone whether it failed.
        call.excinfo = pytest.CallInfo.from_call(lambda: _give_up(why), call.when).excinfo
        put_on_one_line(report, place_of(item))
        vars(report).pop("wasxfail", None)  # it failed for another reason than was expected


# --- tracebacks


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def shorten(
    item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException], report: pytest.TestReport
) -> None:
    """Show of a refusal that reached pytest where the user's code called, with ``--tb=auto``.

    Any other ``--tb`` shows what it always shows; ``--tb=line`` the user's line, too.
    """
    style = item.config.getoption("tbstyle", "auto")
    refused = [error for error in causes(excinfo.value) if isinstance(error, HFBudgetError)]
    full = item.config.getoption("fulltrace", False)
    if not refused or full or not isinstance(item, pytest.Function):
        return
    if isinstance(excinfo.value, pytest.fail.Exception) and not excinfo.value.pytrace:
        return  # of these pytest shows the sentence alone
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
    """Have ``--tb=line`` show the report's sentence once, behind a place such as ``file:line``."""
    setattr(report, _PLACE, place)


def place_of(item: pytest.Item) -> str:
    """Where a test begins."""
    path, line, _ = item.reportinfo()
    return f"{_relative(item, path)}:{(line or 0) + 1}"


def as_printed(config: pytest.Config, report: Any) -> None:
    """Prepare a report for the terminal of this process, which cuts a sentence short."""
    place = getattr(report, _PLACE, "")
    if not place or config.getoption("tbstyle", "auto") != "line":
        return
    if config.pluginmanager.hasplugin("terminalreporter"):  # a worker hands its reports on
        report.longrepr = OneLine(place, report.longrepr, config)


class Crash:
    """The line that ``--tb=line`` prints of a failure."""

    def __init__(self, place: str, message: str) -> None:
        self.path, _, line = place.rpartition(":")
        self.lineno, self.message = int(line), message

    def __str__(self) -> str:
        return f"{self.path}:{self.lineno}: {self.message}"


class OneLine:
    """A sentence that a terminal under ``--tb=line`` prints in its crash line, and only there."""

    def __init__(self, place: str, sentence: str, config: pytest.Config) -> None:
        self.reprcrash, self._terminal = Crash(place, sentence), config.get_terminal_writer()

    def toterminal(self, writer: Any) -> None:
        """Write the sentence for everybody else who asks: a report in XML, in HTML."""
        if writer is not self._terminal:
            writer.line(self.reprcrash.message)

    def __str__(self) -> str:
        return self.reprcrash.message


def _shown(item: pytest.Function, excinfo: pytest.ExceptionInfo[BaseException]) -> Traceback:
    """Of a refusal the line of the test and the one that called; of other errors what pytest shows.

    Args:
        excinfo: one error of a chain.
    """
    if not isinstance(excinfo.value, HFBudgetError):
        return item._traceback_filter(excinfo)
    first, *rest = _own(excinfo)
    ends = (first, *rest[-1:])
    return type(excinfo.traceback)(entry.with_repr_style("short") for entry in ends)


def _own(excinfo: pytest.ExceptionInfo[BaseException]) -> Iterator[TracebackEntry]:
    """The steps in code of the user's own; where there is none, those outside of the senders."""
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
