"""The pictures of the README: a terminal with its first example, run for real, and its badges.

`make picture` writes them. `test_readme.py` runs the same again and compares what they say.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "run.svg"
COMMAND = "pytest --hf-emulator --hf-session-budget 0.05"
COLUMNS = 80
# pytest's lines about the machine.
MACHINE = ("platform ", "rootdir: ", "plugins: ", "configfile: ")
# What differs from run to run: times, the port of the emulator, and what an endpoint costs by the
# time for which a test uses it.
DIFFERS = (
    (re.compile(r"\d\d:\d\d:\d\d"), "hh:mm:ss"),
    (re.compile(r"\b[\d.]+ ?s\b"), "0 s"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1"),
    (re.compile(r"(idle|cold start|uptime) <?\$[\d.]+"), r"\1 $0"),
    (re.compile(r"(::test_endpoint) +<?\$[\d.]+"), r"\1 $0"),
    # On a slow machine the endpoint is seen on its way.
    (re.compile(r"endpoint my-org/ci-llm: (?:pending|initializing), 0 s"), ""),
)
DARK, LIGHT = (27, 31, 35), (217, 221, 226)
RED, GREEN, YELLOW, BLUE = (240, 113, 103), (126, 200, 120), (224, 184, 90), (110, 168, 254)
MAGENTA, CYAN = (200, 150, 230), (92, 194, 181)
THEME = TerminalTheme(DARK, LIGHT, [DARK, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, LIGHT])
# Rich's own loads a font from the network.
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def first_example() -> str:
    """The first Python of the README."""
    found = re.search(
        r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    return found[1]


def run(directory: Path) -> str:
    """What a terminal shows of the example, without pytest's lines about the machine."""
    (directory / "test_answers.py").write_text(first_example(), encoding="utf-8")
    settings = ("PYTEST_", "HFBUDGET_", "HF_", "GITHUB_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    env |= {"COLUMNS": str(COLUMNS), "HFBUDGET_STATE_DIR": str(directory / "state")}
    command = [sys.executable, "-m", *COMMAND.split(), "--color=yes", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=directory, env=env, check=True, capture_output=True, text=True, timeout=100
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith(MACHINE)]
    return "\n".join([f"$ {COMMAND}", *lines])


def drawn(output: str) -> str:
    """A terminal with some output in it, as SVG."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(output))
    return console.export_svg(title="", theme=THEME, code_format=FORMAT, unique_id="run")


def said(svg: str) -> str:
    """What is written in it, but for spaces and for what differs from run to run."""
    texts = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    text = " ".join("".join(each.itertext()) for each in texts).replace("\u00a0", " ")
    for pattern, lasting in DIFFERS:
        text = pattern.sub(lasting, " ".join(text.split()))
    return " ".join(text.split())


def badges() -> Mapping[Path, str]:
    """A badge for each fact that pyproject.toml has of the package, with its file."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", project)
    license_ = re.findall(r'^license = "(.+)"$', project, re.MULTILINE)
    facts = {"python": f"{versions[0]} to {versions[-1]}", "license": license_[0]}
    return {ROOT / "docs" / f"badge-{name}.svg": _badge(name, fact) for name, fact in facts.items()}


def _badge(name: str, fact: str) -> str:
    left, right = (8 + 7 * len(text) + 8 for text in (name, fact))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20">
<rect width="{left + right}" height="20" rx="3" fill="#0f6b66"/>
<path d="M3 0h{left - 3}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#444b52"/>
<g fill="#fff" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11" text-anchor="middle">
<text x="{left / 2}" y="14" textLength="{7 * len(name) - 4}">{name}</text>
<text x="{left + right / 2}" y="14" textLength="{7 * len(fact) - 4}">{fact}</text>
</g>
</svg>
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        PICTURE.write_text(drawn(run(Path(directory))), encoding="utf-8")
    for path, badge in badges().items():
        path.write_text(badge, encoding="utf-8")


if __name__ == "__main__":
    main()
