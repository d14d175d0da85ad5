"""What the pages of the reference show as code is accepted as it stands there: settings by the
settings table, prices by the table of prices, files by what reads them, commands by their parser.

The pages of the tutorial and the how-to guide are done step by step in tests/plugin/test_documents.
"""

from __future__ import annotations

import json
import re
import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml

from pytest_hfbudget.cli import main
from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.pricing.table import PriceTable
from pytest_hfbudget.reporting import json_report
from pytest_hfbudget.reporting.costs import Costs
from pytest_hfbudget.settings import INI_KEYS, SETTINGS, merge

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
OPTIONS = {each.option.partition("=")[0] for each in SETTINGS.values() if each.option}
OPTIONS |= {"--hf-emulator", "--hf-store-costs", "--hf-plan"}


class Block(NamedTuple):
    page: str
    text: str


def blocks(language: str) -> list[Any]:
    """The blocks of a language, named by their page and the line at which they begin."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(Block(page.name, match[3]), id=f"{page.name}:{line}"))
    return found


def console_lines(program: str) -> list[Any]:
    """The command lines that begin with a program."""
    lines = [
        line.removeprefix("$ ")
        for param in blocks("console")
        for line in param.values[0].text.splitlines()
        if line.startswith(f"$ {program}")
    ]
    return [pytest.param(line, id=line[:60]) for line in dict.fromkeys(lines)]


@pytest.mark.parametrize("block", blocks("toml"))
def test_a_toml_block_holds_valid_settings_or_prices(block: Block) -> None:
    content = tomllib.loads(block.text)
    tool = content.get("tool", {})
    ini = tool.get("pytest", {}).get("ini_options", {})
    assert {key for key in ini if key.startswith("hf_")} <= INI_KEYS
    merge({}, {}, lambda key: ini.get(key, []))
    prices = tool.get("hfbudget", {}).get("prices") or ({} if tool else content)
    PriceTable.parse(prices, block.page)


@pytest.mark.parametrize("block", blocks("json"))
def test_a_json_block_is_read_by_what_reads_such_files(block: Block) -> None:
    content = json.loads(block.text)
    if block.page == "plan.md":
        assert Costs.parse(block.text).tests
    elif block.page == "report.md":
        assert json_report.parse(content, written=datetime.now(timezone.utc)).tests
    elif block.page == "emulator.md":
        with Emulator(config=content) as emulator:
            assert emulator.client.invoice()["total_nano_usd"] == 0
    else:
        assert content["run"]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_yaml_block_is_steps_of_a_job(block: Block) -> None:
    assert all("run" in step or "uses" in step for step in yaml.safe_load(block.text))


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs_against_the_emulator_or_compiles(block: Block) -> None:
    lone_marker = block.text.lstrip().startswith("@")
    code = compile(
        block.text + ("def test_it(): pass\n" if lone_marker else ""), block.page, "exec"
    )
    if "with Emulator()" in block.text:
        exec(code, {})


@pytest.mark.parametrize("line", console_lines("hfbudget"))
def test_a_line_with_hfbudget_is_one_that_its_parser_accepts(line: str) -> None:
    name, *args = shlex.split(line.partition("|")[0].partition(" > ")[0], comments=True)[1:]
    args = [str(DOCS / "index.md") if arg.endswith((".json", ".toml")) else arg for arg in args]
    with click.Context(main) as above:
        command = main.get_command(above, name)
        assert command is not None
        assert command.make_context(name, args, parent=above).params


@pytest.mark.parametrize("line", [*console_lines("pytest"), *console_lines("HFBUDGET_")])
def test_a_line_with_pytest_has_options_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    given = {word.partition("=")[0] for word in words if word.startswith("--hf-")}
    assert given <= OPTIONS
