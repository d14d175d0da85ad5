"""A ledger behind a socket; each module brings its own ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bookkeeping import WatchedLedger, connected, serving

from pytest_hfbudget.ledger.rpc import LedgerConnection
from pytest_hfbudget.ledger.rpc.server import LedgerServer


@pytest.fixture
def server(ledger: WatchedLedger) -> Iterator[LedgerServer]:
    with serving(ledger) as started:
        yield started


@pytest.fixture
def wire(server: LedgerServer) -> Iterator[LedgerConnection]:
    with connected(server) as opened:
        yield opened
