"""What has happened before a page of the reference is read: what its commands find, and the runs
whose outputs it shows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from documents import DOCS, blocks
from redis_server import free_port

from pytest_hfbudget.endpoints.lease_store import lease_store_dir
from pytest_hfbudget.files import write_cache
from pytest_hfbudget.pricing.catalogue import Catalogue, CatalogueFile

if TYPE_CHECKING:
    from test_code_in_documents import Project

MODEL = "acme/dear:groq"
DAY_S = 86_400.0
ENDPOINT = "my-org/ci-llm"
PRICED = '\n[tool.hfbudget.prices]\n"org/model" = { call = 0.02 }\n'
ASKS = """
import threading
import pytest
from huggingface_hub import InferenceClient

def ask(model="org/model", **more):
    client = InferenceClient(model=model)
    return client.chat_completion([{"role": "user", "content": "Hi"}], max_tokens=50, **more)
"""


def reports(project: Project) -> None:
    """The report of the newest run, one of a run before it, and a folder with both."""
    (shown,) = (block for block in blocks(DOCS / "report.md") if block.language == "json")
    newest = json.loads(shown.text)
    before = json.loads(shown.text.replace("0.0000049", "0.000004").replace("5f0c2d", "4f0c2d"))
    before["date"] = "2026-11-21T03:10:42+00:00"
    (project.folder / "reports").mkdir()
    for name, content in (("report", newest), ("reports/b", newest), ("base", before)):
        (project.folder / f"{name}.json").write_text(json.dumps(content))
    shutil.copy(project.folder / "base.json", project.folder / "reports" / "a.json")


def billed(project: Project) -> None:
    """Runs in the usage log: one as billed, one of which half was known, and one not billed yet."""
    hub = project.shell.hub
    listed = {"provider": "groq", "pricing": {"input": 1, "output": 2}, "context_length": 8192}
    billed = {**listed, "price": {"input": "1.5", "output": 3}}
    hub.add_model("acme/dear", providers=[billed])
    project.types("hfbudget prices --refresh")
    if project.page == "bill.md":
        project.runs.run(12, name="0a0479605756", ago_s=2 * DAY_S)
    ago_s = DAY_S if project.page == "bill.md" else -DAY_S  # after those of the page
    project.runs.run(3, name="fc87905ebf86", model=MODEL, factor=1 / 1.5, ago_s=ago_s)
    if project.page == "bill.md":
        project.types("hfbudget bill fc8790 --json")
        own = "hfbudget-5f0c2d9e71ab"
        project.runs.run(9, name="5f0c2d9e71ab", sent_as="hfbudget-elsewhere", session_id=own)


def found_endpoints(project: Project) -> None:
    """One endpoint that a live run has leased, one that is paused."""
    project.shell.hub.add_endpoint("my-org/demo")
    project.shell.hub.change_endpoint(ENDPOINT, state="running")
    project.shell.live_lease(ENDPOINT, run="5f0c2d9e71ab")
    (project.folder / "evaluate.py").write_text("print('an evaluation')")
    prices = '["openai/gpt-oss-20b"]\ninput = 0.1\noutput = 0.4\n'
    (project.folder / "prices.toml").write_text(prices)
    server = '\n[tool.hfbudget.prices]\n"http://localhost:8080" = { free = true }\n'
    project.write("pyproject.toml", server)
    project.types("hfbudget prices --refresh")
    reports(project)


def logged(project: Project) -> None:
    """A run in the usage log, and a daily budget that refuses a call."""
    body = "ask('meta-llama/Llama-3.1-8B-Instruct')"
    run(project, "test_on_it.py", f"{ON_THE_ENDPOINT}\ndef test_it(hf_endpoint): pass\n")
    suite(project, body)
    suite(project, body, options="-rs --hf-daily-budget 0.00001", code=1)


def refused(project: Project) -> None:
    """A test that passes though its call was refused."""
    body = "with pytest.raises(Exception): ask()"
    suite(project, body, marks="@pytest.mark.budget(max_usd=0.01)", code=1)


def told_of_a_bound(project: Project) -> None:
    """A refusal that says what the call would have held."""
    body = "ask('openai/gpt-oss-20b:groq')"
    suite(project, body, marks="@pytest.mark.budget(max_usd=0.0000001)", code=1)


def on_endpoints(project: Project) -> None:
    """Three endpoints whose tests are apart; and a test that is too long on one of them."""
    project.shell.hub.configure(billing_minute_s=0.2)
    project.environ["HFBUDGET_BILLING_MINUTE"] = "0.2"
    for name in "abc":
        project.shell.hub.add_endpoint(f"my-org/{name}", initializing_s=0.1)
    tests = [
        f"@pytest.mark.hf_endpoint('my-org/{name}')\ndef test_{name}{number}(hf_endpoint): pass\n"
        for number in (1, 2)
        for name in "abc"
    ]
    tests[1:1] = ["def test_free(): pass\n"]
    run(project, "test_order.py", "\n".join(tests))
    long = "@pytest.mark.budget(max_usd=0.0005)\n@pytest.mark.hf_endpoint('my-org/ci-llm')\n"
    body = "def test_long(hf_endpoint): threading.Event().wait(0.5)\n"
    run(project, "test_llm.py", long + body, code=1)


def planned(project: Project) -> None:
    """The costs file of the page, and the tests that its plan names."""
    (costs,) = (block for block in blocks(DOCS / "plan.md") if block.language == "json")
    tests = """
