"""The ledger served to other processes of the same user."""

from __future__ import annotations

import hmac
import os
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from socket import SHUT_RDWR
from typing import Any, Protocol

from pytest_hfbudget.errors import HFBudgetError, LedgerUnreachableError
from pytest_hfbudget.ledger import (
    Caller,
    Charge,
    Hold,
    LedgerLike,
    Refusal,
    Scope,
    WaitingHold,
    rpc,
)
from pytest_hfbudget.ledger.rpc import CHUNK, ListeningAddress, PlainSocket, WakeUp

# The longest that a thread waits for one answer at a time: threads have to end for a fork.
LISTEN_S = 0.2

# The longest wait for threads to end. An idle one ends within a millisecond; one that is still in
# the middle of an answer is left running.
PAUSE_S = 0.5

# A selector that needs no file descriptor of its own, if the system has one.
SELECTOR: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)

Operation = Callable[..., Any]


class ConnectionHandler(Protocol):
    """The process behind one connection."""

    def answer(self, line: bytes) -> bytes:
        """The line that answers a line."""

    def close(self) -> None:
        """Called when the connection has ended, and maybe once more."""


class Listener:
    """Answers at a socket in a directory of its own, a thread for each connection.

    Args:
        new_client: makes the client of a new connection.
    """

    def __init__(self, new_client: Callable[[], ConnectionHandler]) -> None:
        self._new_client = new_client
        self._lock = threading.Lock()
        self._paused, self._closed = True, False
        # Readable from when the threads are to leave until they have left.
        self._wake_up = WakeUp()
        self._bound = ListeningAddress()
        self.path = str(self._bound.address)
        self._sockets: set[WatchedSocket] = {ListeningSocket(self._bound.listen(), self._accept)}
        self._wake_up.set()

    def resume(self) -> None:
        """Answer from now on, or again after a fork."""
        with self._lock:
            if self._closed or not self._paused:
                return
            self._wake_up.clear()
            self._paused = False
            for watched in self._sockets:
                if watched.thread is None:
                    self._start_thread(watched)

    def pause(self) -> None:
        """End the threads; questions that come meanwhile wait in the sockets."""
        with self._lock:
            if not self._paused:
                self._wake_up.set()
                self._paused = True
            threads = [watched.thread for watched in self._sockets if watched.thread]
        until = time.monotonic() + PAUSE_S
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(until - time.monotonic(), 0.0))

    def close(self) -> None:
        """Close all connections, and accept no more."""
        with self._lock:
            self._closed = True
        self.pause()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for watched in sockets:
            watched.end()
        self._bound.remove()
        if all(watched.thread is None for watched in sockets):
            self._wake_up.close()

    def forget(self) -> None:
        """In a forked child: close the copies, or clients would not notice the parent's end."""
        for watched in self._sockets:
            watched.sock.close()
        self._sockets = set()
        self._wake_up.close()

    def _accept(self, connection: PlainSocket) -> None:
        client = AcceptedSocket(connection, self._new_client(), self._bound.address.greeting)
        with self._lock:
            if not self._closed:
                self._sockets.add(client)
                if not self._paused:
                    self._start_thread(client)
                return
        client.end()

    def _start_thread(self, watched: WatchedSocket) -> None:
        watched.thread = threading.Thread(
            target=self._serve, args=(watched,), name=watched.name, daemon=True
        )
        watched.thread.start()

    def _serve(self, watched: WatchedSocket) -> None:
        wake_up = self._wake_up.reader
        with SELECTOR() as selector:
            selector.register(wake_up, selectors.EVENT_READ)
            selector.register(watched.sock, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj: event for key, event in selector.select()}
                if wake_up in ready and self.leaves(watched, ready[wake_up]):
                    return
                if watched.sock in ready and not watched.serve():
                    break
        watched.end()  # before it is taken out: `close` waits for that
        with self._lock:
            self._sockets.discard(watched)

    def leaves(self, watched: WatchedSocket, event: int) -> bool:
        """Whether the thread of a socket has to end after it was woken: not if the fork is over."""
        # Under the lock, so that no thread stops for a fork that is over and is not started again.
        with self._lock:
            if not self._paused and event == selectors.EVENT_READ:
                return False
            watched.thread = None
            return True


