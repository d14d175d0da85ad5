"""What a block has spent, by model: for people, and as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import takewhile
from typing import Any

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.money import beside, show, to_usd


def spent_before_switch(calls: Iterable[Charge]) -> Decimal | None:
    """USD spent before the first call with the model of a fallback, None without one."""
    calls = tuple(calls)
    before = tuple(takewhile(lambda charge: not charge.instead_of, calls))
    return None if len(before) == len(calls) else to_usd(_cost(before))


def spent_on_fallback(calls: Iterable[Charge]) -> Decimal:
    """USD charged for calls with the model of a fallback."""
    return to_usd(_cost(charge for charge in calls if charge.instead_of))


def summary_data(calls: Sequence[Charge], *, cap: int | None, spent: int) -> dict[str, Any]:
    """Totals, every call, and totals of each model. Money is USD, as `Decimal`.

    Args:
        cap, spent: in nano-USD.
    """
    switched = [charge for charge in calls if charge.instead_of]
    return {
        "total_spent": to_usd(spent),
        "limit": None if cap is None else to_usd(cap),
        "model_switched": bool(switched),
        "switched_at_usd": spent_before_switch(calls),
        "fallback_model": switched[0].model if switched else None,
        "fallback_spent": spent_on_fallback(calls),
        "total_calls": len(calls),
        "calls": [_call(charge) for charge in calls],
        "by_model": {
            model: {
                "calls": len(charges),
                "cost": to_usd(_cost(charges)),
                "input_tokens": sum(charge.input_tokens for charge in charges),
                "output_tokens": sum(charge.output_tokens for charge in charges),
            }
            for model, charges in _by_model(calls).items()
        },
    }


def summary_text(name: str, calls: Sequence[Charge], *, cap: int | None) -> str:
    """The budget in a line, then a line for each model.

    Args:
        cap: in nano-USD.
    """
    spent, limit, *_ = (*beside(cap, _cost(calls)), "no cap")
    lines = [f"{name}: {spent} of {limit}, {_calls(len(calls))}"]
    models = _by_model(calls)
    width = max(map(len, models), default=0)
    for model, charges in models.items():
        tokens_in = sum(charge.input_tokens for charge in charges)
        tokens_out = sum(charge.output_tokens for charge in charges)
        lines.append(
            f"  {model:<{width}}  {show(_cost(charges))}, {_calls(len(charges))}, "
            f"{tokens_in} tokens in, {tokens_out} out"
        )
    if switched := [charge for charge in calls if charge.instead_of]:
        lines.append(
            f"  {_calls(len(switched))} with {switched[0].model} instead of "
            f"{switched[0].instead_of}: {show(_cost(switched))}"
        )
    return "\n".join(lines)


def _call(charge: Charge) -> dict[str, Any]:
    return {
        "model": charge.model,
        "instead_of": charge.instead_of or None,
        "task": charge.task,
        "cost": None if charge.nano_usd is None else to_usd(charge.nano_usd),
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "status": charge.status,
        "estimated": charge.estimated,
    }


def _by_model(calls: Iterable[Charge]) -> dict[str, list[Charge]]:
    models: dict[str, list[Charge]] = {}
    for charge in calls:
        models.setdefault(charge.model, []).append(charge)
    return models


def _cost(charges: Iterable[Charge]) -> int:
    return sum(charge.nano_usd or 0 for charge in charges)


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
