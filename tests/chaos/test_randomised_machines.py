"""Runs of 3 to 8 machines that share a cap and an endpoint, with jobs, machines and the server
killed, stopped and cut off at random; the emulator's invoice and log decide.

    .venv/bin/python -m pytest tests/chaos/test_randomised_machines.py --slow --chaos 300
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis_server import RedisServer, redis_server

from pytest_hfbudget.emulator import Emulator, EmulatorClient

__all__ = ["redis_server"]

# In nano-USD. A call costs 1,500,000, and a minute of the endpoint 550,000, of which each job may
# have booked two.
CAP = 40_000_000
HOLD = 20_250_000
MINUTE = 550_000
EXPIRY_S = 2
ENDPOINT, MODEL = "acme/llm", "acme/expensive"
SUITE = """
import time
import pytest
from huggingface_hub import InferenceClient

SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

@pytest.mark.parametrize("n", range(12))
def test_it(n):
    time.sleep(0.05)  # so that faults meet jobs at work
    InferenceClient(model="acme/expensive", provider="groq").chat_completion(SAY, max_tokens=20)

@pytest.mark.hf_endpoint("acme/llm")
def test_on_an_endpoint():
    time.sleep(0.2)
"""


class Wire:
    """A machine's way to the server, which can be cut."""

    def __init__(self, port: int) -> None:
        self._to, self._open, self.whole = port, list[socket.socket](), True
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                with suppress(OSError, NameError):
                    near.close()
                if self._door.fileno() < 0:
                    return
                continue
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                if self.whole:  # what is lost on the way is never answered
                    other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self._door, *self._open):
            with suppress(OSError):
                one.close()


