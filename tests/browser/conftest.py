"""These tests are left out unless `-m` names their marker."""

from __future__ import annotations

from pathlib import Path

import pytest
from opened_page import asked_for, browser, complaints, show

__all__ = ["asked_for", "browser", "complaints", "show"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "browser" in config.option.markexpr:
        return
    left_out = [item for item in items if HERE in item.path.parents]
    if left_out:
        items[:] = [item for item in items if HERE not in item.path.parents]
        config.hook.pytest_deselected(items=left_out)
