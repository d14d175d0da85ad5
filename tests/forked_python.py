"""Runs of pytest and of `hfbudget` that fork from a process which has imported pytest.

Imports are most of a short run. That process has imported pytest, and libraries that the package
does not meter. Each run imports the package, huggingface_hub and every HTTP client by itself, in a
process, a directory and an environment of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# What pytest, the command, huggingface_hub and its clients import.
LIBRARIES = (
    *("asyncio", "concurrent.futures.thread", "ctypes", "email.parser", "importlib.metadata"),
    *("multiprocessing.context", "sqlite3", "ssl", "xml.etree.ElementTree"),
    *("anyio", "click", "filelock", "h11", "rich.console", "rich.table", "tqdm.auto", "trio"),
    *("truststore", "typing_extensions", "yaml"),
)
# The import of one of these is what the plugin waits for.
METERED = {"aiohttp", "http.client", "huggingface_hub", "httpx", "httpx2", "requests", "urllib3"}
# What a Python reads once, as it starts: a run for which it differs gets a Python of its own.
READ_AT_START = ("PYTHON", "COVERAGE_", "LANG", "LC_")


@dataclass(frozen=True)
class Run:
    """One ``python -m MODULE ARGUMENTS``; what it prints goes into two files."""

    module: str
    arguments: tuple[str, ...]
    directory: str
    env: Mapping[str, str]
    stdout: str
    stderr: str


class ForkServer:
    """Starts runs, one at a time. The process that they fork from starts with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._env: dict[str, str] = {}

    def suits(self, env: Mapping[str, str]) -> bool:
        """Whether a run in this environment is the same as in a Python of its own."""
        return self._process is None or _read_at_start(env) == _read_at_start(self._env)

    def run(self, run: Run) -> int:
        """Run it to its end; its exit code, negative for a signal."""
        with self._lock:
            if self._process is None:
                self._env = {name: run.env[name] for name in run.env if name != "PYTHONPATH"}
                self._process = subprocess.Popen(
                    [sys.executable, __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=self._env,
                )
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(asdict(run)) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process that runs fork from."""
        if self._process is not None:
            self._process.communicate()


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    names = [name for name in env if name.startswith(READ_AT_START) and name != "PYTHONPATH"]
    return {name: env[name] for name in names}


# -- the process that runs fork from


def _import_libraries() -> None:
    import pytest  # noqa: F401
    from _pytest.config import default_plugins

    for name in (*(f"_pytest.{plugin}" for plugin in default_plugins), *LIBRARIES):
        with suppress(ImportError):
            importlib.import_module(name)
    found = METERED & sys.modules.keys()
    assert not found, f"each run has to import these by itself: {found}"


def _next_run() -> Run:
    """Fork for each line that comes in; returns in the child, with what the line asks for."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return Run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    raise SystemExit


def _become(run: Run) -> None:
    """Be what a Python of its own is before the first line of the module."""
    os.chdir(run.directory)
    os.environ.clear()
    os.environ.update(run.env)
    for stream, path in enumerate((os.devnull, run.stdout, run.stderr)):
        file = os.open(path, os.O_RDWR)
        os.dup2(file, stream)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the old one has read ahead
    sys.argv = [run.module, *run.arguments]
    added = filter(None, run.env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [run.directory, *added]
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    assert Path(sys.path[0]) == Path(__file__).parent
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _import_libraries()
    gc.collect()
    gc.freeze()
    run = _next_run()
    _become(run)
    runpy.run_module(run.module, run_name="__main__", alter_sys=True)
