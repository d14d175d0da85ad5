"""docs/compared.md has all that benchmarks/peers.py measures, and README a true part of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHARE = re.compile(r"\d+%")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "peers.py"))


@pytest.fixture(scope="module")
def measured(script: dict[str, Any]) -> list[list[str]]:
    """The cells of each row that the script has written into the page."""
    page = (ROOT / "docs" / "compared.md").read_text("utf-8")
    return cells(page.partition(script["BEGIN"])[2].partition(script["END"])[0])


def cells(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_the_page_has_a_row_for_each_experiment_and_each_ending(
    script: dict[str, Any], measured: list[list[str]]
) -> None:
    wanted = [one.what for one in (*script["EXPERIMENTS"], *script["ENDINGS"])]
    assert [row[0] for row in measured if row[0] in wanted] == wanted


def test_the_page_has_a_cell_for_each_tool(
    script: dict[str, Any], measured: list[list[str]]
) -> None:
    titles = [tool.title for tool in script["TOOLS"]]
    assert all(map(str.startswith, measured[0][1:], titles))
    for row in measured[: len(script["EXPERIMENTS"]) + 2]:
        assert len(row) == len(titles) + 1


def test_the_releases_on_the_page_are_those_that_the_script_installs(
    script: dict[str, Any], measured: list[list[str]]
) -> None:
    for tool, told in list(zip(script["TOOLS"], measured[0][1:], strict=True))[1:]:
        assert f"{tool.release_of}=={told.split()[-1]}" in tool.packages


def test_the_readme_shows_figures_of_the_page(measured: list[list[str]]) -> None:
    readme = (ROOT / "README.md").read_text("utf-8").partition("## Compared")[2].partition("\n## ")
    header, _, *rows = cells(readme[0])
    page = {row[0]: row for row in measured}
    for what, *shares in rows:
        for title, share in zip(header[1:], shares, strict=True):
            column = next(n for n, name in enumerate(measured[0]) if title in name)
            assert SHARE.findall(page[what][column]) == SHARE.findall(share), (what, title)
    assert rows
