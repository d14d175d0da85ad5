"""A job of CI, and how the machine that runs it ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import Shell, listening

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "ci"
TRACKING = "RUNNER_TRACKING_ID"


@dataclass
class Job:
    """Runs lines as a CI does: from a file, by `bash -e`, in an environment that marks the job."""

    shell: Shell
    id: str

    def start(self, lines: str) -> subprocess.Popen[str]:
        """Start a step."""
        process = subprocess.Popen(
            ["bash", "-e", str(self._file(lines))],
            cwd=self.shell.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=listening,
            start_new_session=True,
        )
        self.shell.started.append(process)
        return process

    def run(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Run a step to its end."""
        process = self.start(lines)
        said, _ = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def sweep_orphans(self) -> list[int]:
        """Kill every process that has the job's mark in its environment."""
        found = list(_marked(f"{TRACKING}={self.id}".encode()))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def _file(self, lines: str) -> Path:
        path = self.shell.directory / f"step-{abs(hash(lines))}.sh"
        path.write_text(lines)
        return path

    @property
    def _environment(self) -> dict[str, str]:
        tools = self.shell.directory / "bin"
        tools.mkdir(exist_ok=True)
        pip = tools / "pip"
        pip.write_text("#!/bin/sh\n")  # what it would install is there
        pip.chmod(0o755)
        path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, TRACKING: self.id}


def kill_tree(pid: int) -> None:
    """Kill a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    doomed = [pid]
    for each in doomed:
        doomed.extend(children.get(each, ()))
    for each in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def recipe(name: str) -> dict[str, Any]:
    """A file of `docs/ci`."""
    import yaml

    content = yaml.safe_load((RECIPES / name).read_text())
    assert isinstance(content, dict)
    return content


def _marked(mark: bytes) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)
