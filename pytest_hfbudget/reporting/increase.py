"""Whether a test has come to cost more than is recorded of it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.money import show
from pytest_hfbudget.reporting.costs import Cost


def increase(
    charged: int,
    recorded: Cost,
    most: Fraction,
    charges: Callable[[], tuple[Charge, ...]],
    *,
    where: str,
) -> str | None:
    """What to say of a test that costs more by more than ``most``; None where it does not.

    Charges at an upper bound prove no increase over a record that has none; over one that has
    some they do, since the same call has the same bound.

    Args:
        charged: nano-USD, now: of its calls and of the uptime of endpoints. Only what its calls
            cost is recorded, so only that is compared.
        charges: its calls, asked for only if they matter.
        where: the name of the file.
    """
    limit = recorded.spent * (1 + most)
    if charged <= limit:
        return None
    calls = charges()
    spent = sum(charge.nano_usd or 0 for charge in calls)
    certain = sum(charge.nano_usd or 0 for charge in calls if not charge.estimated)
    if (spent if recorded.estimated else certain) <= limit:
        return None
    marks = [
        f"; {word} with charges at an upper bound"
        for word, marked in (("recorded", recorded.estimated), ("now", certain != spent))
        if marked
    ]
    return (
        f"its calls cost {show(spent)}, and {show(recorded.spent)} are recorded in {where}: "
        f"{_more(spent, recorded.spent)}, but --hf-max-increase allows {_percent(most)}"
        f"{''.join(marks)}. If it is meant to, run it with --hf-store-costs and without "
        "--hf-max-increase, and commit the file."
    )


def _more(now: int, before: int) -> str:
    if not before:
        return "any cost is an increase over nothing"
    return f"{_percent(Fraction(now - before, before))} more"


def _percent(share: Fraction) -> str:
    return f"{round(float(share * 100), 1):g}%"
