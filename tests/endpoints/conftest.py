"""A real emulator in a process of its own, and runs that can be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.retry import RetryPolicy, RunTimings, Timings

TOKEN = "hf_the_secret_of_this_test"
ROOT = Path(__file__).resolve().parents[2]
CLIENT_PROCESS = Path(__file__).with_name("client_process.py")

Make = Callable[..., Lifecycle]  # the fixture `lifecycle`


def gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Whether a process ends within a time; the kernel says so, without polling."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def standbys_of(state_dir: Path, run: str) -> list[int]:
    """Processes that stand by for the reaper of a run."""
    words = {b"hfbudget-reaper-second", run.encode()}
    return [pid for pid, said in _processes(state_dir) if words <= set(said)]


def reserves_of(state_dir: Path, run: str) -> list[int]:
    """Processes that stand by for the reaper of a run and for its second."""
    words = {b"hfbudget-reserve", run.encode()}
    found = [pid for pid, said in _processes(state_dir) if words <= set(said)]
    # One that is still being started has the name of its interpreter, and forks once more.
    return [pid for pid in found if comm_of(pid).startswith("hfbudget-")]


def comm_of(pid: int) -> str:
    """The name by which ``ps`` shows a process; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def reapers_of(state_dir: Path) -> list[int]:
    """All reapers, and those that stand by for one, whatever their run."""
    of_it = _processes(state_dir)
    names = (b"hfbudget-reaper", b"hfbudget-reserve")
    return [p for p, said in of_it if any(w.startswith(names) for w in said)]


def _processes(state_dir: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Those that a state folder was named to, with their arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            said = path.read_bytes().split(b"\0")
            if any(str(state_dir).encode() in word for word in said):
                yield int(path.parent.name), said


def reaper_of(run: Lifecycle) -> int:
    """The process that is the reaper of a run now."""
    assert run.reaper_pid is not None
    return run.reaper_pid


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)


def kill_all(run: Lifecycle, settings: EndpointSettings) -> None:
    """Kill the reaper and its standbys so that none can stand in for another."""
    folder, name = settings.state_dir, settings.run
    assert until(lambda: reserves_of(folder, name))
    reaper = reaper_of(run)
    os.kill(reaper, signal.SIGSTOP)
    for pid in (*standbys_of(folder, name), *reserves_of(folder, name)):
        os.kill(pid, signal.SIGSTOP)
    for pid in (*standbys_of(folder, name), *reserves_of(folder, name)):
        kill(pid)
    kill(reaper)


