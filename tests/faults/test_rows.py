"""The table of what can go wrong is complete, and its page is in step with it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rows import ROWS, rows_of

HERE = Path(__file__).parent


@pytest.mark.quick
def test_every_row_is_tried_by_a_test() -> None:
    tried = {
        row
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for row in rows_of(ast.get_docstring(node))
    }
    assert tried == set(ROWS)


@pytest.mark.quick
def test_the_page_shows_every_row() -> None:
    page = (HERE.parents[1] / "docs" / "endings.md").read_text()
    for number, row in ROWS.items():
        assert f"| {number} | {row.what} | {row.by} |" in page
