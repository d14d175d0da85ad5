"""A box for each fault: an emulator, a folder, a journal, and runs that are killed for real.

Nothing here asks pytest how it went. What the emulator was asked, the states that its endpoint
went through and its invoice are the evidence, and the kernel's list of processes.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from lean_pytest import lean

import pytest_hfbudget
from pytest_hfbudget import __version__
from pytest_hfbudget.emulator import EmulatorClient

TOKEN = "hf_secret_of_the_fault_tests"
NAME = "acme/llm"
REAPER = f"pytest-hfbudget/{__version__} (reaper)"
RUN = f"pytest-hfbudget/{__version__} (run)"
HERE = Path(__file__).parent
ROOT = Path(pytest_hfbudget.__file__).parents[1]
T = 1.0  # seconds from an end to the pause, if the server is in order

# Test files can leave a trace in the emulator's log, and wait there for a gate to be opened.
PREAMBLE = """
import ctypes, http.client, os, signal, sys, threading, time
import pytest

BOX, HUB = os.environ["FAULTS_BOX"], os.environ["FAULTS_HUB"]

def reached(what):
    connection = http.client.HTTPConnection(HUB)
    connection.request("GET", "/reached/" + what)
    connection.getresponse().read()
    connection.close()

def stay(what):
    gate = os.path.join(BOX, what)
    os.mkfifo(gate)
    reached(what)
    with open(gate) as file:
        file.read()
"""

WAITS = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it():
        stay("test")
"""


@dataclass(frozen=True)
class Moment:
    """A place in the emulator's log, and when that was on the steady clock."""

    seq: int
    mono: float


