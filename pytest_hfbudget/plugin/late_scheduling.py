"""xdist asks for a scheduler before any worker has collected; which one, is decided after that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# Those that may give any test to any worker. `loadfile`, `loadscope` and `loadgroup` may not.
DISTS = ("load", "worksteal")
# The plugin that is registered where tests need endpoints.
ORDER = "hfbudget-order"


class LateScheduling:
    """xdist's own scheduler, until tests turn out to need endpoints."""

    def __init__(self, own: Any, replaced: Callable[[Any], Any]) -> None:
        """``replaced`` returns the scheduler to use instead of the given one, or that one."""
        self._scheduler, self._replaced = own, replaced
        self._decided = False

    @classmethod
    def around(cls, own: Any, config: pytest.Config) -> Any:
        """The scheduler that xdist is to use; another plugin's stays as it is."""
        if config.getoption("dist") not in DISTS or not type(own).__module__.startswith("xdist."):
            return own

        def replaced(own: Any) -> Any:
            order: Any = config.pluginmanager.get_plugin(ORDER)
            return own if order is None else order.scheduler(own)

        return cls(own, replaced)

    def schedule(self) -> None:
        """All workers have collected."""
        if not self._decided:
            self._decided = True
            self._scheduler = self._replaced(self._scheduler)
        self._scheduler.schedule()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """xdist tells the name of its scheduler, and other plugins may ask which one it is."""
        return type(self._scheduler)
