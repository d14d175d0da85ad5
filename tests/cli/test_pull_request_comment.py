"""The recipe that comments on a pull request: its steps as they stand, with a stand-in for gh.

The stand-in keeps comments in a file, and has jq answer `--jq`, as gh does with a copy of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.skipif(shutil.which("jq") is None, reason="gh's own filter needs jq here")

PAGE = Path(__file__).parents[2] / "docs/how-to/comment-on-a-pull-request.md"
GH = f"""#!{sys.executable}
import json, pathlib, subprocess, sys
kept = pathlib.Path(__file__).with_name("comments.json")
comments = json.loads(kept.read_text())
_, command, *given = sys.argv
assert command == "api", command
options = dict(zip(given[:-1], given[1:]))
path = next(each for each in given if each.startswith("repos/"))
name, _, file = options.get("--field", "").partition("=@")
body = pathlib.Path(file).read_text() if file else ""
if options.get("--method") == "PATCH":
    number = int(path.removeprefix("repos/acme/suite/issues/comments/"))
    next(each for each in comments if each["id"] == number)["body"] = body
elif name == "body":
    assert path == "repos/acme/suite/issues/7/comments", path
    comments.append({{"id": 100 + len(comments), "body": body}})
else:
    assert path == "repos/acme/suite/issues/7/comments", path
    subprocess.run(["jq", "-r", options["--jq"]], input=json.dumps(comments), text=True, check=True)
kept.write_text(json.dumps(comments))
"""


def steps() -> dict[str, str]:
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    job = yaml.safe_load(found[1])["jobs"]["cost"]
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step}


class PullRequest:
    """Runs steps of the recipe in a folder with the reports, as GitHub's runner does."""

    def __init__(self, shell: Shell) -> None:
        self.folder, self.summary = shell.directory, shell.directory / "summary.md"
        self.tools = shell.directory / "tools"
        self.tools.mkdir()
        (self.folder / "base").mkdir()
        (self.tools / "comments.json").write_text(json.dumps([{"id": 100, "body": "Nice!"}]))
        for name, text in (
            ("gh", GH),
            ("hfbudget", f'#!/bin/sh\nexec "{sys.executable}" -m pytest_hfbudget "$@"\n'),
        ):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(stat.S_IRWXU)

    def report(self, path: str, spent: str) -> None:
        session = {"spent_usd": spent, "cap_usd": None, "calls": 1, "refused": 0}
        content = {"schema": 1, "date": "2026-11-22T03:10:00+00:00", "session": session}
        lists: dict[str, Any] = {key: [] for key in ("tests", "calls", "refusals", "endpoints")}
        (self.folder / path).write_text(json.dumps({**content, "run": "one", **lists}))

    def run(self, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as environment:
            environment.setenv("PATH", str(self.tools), prepend=":")
            environment.setenv("GITHUB_STEP_SUMMARY", str(self.summary))
            environment.setenv("GH_REPO", "acme/suite")
            environment.setenv("PULL", "7")
            subprocess.run(["bash", "-e", "-c", steps()[step]], cwd=self.folder, check=True)

    @property
    def comments(self) -> list[Any]:
        return [one["body"] for one in json.loads((self.tools / "comments.json").read_text())]


def test_each_push_updates_the_one_comment_and_leaves_others_alone(
    hfbudget: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull = PullRequest(hfbudget)
    pull.report("base/report.json", "0.10")
    for spent in ("0.12", "0.15"):
        pull.report("report.json", spent)
        pull.run("Compare", monkeypatch)
        pull.run("Comment", monkeypatch)
        assert pull.comments[0] == "Nice!"
        assert len(pull.comments) == 2
        assert f"**${spent}, before $0.10: " in pull.comments[1]
    assert pull.summary.read_text().count("### What the tests cost") == 2
