"""The pages of the tutorial and of the how-to guide, done step by step as they stand there.

A block that begins with the name of a file becomes that file. The lines of a console block that
begin with ``$`` are run, and end with 0 unless they say otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import STEP_BY_STEP, blocks

pytestmark = pytest.mark.slow

# What no test runs here, by the beginning of a line, and why not.
NOT_RUN = {
    "pip install": "reaches for a package index; .ci/run installs from nothing",
    "hfbudget demo": "takes its time; .ci/run has it as a step, by `make demo`",
    "hfbudget sweep": "asks the real control plane; test_ci_recipes.py asks an emulator",
    "run=$(gh ": "GitHub's own command; test_pull_request_comment.py has a stand-in for it",
    "mark=": "the same",
    "hfbudget report report.json --compare base/": "the same",
}


def types(command: str, folder: Path) -> tuple[int, str]:
    """Type a line in the shell of a new user, from which nothing reaches a real service."""
    done = subprocess.run(
        ["bash", "-e", "-c", command],
        check=False,
        cwd=folder,
        env=environment(folder.parent, command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def environment(folder: Path, command: str) -> dict[str, str]:
    """The environment of a new user's shell, but that nothing in it reaches a real service."""
    scripts = str(Path(sys.executable).parent)
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HFB"))}
    return {
        **own,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HFBUDGET_STATE_DIR": str(folder / ".state"),
        "HFBUDGET_CACHE_DIR": str(folder / ".cache"),
        **({} if command.startswith("hfbudget") else {"HFBUDGET_EMULATOR": "1"}),
    }


def steps_of(workflow: str) -> list[str]:
    """What the steps of a workflow run, in the first part of a matrix."""
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    return [line.replace("${{ matrix.part }}", "1") for line in lines]


@pytest.mark.parametrize("page", STEP_BY_STEP, ids=lambda page: page.stem)
def test_every_step_of_a_page_works(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    typed = []
    for block in blocks(page):
        if block.file:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            if file.suffix == ".yml":
                typed = steps_of(block.text)
            continue
        assert block.language == "console", f"a block that no test runs: {block.text}"
        for step in block.steps:
            if not step.command.startswith(tuple(NOT_RUN)):
                code, said = types(step.command, folder)
                assert code == step.code, f"$ {step.command}\n{said}"
    if not list(folder.glob("test_*.py")):
        (folder / "tests/part1").mkdir(parents=True)
        (folder / "tests/part1/test_it.py").write_text("def test_it(): pass\n")
    for line in typed:
        if not line.startswith(tuple(NOT_RUN)):
            code, said = types(line, folder)
            assert code == 0, f"{line}\n{said}"
