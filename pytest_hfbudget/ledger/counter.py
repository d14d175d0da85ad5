"""A Unix socket served by threads that step aside while their process forks.

Python warns of a fork beside threads, and this runs inside other people's test suites: so there is
none of ours from right before a fork until right after it.
"""

from __future__ import annotations

import os
import select
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR
from typing import Protocol

from pytest_hfbudget.ledger.remote import Socket
from pytest_hfbudget.ledger.server import private_directory

CHUNK = 65_536
# Threads that wait are gone within a millisecond; one in the middle of an answer is left to it.
STEP_ASIDE_S = 0.5


class Client(Protocol):
    """Whoever is behind one connection."""

    def answer(self, line: bytes) -> bytes:
        """The line that answers a line."""

    def gone(self) -> None:
        """The connection is over; may be told twice."""


class Counter:
    """Answers at a socket in a directory of its own, a thread for each connection.

    Args:
        welcome: makes the client of a new connection.
    """

    def __init__(self, welcome: Callable[[], Client]) -> None:
        self._welcome = welcome
        self._lock = threading.Lock()
        self._resting, self._closed = True, False
        # Readable from when the threads are to leave until they have left.
        self._bell, self._ring = os.pipe()
        self._directory = private_directory()
        self.path = str(self._directory / "ledger")
        door = Socket()
        door.bind(self.path)
        door.listen(64)
        self._posts: set[_Post] = {_Door(door, self._admit)}
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
        """Hang up on everybody, and answer nobody any more."""
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
        """Close a forked child's copies: with them open, nobody would notice the parent's end."""
        for post in self._posts:
            post.sock.close()
        self._posts = set()
        self._close_bell()

    def _close_bell(self) -> None:
        bell, self._bell, ring, self._ring = self._bell, -1, self._ring, -1
        for end in (bell, ring):
            if end >= 0:
                os.close(end)

    def _admit(self, connection: Socket) -> None:
        post = _Desk(connection, self._welcome())
        with self._lock:
            self._posts.add(post)
            if not self._resting:
                self._man(post)

    def _man(self, post: _Post) -> None:
        post.thread = threading.Thread(
            target=self._serve, args=(post,), name="hfbudget-children", daemon=True
        )
        post.thread.start()

    def _serve(self, post: _Post) -> None:
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

    def _leaves(self, post: _Post, event: int) -> bool:
        # Under the lock, so that nobody leaves for a fork that is over, and is not manned again.
        with self._lock:
            if not self._resting and event == select.POLLIN:
                return False
            post.thread = None
            return True


class _Post:
    """A socket, and the thread that serves it while there is one."""

    def __init__(self, sock: Socket) -> None:
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


class _Door(_Post):
    """Lets clients in."""

    def __init__(self, sock: Socket, admit: Callable[[Socket], None]) -> None:
        super().__init__(sock)
        self._admit = admit

    def serve(self) -> bool:
        try:
            connection, _ = self.sock.accept()
        except OSError:
            return False
        self._admit(connection)
        return True


class _Desk(_Post):
    """Answers one client."""

    def __init__(self, sock: Socket, client: Client) -> None:
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
