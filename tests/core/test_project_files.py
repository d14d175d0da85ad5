"""The files around the code: what they name is there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pytest_hfbudget import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PATHS = re.compile(r"(?<![\w/])(?:tests|docs|\.ci)/[\w./-]+")


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_files_that_are_there(workflow: Path) -> None:
    named = [path for command in commands(workflow) for path in PATHS.findall(command)]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), ("v0.0.0", 1)])
def test_a_release_needs_the_tag_of_its_version(tag: str, code: int) -> None:
    release = next(each for each in WORKFLOWS if each.stem == "release")
    check = next(command for command in commands(release) if "GITHUB_REF_NAME" in command)
    environment = {**os.environ, "GITHUB_REF_NAME": tag}
    assert (
        subprocess.run(
            ["bash", "-e", "-c", check], check=False, cwd=ROOT, env=environment
        ).returncode
        == code
    )


def test_the_checks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = hooks["repos"]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("lint:")[2]
    for hook in repository["hooks"]:
        tool = hook["entry"].split()[0].rpartition("/")[2]
        assert f"$(BIN)/{tool}" in lint
