"""Calls per second and microseconds per call for 1, 4 and 16 jobs on one redis-server.

Beside them the same jobs on one machine, over SQLite and with a session budget of their own.

    .venv/bin/python benchmarks/shared.py [CALLS]

Each job is a process that holds and settles CALLS calls (2000) in its ledger, without a network in
between. Needs redis-server (apt-get install redis-server).
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from redis_server import RedisServer

from pytest_hfbudget.history import RUN, BudgetWindow
from pytest_hfbudget.history.database import FILE, SqliteStore
from pytest_hfbudget.history.shared_store import JobNames, shared_ledger
from pytest_hfbudget.history.window_ledger import WindowLedger
from pytest_hfbudget.ledger import SESSION, Charge, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.shared import SharedAddress, SharedServer

CAP = 10**12
HOLD, COST = 20_000, 1_500
CALL = Charge("t", "chat", "m", "p", 0, 0, None, "", "200", False, 0.0)
DONE = CALL._replace(nano_usd=COST)


def over_redis(job: int, url: str, run: str) -> tuple[Ledger, tuple[str, ...], Callable[[], int]]:
    windows = (BudgetWindow(RUN, CAP),)
    server = SharedServer(SharedAddress(url))
    ledger = shared_ledger(server, JobNames(f"job{job}", run, ""), windows, expiry_s=30)
    return ledger, (windows[0].key, SESSION), lambda: server.trips


def over_sqlite(job: int, folder: str, run: str) -> Any:
    windows = (BudgetWindow("day", CAP),)
    ledger = WindowLedger(SqliteStore(Path(folder) / FILE, run, f"job{job}"), windows)
    return ledger, (windows[0].key, SESSION), lambda: 0


def alone(job: int, where: str, run: str) -> Any:
    return Ledger(), (SESSION,), lambda: 0


def job(make: Any, number: int, where: str, run: str, calls: int, start: Any, out: Any) -> None:
    ledger, keys, trips = make(number, where, run)
    ledger.open(Scope(SESSION, "session budget", CAP))
    start.wait()
    began = time.perf_counter()
    for _ in range(calls):
        hold = ledger.hold(keys, HOLD, HOLD, CALL)
        ledger.settle(hold.id, DONE)
    seconds = time.perf_counter() - began
    out.put((seconds, trips()))
    if hasattr(ledger, "close"):
        ledger.close()


def measure(name: str, make: Any, where: str, jobs: int, calls: int) -> None:
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(jobs), context.Queue()
    run = f"{name}-{jobs}"
    processes = [
        context.Process(target=job, args=(make, n, where, run, calls, start, out))
        for n in range(jobs)
    ]
    for process in processes:
        process.start()
    results = [out.get() for _ in processes]
    for process in processes:
        process.join()
    longest = max(seconds for seconds, _ in results)
    trips = sum(trip for _, trip in results) / (jobs * calls)
    per_call = sum(seconds for seconds, _ in results) / (jobs * calls) * 1e6
    print(
        f"{name:28} {jobs:3} jobs  {jobs * calls / longest:9,.0f} calls/s  "
        f"{per_call:8.1f} us/call  {trips:.4f} round trips/call"
    )


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            for jobs in (1, 4, 16):
                measure("one machine, own ledger", alone, "", jobs, calls)
                measure("one machine, SQLite", over_sqlite, folder, jobs, calls)
                measure("many machines, Redis", over_redis, server.url, jobs, calls)
        finally:
            server.close()


if __name__ == "__main__":
    main()
