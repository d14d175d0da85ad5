"""Runs of 3 to 8 machines that share a cap and an endpoint, with jobs, machines and the server
killed, stopped and cut off at random; the emulator's invoice and log decide.

Each machine has a home and a network namespace of its own; see `machine_links`.

    .venv/bin/python -m pytest tests/chaos/test_randomised_machines.py --slow --chaos 300
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from machine_links import MOST_MACHINES, Link, Network, network
from redis_server import RedisServer, redis_server

from pytest_hfbudget.emulator import Emulator, EmulatorClient

__all__ = ["network", "redis_server"]

# In nano-USD. A call costs 1,500,000, and a minute of the endpoint 550,000, of which each job may
# have booked two.
CAP = 40_000_000
HOLD = 20_250_000
MINUTE = 550_000
EXPIRY_S = 2
PATIENCE_S = 300
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


@dataclass
class Machine:
    """One machine with one job; everything on it knows its folder.

    Attributes:
        lost: it stays cut off until the others have ended.
    """

    home: Path
    link: Link
    job: subprocess.Popen[bytes] | None = None
    faults: list[str] = field(default_factory=list)
    lost: bool = False

    def start(self, suite: Path, environ: dict[str, str], workers: int) -> None:
        self.home.mkdir()
        mine = {
            "HOME": str(self.home),
            "HFBUDGET_STATE_DIR": str(self.home / "state"),
            "HFBUDGET_CACHE_DIR": str(self.home / "cache"),
            "HFBUDGET_SHARED": f"redis://{self.link.redis}/0",
        }
        words = ["-q", "-p", "no:cacheprovider", "--tb=line", "--hf-endpoint", ENDPOINT, "-n"]
        budget = f"--hf-session-budget={CAP / 10**9:.9f}"
        with (self.home / "said").open("wb") as said:
            self.job = subprocess.Popen(
                [
                    *self.link.prefix,
                    sys.executable,
                    "-m",
                    "pytest",
                    *words,
                    str(workers),
                    budget,
                    "test_suite.py",
                ],
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
        self.timers: list[threading.Timer] = []

    def blow(self) -> None:
        kinds = ["job", "machine", "cut", "lose", "stop_job", "redis", "silent", "scripts"]
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
        if not machine.lost:
            machine.link.cut(services=self.draw.random() < 0.5)
            self.timers.append(threading.Timer(self.draw.uniform(0.5, 5), self._mend, (machine,)))
            self.timers[-1].start()

    def _mend(self, machine: Machine) -> None:
        if not machine.lost:
            machine.link.mend()

    def lose(self, machine: Machine) -> None:
        machine.lost = True
        machine.link.cut(services=True)

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


@pytest.fixture(scope="session")
def hub(network: Network) -> Iterator[EmulatorClient]:
    with Emulator(host=network.services) as emulator:
        yield emulator.client


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that is busy otherwise; the invoice judges, not the time
def test_machines_that_share_a_cap_and_an_endpoint(
    hub: EmulatorClient,
    network: Network,
    tmp_path: Path,
    redis_server: RedisServer,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("partitions", network.kind)
    draw = random.Random(seed)
    redis_server.close()
    redis_server.options = ("--appendonly", "yes", "--appendfsync", "always")
    redis_server.options += ("--bind", *{"127.0.0.1", network.redis}, "--protected-mode", "no")
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
        "NO_PROXY": "*",
        "PYTHONPATH": "",
    }
    count, workers = draw.randint(3, MOST_MACHINES), draw.choice((0, 0, 2))
    links = [network.link(number, redis_server.port) for number in range(count)]
    machines = [Machine(tmp_path / f"machine{n}", link) for n, link in enumerate(links)]
    weather = Weather(draw, machines, redis_server)
    sweep = partial(_sweep, environ, tmp_path, redis_server)
    try:
        for machine in machines:
            machine.start(tmp_path, environ, workers)
            threading.Event().wait(draw.uniform(0, 0.5))
        weather.blow()
        lost = [machine for machine in machines if machine.lost]
        _wait_for([machine for machine in machines if not machine.lost])
        sweep()
        if lost:
            # What only a lost machine has up is not left to it.
            _judge(hub, machines, weather.faults)
            for machine in lost:
                machine.link.mend()
            _wait_for(lost)
            sweep()
        _judge(hub, machines, weather.faults)
    finally:
        for timer in weather.timers:
            timer.cancel()
        for machine in machines:
            machine.all(signal.SIGKILL)
            machine.link.mend()


def _wait_for(machines: Sequence[Machine]) -> None:
    """Until their jobs and reapers have ended."""
    for machine in machines:
        assert machine.job is not None
        machine.job.wait(PATIENCE_S)
    ends = time.monotonic() + PATIENCE_S
    while any(machine.processes() for machine in machines):
        assert time.monotonic() < ends, [machine.processes() for machine in machines]
        threading.Event().wait(0.2)


def _sweep(environ: dict[str, str], folder: Path, server: RedisServer) -> None:
    """As a scheduled job does, on yet another machine, once every lease has expired."""
    threading.Event().wait(EXPIRY_S + 0.2)
    given = {**os.environ, **environ, "HFBUDGET_STATE_DIR": str(folder / "sweeper")}
    words = [sys.executable, "-m", "pytest_hfbudget", "sweep", "--shared", server.url]
    done = subprocess.run(
        words, env=given, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
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
