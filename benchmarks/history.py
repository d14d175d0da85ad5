"""What the history costs: a budget over many runs per call, and the usage log per run.

python benchmarks/history.py [calls]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pytest_hfbudget.history import BudgetWindow
from pytest_hfbudget.history.database import SqliteStore
from pytest_hfbudget.history.usage_log import LoggedRun, LogReader, UsageLog, UsageQuery, entries
from pytest_hfbudget.history.window_ledger import WindowLedger
from pytest_hfbudget.ledger import Charge, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.reporting import Report

CALL = Charge("t.py::test", "chat", "org/model", "groq", 10, 20, 1500, "p", "200", False, 0.1)


def calls_per_second(ledger: Ledger, keys: tuple[str, ...], calls: int) -> tuple[float, float]:
    """Median and 99th percentile of a hold and its settlement, in microseconds."""
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        ledger.settle(ledger.hold(keys, 20_000, 20_000, CALL).id, CALL)
        times.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(times), sorted(times)[int(len(times) * 0.99)]


def timed(work: Callable[[], object]) -> float:
    """Seconds of a piece of work."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main(calls: int) -> None:
    """Print a line for each figure."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        plain, session = Ledger(), Scope("session", "session budget", 10**15)
        windows = (BudgetWindow("day", 10**15), BudgetWindow("month", 10**15))
        shared = WindowLedger(SqliteStore(folder / "budgets.sqlite3", "project", "run"), windows)
        for name, ledger, keys in (
            ("a session budget", plain, ("session",)),
            ("and a daily and a monthly one", shared, ("window:day", "window:month", "session")),
        ):
            ledger.open(session)
            median, slow = calls_per_second(ledger, keys, calls)
            print(f"hold + settle, {name}: {median:.0f} us, p99 {slow:.0f} us")
        now = time.time()
        report = Report(spent=0, cap=None, calls=calls, refused=0, charges=(CALL,) * calls)
        run, log = LoggedRun("run", "project", now - 60, now), UsageLog(folder / "log.sqlite3")
        seconds = timed(lambda: log.write(run, entries(report, run), keep_days=90))
        size = (folder / "log.sqlite3").stat().st_size
        print(f"{calls} calls logged in {seconds:.3f} s, {size / calls:.0f} bytes each")
        answers = LogReader(folder / "log.sqlite3")
        seconds = timed(lambda: answers.totals(UsageQuery(), "model"))
        print(f"summed up by model in {seconds:.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
