"""The ledger over a socket: its address, its messages, and its client, `RemoteLedger`.

The socket is a Unix socket in a directory that only its owner can enter. Python has none on
Windows. There it is a local port, which every user can reach, so a client has to send a password.
A message is one JSON array or object a line. The server is in `server`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
import weakref
from _socket import socket as BareSocket
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget import errors, ledger
from pytest_hfbudget.ledger import Caller, Charge, Hold, Refusal, Scope, Totals, WaitingHold
from pytest_hfbudget.locks import non_reentrant, own_lock

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
        """The next connection; `socket.socket` would make it of the class that replaces it."""
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
            ValueError: the text is not an address on this system.
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
        """Remove its directory, if it has one."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class WakeUp:
    """A flag that a selector can wait for: a pipe, or a pair of sockets if only those can."""

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, ...] = () if UNIX else socket.socketpair()
        self.reader, self._writer = (e.fileno() for e in self._pair) if self._pair else os.pipe()

    def set(self) -> None:
        """Make it readable."""
        self._pair[1].send(b"x") if self._pair else os.write(self._writer, b"x")

    def clear(self) -> None:
        """Read what was set."""
        self._pair[0].recv(1) if self._pair else os.read(self.reader, 1)

    def close(self) -> None:
        """Close both ends; a second time does nothing."""
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


# --- messages

# Stands before an operation that is not answered.
TELL = "tell"

OF_A_BUDGET = ("scope", "scope_key", "model")  # fields of a refusal, beside its figures

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


def error_fields(error: errors.HFBudgetError) -> dict[str, Any]:
    """The fields by which a worker raises an error again, as the nearest class in `errors`."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    fields = {"error": next(kinds), "message": str(error)}
    if isinstance(error, errors.BudgetExceededError):
        fields.update((name, getattr(error, name)) for name in (*OF_A_BUDGET, "figures"))
    return fields


def raised(fields: dict[str, Any]) -> Exception:
    """The error that `error_fields` has described."""
    kind, more = getattr(errors, fields["error"]), {}
    if issubclass(kind, errors.BudgetExceededError):
        more = {name: fields[name] for name in OF_A_BUDGET}
        more["figures"] = errors.Figures(*fields["figures"])
    error: Exception = kind(fields["message"], **more)
    return error


# --- the client

CHUNK = 65_536


class LedgerConnection:
    """One connection to a ledger's server; a forked child must not share it, and opens its own.

    Args:
        path: the `Address` of the ledger, as text.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = own_lock()
        self._socket: PlainSocket | None = None
        self._told = False
        _connections.add(self)

    def invoke(self, operation: str, *arguments: Any) -> Any:
        """Have the server do an operation, and return its result.

        Raises:
            LedgerUnreachableError: the process that keeps the ledger is gone.
            HFBudgetError: what the operation raised there.
        """
        answer = self._exchange([operation, *arguments], answered=True)
        if "error" in answer:
            raise raised(answer)
        return answer["ok"]

    def notify(self, operation: str, *arguments: Any) -> None:
        """Have the server do an operation before all later ones, without waiting for it.

        Raises:
            LedgerUnreachableError: as `hold_or_queue`.
        """
        self._exchange([TELL, operation, *arguments], answered=False)

    def flush(self) -> None:
        """Wait until the server has done all that it was told.

        Raises:
            LedgerUnreachableError: as `hold_or_queue`.
        """
        if self._told:
            self.invoke("flush")

    def _exchange(self, message: list[Any], *, answered: bool) -> Any:
        """Send a message; with ``answered``, wait for its answer and return it, else None."""
        line, answer = encode(message), None
        with non_reentrant(self._lock):
            try:
                connection = self._send(line)
                if answered:
                    answer = decode(_received(connection))
                self._told = not answered
            except (OSError, ValueError) as error:
                self._hang_up()
                raise errors.LedgerUnreachableError(
                    "the process that keeps the budget of this run is gone "
                    f"({type(error).__name__}), so nothing more is sent"
                ) from None
            except BaseException:
                # Ctrl-C or a time-out: the answer is still to come, and must not be taken for
                # that of the next question.
                self._hang_up()
                raise
        return answer

    def _send(self, line: bytes) -> PlainSocket:
        if self._socket is None:
            address = Address.parse(self.path)
            self._socket = PlainSocket()
            self._socket.connect(address.target)
            line = address.greeting + line
        self._socket.sendall(line)
        return self._socket

    def close(self) -> None:
        """Close the connection."""
        with non_reentrant(self._lock):
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._told = None, False

    def forked(self) -> None:
        """In a child: close the copy, or the ledger would not notice the end of the parent.

        The lock is a new one: the thread that held the old one does not exist in the child.
        """
        self._lock = own_lock()
        self._hang_up()


