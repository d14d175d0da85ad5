"""The pages of the documentation as what is typed, what that shows, and what becomes a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
STEP_BY_STEP = sorted([*DOCS.glob("tutorial/*.md"), *DOCS.glob("how-to/*.md")])

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.\w+)\n")
_EXIT = re.compile(r"# exits with (\d)\b")
# What varies from run to run, and how a table is drawn.
_MOMENTS = (
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"https?://[^\s),;]+"), "URL"),
    (re.compile(r"[█░■□▏▎▍▌▋▊▉]+"), "BAR"),
    (re.compile(r"=+"), "="),
    (re.compile(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d)?\b|\b\d\d:\d\d(:\d\d)?\b"), "WHEN"),
    (re.compile(r"\b(\d+ \w+|seconds) old\b"), "N days old"),
)
_NUMBERS = (
    (re.compile(r"<?(?:\$|\b)\d[\d.,:/-]*\d|<?\$?\d"), "N"),
    (
        re.compile(r"\bN (second|minute|hour|day|job|run|call|test|endpoint|block|request)s?\b"),
        r"N \1s",
    ),
    (re.compile(r"\bjobs shares? it\b"), "jobs share it"),
)
_SPACES = ((re.compile(r"\s+"), " "),)


class Step(NamedTuple):
    """A line that is typed, the exit code that the page promises, and the output that it shows."""

    command: str
    code: int
    shown: str


class Block(NamedTuple):
    """One block of code of a page."""

    language: str
    text: str
    where: str

    @property
    def file(self) -> str:
        """The name of the file that the block becomes, if it says so in its first line."""
        named = _FILE.match(self.text)
        return named[1] if named else ""

    @property
    def steps(self) -> list[Step]:
        """What is typed in a block of a terminal."""
        _, *typed = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        found = []
        for one in typed:
            command, _, shown = one.partition("\n")
            end = _EXIT.search(command)
            found.append(Step(command, int(end[1]) if end else 0, shown))
        return found


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, without the indentation that they have in a list."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            each[2],
            re.sub(rf"^{each[1]}", "", each[3], flags=re.MULTILINE),
            f"{page.name}:{text.count(chr(10), 0, each.start()) + 1}",
        )
        for each in _BLOCK.finditer(text)
    ]


def shows(said: str, shown: str, *, exactly: bool = False) -> bool:
    """Whether an output has what a page shows of it, where ``…`` and ``...`` leave something out.

    Moments, ids and URLs may differ. Unless ``exactly``, any number may.
    """
    parts = [_alike(part, exactly) for part in re.split(r"…|^\.\.\.$", shown, flags=re.MULTILINE)]
    pattern = r"[\s\S]*?".join(re.escape(part.strip()) for part in parts)
    return re.search(pattern, _alike(said, exactly)) is not None


def _alike(text: str, exactly: bool) -> str:
    text = re.sub(r"^E +", "", text, flags=re.MULTILINE)  # in front of what a failing test says
    for pattern, same in (*_MOMENTS, *(() if exactly else _NUMBERS), *_SPACES):
        text = pattern.sub(same, text)
    return text