@dataclass
class Run:
    """One process with all that it has started."""

    box: Box
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self.process.pid

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def reached(self, what: str = "test", *, after: int = 0) -> Moment:
        """Wait until a test leaves its trace."""
        return self.sees(path=f"/reached/{what}", phase="arrived", after=after)

    def sees(self, *, after: int = 0, timeout: float = 60, **fields: object) -> Moment:
        """Wait for an entry in the emulator's log; in vain once no process is left to cause it."""
        ends = time.monotonic() + timeout
        while True:
            over = self.process.poll() is not None or time.monotonic() > ends
            try:
                entry = self.box.hub.wait_for(after=after, timeout=2.0, **fields)
                break
            except TimeoutError as error:
                if over:
                    raise TimeoutError(f"{error}\n{self.output}") from None
        self.box.look_for_token()
        return Moment(int(entry["seq"]), float(entry["mono"]))

    def send(self, number: int) -> Moment:
        """Send it a signal."""
        moment = self.box.now()
        os.kill(self.pid, number)
        return moment

    def kill_group(self) -> Moment:
        """Kill its whole process group."""
        moment = self.box.now()
        os.killpg(self.pid, signal.SIGKILL)
        return moment

    def kill_tree(self) -> Moment:
        """Kill it and all its descendants, as the runners of CI systems do."""
        moment = self.box.now()
        kill_tree(self.pid)
        return moment

    def wait(self, timeout: float = 60) -> int:
        """Its exit code, negative for a signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it runs on\n{self.output}") from None


@dataclass
class Box:
    """The world of one test."""

    hub: EmulatorClient
    path: Path
    tag: str
    runs: list[Run] = field(default_factory=list)
    leaks: set[str] = field(default_factory=set)
    seen: list[dict[str, Any]] = field(default_factory=list)
    impatience: dict[str, float] = field(default_factory=dict)
    looks: str = "0.3"  # a reaper is gone in time for the verdict, and has looked again before

    @property
    def state(self) -> Path:
        """Where runs keep their journals."""
        return self.path / "state"

    # -- what is run

    def suite(self, code: str = WAITS, name: str = "test_suite.py") -> None:
        """Write a test file."""
        (self.path / name).write_text(PREAMBLE + textwrap.dedent(code))

    def conftest(self, code: str) -> None:
        """Write a conftest."""
        self.suite(code, "conftest.py")

    def hurry(self, **settings: float) -> None:
        """Shorten waits of `EndpointSettings`, where a server is to fail for long."""
        self.impatience.update(settings)

    @property
    def environment(self) -> dict[str, str]:
        """The surroundings of a run: the emulator is all of Hugging Face that it knows."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HFBUDGET_", "PYTEST_", "COV_"))
        }
        return {
            **kept,
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": f"{self.hub.url}/hub",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HFBUDGET_ENDPOINTS_API": f"{self.hub.url}/v2",
            "HFBUDGET_ROUTER": f"{self.hub.url}/router",
            "HFBUDGET_STATE_DIR": str(self.state),
            "HFBUDGET_CACHE_DIR": str(self.path / "cache"),
            "HFBUDGET_ENDPOINT_LOOKS": self.looks,
            "PYTHONPATH": f"{HERE}:{ROOT}",
            "FAULTS_TAG": self.tag,
            "FAULTS_BOX": str(self.path),
            "FAULTS_HUB": self.hub.url.partition("://")[2],
            "FAULTS_IMPATIENCE": json.dumps(self.impatience),
        }

    def pytest(self, *options: str) -> list[str]:
        """The command line of a run."""
        plugins = ("-p", "no:cacheprovider", "-p", "lonely_reaper", *self._hurry)
        return [sys.executable, "-m", "pytest", *plugins, *options]

    def on_a_disk_of_its_own(self, options: str = "size=64k", then: str = "") -> list[str]:
        """The command line of a run whose folder of state is a file system of its own."""
        self.state.mkdir()
        words = " ".join(self.pytest())
        script = f"mount -t tmpfs -o {options} none {self.state} {then}; exec {words}"
        return [*unshare("--mount"), "sh", "-c", script]

    def fill(self, run: Run) -> None:
        """Leave no byte on a run's disk of its own."""
        inside = Path(f"/proc/{run.pid}/root{self.state}")
        with (
            pytest.raises(OSError, match="No space left"),
            (inside / "zeros").open("wb", 0) as file,
        ):
            while True:
                file.write(bytes(4096))

    @property
    def _hurry(self) -> tuple[str, ...]:
        return ("-p", "impatience") if self.impatience else ()

    def start(
        self,
        *options: str,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        **more: Any,
    ) -> Run:
        """Start a run of the suite, or another command."""
        _default_signals()
        log = self.path / f"output-{len(self.runs)}.txt"
        command = command or self.pytest(*options)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env={**self.environment, **lean(" ".join(command).split()), **(env or {})},
                stdout=output,
                stderr=output,
                start_new_session=True,
                **{"stdin": subprocess.DEVNULL, **more},
            )
        self.runs.append(Run(self, process, log))
        return self.runs[-1]

    def command(self, *arguments: str, timeout: float = 60) -> Run:
        """Run `hfbudget` to its end."""
        run = self.start(command=[sys.executable, "-m", "pytest_hfbudget", *arguments])
        run.wait(timeout)
        return run

    def open_gate(self, what: str) -> None:
        """Let a test go on that stays somewhere."""
        ends = time.monotonic() + 10
        while True:
            try:
                os.close(os.open(self.path / what, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # announced, but not yet there
                assert time.monotonic() < ends, f"no process waits at {what}"
                select.select([], [], [], 0.002)
            else:
                return

    # -- what happened

    def now(self) -> Moment:
        """This moment."""
        return Moment(self.hub.last(), time.monotonic())

    def requests(self, op: str, *, after: int = 0, **fields: object) -> list[dict[str, Any]]:
        """What arrived at the emulator of one kind."""
        return self.hub.log(after=after, kind="request", phase="arrived", op=op, **fields)

    def states(self, name: str = NAME) -> list[dict[str, Any]]:
        """The states that an endpoint went through."""
        return self.hub.log(kind="state", endpoint=name)

    def state_of(self, name: str = NAME) -> str:
        """The state of an endpoint now."""
        return next(
            str(one["state"]) for one in self.hub.state()["endpoints"] if one["name"] == name
        )

    def first(
        self, after: int, wanted: Callable[[dict[str, Any]], bool], timeout: float = 10.0
    ) -> dict[str, Any]:
        """The first entry of any kind that is wanted."""
        ends = time.monotonic() + timeout
        while True:
            for entry in self.hub.log(after=after):
                after = int(entry["seq"])
                if wanted(entry):
                    return entry
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"it did not happen in {timeout:g} s")
            try:
                self.hub.wait_for(after=after, timeout=left, kind="request")
            except TimeoutError:
                continue

    def noticed(self, killed: Moment, *, within: float = 3.0) -> dict[str, Any]:
        """Wait until reapers that were killed have a successor, or the run pauses by itself.

        What the next reaper does first is to reach for the endpoint.
        """

        def looks_after(entry: dict[str, Any]) -> bool:
            agent = entry.get("agent")
            return agent == REAPER or (agent == RUN and entry["op"] == "pause")

        return self.first(killed.seq, looks_after, timeout=within)

    def records(self, name: str = NAME) -> list[list[dict[str, Any]]]:
        """The readable lines about an endpoint, journal by journal."""
        journals = []
        for path in sorted(self.state.glob("leases/*.jsonl")):
            lines = []
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and record.get("endpoint") == name:
                    lines.append(record)
            journals.append(lines)
        return [lines for lines in journals if lines]

    # -- processes

    def processes(self) -> list[int]:
        """Everything that was started here and still runs, the reaper too."""
        return [pid for pid in _pids() if self._ours(pid)]

    def reapers(self) -> list[int]:
        """Reapers of runs in this box."""
        return self._named(b"hfbudget-reaper")

    def seconds(self) -> list[int]:
        """Processes that stand by for a reaper, or that have stepped in for one."""
        return self._named(b"hfbudget-reaper-second")

    def reserves(self) -> list[int]:
        """Processes that stand by for both, or that have stepped in."""
        # One that is still being started has the name of its interpreter, and forks once more.
        found = self._named(b"hfbudget-reserve")
        return [pid for pid in found if _read(pid, "comm").startswith(b"hfbudget-")]

    def kill_reapers(self, *, but_reserves: bool = False) -> None:
        """Kill all of them so that none can stand in for another; or a reaper and its second."""
        self.complete()
        pids = [*self.reapers(), *self.seconds(), *([] if but_reserves else self.reserves())]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                kill(pid, number)
        assert all(gone(pid) for pid in pids)

    def complete(self) -> None:
        """Wait until the reaper has its standbys; what starts as the run goes on."""
        ends = time.monotonic() + 10
        while not (self.seconds() and self.reserves()) and time.monotonic() < ends:
            select.select([], [], [], 0.01)

    def _named(self, name: bytes) -> list[int]:
        return [pid for pid in self.processes() if name in _read(pid, "cmdline").split(b"\0")]

    def _ours(self, pid: int) -> bool:
        if pid == os.getpid():
            return False
        # A reaper has next to no environment, but its log's path is among its arguments.
        tagged = f"FAULTS_TAG={self.tag}".encode() in _read(pid, "environ").split(b"\0")
        return tagged or str(self.path).encode() + b"/" in _read(pid, "cmdline")

    def look_for_token(self) -> None:
        """Remember every command line that shows the token."""
        for pid in _pids():
            if TOKEN.encode() in _read(pid, "cmdline"):
                self.leaks.add(f"the command line of process {pid}")

    def all_gone(self, timeout: float = 15.0, but: tuple[int, ...] = ()) -> list[int]:
        """Wait until nothing runs any more; what still does."""
        ends = time.monotonic() + timeout
        while left := [pid for pid in self.processes() if pid not in but]:
            for pid in left:
                if not gone(pid, ends - time.monotonic()):
                    return left
        return []

    def clear(self) -> None:
        """Kill what is left."""
        for pid in self.processes():
            kill(pid, signal.SIGCONT)
            kill(pid, signal.SIGKILL)
        for run in self.runs:
            run.process.wait(10)

    # -- the verdict

    def judge(
        self,
        since: Moment | None,
        *,
        within: float = T,
        resumes: int | tuple[int, ...] = 1,
        name: str = NAME,
        linger: float = 15.0,
        but: tuple[int, ...] = (),
        journal: bool = True,
    ) -> float:
        """Check the promise after a run has ended at a moment; seconds until the pause.

        Args:
            since: the end; None if it was an ordinary one, of which no time is asked.
            within: seconds from there to the pause.
            resumes: how many there may have been.
            linger: seconds for which processes may go on after the end.
            but: processes of a test's own.
            journal: whether the pause could be written down.
        """
        left = self.all_gone(linger, but)
        assert not left, f"still there: {[_read(pid, 'cmdline') for pid in left]}\n{self._said()}"
        allowed = (resumes,) if isinstance(resumes, int) else resumes
        came = len(self.requests("resume", endpoint=name))
        assert came in allowed, f"resumed {came} times\n{self._said()}"
        took = self._took(since, name)
        assert took <= within, f"paused only after {took:.2f} s\n{self._said()}"
        self._judge_bill(since, within, name)
        if journal:
            self._judge_journal(name)
        self.judge_secrecy()
        bugs = self.hub.log(kind="bug")
        assert not bugs, bugs
        self.seen.append({"took_s": round(took, 3), "resumes": came, "billed_s": self.billed(name)})
        return took

    def _took(self, since: Moment | None, name: str) -> float:
        states = self.states(name)
        assert self.state_of(name) == "paused", self._said()
        if since is None or not states:
            return 0.0
        return max(float(states[-1]["mono"]) - since.mono, 0.0)

    def billed(self, name: str = NAME) -> float:
        """Seconds on the invoice."""
        spans = [
            span
            for one in self.hub.invoice()["endpoints"]
            if one["name"] == name
            for span in one["spans"]
        ]
        assert all(span["stop"] for span in spans), "the bill is still running"
        return sum((_time(span["stop"]) - _time(span["start"])).total_seconds() for span in spans)

    def _judge_bill(self, since: Moment | None, within: float, name: str) -> None:
        billed = self.billed(name)
        resumed = self.requests("resume", endpoint=name)
        if since is not None and resumed:
            need = max(since.mono - float(resumed[0]["mono"]), 0.0)
            assert billed <= need + within + 0.05, f"{billed:.2f} s billed, {need:.2f} s needed"

    def _judge_journal(self, name: str) -> None:
        lasts = [lines[-1] for lines in self.records(name)]
        paused = [last for last in lasts if last["kind"] == "paused" and last["verified"]]
        left = [last for last in lasts if last["kind"] == "left"]  # to another run
        assert bool(paused) == bool(lasts), lasts
        assert len(paused) + len(left) == len(lasts), lasts

    def judge_secrecy(self) -> None:
        """No token on any command line, in any journal, log, report or output."""
        self.look_for_token()
        for path in self.path.rglob("*"):
            if path.is_file() and TOKEN.encode() in path.read_bytes():
                self.leaks.add(str(path))
        assert not self.leaks, f"the token is in {self.leaks}"

    def _said(self) -> str:
        parts = [f"--- output of {run.process.args!r}\n{run.output[-6000:]}" for run in self.runs]
        for log in sorted(self.state.glob("leases/*.log")):
            parts.append(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)


def unshare(*what: str) -> list[str]:
    """The words before a command that gives it name spaces of its own."""
    if os.getuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    return ["unshare", *what]


def gone(pid: int, timeout: float = 10.0) -> bool:
    """Whether a process ends within a time; the kernel says so, without polling."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], max(timeout, 0.0))[0])
    finally:
        os.close(fd)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def descendants(pid: int) -> list[int]:
    """All processes below one, itself included, parents first."""
    children: dict[int, list[int]] = {}
    for other in _pids():
        fields = _read(other, "stat").rpartition(b")")[2].split()
        if fields:
            children.setdefault(int(fields[1]), []).append(other)
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop(0))
        todo.extend(children.get(found[-1], ()))
    return found


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants."""
    for one in descendants(pid):
        kill(one)


def environ_of(pid: int) -> dict[bytes, bytes]:
    """What a process was started with."""
    pairs = (item.partition(b"=") for item in _read(pid, "environ").split(b"\0"))
    return {name: value for name, _, value in pairs}


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").glob("[0-9]*"))


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _default_signals() -> None:
    """A shell that starts us in the background leaves signals ignored, and children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
