"""Chromium, and pages in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.reporting import html
from pytest_hfbudget.reporting.json_report import read

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUIET = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")

Open = Callable[..., "Page"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium, or the one that playwright has installed."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def asked_for() -> list[str]:
    """Every URL that was requested, the page's own too."""
    return []


@pytest.fixture
def complaints() -> list[str]:
    """What the console said, a violated policy for example, and errors of the script."""
    return []


@pytest.fixture
def show(
    browser: Browser, tmp_path: Path, asked_for: list[str], complaints: list[str]
) -> Iterator[Open]:
    """Make the page of some reports, and open it."""
    contexts = []

    def open_it(*reports: dict[str, Any], **options: Any) -> Page:
        for number, report in enumerate(reports):
            (tmp_path / f"{number}.json").write_text(json.dumps(report))
        out = tmp_path / "page.html"
        html.write([read(tmp_path / f"{number}.json") for number in range(len(reports))], out)
        contexts.append(context := browser.new_context(**options))
        page = context.new_page()
        page.on("request", lambda request: asked_for.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(out.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