def _received(connection: PlainSocket) -> bytes:
    # One answer follows one question. No buffered file: its lock would not survive a fork.
    answer = bytearray()
    while not answer.endswith(b"\n"):
        more = connection.recv(CHUNK)
        if not more:
            raise ConnectionResetError
        answer += more
    return bytes(answer)


def _after_fork_in_child() -> None:
    for each in tuple(_connections):
        each.forked()


# Registered once for all connections, because a registration can't be taken back.
_connections: weakref.WeakSet[LedgerConnection] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class RemoteLedger:
    """The ledger of the controller, over a connection; each method raises as `hold_or_queue` does.

    Args:
        ahead: whether a call may go on before its settlement is booked. Its process has to `flush`
            before another process reads the ledger.
    """

    def __init__(self, wire: LedgerConnection, *, ahead: bool = False) -> None:
        self._connection = wire
        self._touched: set[str] = set()
        self._settle = wire.notify if ahead else wire.invoke

    def open(self, scope: Scope) -> None:
        self._connection.invoke("open", scope)

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        self._touched.update(keys)
        return Hold(*self._connection.invoke("hold", keys, least, most, draft))

    def hold_or_queue(
        self, keys: Sequence[str], least: int, most: int | None, draft: Charge, caller: Caller
    ) -> Hold | WaitingHold:
        self._touched.update(keys)
        request, amount = self._connection.invoke("hold_or_queue", keys, least, most, draft, caller)
        if amount is not None:
            return Hold(request, amount)
        try:
            return WaitingHold(request, self._answer_to(request))
        except BaseException:
            self.leave(request)
            raise

    def _answer_to(self, request: int) -> Future[Hold]:
        """A future for the ledger's answer, which a thread awaits on a connection of its own.

        The usual connection and the event loop stay free: the calls in the way are settled there.
        """
        answer = ledger.unanswered()

        def listen() -> None:
            wire = LedgerConnection(self._connection.path)
            try:
                while (hold := wire.invoke("answer", request)) is None:
                    continue  # the server waits a short time for each question
                answer.set_result(Hold(*hold))
            except BaseException as error:
                answer.set_exception(error)
            finally:
                wire.close()

        threading.Thread(target=listen, name="hfbudget-waits", daemon=True).start()
        return answer

    def give_up(self, request: int, seconds: float) -> Hold | None:
        hold = self._connection.invoke("give_up", request, seconds)
        return None if hold is None else Hold(*hold)

    def leave(self, request: int) -> None:
        self._connection.invoke("leave", request)

    def settle(self, hold: int, charge: Charge) -> None:
        self._settle("settle", hold, charge)

    def release(self, hold: int, charge: Charge | None = None) -> None:
        self._settle("release", hold, charge)

    def flush(self) -> None:
        self._connection.flush()

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        self._touched.update(keys)
        self._connection.invoke("refuse", keys, refusal)

    def count_unmetered(self, why: str, calls: int) -> None:
        self._connection.invoke("count_unmetered", why, calls)

    def total(self, key: str) -> Totals:
        return Totals(*self._connection.invoke("total", key))

    def touched(self, key: str) -> bool:
        return key in self._touched

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        return tuple(Charge.read(fields) for fields in self._connection.invoke("charges_in", key))
