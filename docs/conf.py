"""The documentation site: `make docs` builds it into build/docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402 - from the path above

project = "pytest-hfbudget"
author = "the pytest-hfbudget developers"
extensions = ["myst_parser", "sphinx_click", "sphinx_copybutton"]
exclude_patterns = ["ci"]
highlight_language = "text"
html_theme = "furo"
html_title = project
html_theme_options: dict[str, Any] = {"top_of_page_buttons": []}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
copybutton_prompt_text = "$ "
# Quotes and dots, but no dashes: `--maxfail` stays as it is typed.
smartquotes_action = "qe"

# Pages of the repository that the site shows, too. Their links start at the root of it.
SHOWN = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"\]\((?:\.\./)?(" + "|".join(map(re.escape, SHOWN)) + r")(#[^)]*)?\)")

# Two columns of a terminal's output; a comment at the end of a line is no column.
COLUMNS = re.compile(r"\S {2,}[^\s#]")


def _write_reference(app: Any) -> None:
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    for name, text in reference.pages().items():
        page = folder / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _made_from_code(*_: Any) -> list[str]:
    """The page that is read anew each time: its own text does not say whether the code changed."""
    return ["command-line"]


def _link_to_pages(app: Any, name: str, source: list[str]) -> None:
    """Links from a document to a page of the repository lead to that page on the site."""
    source[0] = LINK.sub(lambda found: f"]({SHOWN[found[1]]}{found[2] or ''})", source[0])


def _link_within_included(app: Any, path: Path, parent: str, source: list[str]) -> None:
    """A page of the repository that is shown here has its links from the root of it."""
    text = LINK.sub(lambda found: f"]({SHOWN[found[1]]}{found[2] or ''})", source[0])
    text = text.replace("](docs/)", "](index.md)").replace("](docs/", "](")
    source[0] = text


def _mark_columns(app: Any, doctree: nodes.document) -> None:
    """Lines of a block are broken at the edge of the page, but not those with columns."""
    for block in doctree.findall(nodes.literal_block):
        if sum(bool(COLUMNS.search(line.strip())) for line in block.astext().splitlines()) > 1:
            block["classes"].append("columns")


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("builder-inited", _write_reference)
    app.connect("env-get-outdated", _made_from_code)
    app.connect("source-read", _link_to_pages)
    app.connect("doctree-read", _mark_columns)
    app.connect("include-read", _link_within_included)
