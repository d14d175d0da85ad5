"""The documentation site: `make docs` builds it into build/docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402 - from the path above

project = "pytest-hfbudget"
author = "the pytest-hfbudget developers"
extensions = ["myst_parser", "sphinx_click", "sphinx_copybutton"]
exclude_patterns = ["ci"]
html_theme = "furo"
html_title = project
html_static_path: list[str] = []
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
copybutton_prompt_text = "$ "

# Pages of the repository that the site shows, too. Their links start at the root of it.
SHOWN = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"\]\((?:\.\./)?(" + "|".join(map(re.escape, SHOWN)) + r")(#[^)]*)?\)")


def _write_reference(app: Any) -> None:
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    for name, text in reference.pages().items():
        page = folder / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _link_to_pages(app: Any, name: str, source: list[str]) -> None:
    """Links from a document to a page of the repository lead to that page on the site."""
    source[0] = LINK.sub(lambda found: f"]({SHOWN[found[1]]}{found[2] or ''})", source[0])


def _link_within_included(app: Any, path: Path, parent: str, source: list[str]) -> None:
    """A page of the repository that is shown here has its links from the root of it."""
    text = LINK.sub(lambda found: f"]({SHOWN[found[1]]}{found[2] or ''})", source[0])
    text = text.replace("](docs/)", "](index.md)").replace("](docs/", "](")
    source[0] = text


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("builder-inited", _write_reference)
    app.connect("source-read", _link_to_pages)
    app.connect("include-read", _link_within_included)
