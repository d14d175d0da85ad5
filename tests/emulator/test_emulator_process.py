"""The emulator as a process: ready file, signals, and ending with another process."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_hfbudget.emulator as emulator_package
from pytest_hfbudget.emulator import EmulatorClient

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest_hfbudget.emulator", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    """The line that a process without a ready file prints when it listens."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "h11"])
def test_what_is_missing_is_said_in_one_sentence_and_the_client_works_without(missing: str) -> None:
    script = f"""
import runpy, sys
sys.modules[{missing!r}] = None
from pytest_hfbudget.emulator import EmulatorClient
sys.argv = ["emulator"]
runpy.run_module("pytest_hfbudget.emulator", run_name="__main__")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    sentence = f'The emulator needs {missing}: pip install "pytest-hfbudget[emulator]"'
    assert (done.returncode, done.stderr.strip()) == (1, sentence)


def test_the_emulator_imports_nothing_of_the_package_that_it_checks() -> None:
    files = list(Path(emulator_package.__file__).parent.glob("*.py"))
    imported = {
        node.module
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    own = {name for name in imported if name and name.startswith("pytest_hfbudget")}
    assert own
    assert all(name.startswith("pytest_hfbudget.emulator") for name in own)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_on_a_signal_even_while_a_client_waits(start: Start, number: int) -> None:
    process = start()
    client = EmulatorClient(address(process))
    assert client.state()["endpoints"] == []
    process.send_signal(number)
    assert process.wait(2) == 0


def test_it_is_configured_and_logs_by_files(start: Start, tmp_path: Path) -> None:
    config, log = tmp_path / "config.json", tmp_path / "log.jsonl"
    endpoint: dict[str, Any] = {"namespace": "org", "name": "ci", "state": "running"}
    config.write_text(json.dumps({"endpoints": [endpoint]}))
    process = start("--config", str(config), "--log", str(log))
    assert EmulatorClient(address(process)).state()["endpoints"][0]["state"] == "running"
    process.kill()
    process.wait()
    [line] = log.read_text().splitlines()
    assert json.loads(line)["state"] == "running"


def test_the_ready_file_is_whole_when_it_is_there(start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = start("--ready-file", str(ready), "--exit-with", str(os.getpid()))
    while not ready.exists():
        assert process.poll() is None
        os.sched_yield()
    told = json.loads(ready.read_text())
    assert told["pid"] == process.pid
    assert EmulatorClient(told["url"]).log() == []


def test_it_ends_with_the_process_that_it_was_told_to_end_with(start: Start) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = start("--exit-with", str(other.pid))
    address(process)
    other.kill()
    assert process.wait(5) == 0  # though `other` is a zombie: no process has waited for it
    other.communicate()


def test_it_takes_another_port_where_it_may(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start("--port", port, "--or-any-port")
        assert not address(process).endswith(f":{port}")
    free = start("--port", port, "--or-any-port")
    assert address(free).endswith(f":{port}")
