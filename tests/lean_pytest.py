"""Runs of pytest with the plugins that they need: importing all others is half of a short run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from forked_python import ForkServer, Run

OURS = "pytest_hfbudget.plugin"
BY_OPTION = {
    "-n": "xdist.plugin",
    "--dist": "xdist.plugin",
    "--reruns": "pytest_rerunfailures",
    "--timeout": "pytest_timeout",
    "--record-mode": "pytest_recording.plugin",
    "--block-network": "pytest_recording.plugin",
    "--disable-recording": "pytest_recording.plugin",
    "--disable-socket": "pytest_socket",
}


def lean(options: Iterable[str]) -> dict[str, str]:
    """The variables with which pytest loads our plugin, and those whose options are given."""
    given = list(options)
    wanted = [OURS]
    for option, plugin in BY_OPTION.items():
        if plugin not in wanted and any(each.startswith(option) for each in given):
            wanted.append(plugin)
    return {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": ",".join(wanted)}


@dataclass(frozen=True)
class Ended:
    """As much of a ``Popen`` as pytester needs."""

    code: int
    stdin: None = None

    def wait(self) -> int:
        return self.code


def run_lean(pytester: pytest.Pytester, fork_server: ForkServer, *options: str) -> pytest.RunResult:
    """Run pytest in pytester's directory, in a process of its own, with the plugins it needs."""

    def forked(command: tuple[str, ...], **streams: Any) -> Ended:
        here = os.getcwd()
        files = streams["stdout"].name, streams["stderr"].name
        env = {**os.environ, "PYTHONPATH": here}  # as pytester has it
        return Ended(fork_server.run(Run("pytest", command[2:], here, env, *files)))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in lean(options).items():
            patch.setenv(name, value)
        # A folder on the path may have a `sitecustomize`.
        if not os.environ.get("PYTHONPATH") and fork_server.suits(os.environ):
            patch.setattr(pytester, "popen", forked)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
