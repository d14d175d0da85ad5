"""What travels between a worker and the ledger: one JSON array or object a line."""

from __future__ import annotations

import json
from typing import Any

from pytest_hfbudget import errors
from pytest_hfbudget.ledger.charge import Charge

# Before an operation that is not answered.
TELL = "tell"

KINDS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.HFBudgetError)
}

_to_text = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one each time


def encode(message: object) -> bytes:
    """A message as a line."""
    return _to_text(message).encode() + b"\n"


def decode(line: bytes) -> Any:
    """A line as a message.

    Raises:
        ValueError: not a line of JSON.
    """
    return json.loads(line)


def error_fields(error: Exception) -> dict[str, Any]:
    """An error as what a worker needs to raise it again: as the nearest kind that both know."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS)
    fields = {"error": next(kinds, "HFBudgetError"), "message": str(error)}
    if not isinstance(error, errors.BudgetExceededError):
        return fields
    return {
        **fields,
        "scope": error.scope,
        "scope_key": error.scope_key,
        "model": error.model,
        "figures": error.figures,
    }


def raised(fields: dict[str, Any]) -> Exception:
    """The error behind its fields."""
    kind = getattr(errors, fields["error"])
    if issubclass(kind, errors.BudgetExceededError):
        made: Exception = kind(
            fields["message"],
            scope=fields["scope"],
            scope_key=fields["scope_key"],
            model=fields["model"],
            figures=errors.Figures(*fields["figures"]),
        )
        return made
    plain: Exception = kind(fields["message"])
    return plain


def charge(fields: list[Any]) -> Charge:
    """A charge that came over the wire."""
    charged = Charge(*fields)
    return charged._replace(scopes=tuple(charged.scopes))  # JSON knows no tuples