def until(true: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """The first true answer; for what no log tells."""
    ends = time.monotonic() + timeout_s
    while not (answer := true()) and time.monotonic() < ends:
        threading.Event().wait(0.005)
    return answer


def _emulator_is_up(path: Path, process: subprocess.Popen[bytes]) -> str:
    ends = time.monotonic() + 20
    while time.monotonic() < ends and process.poll() is None:
        if path.exists():
            return str(json.loads(path.read_text())["url"])
        threading.Event().wait(0.01)
    raise RuntimeError("the emulator did not start")


@pytest.fixture(scope="session")
def _emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("emulator")
    command = [sys.executable, "-m", "pytest_hfbudget.emulator", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--ready-file", str(folder / "ready"), "--exit-with", str(os.getpid())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield _emulator_is_up(folder / "ready", process)
    process.kill()
    process.wait()


@pytest.fixture
def hub(_emulator: str) -> EmulatorClient:
    """The emulator, as new, with one endpoint that sleeps: "acme/llm"."""
    client = EmulatorClient(_emulator)
    client.reset()
    client.add_endpoint("acme/llm", max_replica=2, min_replica=1)
    return client


def changed(settings: EndpointSettings, **changes: Any) -> EndpointSettings:
    """Other settings; times are given by their own names."""
    for part in ("waits", "timings"):
        times = getattr(settings, part)
        given = {name: changes.pop(name) for name in vars(times).keys() & changes.keys()}
        changes[part] = replace(times, **given)
    return replace(settings, **changes)


@pytest.fixture
def settings(hub: EmulatorClient, tmp_path: Path) -> Iterator[EndpointSettings]:
    """Impatient, so that tests are quick."""
    made = EndpointSettings(
        api=f"{hub.url}/v2",
        token=TOKEN,
        run="run-1",
        state_dir=tmp_path / "state",
        waits=RunTimings(
            wait_timeout_s=10, poll_s=0.02, verify_deadline_s=10, arm_timeout_s=10, retry_s=3
        ),
        timings=Timings(
            verify_poll_s=0.02,
            deadline_s=10,
            try_s=0.5,
            late_resume_s=0.5,
            resend_s=0.2,
            doubt_s=2,
            looks_s=(0.1,),
        ),
    )
    yield made
    # Also one that has stepped in: it would go on with the endpoint of the next test.
    assert until(lambda: not reapers_of(made.state_dir)), "a reaper is still there"


@pytest.fixture
def plane(settings: EndpointSettings) -> ControlPlane:
    """A client of the emulator's control plane."""
    return ControlPlane(
        settings.api, TOKEN, retry=RetryPolicy(try_s=0.5, total_s=5, first_wait_s=0.01)
    )


@pytest.fixture
def lifecycle(settings: EndpointSettings) -> Iterator[Make]:
    """Makes lifecycles, and finishes them if the test did not."""
    made: list[Lifecycle] = []

    def make(
        progress: Any = None, afford: Any = None, clock: Any = None, **changes: Any
    ) -> Lifecycle:
        hooks = {"progress": progress, "afford": afford, "clock": clock}
        given = {name: hook for name, hook in hooks.items() if hook}
        made.append(Lifecycle(changed(settings, **changes), **given))
        return made[-1]

    yield make
    for each in made:
        each.finish()
        assert each.reaper_pid is None or gone(each.reaper_pid)


@dataclass
class RunProcess:
    """Another process with a lifecycle of its own, in a session of its own."""

    process: subprocess.Popen[str]
    run: str
    state_dir: Path
    reaper: int = 0

    def order(self, command: str) -> None:
        """Have it do something, and don't wait for what it says then."""
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def tell(self, command: str) -> str:
        """Have it do something; returns what it says then."""
        self.order(command)
        return self.hear()

    def hear(self) -> str:
        """Its next line."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def receipts(self) -> dict[str, dict[str, Any]]:
        """Have it finish; its receipts by name."""
        return {each["name"]: each for each in json.loads(self.tell("receipts"))}

    def end(self, number: int = signal.SIGKILL) -> float:
        """Send it a signal; when, on the steady clock."""
        at = time.monotonic()
        os.kill(self.process.pid, number)
        return at

    def vanish(self) -> None:
        """Kill it and its reaper, as a power cut would: neither can do anything any more."""
        os.kill(self.reaper, signal.SIGSTOP)
        assert until(lambda: reserves_of(self.state_dir, self.run))
        standbys = (*standbys_of(self.state_dir, self.run), *reserves_of(self.state_dir, self.run))
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in standbys:
                os.kill(pid, number)
        assert all(map(gone, standbys))
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.kill(self.reaper, signal.SIGKILL)
        assert gone(self.reaper)


Start = Callable[..., RunProcess]  # the fixture `other_run`


@pytest.fixture
def other_run(settings: EndpointSettings) -> Iterator[Start]:
    """Starts a process that brings endpoints up, and waits until they are."""
    started: list[RunProcess] = []

    def start(
        *names: str, wait: bool = True, run: str = "run-1", machine: str = "", **env: str
    ) -> RunProcess:
        folder = settings.state_dir / machine
        folder.mkdir(parents=True, exist_ok=True)
        told = {**asdict(settings), "state_dir": str(folder), "run": run}
        process = subprocess.Popen(
            [sys.executable, str(CLIENT_PROCESS), *(names or ("acme/llm",))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=settings.state_dir.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RUN_SETTINGS": json.dumps(told), **env},
            start_new_session=True,
        )
        one = RunProcess(process, run, folder)
        started.append(one)
        assert one.hear() == "begun"
        if wait:
            word, _, pid = one.hear().partition(" ")
            assert word == "up"
            one.reaper = int(pid)
        return one

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
        assert one.reaper == 0 or gone(one.reaper), "the reaper is still there"
