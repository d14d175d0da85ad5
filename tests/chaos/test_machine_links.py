"""The machines of the randomised runs are really cut off, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from machine_links import Namespaces, Network, network

__all__ = ["network"]

pytestmark = pytest.mark.slow

MACHINE = """
import socket, sys
def connect(address):
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))
ends = [connect(address) for address in sys.argv[1:]]
input()
for end in ends:
    end.sendall(b"sent")
input()
"""
KILLED = f"""
import os
from machine_links import Namespaces
Namespaces()
os.kill(os.getpid(), {signal.SIGKILL.value})
"""


@pytest.mark.parametrize("services", [False, True])
def test_what_a_machine_sends_while_it_is_cut_off_arrives_afterwards(
    network: Network, services: bool
) -> None:
    if not isinstance(network, Namespaces):
        pytest.skip(network.kind)
    doors = [socket.create_server((host, 0)) for host in (network.redis, network.services)]
    redis_port, services_port = (door.getsockname()[1] for door in doors)
    link = network.link(0, redis_port)
    addresses = link.redis, f"{network.services}:{services_port}"
    words = [*link.prefix, sys.executable, "-c", MACHINE, *addresses]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as machine:
        assert machine.stdin is not None
        ends = [door.accept()[0] for door in doors]
        link.cut(services=services)
        machine.stdin.write(b"\n")
        machine.stdin.flush()
        for end, cut in zip(ends, (True, services), strict=True):
            end.settimeout(0.5 if cut else 10)
            if cut:
                with pytest.raises(TimeoutError):
                    end.recv(4)
            else:
                assert end.recv(4) == b"sent"
        link.mend()
        for end, cut in zip(ends, (True, services), strict=True):
            end.settimeout(10)
            if cut:
                assert end.recv(4) == b"sent"
        machine.communicate(b"\n")
    for each in (*doors, *ends):
        each.close()


def test_what_a_killed_run_has_left_behind_is_removed(network: Network) -> None:
    if not isinstance(network, Namespaces):
        pytest.skip(network.kind)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    before = _bridges()
    done = subprocess.run([sys.executable, "-c", KILLED], env=environ, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    left = _bridges() - before
    assert len(left) == 2
    Namespaces().close()
    assert not left & _bridges()


def _bridges() -> set[str]:
    return {path.parent.name for path in Path("/sys/class/net").glob("hfbm*/bridge")}
