"""The ledger's counter for other processes: a Unix socket that only its owner can open."""

from __future__ import annotations

import os
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pytest_hfbudget.errors import HFBudgetError, LedgerUnreachableError
from pytest_hfbudget.ledger import wire
from pytest_hfbudget.ledger.charge import Refusal
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.protocol import Caller, Hold, Waiting
from pytest_hfbudget.ledger.scope import Scope

Operation = Callable[..., Any]

# macOS has room for 104 bytes in a socket's address, Linux for 108; "/ledger" comes on top.
LONGEST_DIRECTORY = 96


class LedgerServer:
    """Serves one ledger over AF_UNIX, a thread for each connection.

    A thread and a blocking socket each proved twice as fast as one event loop, and fair. When a
    connection ends with holds open, they are booked in full: what was sent for them may be billed.

    Args:
        more: further operations by name, answered on the same counter.
    """

    def __init__(self, ledger: Ledger, more: Mapping[str, Operation] | None = None) -> None:
        self.ledger, self.more = ledger, dict(more or {})
        self._answers: dict[int, tuple[Future[Hold], object]] = {}
        self._directory = private_directory()
        self.path = str(self._directory / "ledger")
        self._server = _Server(self.path, _Connection)
        self._server.counter = self
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="hfbudget-ledger",
            daemon=True,
        )

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the counter; workers that still call are refused from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        shutil.rmtree(self._directory, ignore_errors=True)

    def operations(self, owner: object) -> dict[str, Operation]:
        """What a connection may ask for."""
        ledger = self.ledger
        return {
            "open": lambda scope: ledger.open(Scope(*scope)),
            "hold": lambda keys, least, most, draft: ledger.hold(
                keys, least, most, wire.charge(draft), owner
            ),
            "ask": lambda keys, least, most, draft, caller: self._place(
                ledger.ask(keys, least, most, wire.charge(draft), Caller(*caller), owner), owner
            ),
            "answer": self._answer_to,
            "give_up": ledger.give_up,
            "leave": ledger.leave,
            "settle": lambda hold, charge: ledger.settle(hold, wire.charge(charge)),
            "release": lambda hold, charge: ledger.release(
                hold, None if charge is None else wire.charge(charge)
            ),
            "flush": ledger.flush,
            "refuse": lambda keys, refusal: ledger.refuse(keys, Refusal(*refusal)),
            "miss": ledger.miss,
            "total": ledger.total,
            "charges_in": ledger.charges_in,
            **self.more,
        }

    def _place(self, answer: Hold | Waiting, owner: object) -> tuple[int, int | None]:
        """A hold, or a place in line without an amount, for which "answer" is to be asked."""
        if isinstance(answer, Hold):
            return answer
        self._answers[answer.id] = answer.answer, owner
        return answer.id, None

    def _answer_to(self, place: int) -> Hold:
        answer, _ = self._answers.pop(place, (None, None))
        if answer is None:
            raise LedgerUnreachableError("the connection of the call that waited was lost")
        return answer.result()

    def lost(self, owner: object) -> None:
        """Deal with what a connection that ended leaves behind."""
        for place, (_, of) in tuple(self._answers.items()):
            if of is owner:
                del self._answers[place]
        self.ledger.abandon(owner)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    counter: LedgerServer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: set[_Connection] = set()
        self.closed = False

    def hang_up(self) -> None:
        self.closed = True
        for connection in tuple(self.connections):
            connection.hang_up()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that died in mid-line needs no traceback: its holds are booked."""


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.server.connections.add(self)
        operations = self.server.counter.operations(self)
        try:
            # Asked after it was added: one that hang_up has missed knows that it came too late.
            if not self.server.closed:
                for line in self.rfile:
                    # What is told is done also after whoever told it has hung up.
                    if reply := answer(operations, line):
                        self.wfile.write(reply)
        finally:
            self.server.connections.discard(self)
            self.server.counter.lost(self)

    def hang_up(self) -> None:
        try:
            self.connection.shutdown(2)
        except OSError:
            return  # gone already


def private_directory() -> Path:
    """A directory that only this user can enter, short enough for a socket's address."""
    directory = Path(tempfile.mkdtemp(prefix="hfbudget-"))  # mkdtemp makes it 0700
    if len(os.fsencode(directory)) <= LONGEST_DIRECTORY:
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="hfbudget-", dir="/tmp"))


def answer(operations: Mapping[str, Operation], line: bytes) -> bytes:
    """The line that answers a question: what the operation returned, or the error it raised.

    What is only told gets no answer: nothing.
    """
    told = False
    try:
        name, *arguments = wire.decode(line)
        if told := name == wire.TELL:
            name, *arguments = arguments
        result = operations[name](*arguments)
        return b"" if told else wire.encode({"ok": result})
    except HFBudgetError as error:
        failure = error
    except Exception as error:  # the worker must hear of it, or it would wait for ever
        failure = HFBudgetError(f"the ledger failed: {error!r} (pid {os.getpid()})")
    return b"" if told else wire.encode(wire.error_fields(failure))
