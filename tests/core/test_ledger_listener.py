"""The listener for child processes: its threads pause for a fork, and no client notices."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE

import pytest
from bookkeeping import PATIENCE_S, Child

from pytest_hfbudget.ledger import Scope, Totals
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.rpc import LedgerConnection, PlainSocket, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import (
    PAUSE_S,
    AcceptedSocket,
    LedgerServer,
    Listener,
    ListeningSocket,
    WatchedSocket,
)

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Echo:
    """A client who is told what it said, and may have to wait for it."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()
        self.ends = threading.Semaphore(0)

    def answer(self, line: bytes) -> bytes:
        if line == b"wait\n":
            self.asked.set()
            self.over.wait(PATIENCE_S)
        return line

    def close(self) -> None:
        self.ends.release()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def listener(echo: Echo) -> Iterator[Listener]:
    made = Listener(lambda: echo)
    made.resume()
    yield made
    echo.over.set()
    made.close()


@contextmanager
def caller(listener: Listener) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(listener.path)
        yield connection


@contextmanager
def pair() -> Iterator[tuple[PlainSocket, PlainSocket]]:
    """Two ends of a connection, as a listener has them."""
    ours, theirs = (PlainSocket(end.detach()) for end in socket.socketpair())
    with closing(ours), closing(theirs):
        yield ours, theirs


def ask(connection: socket.socket, line: bytes) -> bytes:
    connection.sendall(line)
    return connection.recv(65_536)


@pytest.fixture
def threads() -> Callable[[], int]:
    """Counts those of this test: the run that it belongs to may have a listener of its own."""
    before = set(threading.enumerate())

    def count() -> int:
        new = set(threading.enumerate()) - before
        return sum(thread.name.startswith("hfbudget-ledger") for thread in new)

    return count


def test_only_its_owner_can_enter_the_directory_of_the_socket(listener: Listener) -> None:
    directory = Path(listener.path).parent.stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_uid) == (0o700, os.getuid())


def test_there_are_no_threads_while_it_steps_aside(
    threads: Callable[[], int], listener: Listener
) -> None:
    with caller(listener) as one, caller(listener) as other:
        assert ask(one, b"1\n") == b"1\n"
        assert ask(other, b"2\n") == b"2\n"
        assert threads() == 3
        for _ in range(20):
            listener.pause()
            assert threads() == 0
            listener.resume()
        assert ask(one, b"3\n") == b"3\n"
        assert ask(other, b"4\n") == b"4\n"


def test_what_is_asked_meanwhile_is_answered_afterwards(listener: Listener) -> None:
    with caller(listener) as known:
        assert ask(known, b"1\n") == b"1\n"
        known.sendall(b"half")
        listener.pause()
        known.sendall(b" a line\n")
        with caller(listener) as new:
            new.sendall(b"hello\n")
            listener.resume()
            assert known.recv(100) == b"half a line\n"
            assert new.recv(100) == b"hello\n"


def test_an_answer_that_takes_long_holds_up_no_fork_for_long(
    listener: Listener, echo: Echo
) -> None:
    with caller(listener) as slow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, slow, b"wait\n")
        assert echo.asked.wait(PATIENCE_S)
        listener.pause()
        listener.resume()
        echo.over.set()
        assert waiting.result(PATIENCE_S) == b"wait\n"
        assert ask(slow, b"more\n") == b"more\n"


def test_an_answer_that_comes_while_it_is_away_is_given_and_the_next_one_too(
    listener: Listener, echo: Echo
) -> None:
    with caller(listener) as slow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, slow, b"wait\n")
        assert echo.asked.wait(PATIENCE_S)
        listener.pause()
        echo.over.set()
        assert waiting.result(PATIENCE_S) == b"wait\n"
        listener.resume()
        assert ask(slow, b"more\n") == b"more\n"


