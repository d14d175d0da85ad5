"""The pages of the tutorial and of the how-to guide, done step by step as they stand there.

A block that begins with the name of a file becomes that file. The lines of a console block that
begin with ``$`` are run, and end with 0 unless they say otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*DOCS.glob("tutorial/*.md"), *DOCS.glob("how-to/*.md")])
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.\w+)\n")
EXIT = re.compile(r"# exits with (\d)$")

# Commands that would reach for a package index, or take their time and have tests of their own.
NOT_RUN = ("pip install", "hfbudget demo")


class Block(NamedTuple):
    """One block of code of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(each[2], re.sub(rf"^{each[1]}", "", each[3], flags=re.M)) for each in found]


def commands(block: Block) -> list[tuple[str, int]]:
    lines = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    return [
        (line, int(end[1]) if (end := EXIT.search(line)) else 0)
        for line in lines
        if not line.startswith(NOT_RUN)
    ]


def environment(folder: Path, command: str) -> dict[str, str]:
    """The environment of a new user's shell, but that nothing in it reaches a real service."""
    scripts = str(Path(sys.executable).parent)
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HFB"))}
    return {
        **own,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HFBUDGET_STATE_DIR": str(folder / ".state"),
        "HFBUDGET_CACHE_DIR": str(folder / ".cache"),
        **({} if command.startswith("hfbudget") else {"HFBUDGET_EMULATOR": "1"}),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_step_of_a_page_works(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for block in blocks(page):
        if named := FILE.match(block.text):
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            if file.suffix == ".yml":
                assert yaml.safe_load(block.text)["jobs"]
            continue
        assert block.language == "console", f"a block that no test runs: {block.text}"
        for command, code in commands(block):
            done = subprocess.run(
                ["bash", "-c", command],
                check=False,
                cwd=folder,
                env=environment(tmp_path, command),
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == code, f"$ {command}\n{done.stdout}{done.stderr}"
