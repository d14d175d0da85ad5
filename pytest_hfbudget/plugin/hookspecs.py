"""Hooks that a conftest or another plugin may implement; see docs/hooks.md.

All but the price are calls to tell, not to ask: they come from pytest's main thread, one at a
time, after a test has ended and at the end of the run. Under pytest-xdist they come in the
controller, once for all workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_hfbudget.ledger import Charge, Refusal
    from pytest_hfbudget.plugin.events import EndpointEvent
    from pytest_hfbudget.pricing import CallRequest, Price


@pytest.hookspec(firstresult=True)
def pytest_hfbudget_price(request: CallRequest) -> Price | Mapping[str, object] | None:
    """The price of a request, as a `Price` or as a row of a price table; None leaves it to them.

    Asked after a price in the block or marker, before every list. Called in the process and the
    thread that make the call, and again after an answer, with the provider that gave it.
    """


def pytest_hfbudget_charge(charge: Charge) -> None:
    """A call was settled: what it cost, in nano-USD, and why."""


def pytest_hfbudget_refusal(refusal: Refusal) -> None:
    """A call was refused: it was not sent, or its answer was cut off by the limit of a cap."""


def pytest_hfbudget_endpoint(event: EndpointEvent) -> None:
    """Something happened to an endpoint of this run: resumed, ready, paused, and so on."""