@forks
def test_a_child_that_forgets_it_does_not_keep_its_connections_open(listener: Listener) -> None:
    with caller(listener) as connection:
        assert ask(connection, b"1\n") == b"1\n"
        listener.pause()
        stay, until_then = os.pipe()

        def live_on() -> str:
            os.close(until_then)
            listener.forget()
            return os.read(stay, 1).decode()

        child = Child(live_on)
        os.close(stay)
        listener.resume()
        listener.close()
        assert connection.recv(1) == b""  # although the child lives on
        os.close(until_then)
        child.answer()


def test_a_client_that_leaves_is_gone(listener: Listener, echo: Echo) -> None:
    with caller(listener) as connection:
        ask(connection, b"1\n")
    assert echo.ends.acquire(timeout=PATIENCE_S)


def test_closing_hangs_up_and_leaves_nothing_behind(
    threads: Callable[[], int], listener: Listener, echo: Echo
) -> None:
    with caller(listener) as connection:
        ask(connection, b"1\n")
        listener.close()
        listener.close()
        assert connection.recv(1) == b""
        assert echo.ends.acquire(timeout=PATIENCE_S)
        assert threads() == 0
        assert not Path(listener.path).parent.exists()
        with pytest.raises(OSError, match=r"No such file|refused"), caller(listener):
            pass


def test_coming_back_twice_changes_nothing(threads: Callable[[], int], listener: Listener) -> None:
    listener.resume()
    with caller(listener) as connection:
        assert ask(connection, b"1\n") == b"1\n"
        listener.resume()
        assert ask(connection, b"2\n") == b"2\n"
        assert threads() == 2


def test_no_thread_comes_back_after_the_end(threads: Callable[[], int], listener: Listener) -> None:
    listener.close()
    listener.resume()
    assert threads() == 0


def test_stepping_aside_twice_changes_nothing(listener: Listener) -> None:
    with caller(listener) as connection:
        listener.pause()
        listener.pause()
        listener.resume()
        assert ask(connection, b"1\n") == b"1\n"


def test_it_uses_no_time_while_it_is_not_asked(listener: Listener) -> None:
    with caller(listener) as connection:
        listener.pause()
        listener.resume()
        assert ask(connection, b"1\n") == b"1\n"
        used, started = time.process_time(), time.monotonic()
        assert not select.select([connection], [], [], 0.3)[0]  # nothing comes; time passes
        assert time.process_time() - used < (time.monotonic() - started) / 4


def test_every_line_is_answered_by_itself_an_empty_one_too() -> None:
    class Brackets(Echo):
        def answer(self, line: bytes) -> bytes:
            return b"<" + line.strip() + b">\n"

    listener = Listener(Brackets)
    listener.resume()
    try:
        with caller(listener) as connection:
            connection.sendall(b"a\n\nb\nc")
            answers = b""
            while answers.count(b"\n") < 3:
                answers += connection.recv(100)
            assert answers == b"<a>\n<>\n<b>\n"
    finally:
        listener.close()


def test_it_does_not_keep_its_process_from_ending(listener: Listener) -> None:
    with caller(listener) as connection:
        assert ask(connection, b"1\n") == b"1\n"
        ours = [
            thread for thread in threading.enumerate() if thread.name.startswith("hfbudget-ledger")
        ]
        assert ours
        assert all(thread.daemon for thread in ours)


def test_two_answers_that_take_long_hold_up_no_fork_for_longer_than_one(
    listener: Listener, echo: Echo
) -> None:
    with caller(listener) as one, caller(listener) as other:
        for slow in (one, other):
            echo.asked.clear()
            slow.sendall(b"wait\n")
            assert echo.asked.wait(PATIENCE_S)
        started = time.monotonic()
        listener.pause()
        assert time.monotonic() - started < 3 * PAUSE_S


