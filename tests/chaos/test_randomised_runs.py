"""Random runs: the invoice and the ledger agree about each of them.

`pytest tests/chaos --chaos 1000 -n2` for a thousand of them, `--seed 1234` for one again.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from chaos_judge import Judge
from chaos_plan import plan_of
from chaos_run import perform

from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.history.usage_log import FILE, LoggedRun, LogReader, UsageLog
from pytest_hfbudget.metering.prompts import RULE, Fact


def test_no_cap_is_broken_no_charge_is_wrong_and_nothing_is_refused_that_fits(
    one_emulator: Emulator,
    seed: int,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    plan = plan_of(seed)
    figures = Counter[str]()
    try:
        run = perform(plan, one_emulator)
        figures.update(Judge(run, one_emulator.client).check())
        if plan.known != "nothing":
            known = run.runtime.meter.counts.facts
            if plan.known == "another release's":
                known = read_from_log(known, tmp_path, rule=RULE + 1)
            again = perform(plan.later, one_emulator, known)
            figures.update(Judge(again, one_emulator.client).check())
    except AssertionError as fault:
        raise AssertionError(f"{fault}\nagain: pytest tests/chaos --seed {seed}") from fault
    for name, figure in figures.items():
        record_property(name, figure)


def read_from_log(facts: Iterable[Fact], folder: Path, rule: int) -> list[Fact]:
    """What this release reads of a log in which each count is one token, by some rule."""
    path = folder / FILE
    wrong = [fact._replace(tokens=1) for fact in facts if fact.tokens]
    UsageLog(path).write(LoggedRun("run", "", 0.0, time.time()), (), wrong, keep_days=90)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE prompt_tokens SET rule = ?", [rule])
    models = {fact.model for fact in wrong}
    return [fact for model in models for fact in LogReader(path).counts(model)]
