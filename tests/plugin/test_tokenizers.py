"""Prompts that are counted by the model's own tokenizer, where that lies on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from plugin_suite import Suite
from tokenizer_files import WORDS, keep_tokenizer, save_tokenizer

pytestmark = pytest.mark.slow

TEXT = "The sun rose over a calm sea and all boats left their quiet harbour. " * 20
CALLS = f"""
    def ask(number):
        say = [{{"role": "user", "content": f"{{number}} {TEXT}[[tokens=1]]"}}]
        client = InferenceClient(model="emulator/chat", provider="groq")
        return client.chat_completion(say, max_tokens=1)

    def test_calls():
        for number in range(6):
            ask(number)
"""
# The first has as many words as tokens; the others have a token for every four letters.
ODD = """
    def ask(text):
        say = [{"role": "user", "content": text + " [[tokens=1]]"}]
        client = InferenceClient(model="emulator/chat", provider="groq")
        return client.chat_completion(say, max_tokens=1)

    def test_calls():
        for text in ("sea " * 200, "y" * 400, "y" * 401):
            ask(text)
"""
# Room for six prompts of about 360 tokens, but for the bytes of the fourth only beside two others.
TIGHT = "--hf-session-budget=0.00013"
FAIL = "--hf-on-exhausted=fail"


@pytest.fixture
def cache(tmp_path: Path, real: Suite, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    real.test_file(CALLS)
    return tmp_path / "hub"


def test_text_is_counted_by_a_tokenizer_of_the_cache(real: Suite, cache: Path) -> None:
    keep_tokenizer(cache, "emulator/chat")
    real.run(TIGHT, FAIL).assert_outcomes(passed=1)
    assert real.sent == 6


@pytest.mark.parametrize("setting", [("hf_tokenizer=off",), ()])
def test_without_one_text_is_bounded_by_its_bytes(
    real: Suite, cache: Path, setting: tuple[str, ...]
) -> None:
    if setting:
        keep_tokenizer(cache, "emulator/chat")
    real.run(TIGHT, FAIL, *(f"-o{each}" for each in setting)).assert_outcomes(failed=1)
    assert real.sent == 3


def test_workers_count_by_it_too(real: Suite, cache: Path) -> None:
    pytest.importorskip("xdist")
    keep_tokenizer(cache, "emulator/chat")
    real.run(TIGHT, FAIL, "-n1").assert_outcomes(passed=1)


def test_a_tokenizer_that_counts_less_than_the_server_is_believed_no_more(
    real: Suite, cache: Path
) -> None:
    keep_tokenizer(cache, "emulator/chat", WORDS)
    said = "*the tokenizer of emulator/chat has counted fewer tokens than its server: not used*"
    report = ("--hf-session-budget=1", "--hf-report=report.json")
    real.test_file(ODD)
    result = real.run(*report)
    result.stdout.fnmatch_lines([said])
    over = [call["over_hold_usd"] != "0" for call in real.report()["calls"]]
    assert over == [False, True, False]
    real.test_file(ODD.replace("y", "z"))
    result = real.run(*report)
    result.stdout.no_fnmatch_line(said)
    assert {call["over_hold_usd"] for call in real.report()["calls"]} == {"0"}


FOUND = "/emulator/chat/resolve/main/tokenizer.json"


class Hub(ThreadingHTTPServer):
    """Serves one tokenizer as the Hub does, and leaves all else to another Hub.

    Attributes:
        asked: the tokenizers that it was asked for.
    """

    def __init__(self, file: Path, other: str) -> None:
        self.asked: list[str] = []
        hub, content = self, file.read_bytes()

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                if "/resolve/" not in self.path:
                    self.send_response(307)
                    self.send_header("Location", other + self.path)
                else:
                    hub.asked.append(self.path)
                    self.send_response(200 if self.path == FOUND else 404)
                    self.send_header("X-Repo-Commit", "0" * 40)
                    self.send_header("ETag", '"1234"')
                size = len(content) if self.path == FOUND else 0
                self.send_header("Content-Length", str(size))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                if self.path == FOUND:
                    self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Answer)


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(save_tokenizer(tmp_path / "tokenizer.json"), os.environ["HF_ENDPOINT"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


PRICES = """
["emulator/chat:groq"]
input = 0.05
output = 0.08
"""


def test_tokenizers_are_downloaded_before_the_first_test_and_that_is_said(
    real: Suite, hub: Hub
) -> None:
    (real.path / "prices.toml").write_text(PRICES)
    result = real.run(TIGHT, FAIL, "-ohf_tokenizer=download", "--hf-prices=prices.toml")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hfbudget: downloading the tokenizer of emulator/chat"])
    assert hub.asked


def test_nothing_is_fetched_unless_it_was_asked_for(real: Suite, hub: Hub) -> None:
    (real.path / "prices.toml").write_text(PRICES)
    real.run(TIGHT, FAIL, "--hf-prices=prices.toml").assert_outcomes(failed=1)
    assert not hub.asked


def test_a_tokenizer_that_cant_be_downloaded_ends_no_run(real: Suite, hub: Hub) -> None:
    (real.path / "prices.toml").write_text(PRICES.replace("emulator/chat", "acme/none") + PRICES)
    result = real.run("--hf-session-budget=1", "-ohf_tokenizer=download", "--hf-prices=prices.toml")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*the tokenizer of acme/none could not be downloaded*"])
