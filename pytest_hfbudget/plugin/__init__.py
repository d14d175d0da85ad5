"""The pytest plugin.

PYTEST_DONT_REWRITE: pytest would compile the modules of every installed plugin anew, for the sake
of assertions that ours do not have, and in each run where Python writes no bytecode. From here on
they are imported as Python imports any module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class AsInstalled:
    """Finds our modules, before pytest's hook that rewrites assertions does."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of them the ordinary way."""
        return PathFinder.find_spec(name, path) if name.startswith("pytest_hfbudget.") else None


sys.meta_path.insert(0, AsInstalled)

from pytest_hfbudget.plugin.hooks import (  # noqa: E402 - only from here on
    hf_budget,
    hf_endpoint,
    hf_endpoints,
    pytest_addhooks,
    pytest_addoption,
    pytest_configure,
    pytest_load_initial_conftests,
    pytest_unconfigure,
)

__all__ = [
    "hf_budget",
    "hf_endpoint",
    "hf_endpoints",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_configure",
    "pytest_load_initial_conftests",
    "pytest_unconfigure",
]
