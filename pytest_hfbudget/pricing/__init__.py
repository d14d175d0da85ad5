"""What a call or a minute costs, and where that price comes from."""

from __future__ import annotations

from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.catalogue import Catalogue, Offer
from pytest_hfbudget.pricing.price import (
    CallRequest,
    Price,
    Quote,
    UnboundedCallError,
    UnpricedPolicy,
    Usage,
)
from pytest_hfbudget.pricing.table import PriceTable, parse_price

__all__ = [
    "CallRequest",
    "Catalogue",
    "Offer",
    "Price",
    "PriceBook",
    "PriceTable",
    "Quote",
    "UnboundedCallError",
    "UnpricedPolicy",
    "Usage",
    "parse_price",
]
