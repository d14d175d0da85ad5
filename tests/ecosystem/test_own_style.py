"""A module of Pydantic AI's tests, in the style of its own suite, beside the plugin.

It has cassettes with ten recorded interactions, forbids blocking calls in its event loop, and runs
with two workers. Nothing of it may change, and what it replays is counted.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import Any
from xml.etree import ElementTree

import pytest
from ecosystem_bench import EXPECTED, SUITES

from pytest_hfbudget.pricing.catalogue import CatalogueFile
from pytest_hfbudget.settings import ROUTER

TOOL = "pydantic_ai"
# The tokens of each interaction on the cassettes: those that were read, and those of the answer.
TOKENS = [
    (15, 600), (30, 8), (31, 9), (34, 5), (150, 20),
    (151, 19), (180, 6), (190, 21), (230, 10), (269, 4),
]  # fmt: skip
CAPS = ("--hf-session-budget=1", "--hf-test-budget=0.5", "--hf-daily-budget=2")
CATALOGUE = b"""{"data": [{"id": "Qwen/Qwen2.5-72B-Instruct", "providers":
    [{"provider": "nebius", "status": "live", "pricing": {"input": 0.13, "output": 0.4}}]}]}"""

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.skipif(
        os.environ.get(EXPECTED) != TOOL, reason=f"needs the environment of {TOOL}: {EXPECTED}"
    ),
]


class Module:
    """The module, in a folder of its own, run in two workers."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        shutil.copytree(SUITES / f"{TOOL}_models", pytester.path, dirs_exist_ok=True)

    def outcomes(self, *options: str) -> dict[str, str]:
        """Run it, and read from JUnit's file how each test ended."""
        self._pytester.runpytest_subprocess(
            *("-p", "no:cacheprovider", "-n2", "--block-network", "--junitxml=junit.xml"), *options
        )
        cases = ElementTree.parse(self._pytester.path / "junit.xml").iter("testcase")
        return {case.attrib["name"]: _outcome(case) for case in cases}

    def report(self) -> dict[str, Any]:
        """The plugin's JSON report of a run with ``--hf-report=report.json``."""
        return dict(json.loads((self._pytester.path / "report.json").read_text()))


@pytest.fixture
def module(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.setenv("PYTHONPATH", "")
    # As if the router had been asked today: these runs have no network.
    CatalogueFile.of(ROUTER).refresh(ROUTER, lambda _url: CATALOGUE, time.time())
    return Module(pytester)


@pytest.mark.parametrize("caps", [(), CAPS])
def test_each_test_ends_as_without_the_plugin_and_each_replay_is_counted(
    module: Module, caps: tuple[str, ...]
) -> None:
    without = module.outcomes("-p", "no:hfbudget")
    assert sorted(without.values()) == ["passed"] * 10 + ["skipped"] * 2  # one of them is an xfail

    assert module.outcomes("--hf-report=report.json", *caps) == without

    report = module.report()
    calls = report["calls"]
    assert sorted((call["input_tokens"], call["output_tokens"]) for call in calls) == TOKENS
    assert {(call["replayed"], call["usd"]) for call in calls} == {(True, "0")}
    assert (report["session"]["replayed"], report["session"]["spent_usd"]) == (10, "0")
    assert (report["session"]["refused"], report["session"]["unmetered"]) == (0, {})


def _outcome(case: ElementTree.Element) -> str:
    kinds = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return next((kinds[part.tag] for part in case if part.tag in kinds), "passed")
