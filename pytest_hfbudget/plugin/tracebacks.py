"""How a refusal is shown: the user's own lines and our sentence, not huggingface_hub's source."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError

if TYPE_CHECKING:
    from _pytest._code.code import Traceback, TracebackEntry

INSTALLED = ("site-packages", "dist-packages")
SENDERS = ("huggingface_hub", "pytest_hfbudget")

# On a report, where it travels from a worker to its controller.
_PLACE = "hfbudget_refused_at"


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
    if not place or config.option.tbstyle != "line":
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
