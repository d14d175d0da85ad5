"""The `hfbudget` command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_suite import Suite

import pytest_hfbudget


def hfbudget(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest_hfbudget", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_names_the_commands() -> None:
    done = hfbudget("--help")
    assert done.returncode == 0
    assert {"demo", "pause", "status"} <= set(done.stdout.split())


WINDOWS = """
import signal, sys
sys.modules["fcntl"] = None
for name in ("SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
from pytest_hfbudget.cli import main
main(["--help"])
"""


def test_help_needs_nothing_that_windows_has_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS], capture_output=True, text=True, check=False
    )
    assert "sweep" in done.stdout, done.stderr


def test_version_is_the_packages() -> None:
    assert (
        hfbudget("--version").stdout.strip() == f"hfbudget, version {pytest_hfbudget.__version__}"
    )


def test_the_demo_shows_a_refusal_a_pause_and_a_ledger_that_is_the_bill() -> None:
    done = hfbudget("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused, though the test passed" in done.stdout
    assert "demo/llm: paused, verified" in done.stdout
    assert "later the pause was on the wire" in done.stdout
    assert "As promised" in done.stdout
    report = re.search(r"hfbudget report (\S+) --html", done.stdout.replace("\n", ""))
    assert report is not None
    assert Path(report[1]).exists()


@pytest.fixture
def pausable(real: Suite) -> Suite:
    real.emulator.add_endpoint("acme/llm", state="running")
    return real


def test_pause_pauses_and_reads_it_back(pausable: Suite) -> None:
    done = hfbudget("pause", "acme/llm")
    assert (done.returncode, done.stdout) == (0, "acme/llm: paused, verified\n")


def test_pause_of_a_name_that_is_none_is_a_usage_error(pausable: Suite) -> None:
    done = hfbudget("pause", "llm")
    assert done.returncode == 2
    assert "namespace/name" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_pause_without_the_permission_says_so(
    pausable: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_limited")
    done = hfbudget("pause", "acme/llm")
    assert done.returncode == 1
    assert "Manage Inference Endpoints" in done.stderr


def test_status_lists_every_endpoint_of_a_namespace(pausable: Suite) -> None:
    for number in range(25):
        pausable.emulator.add_endpoint(f"acme/model-{number}")
    done = hfbudget("status", "acme")
    assert done.returncode == 0
    assert "acme/model-24" in done.stdout
    assert "running" in done.stdout
