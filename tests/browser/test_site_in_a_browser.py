"""The documentation site in a browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("sphinx")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
# What is wider than its place, but blocks of code that are scrolled.
TOO_WIDE = """() => [...document.querySelectorAll("html, .table-wrapper")].filter(
    each => each.scrollWidth > each.clientWidth + 1
).map(each => each.tagName + " " + each.textContent.trim().slice(0, 80))"""
LINES = "pre => getComputedStyle(pre).whiteSpace"


@pytest.fixture(scope="module")
def site() -> Path:
    """As `make docs` builds it, and in the same folder: quick where that has run."""
    out = ROOT / "build" / "docs"
    built = [sys.executable, "-m", "sphinx", "--quiet", "-b", "html", "docs", str(out)]
    subprocess.run(built, cwd=ROOT, check=True, timeout=200)
    return out


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": request.param, "height": 844})
    yield context.new_page()
    context.close()


def test_no_page_and_no_table_is_wider_than_its_place(site: Path, page: Page) -> None:
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    assert len(pages) > 30
    found = {}
    for path in pages:
        page.goto(path.as_uri())
        if wide := page.evaluate(TOO_WIDE):
            found[str(path.relative_to(site))] = wide
    assert found == {}


def test_on_a_phone_each_cell_of_a_wide_table_has_its_label(site: Path, page: Page) -> None:
    page.goto((site / "configuration.html").as_uri())
    said = "cell => getComputedStyle(cell, '::before').content"
    cell = page.locator(".table-wrapper tbody tr").first.locator("td").nth(1)
    narrow = page.viewport_size is not None and page.viewport_size["width"] == 390
    assert cell.evaluate(said) == ('"environment: "' if narrow else "none")


def test_long_lines_are_broken_and_columns_are_not(site: Path, page: Page) -> None:
    page.goto((site / "bill.html").as_uri())
    assert page.locator(".columns pre").first.evaluate(LINES) == "pre"
    page.goto((site / "tutorial" / "first-cap.html").as_uri())
    assert page.locator(".highlight-python pre").first.evaluate(LINES) == "pre-wrap"


def test_an_option_is_broken_nowhere_and_a_blank_cell_has_no_label(site: Path, page: Page) -> None:
    page.goto((site / "configuration.html").as_uri())
    option = page.locator("td code", has_text="--hf-weekly-budget").first.locator(".whole")
    assert option.evaluate("each => each.getClientRects().length") == 1
    blank = page.locator("td", has_text="HFBUDGET_SHARED_RUN").locator("xpath=following::td[1]")
    assert blank.inner_text() == ""
    narrow = page.viewport_size is not None and page.viewport_size["width"] == 390
    assert blank.is_hidden() == narrow
