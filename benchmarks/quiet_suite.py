"""What the plugin costs suites that send no paid call.

Whole runs of pytest, with and without the plugin in turns, so that both meet the same machine:

- one empty test, which is the plugin's start;
- the same where Python writes no bytecode (`PYTHONDONTWRITEBYTECODE=1`, as in common Docker
  images): pytest then rewrites the assertions of a plugin's modules in each run;
- a suite of a library's own style, a thousand short tests around huggingface_hub, in one process
  and in two workers. It imports huggingface_hub, so the meter is in place around every test.

Each is told in seconds of the clock and in seconds of the processor; the latter also mean something
on a machine that others use. Last comes the import alone, in a process that has pytest already.

    python benchmarks/quiet_suite.py [ROUNDS]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from pytest_hfbudget.files import cache_file, write_cache
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.settings import ROUTER

IMPORT = """
import time, pytest, _pytest.config, _pytest.python, _pytest.terminal, _pytest.junitxml
start = time.perf_counter()
import pytest_hfbudget.plugin
print(time.perf_counter() - start)
"""
EMPTY = "def test_nothing(): pass\n"
MODULES = 50
LIBRARY = """
import json
from unittest.mock import patch

import pytest
from huggingface_hub import InferenceClient, ModelCard, hf_hub_url
from huggingface_hub.utils import validate_repo_id


@pytest.fixture(scope="module")
def names():
    return [f"org-{n}/model-{n}" for n in range(50)]


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("---\\nlicense: mit\\ntags: [a, b]\\n---\\n# A model\\n")
    return ModelCard.load(path)


@pytest.mark.parametrize("number", range(14))
def test_name(names, number):
    for name in names:
        validate_repo_id(name)
    assert hf_hub_url(names[number], "config.json").endswith("config.json")


class TestCard:
    def test_data(self, card):
        assert card.data.license == "mit"

    def test_text(self, card):
        assert "# A model" in card.text

    def test_tags(self, card):
        assert json.loads(json.dumps(card.data.to_dict()))["tags"] == ["a", "b"]


class TestClient:
    @pytest.fixture(autouse=True)
    def client(self):
        self.client = InferenceClient(model="org/model", token="hf_x")

    def test_model(self):
        assert self.client.model == "org/model"

    @pytest.mark.parametrize("text", ["a", "b"])
    def test_mocked(self, text):
        with patch.object(InferenceClient, "chat_completion", return_value=text) as chat:
            assert self.client.chat_completion([]) == text
        chat.assert_called_once()
"""


class Cost(NamedTuple):
    """Seconds of one run, by the clock and on the processor, its workers included."""

    clock: float
    processor: float


def whole_run(directory: Path, *options: str, bytecode: bool = True) -> Cost:
    """Run the suite in a directory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "HFBUDGET_CACHE_DIR": str(directory / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
    if not bytecode:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(clock, used)


def compare(what: str, directory: Path, rounds: int, *options: str, bytecode: bool = True) -> None:
    """Print the medians of runs without the plugin and with it, and their ratio."""
    off = ("-p", "no:hfbudget")
    whole_run(directory, *options)  # compiles what is not compiled yet
    without, with_it = [], []
    for number in range(rounds):
        turns = [(without, (*off, *options)), (with_it, options)]
        for column, given in turns if number % 2 else reversed(turns):
            column.append(whole_run(directory, *given, bytecode=bytecode))
    for unit in Cost._fields:
        one, two = (
            statistics.median(getattr(c, unit) for c in each) for each in (without, with_it)
        )
        print(
            f"{what:<24} {unit:<10} {one:7.3f} s without, {two:7.3f} s with it: {two / one:.3f} x"
        )


def _keep_catalogue(directory: Path) -> None:
    """Write the router's catalogue of today, as any run of the day leaves it behind."""
    directory.mkdir(mode=0o700)
    os.environ["HFBUDGET_CACHE_DIR"] = str(directory)
    copy = Catalogue.parse({"data": []}, read_at=time.time(), origin=ROUTER)
    write_cache(cache_file("catalogue", ROUTER), copy.as_read())


def import_alone() -> float:
    """Milliseconds that importing the plugin takes when pytest is there."""
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True)
    return float(done.stdout) * 1000


def main() -> None:
    """Print what each suite takes, and the import."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        empty, library = Path(name, "empty"), Path(name, "library")
        for directory in (empty, library):
            directory.mkdir()
        (empty / "test_empty.py").write_text(EMPTY)
        _keep_catalogue(library / "cache")
        for number in range(MODULES):
            (library / f"test_part_{number}.py").write_text(LIBRARY)
        compare("one empty test", empty, rounds)
        compare("the same, no bytecode", empty, rounds, bytecode=False)
        compare("a library's suite", library, rounds)
        compare("the same with -n2", library, rounds, "-n2")
    alone = statistics.median(import_alone() for _ in range(rounds))
    print(f"the import alone          {alone:7.1f} ms")


if __name__ == "__main__":
    main()
