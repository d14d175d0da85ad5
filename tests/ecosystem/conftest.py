"""Leaves these tests out unless they are asked for; their fixtures are in a module of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ecosystem_bench import EXPECTED, TOOLS, one_emulator, page, suite

__all__ = ["one_emulator", "page", "suite"]

collect_ignore = ["suites"]  # they are run by these tests, each in a process of its own

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what `-m ecosystem` and ECOSYSTEM_TOOL ask for.

    Raises:
        UsageError: ECOSYSTEM_TOOL is none of the tools.
    """
    expected = os.environ.get(EXPECTED)
    if expected and expected not in TOOLS:
        raise pytest.UsageError(f"{EXPECTED}={expected}: write one of {', '.join(TOOLS)}")

    def asked_for(item: pytest.Item) -> bool:
        wanted = "ecosystem" in config.option.markexpr
        own = item.callspec.params if isinstance(item, pytest.Function) else {}
        return wanted and (not expected or own.get("suite", expected) == expected)

    left_out = {item for item in items if item.path.parent == HERE and not asked_for(item)}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
