"""Leaves the meter to the first call of a client, unless a cap or a marker needs it earlier."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from _pytest.nodes import Node

    from pytest_hfbudget.metering.instrumentation.patching import Redirect
    from pytest_hfbudget.settings import Settings

MARKERS = ("budget", "hf_endpoint")
INSTRUMENTATION = "pytest_hfbudget.metering.instrumentation.hub"


class FirstCall:
    """Waits for it, if that was asked for."""

    def __init__(self, start: Callable[[], object]) -> None:
        """``start`` makes the meter and puts it in place."""
        self._start = start
        self._redirect: Redirect | None = None

    def wait_for(self, settings: Settings) -> bool:
        """Have the first call start the meter; False where another run would get that call."""
        from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION
        from pytest_hfbudget.metering.instrumentation.patching import Addresses, Redirect
        from pytest_hfbudget.metering.paid_hosts import PaidHosts

        if INSTRUMENTATION.meter is not None:
            return False
        if self._redirect is None:
            addresses = Addresses.of(settings)
            self._redirect = Redirect(addresses)
            self._redirect.install()
            INSTRUMENTATION.http.hosts = PaidHosts((settings.router, *addresses.paid()))
            INSTRUMENTATION.wakers.append(self._start)
            INSTRUMENTATION.install()
        return True

    def cancel(self, put_in_place: Callable[[], object] | None = None) -> None:
        """Wait no longer, and have another meter, if given, put in place; harmless if not waiting.

        The clients stay wrapped meanwhile: what has wrapped them again can't be undone.
        """
        redirect, self._redirect = self._redirect, None
        if redirect is not None:
            redirect.uninstall()  # the meter has one of its own
        if put_in_place is not None:
            put_in_place()
        if redirect is not None:
            from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION

            INSTRUMENTATION.wakers.remove(self._start)
            INSTRUMENTATION.uninstall()

    @property
    def foreseen(self) -> bool:
        """Whether one of the clients was imported, so that calls are to be expected."""
        module: Any = sys.modules.get(INSTRUMENTATION)
        return module is not None and bool(module.INSTRUMENTATION.in_place)


def has_price_table(settings: Settings, root: Path) -> bool:
    """Whether the project may have prices of its own: read now, since a test may replace `open`."""
    project = root / "pyproject.toml"
    try:
        return settings.prices is not None or b"hfbudget" in project.read_bytes()
    except OSError:
        return False


def marked(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items with a marker of the plugin's, of their own or of a class, module or package."""
    known: dict[Node, bool] = {}

    def is_marked(node: Node) -> bool:
        if node not in known:
            own = any(mark.name in MARKERS for mark in node.own_markers)
            known[node] = own or (node.parent is not None and is_marked(node.parent))
        return known[node]

    return [item for item in items if is_marked(item)]
