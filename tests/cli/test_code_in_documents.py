"""What README.md and the pages of the reference show as code is run as it stands there, and what
they show of an output is what comes out.

Each page has a project of its own: the suite of the README, in front of an emulator that it takes
for Hugging Face. Files, settings and suites of the page are put there first; then what it types is
typed; last, what it shows of an output is looked for in all that came out. The pages of the
tutorial and the how-to guide are done step by step in tests/plugin/test_documents.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import yaml
from billed_runs import BilledRuns
from command_line import Shell
from documents import DOCS, REFERENCE, Block, blocks, shows
from lean_pytest import lean
from redis_server import RedisServer, free_port
from shown_outputs import AFTER, BEFORE, ENDPOINT

from pytest_hfbudget.emulator.switches import Switches
from pytest_hfbudget.metering.budget_args import budget_args

pytestmark = pytest.mark.slow

PAGES = [page for page in REFERENCE if blocks(page)]
KINDS = ("python", "toml", "json", "console", "yaml", "text")
SUITE, SCRIPT = (block.text for block in blocks(REFERENCE[0]) if block.language == "python")
INI = "[tool.pytest.ini_options]\n"

# What no test runs here, by the beginning of a line, and why not.
NOT_RUN = {
    "pip install": "reaches for a package index; .ci/run installs from nothing",
    "make ": "a step of .ci/run",
    "pytest tests/chaos": "a step of .ci/run, with fewer runs",
}
# What runs until it is ended; its first line says that it has come up.
SERVERS = ("python -m pytest_hfbudget.emulator", "python -m pytest_hfbudget.join")
# What stands for something of the reader's own, and what it is here.
READERS_OWN = {
    " MODEL ": " meta-llama/Llama-3.1-8B-Instruct ",
    " RUN ": " ci-7 ",
    "pause --all my-org ": "pause --all my-org --yes ",  # a terminal would be asked
    "sweep --shared ": "sweep --shared={redis} ",
    "--port 8899": "--port {port}",
    "http://127.0.0.1:8899": "{emulator}",
    "rediss://ci@redis.example.com:6379/0": "{redis}",
    "PASSWORD=…": "PASSWORD=secret",
    "--wait 180": "--wait 1",
}
# Texts that no program prints, and what checks them instead.
NO_OUTPUT = {
    "price per hour x (": "a formula; the page's commands compute with it",
    "budget(max_usd=None": "a signature; a test of its own compares it",
    "  my-org/ci-llm: NOT VERIFIED": "pytest waits two minutes for it; test_endpoints_of_a_run.py",
    "import os; ": "a line for site-packages; test_children.py starts interpreters with it",
}
# Outputs whose figures are examples, by their beginning: a longer history, a larger suite, a
# longer time. Those of all others have to be what comes out.
EXAMPLES = (
    "endpoint       state",
    "my-org/ci-llm: initializing",
    "openai/gpt-oss-20b by groq",
    "billing period from",
    "hfbudget: daily budget",
    "daily budget (",
    "model    ",
    "hfbudget: tests sorted by endpoint",
    "  endpoint minutes:",
    "  my-org/ci-llm: paused, verified",
    "test_llm.py::test_long",
    "$0.78, before $0.65",
    "hfbudget: session budget of all jobs",
)
# The file that a block of JSON is, by its page.
FILES = {
    "emulator.md": "emulator.json",
    "plan.md": "hf-costs.json",
    "report.md": "report.json",
}
SERVICES_OF_THE_READER = """
from types import SimpleNamespace

told = []
metrics = SimpleNamespace(increment=lambda *given, **more: told.append(given))
chat = SimpleNamespace(post=told.append)

