"""Who may spend: scopes with caps, and the hold, settle and release of every call."""

from __future__ import annotations

from pytest_hfbudget.ledger.charge import Charge, Refusal
from pytest_hfbudget.ledger.interface import Caller, Hold, LedgerLike, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.scope import Scope, Totals

__all__ = [
    "Caller",
    "Charge",
    "Hold",
    "Ledger",
    "LedgerLike",
    "Refusal",
    "Scope",
    "Totals",
    "WaitingHold",
]
