"""The counter for child processes: its threads step aside for a fork, and nobody notices."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from bookkeeping import PATIENCE_S, Child

from pytest_hfbudget.ledger.counter import Counter

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

    def gone(self) -> None:
        self.ends.release()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def counter(echo: Echo) -> Iterator[Counter]:
    made = Counter(lambda: echo)
    made.come_back()
    yield made
    echo.over.set()
    made.close()


@contextmanager
def caller(counter: Counter) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(counter.path)
        yield connection


def ask(connection: socket.socket, line: bytes) -> bytes:
    connection.sendall(line)
    return connection.recv(65_536)


@pytest.fixture
def threads() -> Callable[[], int]:
    """Counts those of this test: the run that it belongs to may have a counter of its own."""
    before = set(threading.enumerate())

    def count() -> int:
        new = set(threading.enumerate()) - before
        return sum(thread.name == "hfbudget-children" for thread in new)

    return count


def test_only_its_owner_can_enter_the_directory_of_the_socket(counter: Counter) -> None:
    directory = Path(counter.path).parent.stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_uid) == (0o700, os.getuid())


def test_there_are_no_threads_while_it_steps_aside(
    threads: Callable[[], int], counter: Counter
) -> None:
    with caller(counter) as one, caller(counter) as other:
        assert ask(one, b"1\n") == b"1\n"
        assert ask(other, b"2\n") == b"2\n"
        assert threads() == 3
        for _ in range(20):
            counter.step_aside()
            assert threads() == 0
            counter.come_back()
        assert ask(one, b"3\n") == b"3\n"
        assert ask(other, b"4\n") == b"4\n"


def test_what_is_asked_meanwhile_is_answered_afterwards(counter: Counter) -> None:
    with caller(counter) as known:
        assert ask(known, b"1\n") == b"1\n"
        known.sendall(b"half")
        counter.step_aside()
        known.sendall(b" a line\n")
        with caller(counter) as new:
            new.sendall(b"hello\n")
            counter.come_back()
            assert known.recv(100) == b"half a line\n"
            assert new.recv(100) == b"hello\n"


def test_an_answer_that_takes_long_holds_up_no_fork_for_long(counter: Counter, echo: Echo) -> None:
    with caller(counter) as slow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, slow, b"wait\n")
        assert echo.asked.wait(PATIENCE_S)
        counter.step_aside()
        counter.come_back()
        echo.over.set()
        assert waiting.result(PATIENCE_S) == b"wait\n"
        assert ask(slow, b"more\n") == b"more\n"


def test_an_answer_that_comes_while_it_is_away_is_given_and_the_next_one_too(
    counter: Counter, echo: Echo
) -> None:
    with caller(counter) as slow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, slow, b"wait\n")
        assert echo.asked.wait(PATIENCE_S)
        counter.step_aside()
        echo.over.set()
        assert waiting.result(PATIENCE_S) == b"wait\n"
        counter.come_back()
        assert ask(slow, b"more\n") == b"more\n"


@forks
def test_a_child_that_forgets_it_does_not_keep_its_connections_open(counter: Counter) -> None:
    with caller(counter) as connection:
        assert ask(connection, b"1\n") == b"1\n"
        counter.step_aside()
        stay, until_then = os.pipe()

        def live_on() -> str:
            os.close(until_then)
            counter.forget()
            return os.read(stay, 1).decode()

        child = Child(live_on)
        os.close(stay)
        counter.come_back()
        counter.close()
        assert connection.recv(1) == b""  # although the child lives on
        os.close(until_then)
        child.answer()


def test_a_client_that_leaves_is_gone(counter: Counter, echo: Echo) -> None:
    with caller(counter) as connection:
        ask(connection, b"1\n")
    assert echo.ends.acquire(timeout=PATIENCE_S)


def test_closing_hangs_up_and_leaves_nothing_behind(
    threads: Callable[[], int], counter: Counter, echo: Echo
) -> None:
    with caller(counter) as connection:
        ask(connection, b"1\n")
        counter.close()
        counter.close()
        assert connection.recv(1) == b""
        assert echo.ends.acquire(timeout=PATIENCE_S)
        assert threads() == 0
        assert not Path(counter.path).parent.exists()
        with pytest.raises(OSError, match=r"No such file|refused"), caller(counter):
            pass
