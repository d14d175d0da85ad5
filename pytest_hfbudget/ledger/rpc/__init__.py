"""The ledger over a socket: where it answers, and what travels. `server` and `client` are its ends.

Where it answers is a Unix socket in a directory that only its owner can enter. Windows has none,
as far as Python knows; there it is a port of this machine, which every user can reach, and so a
password to it. What travels is one JSON array or object a line.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
from _socket import socket as BareSocket
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget import errors

UNIX = hasattr(socket, "AF_UNIX")
FAMILY: int = getattr(socket, "AF_UNIX", socket.AF_INET)
LOOPBACK = "127.0.0.1"

# macOS has room for 104 bytes in a socket's address, Linux for 108; "/ledger" comes on top.
LONGEST_DIRECTORY = 96


class PlainSocket(BareSocket):
    """A socket of the plugin's own, which no tool of a test gets hold of.

    Tools that keep tests from the network, or from blocking calls, replace `socket.socket` or its
    methods; a test may also have given all sockets a time-out.
    """

    def __init__(self, fileno: int | None = None) -> None:
        super().__init__(FAMILY, socket.SOCK_STREAM, fileno=fileno)
        self.settimeout(None)

    def accept(self) -> tuple[PlainSocket, object]:
        """The next connection; `socket.socket` would make it of what stands in its own place."""
        number, address = self._accept()  # type: ignore[attr-defined] # typeshed leaves it out
        return PlainSocket(number), address


class Address(NamedTuple):
    """Where a ledger answers: a path, or a port and the password with which a client begins.

    As text, ``path`` or ``port/password``.
    """

    path: str = ""
    port: int = 0
    password: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address behind a text.

        Raises:
            ValueError: it is no address of this system.
        """
        if UNIX:
            return cls(path=text)
        port, _, password = text.partition("/")
        return cls("", int(port), password)

    def __str__(self) -> str:
        return self.path or f"{self.port}/{self.password}"

    @property
    def target(self) -> str | tuple[str, int]:
        """What a socket connects to."""
        return self.path or (LOOPBACK, self.port)

    @property
    def greeting(self) -> bytes:
        """What a client sends first; nothing where only the owner can reach the address."""
        return f"{self.password}\n".encode() if self.password else b""


class ListeningAddress:
    """An address that a ledger answers at, until it is removed."""

    def __init__(self) -> None:
        self._socket = PlainSocket()
        self._directory: Path | None = None
        if UNIX:
            self._directory = private_directory()
            self.address = Address(path=str(self._directory / "ledger"))
            self._socket.bind(self.address.path)
        else:
            self._socket.bind((LOOPBACK, 0))
            port = self._socket.getsockname()[1]
            self.address = Address("", port, secrets.token_hex(16))

    def listen(self) -> PlainSocket:
        """The socket that accepts connections."""
        self._socket.listen(64)
        return self._socket

    def remove(self) -> None:
        """Remove what it has on disk."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class WakeUp:
    """Readable while it is set: a pipe, or a pair of sockets where only these can be waited for."""

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, ...] = () if UNIX else socket.socketpair()
        if self._pair:
            self.reader, self._writer = (end.fileno() for end in self._pair)
        else:
            self.reader, self._writer = os.pipe()

    def set(self) -> None:
        """Make it readable."""
        self._pair[1].send(b"x") if self._pair else os.write(self._writer, b"x")

    def clear(self) -> None:
        """Read what was set."""
        self._pair[0].recv(1) if self._pair else os.read(self.reader, 1)

    def close(self) -> None:
        """Close both ends; again does nothing."""
        ends, self.reader, self._writer = (self.reader, self._writer), -1, -1
        for end in self._pair:
            end.close()
        for number in () if self._pair else ends:
            if number >= 0:
                os.close(number)


def private_directory() -> Path:
    """A directory that only this user can enter, short enough for a socket's address."""
    directory = Path(tempfile.mkdtemp(prefix="hfbudget-"))  # mkdtemp makes it 0700
    if len(os.fsencode(directory)) <= LONGEST_DIRECTORY:
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="hfbudget-", dir="/tmp"))


# --- what travels

# Before an operation that is not answered.
TELL = "tell"

KINDS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.HFBudgetError)
}

# `json.dumps` would make an encoder each time, and `json.loads` guess the encoding.
_to_text = json.JSONEncoder(separators=(",", ":")).encode
_from_text = json.JSONDecoder().raw_decode


def encode(message: object) -> bytes:
    """A message as a line."""
    return _to_text(message).encode() + b"\n"


def decode(line: bytes) -> Any:
    """A line as a message.

    Raises:
        ValueError: not a line of JSON.
    """
    message, _ = _from_text(line.decode())
    return message


def error_fields(error: Exception) -> dict[str, Any]:
    """An error as what a worker needs to raise it again: as the nearest kind that both know."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS)
    fields = {"error": next(kinds, "HFBudgetError"), "message": str(error)}
    if not isinstance(error, errors.BudgetExceededError):
        return fields
    return {
        **fields,
        "scope": error.scope,
        "scope_key": error.scope_key,
        "model": error.model,
        "figures": error.figures,
    }


def raised(fields: dict[str, Any]) -> Exception:
    """The error behind its fields."""
    kind = getattr(errors, fields["error"])
    if issubclass(kind, errors.BudgetExceededError):
        made: Exception = kind(
            fields["message"],
            scope=fields["scope"],
            scope_key=fields["scope_key"],
            model=fields["model"],
            figures=errors.Figures(*fields["figures"]),
        )
        return made
    plain: Exception = kind(fields["message"])
    return plain
