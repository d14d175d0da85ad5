"""Runs of one project as their ledgers, over one file, at a time that the test decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_hfbudget.history import BudgetWindow
from pytest_hfbudget.history.database import FILE, SqliteStore
from pytest_hfbudget.history.window_ledger import WindowLedger
from pytest_hfbudget.ledger import SESSION, Charge, Hold, Scope

DAY_S = 86_400
NOON = 20_000 * DAY_S + DAY_S // 2  # of 2024-10-04, a Friday


def charge(nano_usd: int | None = None, **more: object) -> Charge:
    """A call, settled if it has an amount."""
    fields = {
        "test": "test_a.py::test_a",
        "task": "conversational",
        "model": "org/model",
        "provider": "groq",
        "input_tokens": 0,
        "output_tokens": 0,
        "nano_usd": nano_usd,
        "price_source": "",
        "status": "200",
        "estimated": False,
        "seconds": 0.0,
        **more,
    }
    return Charge(**fields)  # type: ignore[arg-type]


class Run:
    """One run: what it calls is in every window, and in its session."""

    def __init__(self, store: SqliteStore, windows: tuple[BudgetWindow, ...]) -> None:
        self.store, self.ledger = store, WindowLedger(store, windows)
        self.ledger.open(Scope(SESSION, "session budget"))
        self.keys = (*(window.key for window in windows), SESSION)

    def hold(self, least: int, most: int | None = None) -> Hold:
        return self.ledger.hold(self.keys, least, most or least, charge())

    def settle(self, hold: Hold, nano_usd: int) -> None:
        self.ledger.settle(hold.id, charge(nano_usd))

    def spend(self, nano_usd: int) -> None:
        self.settle(self.hold(nano_usd), nano_usd)

    def spent(self, length: str = "day") -> int:
        """Of all runs."""
        return self.ledger.total(f"window:{length}").spent


@dataclass
class Project:
    """A project; its runs see the time that `now` is."""

    folder: Path
    name: str = "project"
    now: float = float(NOON)
    windows: tuple[BudgetWindow, ...] = (BudgetWindow("day", 100),)
    runs: list[Run] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def run(self) -> Run:
        """Another run of it, in this process."""
        store = SqliteStore(self.path, self.name, f"run{len(self.runs)}", clock=lambda: self.now)
        run = Run(store, self.windows)
        self.runs.append(run)
        return run


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    for run in made.runs:
        run.store.pause()
