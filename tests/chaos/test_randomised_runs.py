"""Runs that nobody has thought of: whatever happens in them, the invoice and the ledger agree.

`pytest tests/chaos --chaos 1000 -n2` for a thousand of them, `--seed 1234` for one again.
"""

from __future__ import annotations

from collections.abc import Callable

from chaos_judge import Judge
from chaos_plan import plan_of
from chaos_run import perform

from pytest_hfbudget.emulator import Emulator


def test_no_cap_is_broken_no_charge_is_wrong_and_nothing_is_refused_that_fits(
    one_emulator: Emulator, seed: int, record_property: Callable[[str, object], None]
) -> None:
    run = perform(plan_of(seed), one_emulator)
    try:
        figures = Judge(run, one_emulator.client).check()
    except AssertionError as fault:
        raise AssertionError(f"{fault}\nagain: pytest tests/chaos --seed {seed}") from None
    for name, figure in figures.items():
        record_property(name, figure)
