"""Who may spend: scopes with caps, and the hold, settle and release of every call."""

from __future__ import annotations

from pytest_hfbudget.ledger.account import Totals
from pytest_hfbudget.ledger.charge import Charge, Refusal
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.protocol import Caller, Hold, LedgerLike, Waiting
from pytest_hfbudget.ledger.scope import Scope

__all__ = [
    "Caller",
    "Charge",
    "Hold",
    "Ledger",
    "LedgerLike",
    "Refusal",
    "Scope",
    "Totals",
    "Waiting",
]
