"""A server that this project did not write: `transformers serve` with a tiny Llama, offline."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import InferenceClient

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HERE = Path(__file__).parent
# Seconds. A first start after an install also compiles torch's and transformers' modules.
START_DEADLINE = 180.0
CALL_TIMEOUT = 60.0
LOG_TAIL = 4000
# For the server's process only: a client that is told to be offline refuses even this server.
SERVER_ENV = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # the command line asks the package index otherwise
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",  # a net this small only loses time to more threads
    "PYTHONUNBUFFERED": "1",  # the address is read from the log
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out unless `-m` names their marker."""
    if "real_server" in config.option.markexpr:
        return
    left_out = [item for item in items if item.path.parent == HERE]
    if left_out:
        items[:] = [item for item in items if item.path.parent != HERE]
        config.hook.pytest_deselected(items=left_out)


@dataclass(frozen=True)
class RealServer:
    """A running server: its address, the only model it answers for, and its log file."""

    url: str
    model: str
    log: Path


@dataclass(frozen=True)
class Recount:
    """Counts tokens without transformers: the tokenizer's file and the chat template's text."""

    tokenizer: Tokenizer
    template: str

    def prompt(self, messages: list[dict[str, str]]) -> int:
        import jinja2

        names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
        return self.text(jinja2.Template(self.template).render(messages=messages, **names))

    def text(self, text: str | None) -> int:
        return len(self.tokenizer.encode(text or "", add_special_tokens=False).ids)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's directory. Another process makes it, to keep torch out of the tests' own."""
    directory = tmp_path_factory.mktemp("tiny_llama")
    command = [sys.executable, str(HERE / "tiny_llama.py"), str(directory)]
    made = subprocess.run(
        command,
        env={**os.environ, **SERVER_ENV},
        capture_output=True,
        text=True,
        timeout=START_DEADLINE,
        check=False,
    )
    if made.returncode != 0:
        pytest.fail(f"tiny_llama.py could not make the model:\n{made.stderr[-LOG_TAIL:]}", False)
    return directory


@pytest.fixture(scope="session")
def recount(tiny_llama: Path) -> Recount:
    from tokenizers import Tokenizer

    template = (tiny_llama / "chat_template.jinja").read_text(encoding="utf-8")
    return Recount(Tokenizer.from_file(str(tiny_llama / "tokenizer.json")), template)


@pytest.fixture(scope="session")
def real_server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    log = tmp_path_factory.mktemp("real_server") / "server.log"
    with _serving(tiny_llama, log) as process:
        yield RealServer(_wait_until_ready(process, log), str(tiny_llama), log)


@pytest.fixture
def client(real_server: RealServer) -> Iterator[InferenceClient]:
    with InferenceClient(base_url=f"{real_server.url}/v1", timeout=CALL_TIMEOUT) as client:
        yield client


@contextmanager
def _serving(model: Path, log: Path) -> Iterator[subprocess.Popen[Any]]:
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    # Port 0: the system picks a free one, so that no other process can take it in between.
    flags = ["--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    home = {"HF_HOME": str(log.parent / "hf_home")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command + flags,
            env={**os.environ, **SERVER_ENV, **home},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[Any], log: Path) -> str:
    """Wait for the address in the log, then for /health (/v1/models lists only the Hub's cache)."""
    deadline = time.monotonic() + START_DEADLINE
    tick = threading.Event()
    while time.monotonic() < deadline:
        if process.poll() is not None:
            _fail(f"transformers serve ended with exit code {process.returncode}", log)
        url = _address(log)
        if url and _is_healthy(url):
            return url
        tick.wait(0.05)
    _fail(f"transformers serve was not ready in {START_DEADLINE:.0f} seconds", log)
    raise AssertionError


def _fail(why: str, log: Path) -> None:
    tail = log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
    pytest.fail(f"{why}. The end of its log:\n{tail}", pytrace=False)


def _address(log: Path) -> str | None:
    text = log.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"running on (http://[\d.]+:\d+)", text)
    return found[1] if found else None


def _is_healthy(url: str) -> bool:
    # No proxy of the surroundings may stand between a test and its own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
