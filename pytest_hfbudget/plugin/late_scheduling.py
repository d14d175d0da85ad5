"""xdist asks for a scheduler before any worker has collected; which one, is decided after that."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_hfbudget.plugin.role import ORDER


class LateScheduling:
    """xdist's own scheduler, until tests turn out to need endpoints."""

    def __init__(self, own: Any, config: pytest.Config) -> None:
        self._scheduler, self._config = own, config
        self._order: Any = None
        self._decided = False

    @classmethod
    def around(cls, own: Any, config: pytest.Config) -> Any:
        """The scheduler that xdist is to use; another plugin's stays as it is."""
        return cls(own, config) if type(own).__module__.startswith("xdist.") else own

    def schedule(self) -> None:
        """All workers have collected."""
        if not self._decided:
            self._decided = True
            self._order = self._config.pluginmanager.get_plugin(ORDER)
            if self._order is not None:
                self._scheduler = self._order.scheduler(self._scheduler)
        self._scheduler.schedule()

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """A worker has ended a test, with all its attempts."""
        if self._order is not None:
            self._order.ended(item_index)
        self._scheduler.mark_test_complete(node, item_index, duration)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """xdist tells the name of its scheduler, and other plugins may ask which one it is."""
        return type(self._scheduler)