class WatchedSocket:
    """A socket, and the thread that serves it while there is one."""

    name = "hfbudget-ledger"

    def __init__(self, sock: PlainSocket) -> None:
        self.sock = sock
        self.thread: threading.Thread | None = None

    def serve(self) -> bool:
        """Handle what has come; return whether more may come."""
        raise NotImplementedError

    def end(self) -> None:
        """Close the socket: nothing more is handled."""
        with suppress(OSError):
            self.sock.shutdown(SHUT_RDWR)
        self.sock.close()


class ListeningSocket(WatchedSocket):
    """Accepts clients."""

    def __init__(self, sock: PlainSocket, accept: Callable[[PlainSocket], None]) -> None:
        super().__init__(sock)
        self._accept = accept

    def serve(self) -> bool:
        try:
            connection, _ = self.sock.accept()
        except OSError:
            return False
        self._accept(connection)
        return True


class AcceptedSocket(WatchedSocket):
    """Answers one client."""

    name = "hfbudget-ledger-client"

    def __init__(self, sock: PlainSocket, client: ConnectionHandler, greeting: bytes = b"") -> None:
        super().__init__(sock)
        self._client = client
        self._unread = bytearray()
        self._greeting = greeting

    def serve(self) -> bool:
        try:
            data = self.sock.recv(CHUNK)
            self._unread += data
            while (end := self._unread.find(b"\n") + 1) > 0:
                line = bytes(self._unread[:end])
                del self._unread[:end]
                if self._greeting:
                    if not hmac.compare_digest(line, self._greeting):
                        return False
                    self._greeting = b""
                    continue
                if reply := self._client.answer(line):
                    self.sock.sendall(reply)
        except OSError:
            return False
        return bool(data)

    def end(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(SHUT_RDWR)
        if self.thread is None:
            while self.serve():  # do what the client has told before
                continue
        super().end()
        self._client.close()


class LedgerHandler:
    """The operations of one connection on a ledger, and the holds that the connection has open.

    Holds that are open when it ends are booked in full: what was sent for them may be billed.

    Args:
        waiting: the queued requests of all connections, by id. A client makes a request by one
            connection, and waits for its answer by another.
        more: further operations by name; they replace those of the ledger by the same name.
    """

    def __init__(
        self,
        ledger: LedgerLike,
        waiting: dict[int, WaitingHold],
        more: Mapping[str, Operation],
    ) -> None:
        self._ledger, self._waiting = ledger, waiting
        self._queued: dict[int, Charge] = {}
        self._held: dict[int, tuple[Charge, int]] = {}
        self._gone = False
        self._operations = {**self._of_the_ledger(), **more}

    def answer(self, line: bytes) -> bytes:
        """The line that answers a line."""
        return answer(self._operations, line)

    def close(self) -> None:
        """Take its requests out of the queue, and book its holds in full."""
        self._gone = True
        for request in list(self._queued):
            self._waiting.pop(request, None)
            self._leave(request)
        for hold in list(self._held):
            draft, amount = self._held.pop(hold, (None, 0))
            if draft is not None:
                lost = draft._replace(nano_usd=amount, status="lost", estimated=True)
                with suppress(HFBudgetError, KeyError):
                    self._ledger.settle(hold, lost)

    def _of_the_ledger(self) -> dict[str, Operation]:
        ledger = self._ledger
        return {
            "open": lambda scope: ledger.open(Scope(*scope)),
            "hold": self._hold,
            "hold_or_queue": self._hold_or_queue,
            "answer": self._wait,
            "give_up": ledger.give_up,
            "leave": self._leave,
            "settle": lambda hold, charge: self._resolve(ledger.settle, hold, charge),
            "release": lambda hold, charge: self._resolve(ledger.release, hold, charge),
            "flush": ledger.flush,
            "refuse": lambda keys, refusal: ledger.refuse(keys, Refusal(*refusal)),
            "count_unmetered": ledger.count_unmetered,
            "total": ledger.total,
            "charges_in": ledger.charges_in,
        }

    def _hold(self, keys: list[str], least: int, most: int | None, draft: list[Any]) -> Hold:
        charge = Charge.read(draft)
        return self._granted(self._ledger.hold(keys, least, most, charge), charge)

    def _granted(self, hold: Hold, draft: Charge) -> Hold:
        self._held[hold.id] = draft, hold.amount
        if self._gone:
            self.close()  # the connection ended while the hold was made
        return hold

    def _hold_or_queue(
        self, keys: list[str], least: int, most: int | None, draft: list[Any], caller: list[Any]
    ) -> tuple[int, int | None]:
        """The id and amount of a hold; or the id of a request in the queue, and None.

        The operation "answer" waits for that request.
        """
        charge = Charge.read(draft)
        answer = self._ledger.hold_or_queue(keys, least, most, charge, Caller(*caller))
        if isinstance(answer, Hold):
            return self._granted(answer, charge)
        self._queued[answer.id], self._waiting[answer.id] = charge, answer
        answer.answer.add_done_callback(lambda future: self._answered(answer.id, future))
        if self._gone:
            self.close()
        return answer.id, None

    def _answered(self, request: int, future: Future[Hold]) -> None:
        draft = self._queued.pop(request, None)
        if draft is not None and future.exception() is None:
            self._held[request] = draft, future.result().amount

    def _wait(self, request: int) -> Hold | None:
        """The answer to a queued request; None if there is none within LISTEN_S."""
        waiting = self._waiting.get(request)
        if waiting is None:
            raise LedgerUnreachableError("the connection of the call that waited was lost")
        try:
            hold = waiting.answer.result(LISTEN_S)
        except NotYet:  # another one than the built-in, before Python 3.11
            return None
        except BaseException:
            self._waiting.pop(request, None)
            raise
        self._waiting.pop(request, None)
        return hold

    def _leave(self, request: int) -> None:
        # `_wait` removes the request from `_waiting`, and tells the client why its wait ended.
        for requests in (self._queued, self._held):
            requests.pop(request, None)
        with suppress(HFBudgetError):
            self._ledger.leave(request)

    def _resolve(
        self, resolve: Callable[[int, Any], None], hold: int, charge: list[Any] | None
    ) -> None:
        # The answer may have reached the client before `_answered` was called.
        if self._queued.pop(hold, None) is None:
            del self._held[hold]  # KeyError: a hold of another connection, or resolved before
        resolve(hold, None if charge is None else Charge.read(charge))


class LedgerServer(Listener):
    """Serves one ledger at a socket.

    Args:
        more: further operations by name, answered at the same socket.
    """

    def __init__(self, ledger: LedgerLike, more: Mapping[str, Operation] | None = None) -> None:
        self._ledger, self._more = ledger, more or {}
        self._waiting: dict[int, WaitingHold] = {}
        super().__init__(self.client)

    def client(self) -> LedgerHandler:
        """The handler of a new connection."""
        return LedgerHandler(self._ledger, self._waiting, self._more)


def answer(operations: Mapping[str, Operation], line: bytes) -> bytes:
    """The line that answers a message: what the operation returned, or the error that it raised.

    Empty for an operation that is only told.
    """
    told = False
    try:
        name, *arguments = rpc.decode(line)
        if told := name == rpc.TELL:
            name, *arguments = arguments
        result = operations[name](*arguments)
        return b"" if told else rpc.encode({"ok": result})
    except HFBudgetError as error:
        failure = error
    except Exception as error:  # the worker must hear of it, or it would wait for ever
        failure = HFBudgetError(f"the ledger failed: {error!r} (pid {os.getpid()})")
    return b"" if told else rpc.encode(rpc.error_fields(failure))
