"""The ledger served to other processes over a Unix socket that only its owner can open."""

from __future__ import annotations

import os
import select
import shutil
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any, Protocol

from pytest_hfbudget.errors import HFBudgetError, LedgerUnreachableError
from pytest_hfbudget.ledger.charge import Refusal
from pytest_hfbudget.ledger.interface import Caller, Hold, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.rpc import codec
from pytest_hfbudget.ledger.rpc.client import PlainSocket
from pytest_hfbudget.ledger.scope import Scope

CHUNK = 65_536


# Threads that wait are gone within a millisecond; one in the middle of an answer is left to it.
STEP_ASIDE_S = 0.5


class ConnectionHandler(Protocol):
    """The process behind one connection."""

    def answer(self, line: bytes) -> bytes:
        """The line that answers a line."""

    def gone(self) -> None:
        """The connection is over; may be told twice."""


class Listener:
    """Answers at a socket in a directory of its own, a thread for each connection.

    Args:
        welcome: makes the client of a new connection.
    """

    def __init__(self, welcome: Callable[[], ConnectionHandler]) -> None:
        self._welcome = welcome
        self._lock = threading.Lock()
        self._resting, self._closed = True, False
        # Readable from when the threads are to leave until they have left.
        self._bell, self._ring = os.pipe()
        self._directory = private_directory()
        self.path = str(self._directory / "ledger")
        door = PlainSocket()
        door.bind(self.path)
        door.listen(64)
        self._posts: set[_Watched] = {_ListeningSocket(door, self._admit)}
        os.write(self._ring, b"x")

    def come_back(self) -> None:
        """Answer from now on, or again after a fork."""
        with self._lock:
            if self._closed or not self._resting:
                return
            os.read(self._bell, 1)
            self._resting = False
            for post in self._posts:
                if post.thread is None:
                    self._man(post)

    def step_aside(self) -> None:
        """End the threads; what is asked meanwhile waits in the sockets."""
        with self._lock:
            if not self._resting:
                os.write(self._ring, b"x")
                self._resting = True
            threads = [post.thread for post in self._posts if post.thread]
        until = time.monotonic() + STEP_ASIDE_S
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(until - time.monotonic(), 0.0))

    def close(self) -> None:
        """Close all connections, and accept no more."""
        with self._lock:
            self._closed = True
        self.step_aside()
        with self._lock:
            posts, self._posts = self._posts, set()
        for post in posts:
            post.end()
        shutil.rmtree(self._directory, ignore_errors=True)
        if all(post.thread is None for post in posts):
            self._close_bell()

    def forget(self) -> None:
        """Close a forked child's copies: else clients would not notice the parent's end."""
        for post in self._posts:
            post.sock.close()
        self._posts = set()
        self._close_bell()

    def _close_bell(self) -> None:
        bell, self._bell, ring, self._ring = self._bell, -1, self._ring, -1
        for end in (bell, ring):
            if end >= 0:
                os.close(end)

    def _admit(self, connection: PlainSocket) -> None:
        post = _ClientSocket(connection, self._welcome())
        with self._lock:
            self._posts.add(post)
            if not self._resting:
                self._man(post)

    def _man(self, post: _Watched) -> None:
        post.thread = threading.Thread(
            target=self._serve, args=(post,), name="hfbudget-children", daemon=True
        )
        post.thread.start()

    def _serve(self, post: _Watched) -> None:
        bell = self._bell
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(post.sock, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if bell in ready and self._leaves(post, ready[bell]):
                return
            if len(ready) > (bell in ready) and not post.serve():
                break
        with self._lock:
            self._posts.discard(post)
        post.end()

    def _leaves(self, post: _Watched, event: int) -> bool:
        # Under the lock, so that no thread stops for a fork that is over and is not started again.
        with self._lock:
            if not self._resting and event == select.POLLIN:
                return False
            post.thread = None
            return True


class _Watched:
    """A socket, and the thread that serves it while there is one."""

    def __init__(self, sock: PlainSocket) -> None:
        self.sock = sock
        self.thread: threading.Thread | None = None

    def serve(self) -> bool:
        """Do what there is to do; whether there may be more."""
        raise NotImplementedError

    def end(self) -> None:
        """Nothing comes any more."""
        with suppress(OSError):
            self.sock.shutdown(SHUT_RDWR)
        self.sock.close()


class _ListeningSocket(_Watched):
    """Lets clients in."""

    def __init__(self, sock: PlainSocket, admit: Callable[[PlainSocket], None]) -> None:
        super().__init__(sock)
        self._admit = admit

    def serve(self) -> bool:
        try:
            connection, _ = self.sock.accept()
        except OSError:
            return False
        self._admit(connection)
        return True


class _ClientSocket(_Watched):
    """Answers one client."""

    def __init__(self, sock: PlainSocket, client: ConnectionHandler) -> None:
        super().__init__(sock)
        self._client = client
        self._unread = bytearray()

    def serve(self) -> bool:
        try:
            data = self.sock.recv(CHUNK)
            self._unread += data
            while (end := self._unread.find(b"\n") + 1) > 0:
                line = bytes(self._unread[:end])
                del self._unread[:end]
                if reply := self._client.answer(line):
                    self.sock.sendall(reply)
        except OSError:
            return False
        return bool(data)

    def end(self) -> None:
        super().end()
        self._client.gone()


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
                keys, least, most, codec.charge(draft), owner
            ),
            "ask": lambda keys, least, most, draft, caller: self._place(
                ledger.ask(keys, least, most, codec.charge(draft), Caller(*caller), owner), owner
            ),
            "answer": self._answer_to,
            "give_up": ledger.give_up,
            "leave": ledger.leave,
            "settle": lambda hold, charge: ledger.settle(hold, codec.charge(charge)),
            "release": lambda hold, charge: ledger.release(
                hold, None if charge is None else codec.charge(charge)
            ),
            "flush": ledger.flush,
            "refuse": lambda keys, refusal: ledger.refuse(keys, Refusal(*refusal)),
            "miss": ledger.miss,
            "total": ledger.total,
            "charges_in": ledger.charges_in,
            **self.more,
        }

    def _place(self, answer: Hold | WaitingHold, owner: object) -> tuple[int, int | None]:
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
                    # What a client told is done also after it has closed the connection.
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
        name, *arguments = codec.decode(line)
        if told := name == codec.TELL:
            name, *arguments = arguments
        result = operations[name](*arguments)
        return b"" if told else codec.encode({"ok": result})
    except HFBudgetError as error:
        failure = error
    except Exception as error:  # the worker must hear of it, or it would wait for ever
        failure = HFBudgetError(f"the ledger failed: {error!r} (pid {os.getpid()})")
    return b"" if told else codec.encode(codec.error_fields(failure))