def test_answer(): ask("meta-llama/Llama-3.1-8B-Instruct")

@pytest.mark.hf_endpoint("my-org/ci-llm")
def test_endpoint(hf_endpoint): pass

@pytest.mark.budget(max_usd=0.01)
def test_new(): pass

def test_other(): pass
"""
    folder = scene(project)
    (folder / "hf-costs.json").write_text(costs.text)
    (folder / "test_parsing.py").write_text("def test_parse(): pass\n")
    (folder / "test_answers.py").write_text(ASKS + tests)
    plan = "pytest --hf-plan --hf-session-budget 0.05"
    assert project.types(plan, folder=folder)[0] == 0
    gate = "pytest --hf-session-budget 0.002 --hf-plan-gate=stop"
    assert project.types(gate, folder=folder)[0] == 4


def priced(project: Project) -> None:
    """A price file with a mistake, a router that can't be reached, and a call without a price."""
    wrong = '["org/model:novita"]\n\n\n\n\ninput = 0.1\noutput = nan\n'
    folder = scene(project)
    (folder / "prices.toml").write_text(wrong)
    assert project.types("pytest --hf-prices prices.toml", folder=folder)[0] == 4
    nowhere = f"http://127.0.0.1:{free_port()}/router"
    catalogue = Catalogue.parse({"data": []}, read_at=time.time() - 2 * DAY_S, origin=nowhere)
    write_cache(CatalogueFile.of(nowhere).path, catalogue.as_read())
    (folder / "test_nothing.py").write_text("def test_nothing(): pass\n")
    typed = f"HFBUDGET_ROUTER={nowhere} pytest --hf-session-budget 1"
    assert project.types(typed, folder=folder)[0] == 0
    client = "InferenceClient(provider='hf-inference')"
    body = f"{client}.feature_extraction('Hi', model='BAAI/bge-small-en')"
    suite(project, body, options="--hf-session-budget 1", code=1)


def several_jobs(project: Project) -> None:
    """A job of the same run that has written its report to the server."""
    project.environ["HFBUDGET_SHARED_RUN"] = "ci-7"


def headers(project: Project) -> None:
    """A run whose header and lines the page shows."""
    reports(project)
    options = "-v --hf-session-budget 0.05 --hf-test-budget 0.01 --hf-endpoint my-org/ci-llm"
    run(
        project,
        "test_answers.py",
        "def test_answer(): ask('meta-llama/Llama-3.1-8B-Instruct')\ndef test_other(): pass\n",
        options=options,
    )


ON_THE_ENDPOINT = "@pytest.mark.hf_endpoint('my-org/ci-llm')"
BEFORE: dict[str, Callable[[Project], None]] = {
    "README.md": billed,
    "bill.md": billed,
    "budgets.md": refused,
    "commands.md": found_endpoints,
    "endpoints.md": on_endpoints,
    "how-a-call-is-charged.md": told_of_a_bound,
    "log.md": logged,
    "plan.md": planned,
    "prices.md": priced,
    "report.md": headers,
    "shared.md": several_jobs,
}


def scene(project: Project) -> Path:
    """A folder of its own for a run whose output is shown."""
    folder = project.folder.parent / f"scene{len(project.said)}"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n" + PRICED)
    return folder


def run(project: Project, name: str, tests: str, *, options: str = "", code: int = 0) -> None:
    """Run a suite of one file."""
    folder = scene(project)
    (folder / name).write_text(ASKS + tests)
    ended, said = project.types(f"pytest {options}", folder=folder)
    assert ended == code, said


def lease_ends(project: Project) -> None:
    """The run that had leased an endpoint is over."""
    shutil.rmtree(lease_store_dir(project.shell.state_dir))


def base_was_cheaper(project: Project) -> None:
    """The report of a run before this one, of which one test, a call and a minute cost less."""
    report = json.loads((project.folder / "report.json").read_text())
    report["session"]["calls"] -= 1
    report["session"]["spent_usd"] = "0.0005"
    report["endpoints"][0]["usd"] = "0.000495"
    report["tests"][0]["spent_usd"] = "0.000001"
    (project.folder / "base.json").write_text(json.dumps(report))


AFTER: dict[str, Callable[[Project], None]] = {
    "hfbudget status my-org": lease_ends,
    "pytest --hf-session-budget 0.20 --hf-report=report.json": base_was_cheaper,
}


def suite(
    project: Project, body: str, *, marks: str = "", options: str = "", code: int = 0
) -> None:
    """Run a suite of one test."""
    run(
        project,
        "test_suite.py",
        f"{marks}\ndef test_it():\n    {body}\n",
        options=options,
        code=code,
    )
