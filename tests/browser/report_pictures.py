"""The pictures of the HTML page in the documents: six nights of one suite, run for real.

`make picture` draws them anew. It needs Chromium; the emulator answers the calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from opened_page import chromium

from pytest_hfbudget.reporting import html
from pytest_hfbudget.reporting.json_report import read

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Page

DOCS = Path(__file__).parents[2] / "docs"
NEWEST = datetime(2026, 11, 28, 3, 16, tzinfo=timezone.utc)
# How many calls more than the others some tests make in each night.
NIGHTS = (8, 16, 4, 12, 0, 8)
WIDTH, ROOM = 1100, 24
ANSWERS = """
import os
import pytest
from huggingface_hub import InferenceClient

SMALL, LARGE = "meta-llama/Llama-3.1-8B-Instruct:cerebras", "meta-llama/Llama-3.3-70B-Instruct:groq"

def ask(model, times):
    for _ in range(times):
        question = [{"role": "user", "content": "Explain transformers. [[tokens=400]]"}]
        InferenceClient(model=model).chat_completion(question, max_tokens=500)

@pytest.mark.parametrize("style, times", [("short", 16), ("formal", 20), ("poem", 32)],
                         ids=["short", "formal", "poem"])
@pytest.mark.budget(max_usd=0.0025)
def test_answers_in_one_sentence(style, times):
    ask(SMALL, times + int(os.environ["NIGHT"]))

@pytest.mark.budget(max_usd=0.01)
def test_cites_its_sources():
    ask(LARGE, 18)

@pytest.mark.budget(max_usd=0.001)
def test_writes_a_long_essay():
    ask(LARGE, 5)
"""
OWN_MODEL = """
import time
import pytest

def ask(endpoint, times):
    for _ in range(times):
        time.sleep(0.2)
        question = [{"role": "user", "content": "Are you up?"}]
        endpoint.client.chat_completion(question, max_tokens=20)

@pytest.mark.hf_endpoint("my-org/ci-llm")
@pytest.mark.budget(max_usd=0.0005)
@pytest.mark.parametrize("level", ["easy", "hard"])
def test_answers_with_our_model(hf_endpoint, level):
    ask(hf_endpoint, 3 if level == "easy" else 5)

@pytest.mark.hf_endpoint("my-org/ci-reranker")
def test_ranks_documents(hf_endpoint):
    ask(hf_endpoint, 4)
"""
CONFIG = {
    "endpoints": [
        {
            "namespace": "my-org",
            "name": name,
            "instance_type": "nvidia-t4",
            "state": "paused",
            "initializing_s": 0.5,
        }
        for name in ("ci-llm", "ci-reranker")
    ]
}


def main() -> None:
    """Run the suite, and draw what its page shows."""
    with tempfile.TemporaryDirectory() as directory:
        page = _page(Path(directory))
        with chromium() as browser:
            light = browser.new_context(viewport={"width": WIDTH, "height": 800}).new_page()
            light.goto(page.as_uri())
            _leave_out(light, "refusals", "endpoints", "models", "providers", "prices", "runs")
            light.locator("#tests .opens", has_text="[hard]").click()
            light.screenshot(path=DOCS / "report-page.png", full_page=True)
            dark = browser.new_context(
                viewport={"width": WIDTH, "height": 800}, color_scheme="dark"
            ).new_page()
            dark.goto(page.as_uri())
            dark.screenshot(path=DOCS / "report-runs.png", full_page=True, clip=_around(dark))


def _page(directory: Path) -> Path:
    from pytest_hfbudget.emulator import Emulator

    (directory / "test_answers.py").write_text(ANSWERS)
    (directory / "test_own_model.py").write_text(OWN_MODEL)
    (directory / "pytest.ini").write_text("[pytest]\nhf_project = rag-service\n")
    settings = ("PYTEST_", "HFBUDGET_", "HF_", "GITHUB_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    env["HFBUDGET_STATE_DIR"] = str(directory / "state")
    reports = []
    for number, more in enumerate(NIGHTS, 1):
        report = directory / f"{number}.json"
        with Emulator(config=CONFIG) as emulator:
            night = env | {"HFBUDGET_EMULATOR": emulator.url, "NIGHT": str(more)}
            run = [sys.executable, "-m", "pytest", "-q", "--hf-session-budget=0.10"]
            subprocess.run(
                [*run, f"--hf-report={report}"],
                cwd=directory,
                env=night,
                check=False,
                stdout=subprocess.DEVNULL,
            )
        made = json.loads(report.read_text())
        made["date"] = (NEWEST - timedelta(days=len(NIGHTS) - number)).isoformat()
        report.write_text(json.dumps(made))
        reports.append(read(report))
    html.write(reports, directory / "page.html")
    return directory / "page.html"


def _around(page: Page) -> FloatRect:
    """The section over runs, with some room above and below it."""
    box = page.locator("#runs").bounding_box()
    assert box is not None
    return {"x": 0, "y": box["y"] - ROOM, "width": WIDTH, "height": box["height"] + 2 * ROOM}


def _leave_out(page: Page, *sections: str) -> None:
    """A picture for a document has no room for every table."""
    for section in sections:
        page.locator(f"#{section}").evaluate("section => section.hidden = true")
    page.locator("#calls").evaluate("section => section.hidden = true")


if __name__ == "__main__":
    main()
