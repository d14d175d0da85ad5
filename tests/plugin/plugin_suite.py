"""Suites that are run for real: pytest in a process of its own, in front of an emulator."""

from __future__ import annotations

import json
import os
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked_python import ForkServer
from lean_pytest import run_lean

from pytest_hfbudget.emulator import Emulator, EmulatorClient

PAID = ("chat", "task", "completions", "responses", "embeddings", "images")
PREAMBLE = """
import asyncio, os, threading
import pytest
from pytest_hfbudget import BudgetExceededError, budget
"""
CLIENTS = """
from huggingface_hub import AsyncInferenceClient, InferenceClient

SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

def call(limit=20, model="emulator/chat", provider="groq"):
    return InferenceClient(model=model, provider=provider).chat_completion(SAY, max_tokens=limit)
"""


def importing(code: str) -> str:
    """Code, behind the imports that it needs; that of huggingface_hub is half of a short run."""
    calls = any(word in code for word in ("call(", "Client(", "SAY"))
    return PREAMBLE + (CLIENTS if calls else "") + code


@dataclass
class Suite:
    """A test suite in a directory of its own."""

    pytester: pytest.Pytester
    emulator: EmulatorClient
    fork_server: ForkServer
    lean: bool = True

    @property
    def path(self) -> Path:
        return self.pytester.path

    def test_file(self, code: str, name: str = "test_suite.py") -> None:
        """Write a test file; it can `call()`."""
        (self.path / name).write_text(importing(textwrap.dedent(code)))

    def run(self, *options: str) -> pytest.RunResult:
        """Run it, in a process of its own; ``lean`` without plugins that no option speaks of."""
        if self.lean:
            return run_lean(self.pytester, self.fork_server, *options)
        return self.pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    def report(self) -> dict[str, Any]:
        """The JSON report of a run with ``--hf-report report.json``."""
        return dict(json.loads((self.path / "report.json").read_text()))

    @property
    def sent(self) -> int:
        """Paid requests that arrived at the emulator."""
        log = self.emulator.log(kind="request", phase="arrived")
        return sum(entry["op"] in PAID for entry in log)

    @property
    def billed(self) -> int:
        """Nano-USD of calls on the emulator's invoice."""
        return int(self.emulator.invoice()["calls_nano_usd"])

    def requests(self, op: str) -> list[dict[str, Any]]:
        """What arrived at the emulator of one kind."""
        return self.emulator.log(kind="request", phase="arrived", op=op)


@pytest.fixture(scope="session")
def one_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def suite(
    one_emulator: Emulator,
    fork_server: ForkServer,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> Suite:
    one_emulator.client.reset()
    monkeypatch.setenv("HFBUDGET_EMULATOR", one_emulator.url)
    # Each run would start with a copy of the outer one's coverage or path settings otherwise.
    monkeypatch.setenv("PYTHONPATH", "")
    return Suite(pytester, one_emulator.client, fork_server)


@pytest.fixture
def real(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite that takes the emulator for the real thing: no history knows of rehearsals."""
    url = suite.emulator.url
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.setenv("HFBUDGET_ROUTER", f"{url}/router")
    monkeypatch.setenv("HFBUDGET_ENDPOINTS_API", f"{url}/v2")
    monkeypatch.setenv("HF_ENDPOINT", f"{url}/hub")
    return suite


@pytest.fixture
def reapers_end(suite: Suite) -> Iterator[None]:
    """Wait at the end until no reaper is left: the next test has the same emulator."""
    yield
    suite.emulator.clear_faults()  # else they would try for long
    state = os.environ["HFBUDGET_STATE_DIR"].encode()
    ends = time.monotonic() + 20
    while left := [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if state in read_if_there(path)
    ]:
        assert time.monotonic() < ends, left
        threading.Event().wait(0.02)


def read_if_there(path: Path) -> bytes:
    """The content of a file; empty where there is none by now."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