"""
IN_A_MARKED_TEST = "assert list(request.node.iter_markers())"


@dataclass
class Project:
    """A reader's folder and shell."""

    page: str
    runs: BilledRuns
    environ: dict[str, str]
    own: dict[str, str]
    said: list[str] = field(default_factory=list)

    @property
    def shell(self) -> Shell:
        return self.runs.shell

    @property
    def folder(self) -> Path:
        return self.shell.directory

    def write(self, name: str, text: str) -> None:
        """Write a file; what is added to pyproject.toml goes below its one table of settings."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        added = text.removeprefix(INI) if INI in before else text
        file.write_text(before + added if name.endswith(".toml") else text, encoding="utf-8")

    def types(self, command: str, folder: Path | None = None) -> tuple[int, str]:
        """Type a line; its exit code, and all that it says."""
        for name, here in READERS_OWN.items():
            command = f"{command} ".replace(name, here.format(**self.own)).rstrip()
        if found := re.match(r"export (\w+)=(.*)$", command):
            self.environ[found[1]] = found[2]
            return 0, ""
        process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=folder or self.folder,
            env={**os.environ, **lean(command.split()), **self.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.shell.started.append(process)
        if command.startswith(SERVERS):
            assert process.stdout is not None
            return 0, process.stdout.readline()
        said, _ = process.communicate(timeout=120)
        self.said.append(said)
        return process.returncode, said

    def shows(self, block: Block, shown: str, said: str) -> None:
        """Compare an output with what the page shows of it."""
        exactly = not shown.startswith(EXAMPLES)
        assert shows(said, shown, exactly=exactly), (
            f"{block.where} shows\n{shown}\nbut this came out:\n{said}"
        )

    # -- the kinds of blocks

    def python(self, block: Block) -> None:
        """A file, a hook, a marker on a test, or a script that a test runs."""
        text = block.text
        if block.file:
            self.write(block.file, text)
        elif text.startswith("def pytest_"):
            hooks = self.folder / "conftest.py"
            before = hooks.read_text() if hooks.exists() else SERVICES_OF_THE_READER
            hooks.write_text(before + text)
        elif text.startswith("@"):
            test = f"import pytest\n\n{text}def test_it(request):\n    {IN_A_MARKED_TEST}\n"
            self.write("test_marked.py", test)
        else:
            number = len(list(self.folder.glob("script*.py")))
            self.write(f"script{number}.py", f"import os\n{text}")
            run = f"import runpy\n\ndef test_script():\n    runpy.run_path('script{number}.py')\n"
            self.write(f"test_script{number}.py", run)

    def toml(self, block: Block) -> None:
        """Settings, or a file of prices."""
        self.write(block.file or "pyproject.toml", block.text)

    def json(self, block: Block) -> None:
        """A file of the kind that the page is about, or what a command has printed."""
        if block.where.startswith("bill.md"):
            printed = next(text for text in self.said if text.startswith("{"))
            assert list(json.loads(printed)) == list(json.loads(block.text))
            return
        self.write(FILES[block.where.partition(":")[0]], block.text)

    def yaml(self, block: Block) -> None:
        for step in yaml.safe_load(block.text):
            code, said = self.types(step["run"])
            assert code == 0, said

    def console(self, block: Block) -> None:
        for step in block.steps:
            if step.command.startswith(tuple(NOT_RUN)):
                continue
            code, said = self.types(step.command)
            assert code == step.code, f"{block.where}: $ {step.command}\n{said}"
            self.shows(block, step.shown, said)
            if done := AFTER.get(step.command):
                done(self)

    def text(self, block: Block) -> None:
        if not block.text.startswith(tuple(NO_OUTPUT)):
            self.shows(block, block.text, "\n".join(self.said))


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server with the user of the page."""
    RedisServer.needed()
    user = ("--user", "ci", "on", ">secret", "~*", "&*", "+@all")
    server = RedisServer(tmp_path_factory.mktemp("redis"), user)
    server.start()
    yield server.url.replace("//", "//ci@")
    server.close()


@pytest.fixture
def project(
    request: pytest.FixtureRequest, billed_runs: BilledRuns, monkeypatch: pytest.MonkeyPatch
) -> Project:
    page, hub = request.node.callspec.params["page"], billed_runs.shell.hub
    hub.add_endpoint(ENDPOINT, initializing_s=0.1)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    redis = (
        request.getfixturevalue("redis_url") if page.name in ("commands.md", "shared.md") else ""
    )
    own = {"emulator": hub.url, "port": str(free_port()), "redis": redis}
    made = Project(
        page.name,
        billed_runs,
        {"PATH": path, "COLUMNS": "200", "HFBUDGET_SHARED_PASSWORD": "secret"},
        own,
    )
    for name in ("test_answers.py", "tests/test_more.py"):
        made.write(name, SUITE)
    made.write("pyproject.toml", INI)
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_and_its_outputs_are_those_shown(
    page: Path, project: Project
) -> None:
    if prepare := BEFORE.get(page.name):
        prepare(project)
    found = blocks(page)
    placed = [block for block in found if block.language in ("python", "toml", "json")]
    for block in placed:
        getattr(project, block.language)(block)
    if any(block.language in ("python", "toml") for block in placed):
        code, said = project.types("pytest -s -k 'not test_endpoint'")
        assert code == 0, said
    for language in ("console", "yaml", "text"):
        for block in found:
            if block.language == language:
                getattr(project, language)(block)
    assert {block.language for block in found} <= set(KINDS)


@pytest.mark.parametrize("page", ["budgets.md", "configuration.md"])
def test_the_signature_that_a_page_shows_is_that_of_a_budget(page: str) -> None:
    (shown,) = (
        block.text for block in blocks(DOCS / page) if block.text.startswith("budget(max_usd=None")
    )
    given = inspect.signature(eval(f"lambda {' '.join(shown.split())[len('budget(') : -1]}: None"))
    real = inspect.signature(budget_args).parameters
    named = [(one.name, one.kind) for one in real.values() if one.name != "unknown"]
    assert [(one.name, one.kind) for one in given.parameters.values()] == named


def test_the_page_of_the_emulator_has_every_switch() -> None:
    page = (DOCS / "emulator.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## Switches")[2], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {switch.name for switch in fields(Switches)} <= named
