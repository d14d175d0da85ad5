"""Other people's suites, run as they are: pytest in a process of its own, before an emulator."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_hfbudget.emulator import Emulator, EmulatorClient
from pytest_hfbudget.money import parse_usd

SUITES = Path(__file__).parent / "suites"
TOOLS = sorted(needs.stem for needs in SUITES.glob("*.txt"))
# What a tool is imported as, where that is not its own name.
MODULES = {
    "haystack": "haystack_integrations",  # its part for Hugging Face is a package of its own
    "haystack_openai": "haystack",
    "openai1": "openai",
    "openai2": "openai",
    "openai3": "openai",
    "openai_aiohttp": "httpx_aiohttp",
    "plain_http": "requests",
    "pydantic_ai_openai": "pydantic_ai",
    "smolagents_openai": "smolagents",
}
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
WRITE = "ECOSYSTEM_WRITE"
# What stands right above the rows of the page's table.
ROWS = "|---|---|---|---|---|---|\n"
COLUMNS = ("below a cap", "in two workers", "without a cap", "under a cap too small")
MOST_RELEASES = 4
# Names the one tool that this environment is for: CI must not skip what it was set up for.
EXPECTED = "ECOSYSTEM_TOOL"


@dataclass(frozen=True)
class Suite:
    """One tool's suite, and the emulator that its calls go to."""

    tool: str
    pytester: pytest.Pytester
    emulator: EmulatorClient
    facts: dict[str, str]

    @property
    def retries(self) -> bool:
        """Whether it has a call twice, so that the second one finds everything imported."""
        return "test_answer_again" in suite_of(self.tool)

    def run(self, *options: str) -> pytest.RunResult:
        """Run it, in a process of its own, with an invoice that starts at nothing."""
        self.emulator.reset()
        return self.pytester.runpytest_subprocess(
            *("-p", "no:cacheprovider", "--hf-report=report.json"),
            *("--junitxml=junit.xml", "-o", "junit_duration_report=call"),
            *options,
        )

    def seconds(self) -> dict[str, float]:
        """How long each test took in the last run, by its name, its fixtures left out."""
        cases = ElementTree.parse(self.pytester.path / "junit.xml").iter("testcase")
        return {case.attrib["name"]: float(case.attrib["time"]) for case in cases}

    @property
    def refused(self) -> Counter[str]:
        """How many attempts of each test were refused in the last run, by its name."""
        return Counter(one["test"].rpartition("::")[2] for one in self._report()["refusals"])

    @property
    def posts(self) -> int:
        """Requests of the last run that reached the emulator and may have cost something."""
        return len(self.emulator.log(kind="request", phase="arrived", method="POST"))

    @property
    def invoice(self) -> list[int]:
        """Nano-USD of each call on the emulator's invoice, in no order."""
        return sorted(row["nano_usd"] for row in self.emulator.invoice()["calls"])

    @property
    def charged(self) -> list[int]:
        """Nano-USD of each call in the plugin's report, in no order."""
        return sorted(parse_usd(call["usd"]) for call in self._report()["calls"])

    @property
    def counted(self) -> int:
        """Calls in the plugin's report, whether or not it knows what they cost."""
        return len(self._report()["calls"])

    @property
    def needed(self) -> int:
        """Nano-USD that the first refused call could have cost."""
        message = self._report()["refusals"][0]["message"]
        found = re.search(r"may cost up to \$([\d.]+),", message)
        assert found, message
        return parse_usd(found[1])

    def _report(self) -> dict[str, Any]:
        return dict(json.loads((self.pytester.path / "report.json").read_text()))


@pytest.fixture(scope="session")
def one_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def page() -> Iterator[dict[str, dict[str, str]]]:
    """What came of each suite; with ECOSYSTEM_WRITE its row in docs/clients.md is written anew."""
    facts: dict[str, dict[str, str]] = {}
    yield facts
    if os.environ.get(WRITE):
        for tool, told in facts.items():
            if set(told) == set(COLUMNS):
                write_row(tool, told)


def write_row(tool: str, facts: dict[str, str]) -> None:
    """Put one row into the table, in the place of the tool's last one."""
    text = PAGE.read_text("utf-8")
    head, begin, rest = text.partition(ROWS)
    table, end, tail = rest.partition("\n\n")
    rows = {row.split("`")[1]: row for row in table.strip().splitlines()}
    needs = (SUITES / f"{tool}.txt").read_text().splitlines()
    names = [re.split(r"[=><\[]", need)[0] for need in needs if need and need[0] != "#"]
    releases = ", ".join(f"{name} {version(name)}" for name in names[:MOST_RELEASES])
    cells = (f"`{tool}`", releases, *(facts[column] for column in COLUMNS))
    rows[tool] = f"| {' | '.join(cells)} |"
    written = "\n".join(rows[name] for name in sorted(rows))
    PAGE.write_text(f"{head}{begin}{written}{end}{tail}", "utf-8")


@pytest.fixture(params=TOOLS)
def suite(
    page: dict[str, dict[str, str]],
    request: pytest.FixtureRequest,
    one_emulator: Emulator,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> Suite:
    """The suite of one tool after the other, as far as they are installed."""
    tool = request.param
    if os.environ.get(EXPECTED) != tool and find_spec(MODULES.get(tool, tool)) is None:
        pytest.skip(f"{tool} is not installed here")
    monkeypatch.setenv("HFBUDGET_EMULATOR", one_emulator.url)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for it
    pytester.path.joinpath("test_user.py").write_text(suite_of(tool))
    return Suite(tool, pytester, one_emulator.client, page.setdefault(tool, {}))


def suite_of(tool: str) -> str:
    """The suite of a tool; that of several releases of one SDK is the same."""
    own = SUITES / f"{tool}.py"
    return (own if own.exists() else SUITES / f"{tool.rstrip('0123456789')}.py").read_text()
