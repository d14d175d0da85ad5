"""Hooks that a conftest or another plugin may implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_hfbudget.pricing import CallRequest, Price


@pytest.hookspec(firstresult=True)
def pytest_hfbudget_price(request: CallRequest) -> Price | Mapping[str, object] | None:
    """The price of a request, as a `Price` or as a row of a price table; None leaves it to them.

    Asked after a price in the block or marker, before every list. Called in the process that
    makes the call, and again after an answer, with the provider that gave it.
    """
