"""Who may spend: scopes with caps, and the hold, settle and release of every call."""

from __future__ import annotations

from pytest_hfbudget.ledger.charge import Charge, Refusal
from pytest_hfbudget.ledger.ledger import Hold, Ledger, LedgerLike, Totals
from pytest_hfbudget.ledger.scope import Scope

__all__ = ["Charge", "Hold", "Ledger", "LedgerLike", "Refusal", "Scope", "Totals"]
