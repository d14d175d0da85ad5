"""What documents and docstrings name in the code exists, and so do the targets of links."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(ROOT.glob("pytest_hfbudget/**/*.py"))
PAGES = [
    path
    for place in ("", "docs/", "docs/how-to/", "docs/tutorial/", "examples/")
    for path in sorted(ROOT.glob(f"{place}*.md"))
]
TEXTS = [*PAGES, *MODULES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
QUOTED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
DOTTED = re.compile(r"(?<![\w./-])([A-Za-z_]\w*)\.(\w+)(?![\w-])")
FILES = {"py", "md", "json", "toml", "html", "yml", "sqlite3"}


def members() -> dict[str, set[str]]:
    """The attributes of every class by its name, and the functions and classes of every module."""
    found: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found[path.stem].add(node.name)
        for inner in ast.walk(tree):
            if isinstance(inner, ast.ClassDef):
                bases[inner.name] |= {base.id for base in inner.bases if isinstance(base, ast.Name)}
                found[inner.name] |= set(_names(inner))
    for name, above in bases.items():
        found[name] |= {member for base in above for member in found.get(base, set())}
    return found


def _names(node: ast.ClassDef) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield each.name
        elif isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id


# A word that is a module of ours, and in documents also something else.
AMBIGUOUS = {"client", "charge", "pace", "report", "prices", "status", "usage"}
# Modules of ours that are named after the library which they know.
AMBIGUOUS |= {"aiohttp", "httpx", "requests"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_there(path: Path, known: dict[str, set[str]]) -> None:
    gone = [
        f"{owner}.{name}"
        for quoted in QUOTED.findall(path.read_text("utf-8"))
        for owner, name in DOTTED.findall(quoted)
        if owner in known and owner not in AMBIGUOUS and name not in FILES
        if name not in known[owner]
    ]
    assert gone == []


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    return members()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []
