"""The command as it is typed, in a process of its own, in front of an emulator."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from forked_python import ForkServer, Run

from pytest_hfbudget.emulator import Emulator, EmulatorClient
from pytest_hfbudget.endpoints.journal import Journal, Record, leases_dir
from pytest_hfbudget.endpoints.lease_store import (
    PAUSING,
    EndpointLease,
    LeaseStore,
    lease_store_dir,
)
from pytest_hfbudget.endpoints.process import start_time


def _command_line(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


COMMAND = (sys.executable, "-m", "pytest_hfbudget")
TOKEN = "hf_of_the_tests"


def listening() -> None:
    """For a child: SIGINT is not ignored, though the parent of the tests may ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[str]) -> None:
    """Kill all that a process has started in its session, and close its streams."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@dataclass
class Shell:
    """Types commands; `hub` is the emulator that they talk to."""

    hub: EmulatorClient
    state_dir: Path
    directory: Path
    fork_server: ForkServer
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `hfbudget` to its end, without a terminal."""
        env = {**os.environ, **env}
        if self.fork_server.suits(env):
            return self._forked(arguments, env)
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.directory,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def _forked(
        self, arguments: tuple[str, ...], env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        with NamedTemporaryFile("r") as out, NamedTemporaryFile("r") as err:
            run = Run("pytest_hfbudget", arguments, str(self.directory), env, out.name, err.name)
            code = self.fork_server.run(run)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `hfbudget`; ended with the test."""
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.directory,
            text=True,
            preexec_fn=listening,
            start_new_session=True,
            **{**given, **options},
        )
        self.started.append(process)
        return process

    def json(self, *arguments: str) -> Any:
        """What it prints as JSON."""
        return json.loads(self(*arguments, "--json").stdout)

    @property
    def api(self) -> str:
        """The control plane that the commands are led to."""
        return f"{self.hub.url}/v2"

    def dead_lease(self, endpoint: str, *, run: str = "deadrun", **more: Any) -> None:
        """Have this machine's journal tell of a lease of a process that has died."""
        gone = subprocess.Popen(["true"])
        start = start_time(gone.pid)
        gone.wait()
        record = Record(
            kind="intent",
            run=run,
            endpoint=endpoint,
            api=self.api,
            at=time.time(),
            owner_pid=gone.pid,
            owner_start=start or "1",
            **{"state": "paused", **more},
        )
        Journal.of(run, leases_dir(self.state_dir)).write(record)

    def kept_lease(self, endpoint: str, *, run: str = "deadrun") -> None:
        """Have this very process be the reaper of a run that has died, and not done yet."""
        self.dead_lease(endpoint, run=run)
        pid, start = os.getpid(), start_time(os.getpid())
        lease = EndpointLease(
            run, endpoint, self.api, 2**22, "1", pid, start, time.time(), phase=PAUSING
        )
        folder = lease_store_dir(self.state_dir)
        LeaseStore(folder, api=self.api, endpoint=endpoint, run=run).put(lease)

    def live_lease(self, endpoint: str, *, run: str = "liverun") -> None:
        """Have this very process use an endpoint."""
        pid, start = os.getpid(), start_time(os.getpid())
        lease = EndpointLease(run, endpoint, self.api, pid, start, pid, start, time.time())
        folder = lease_store_dir(self.state_dir)
        LeaseStore(folder, api=self.api, endpoint=endpoint, run=run).put(lease)

    def wait_for_reapers(self) -> None:
        """End what was started, and wait until their reapers have ended."""
        for process in self.started:
            end(process)
        state, ends = str(self.state_dir).encode(), time.monotonic() + 20
        while any(state in _command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
            assert time.monotonic() < ends
            time.sleep(0.02)

    def state(self, endpoint: str) -> str:
        """What the emulator says of it."""
        return str(self.states[endpoint])

    @property
    def states(self) -> dict[str, str]:
        """Of all endpoints."""
        return {one["name"]: one["state"] for one in self.hub.state()["endpoints"]}

    def requests(self, op: str) -> list[str]:
        """The endpoints of the requests of one kind that arrived, in order."""
        log = self.hub.log(kind="request", phase="arrived", op=op)
        return [entry["endpoint"] for entry in log]


@pytest.fixture(scope="session")
def emulator_of_the_commands() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def hfbudget(
    emulator_of_the_commands: Emulator,
    fork_server: ForkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shell]:
    """`hfbudget`, at a namespace "acme" in which nothing is yet."""
    hub = emulator_of_the_commands.client
    hub.reset()
    monkeypatch.setenv("HFBUDGET_ENDPOINTS_API", emulator_of_the_commands.endpoints_api)
    monkeypatch.setenv("PYTHONPATH", "")
    directory = tmp_path / "project"
    directory.mkdir()
    shell = Shell(hub, Path(os.environ["HFBUDGET_STATE_DIR"]), directory, fork_server)
    yield shell
    for process in shell.started:
        end(process)