@dataclass
class Machine:
    """One machine with one job; everything on it knows its folder."""

    home: Path
    wire: Wire
    job: subprocess.Popen[bytes] | None = None
    faults: list[str] = field(default_factory=list)

    def start(self, suite: Path, environ: dict[str, str], workers: int) -> None:
        self.home.mkdir()
        mine = {
            "HOME": str(self.home),
            "HFBUDGET_STATE_DIR": str(self.home / "state"),
            "HFBUDGET_CACHE_DIR": str(self.home / "cache"),
            "HFBUDGET_SHARED": f"redis://127.0.0.1:{self.wire.port}/0",
        }
        words = ["-q", "-p", "no:cacheprovider", "--tb=line", "--hf-endpoint", "acme/llm", "-n"]
        budget = f"--hf-session-budget={CAP / 10**9:.9f}"
        with (self.home / "said").open("wb") as said:
            self.job = subprocess.Popen(
                [sys.executable, "-m", "pytest", *words, str(workers), budget, "test_suite.py"],
                cwd=suite,
                env={**os.environ, **environ, **mine},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        """All that belongs to it, reapers included: they were started with its folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                known = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
                if str(self.home).encode() + b"/" in known:
                    found.append(int(path.name))
        return found

    def all(self, number: int) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Weather:
    """What goes wrong in one run."""

    def __init__(self, draw: random.Random, machines: list[Machine], server: RedisServer) -> None:
        self.draw, self.machines, self.server = draw, machines, server
        self.faults: list[str] = []

    def blow(self) -> None:
        kinds = ["job", "machine", "cut", "stop_job", "redis", "silent", "scripts"]
        for _ in range(self.draw.choice((0, 1, 2, 3))):
            threading.Event().wait(self.draw.uniform(0.2, 4.0))
            kind, machine = self.draw.choice(kinds), self.draw.choice(self.machines)
            self.faults.append(kind)
            machine.faults.append(kind)
            getattr(self, kind)(machine)

    def job(self, machine: Machine) -> None:
        assert machine.job is not None
        machine.job.kill()

    def machine(self, machine: Machine) -> None:
        machine.all(signal.SIGSTOP)  # so that none steps in for another
        machine.all(signal.SIGKILL)

    def cut(self, machine: Machine) -> None:
        machine.wire.whole = False
        threading.Timer(self.draw.uniform(0.5, 5), setattr, (machine.wire, "whole", True)).start()

    def stop_job(self, machine: Machine) -> None:
        assert machine.job is not None
        machine.job.send_signal(signal.SIGSTOP)
        threading.Event().wait(self.draw.uniform(0.5, EXPIRY_S + 2))
        machine.job.send_signal(signal.SIGCONT)

    def redis(self, machine: Machine) -> None:
        self.server.kill()
        threading.Event().wait(self.draw.uniform(0, 3))
        self.server.start()

    def silent(self, machine: Machine) -> None:
        self.server.stop()
        threading.Event().wait(self.draw.uniform(0.2, 3))
        self.server.go_on()

    def scripts(self, machine: Machine) -> None:
        self.server.client().script_flush()


@pytest.mark.slow
def test_machines_that_share_a_cap_and_an_endpoint(
    one_emulator: Emulator, tmp_path: Path, redis_server: RedisServer, seed: int
) -> None:
    draw, hub = random.Random(seed), one_emulator.client
    redis_server.close()
    redis_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    redis_server.start()
    hub.reset()
    offer = {"provider": "groq", "status": "live", "context_length": 8192}
    hub.add_model(MODEL, providers=[{**offer, "pricing": {"input": 50, "output": 80}}])
    hub.add_endpoint(ENDPOINT, initializing_s=0.2)
    (tmp_path / "test_suite.py").write_text(SUITE)
    environ = {
        "HFBUDGET_ROUTER": f"{hub.url}/router",
        "HFBUDGET_ENDPOINTS_API": f"{hub.url}/v2",
        "HF_ENDPOINT": f"{hub.url}/hub",
        "HF_TOKEN": "hf_chaos",
        "HFBUDGET_SHARED_RUN": f"run{seed}",
        "HFBUDGET_SHARED_EXPIRY": str(EXPIRY_S),
        "HFBUDGET_HOLD_WAIT": "10",
        "HFBUDGET_ENDPOINT_LOOKS": "0",
        "PYTHONPATH": "",
    }
    count, workers = draw.randint(3, 8), draw.choice((0, 0, 2))
    wires = [Wire(redis_server.port) for _ in range(count)]
    machines = [Machine(tmp_path / f"machine{n}", wire) for n, wire in enumerate(wires)]
    weather = Weather(draw, machines, redis_server)
    try:
        for machine in machines:
            machine.start(tmp_path, environ, workers)
            threading.Event().wait(draw.uniform(0, 0.5))
        weather.blow()
        for machine in machines:
            assert machine.job is not None
            machine.job.wait(180)
        _wait_for_reapers(machines)
        _sweep(environ, tmp_path, redis_server)
        _judge(hub, machines, weather.faults)
    finally:
        for machine in machines:
            machine.all(signal.SIGKILL)
            machine.wire.close()


def _wait_for_reapers(machines: list[Machine]) -> None:
    ends = time.monotonic() + 120
    while any(machine.processes() for machine in machines):
        assert time.monotonic() < ends, [machine.processes() for machine in machines]
        threading.Event().wait(0.2)


def _sweep(environ: dict[str, str], folder: Path, server: RedisServer) -> None:
    """As a scheduled job does, on yet another machine, once every lease has expired."""
    threading.Event().wait(EXPIRY_S + 0.2)
    given = {**os.environ, **environ, "HFBUDGET_STATE_DIR": str(folder / "sweeper")}
    words = [sys.executable, "-m", "pytest_hfbudget", "sweep", "--shared", server.url]
    done = subprocess.run(words, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _judge(hub: EmulatorClient, machines: list[Machine], faults: list[str]) -> None:
    said = "\n\n".join((m.home / "said").read_text()[-1500:] for m in machines)
    what = f"{faults}\n{said}"
    billed = hub.invoice()["total_nano_usd"]
    assert billed <= CAP, f"{billed} of {CAP}: {what}"
    if not faults:
        unused = CAP - billed - 2 * MINUTE * len(machines)
        assert unused < HOLD, f"{unused} left unused: {what}"
    (endpoint,) = (each for each in hub.state()["endpoints"] if each["name"] == ENDPOINT)
    assert endpoint["state"] == "paused", f"{endpoint}: {what}"
    log = hub.log(kind="request", phase="arrived")
    sent = [entry["op"] for entry in log if entry["op"] in ("resume", "pause")]
    assert ("resume", "resume") not in itertools.pairwise(sent), f"{sent}: {what}"