def test_closing_leaves_no_file_open(echo: Echo) -> None:
    before = os.listdir("/dev/fd")
    listener = Listener(lambda: echo)
    listener.resume()
    with caller(listener) as connection:
        ask(connection, b"1\n")
        listener.close()
    for _ in range(2):
        assert os.listdir("/dev/fd") == before
        listener.close()


def test_nothing_is_kept_of_a_client_that_left() -> None:
    collected = threading.Event()

    def new_client() -> Echo:
        made = Echo()
        weakref.finalize(made, collected.set)
        return made

    listener = Listener(new_client)
    listener.resume()
    with caller(listener) as connection:
        ask(connection, b"1\n")
        assert not collected.is_set()
    assert collected.wait(PATIENCE_S)
    listener.close()


@forks
def test_a_child_may_close_what_it_has_forgotten(listener: Listener) -> None:
    def forget_and_close() -> str:
        listener.forget()
        listener.close()
        return "closed"

    listener.pause()
    assert Child(forget_and_close).answer() == "closed"


def test_no_thread_leaves_for_a_fork_that_is_over(listener: Listener, echo: Echo) -> None:
    """The bell may have rung, and a thread have heard it, before everybody was called back."""
    with pair() as (ours, _):
        client = AcceptedSocket(ours, echo)
        assert not listener.leaves(client, EVENT_READ)
        assert listener.leaves(client, EVENT_READ | EVENT_WRITE)  # the pipe itself is gone
        listener.pause()
        assert listener.leaves(client, EVENT_READ)


def test_a_thread_that_is_woken_and_decides_after_the_fork_stays(
    threads: Callable[[], int], echo: Echo
) -> None:
    woken, fork_is_over = threading.Semaphore(0), threading.Event()

    class SlowListener(Listener):
        def leaves(self, watched: WatchedSocket, event: int) -> bool:
            woken.release()
            assert fork_is_over.wait(PATIENCE_S)
            return super().leaves(watched, event)

    listener = SlowListener(lambda: echo)
    listener.resume()
    with caller(listener) as connection:
        assert ask(connection, b"1\n") == b"1\n"
        listener.pause()
        assert all(woken.acquire(timeout=PATIENCE_S) for _ in range(2))
        listener.resume()
        fork_is_over.set()
        assert ask(connection, b"2\n") == b"2\n"
        with caller(listener) as new:
            assert ask(new, b"3\n") == b"3\n"
        listener.pause()
        assert threads() == 0
    listener.close()


def test_a_socket_may_end_twice() -> None:
    with pair() as (ours, _):
        listening = ListeningSocket(ours, lambda connection: None)
        listening.end()
        listening.end()


def test_a_socket_that_accepts_no_connection_is_left() -> None:
    with closing(PlainSocket()) as deaf:
        assert not ListeningSocket(deaf, lambda connection: None).serve()


def test_a_socket_whose_client_hung_up_is_left(echo: Echo) -> None:
    with pair() as (ours, theirs):
        theirs.sendall(b"1\n")
        theirs.close()
        assert not AcceptedSocket(ours, echo).serve()  # the client that asked is gone


def test_without_unix_sockets_it_answers_whoever_begins_with_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pytest_hfbudget.ledger.rpc.UNIX", False)
    monkeypatch.setattr("pytest_hfbudget.ledger.rpc.FAMILY", socket.AF_INET)
    kept = Ledger()
    kept.open(Scope("all", "the session", 100))
    with closing(LedgerServer(kept)) as server:
        server.resume()
        port, _, password = server.path.partition("/")
        for greeting in ("", "wrong\n", f"{password[:-1]}\n"):
            with socket.create_connection(("127.0.0.1", int(port)), PATIENCE_S) as stranger:
                stranger.sendall(f'{greeting}["total", "all"]\n'.encode())
                with suppress(ConnectionResetError):  # the server ends the connection
                    assert stranger.recv(1) == b""
        with closing(LedgerConnection(server.path)) as wire:
            for _ in range(2):
                assert RemoteLedger(wire).total("all") == Totals()
