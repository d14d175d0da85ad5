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
    left_out = [item for item in items if item.path.parent == HERE]
    if left_out:
        items[:] = [item for item in items if item.path.parent != HERE]
        config.hook.pytest_deselected(items=left_out)
