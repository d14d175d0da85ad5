"""How the machines of a randomised run reach the Redis server and the services, and are cut off.

Each machine has a network namespace with two links, one to each. A link that is cut is set down on
the far side: packets vanish, no connection is reset, and connecting hangs. Where namespaces are
not permitted, a proxy on the way to the Redis server stands in for them.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

MOST_MACHINES = 8
# 198.18.0.0/15 is for tests of networks (RFC 2544), so that no host of a real network is in it.
NETWORK, MOST_RUNS = "198.18.{}.{}", 64
NAME = re.compile(r"hfbm(\d+)[rsn]\d*")
RETRANSMIT_MS = Path("/proc/sys/net/ipv4/tcp_rto_max_ms")


class Link(Protocol):
    """What connects one machine."""

    @property
    def prefix(self) -> Sequence[str]:
        """What stands before a command that is to run on the machine."""

    @property
    def redis(self) -> str:
        """Host and port of the Redis server, as the machine sees it."""

    def cut(self, *, services: bool) -> None:
        """Cut it off from the Redis server, and from the services as well if that is asked for."""

    def mend(self) -> None:
        """Connect it again."""


class Network(Protocol):
    """The links of all machines.

    Attributes:
        kind: how it cuts machines off, for people.
        redis, services: addresses on which the Redis server and the services have to listen.
    """

    kind: str
    redis: str
    services: str

    def link(self, number: int, redis_port: int) -> Link:
        """The link of one machine of the next run."""

    def close(self) -> None:
        """Leave nothing behind."""


class NamespaceLink:
    """Two pairs of virtual interfaces; the ends on this side are set down."""

    def __init__(self, name: str, number: int, redis: str) -> None:
        self.prefix = ["nsenter", f"--net=/run/netns/{name}n{number}"]
        self.redis, self._ends = redis, [f"{name}{to}{number}" for to in "rs"]

    def cut(self, *, services: bool) -> None:
        for end in self._ends if services else self._ends[:1]:
            ip(f"link set {end} down")

    def mend(self) -> None:
        for end in self._ends:
            ip(f"link set {end} up")


class Namespaces:
    """A network namespace for each machine, and two bridges that connect them with this one."""

    kind = "network namespaces"

    def __init__(self) -> None:
        """Raises OSError where namespaces are not permitted, or `ip` or `nsenter` is missing."""
        subprocess.run(["nsenter", "--version"], stdout=subprocess.DEVNULL, check=True)
        self._number, self._claim = _claimed()
        number, self._name = self._number, f"hfbm{self._number}"
        self.redis, self.services = (NETWORK.format(2 * number + to, 254) for to in (0, 1))
        try:
            for to, address in (("r", self.redis), ("s", self.services)):
                ip(
                    f"link add {self._name}{to} type bridge",
                    f"address add {address}/24 dev {self._name}{to}",
                    f"link set {self._name}{to} up",
                )
            for machine in range(MOST_MACHINES):
                self._connect(machine)
        except BaseException:
            self.close()
            raise

    def _connect(self, machine: int) -> None:
        space = f"{self._name}n{machine}"
        ip(f"netns add {space}")
        inside = ["link set lo up"]
        for to, address in (("r", self.redis), ("s", self.services)):
            bridge, end = f"{self._name}{to}", f"{self._name}{to}{machine}"
            ip(
                f"link add {end} type veth peer name {to} netns {space}",
                f"link set {end} master {bridge} up",
            )
            hardware = Path(f"/sys/class/net/{bridge}/address").read_text().strip()
            own = address.rpartition(".")[0] + f".{machine + 1}"
            # With a neighbour that is known for good, connecting hangs while the link is down;
            # else this kernel itself would answer after three seconds that there is no such host.
            inside += [
                f"address add {own}/24 dev {to}",
                f"link set {to} up",
                f"neighbour replace {address} lladdr {hardware} dev {to} nud permanent",
            ]
        ip(*inside, space=space)
        if RETRANSMIT_MS.exists():  # go on soon after a cut, however long it was
            words = ["nsenter", f"--net=/run/netns/{space}", "tee", str(RETRANSMIT_MS)]
            subprocess.run(words, input=b"1000", stdout=subprocess.DEVNULL, check=True)

    def link(self, number: int, redis_port: int) -> Link:
        link = NamespaceLink(self._name, number, f"{self.redis}:{redis_port}")
        link.mend()
        return link

    def close(self) -> None:
        _remove(self._number)
        self._claim.close()


def _claimed() -> tuple[int, socket.socket]:
    """A number that no other process uses; what killed ones have left behind is removed.

    A name in the abstract namespace of sockets is free again when its process is gone.
    """
    left = {int(match[1]) for match in map(NAME.fullmatch, _names()) if match}
    mine: tuple[int, socket.socket] | None = None
    for number in range(MOST_RUNS):
        if mine is not None and number not in left:
            continue
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0pytest-hfbudget-machines-{number}")
        except OSError:
            claim.close()
            continue
        _remove(number)
        if mine is None:
            mine = number, claim
        else:
            claim.close()
    if mine is None:
        raise OSError(f"{MOST_RUNS} other runs are under way")
    return mine


def _names() -> tuple[str, ...]:
    """All network namespaces that have a name, and the interfaces of this one."""
    folders = Path("/run/netns"), Path("/sys/class/net")
    return tuple(path.name for folder in folders if folder.exists() for path in folder.iterdir())


def _remove(number: int) -> None:
    for name in _names():
        match = NAME.fullmatch(name)
        if match and int(match[1]) == number:
            with suppress(OSError):  # an interface goes with the namespace of its other end
                ip(f"netns delete {name}" if "n" in name else f"link delete {name}")


def ip(*commands: str, space: str = "") -> None:
    """Have `ip` carry out commands; raises OSError with what it says if it can't."""
    words = ["ip", *(["-n", space] if space else []), "-batch", "-"]
    text = "\n".join(commands)
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(done.stderr.split())} ip {'; '.join(commands)}")


class Wire:
    """A proxy on a machine's way to the Redis server, which passes nothing on while it is cut."""

    prefix: Sequence[str] = ()

    def __init__(self, port: int) -> None:
        self._to, self._open, self._whole = port, list[socket.socket](), True
        self._door = socket.create_server(("127.0.0.1", 0))
        self.redis = f"127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, *, services: bool) -> None:
        self._whole = False

    def mend(self) -> None:
        self._whole = True

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
                if self._whole:  # what is lost on the way is never answered
                    other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self._door, *self._open):
            with suppress(OSError):
                one.close()


class Proxies:
    """A `Wire` for each machine."""

    redis = services = "127.0.0.1"

    def __init__(self, why: str) -> None:
        self.kind = f"a proxy that cuts machines off from Redis only ({why})"
        self._wires: list[Wire] = []

    def link(self, number: int, redis_port: int) -> Link:
        self._wires.append(Wire(redis_port))
        return self._wires[-1]

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Namespaces; proxies where they are not permitted, which the end of the run's output says."""
    made: Network
    try:
        made = Namespaces()
    except (OSError, subprocess.CalledProcessError) as error:
        made = Proxies(str(error))
    yield made
    made.close()
