"""Starting the reaper so that nothing which ends a test run ends it too."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from pytest_hfbudget.errors import EndpointError

_TO_IMPORT = "_HFBUDGET_TO_IMPORT"  # no setting: only a reaper is given it
_REAPER_MODULE = "pytest_hfbudget.endpoints.reaper"

# Forks once more and lets the first child go: the reaper is then no child of the test run, is
# in a session of its own without a terminal, and no process has to collect it.
# What to import, and from where, is in the environment and not on the command line: `pkill -f
# pytest` is to end the test run and not what pauses after it.
_BOOT = f"""
import importlib, json, os, sys
if os.fork():
    os._exit(0)
role, run, fds, log = sys.argv[1:]
module, *paths = json.loads(os.environ.pop("{_TO_IMPORT}"))
sys.path += paths
importlib.import_module(module).main(role, run, json.loads(fds), log)
"""

# The names of the processes: the reaper, its first standby, and its second, the reserve.
REAPER = "hfbudget-reaper"
STANDBY = "hfbudget-reaper-second"
RESERVE = "hfbudget-reserve"

# What an interpreter and its TLS may need. All else stays behind, the token first of all.
_PASSED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)


class SpawnedProcess(Protocol):
    """The edge to the operating system."""

    def __call__(self, end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
        """Start a reaper that talks over ``end`` and writes to ``log``.

        Raises:
            EndpointError: it can't be started.
        """


def spawn_reaper(end: socket.socket, run: str, log: Path, *, timeout_s: float) -> None:
    """Start a detached reaper; returns when it is no child of this process any more.

    Raises:
        EndpointError: no such system (it needs fork), no process to be had, no log to be written.
    """
    if not hasattr(os, "fork") or not sys.executable:
        raise EndpointError("endpoints can only be kept on Linux and macOS, from a Python program.")
    _spawn(REAPER, (end,), run, log, timeout_s)


def spawn_standby(
    role: str, ends: Sequence[socket.socket], run: str, log: Path, *, timeout_s: float
) -> None:
    """Start a standby (`STANDBY` or `RESERVE`), which inherits ``ends``, the client's socket first.

    Raises:
        EndpointError: it can't be started.
    """
    _spawn(role, ends, run, log, timeout_s)


def _spawn(name: str, ends: Sequence[socket.socket], run: str, log: Path, timeout_s: float) -> None:
    try:
        _detach(name, [end.fileno() for end in ends], run, log, timeout_s)
    except (OSError, subprocess.SubprocessError) as error:
        raise EndpointError(
            f"the process that would pause endpoints can't be started ({error}), "
            "so nothing is resumed."
        ) from error


def _detach(name: str, fds: list[int], run: str, log: Path, timeout_s: float) -> None:
    argv = [name, run, json.dumps(fds), str(log)]
    to_import = json.dumps([_REAPER_MODULE, *import_paths()])
    with _private(log) as output:
        starter = subprocess.Popen(
            # -I -S: neither PYTHONPATH, nor the working directory, nor site packages with their
            # start-up files; what the reaper imports is named to it.
            [sys.executable, "-I", "-S", "-c", _BOOT, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**_environment(os.environ), _TO_IMPORT: to_import},
            pass_fds=fds,
            start_new_session=True,
        )
    try:
        if starter.wait(timeout_s):
            raise OSError(f"exit status {starter.returncode}; see {log}")
    except subprocess.TimeoutExpired:
        starter.kill()
        starter.wait()
        raise


def _private(log: Path) -> IO[str]:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {name: environ[name] for name in _PASSED if name in environ}
    # GitHub's runner ends every process that has its job's id in the environment.
    return {**kept, "RUNNER_TRACKING_ID": ""}


def import_paths() -> list[str]:
    """The folders from which a reaper imports this package and its HTTP client."""
    import urllib3

    import pytest_hfbudget

    found = [_parent(pytest_hfbudget.__file__), _parent(urllib3.__file__)]
    return list(dict.fromkeys(found))


def _parent(file: str | None) -> str:
    if file is None:
        raise EndpointError("pytest_hfbudget must be imported from files to start its reaper.")
    return str(Path(file).absolute().parent.parent)
