"""What a run writes down at its end: the JSON report, and the summary in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.plugin.voice import can_show, say
from pytest_hfbudget.reporting import Report, summary
from pytest_hfbudget.text import printable


def write(config: pytest.Config, report: Report, name: Path) -> bool:
    """Write the JSON report; where that can't be done, say so and go on. Whether it is written."""
    from pytest_hfbudget.reporting import jsonfile

    path = config.invocation_params.dir / name
    try:
        jsonfile.write(report, path)
    except OSError as error:
        say(config, f"hfbudget: the report {path} could not be written: {error}", red=True)
        return False
    return True


def show(
    terminal: Any, report: Report, blamed: Collection[str], left: Iterable[str], file: Path | None
) -> None:
    """Print the section of a run.

    Args:
        blamed: refusals that belong to no test.
        left: what the budgets over many runs have left.
        file: where the JSON report is.
    """
    blocks = can_show("█░", sys.stdout.encoding)
    terminal.section("hf budget")
    for refusal in blamed:
        said = printable(refusal, keep="\n")
        terminal.write_line(f"refused outside of every test: {said}", red=True)
    for line in summary(report, blocks=blocks, blamed=bool(blamed)):
        terminal.write_line(printable(line.text), **({line.colour: True} if line.colour else {}))
    for budget in left:
        terminal.write_line(f"  {budget}")
    if file is not None:
        terminal.write_line(f"  report: {file}")
