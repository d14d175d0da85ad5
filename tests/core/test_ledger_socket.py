"""The ledger's counter: who may come in, what is lost with a client, what is left after it."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bookkeeping import (
    PATIENCE_S,
    Child,
    WatchedLedger,
    charge,
    connected,
    connection_threads,
    draft,
    serving,
)

from pytest_hfbudget import errors
from pytest_hfbudget.errors import (
    BudgetExceededError,
    ConfigError,
    EndpointError,
    Figures,
    HFBudgetError,
    LedgerUnreachableError,
    UnpricedCallError,
)
from pytest_hfbudget.ledger import Scope, Totals
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import LedgerHandler, LedgerServer

CAP = 1000

# Newer Pythons warn of a fork beside threads; that is what is tried here.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class OneOfTheirOwnError(EndpointError):
    """A kind of error that the other process need not know."""


@pytest.fixture
def ledger() -> WatchedLedger:
    kept = WatchedLedger()
    kept.open(Scope("all", "the session", CAP))
    return kept


@pytest.fixture
def raw(server: LedgerServer) -> Iterator[socket.socket]:
    """A connection that does not keep to the protocol."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(server.path)
        yield connection


def hold(wire: LedgerConnection, amount: int) -> int:
    return RemoteLedger(wire).hold(["all"], amount, amount, draft("all")).id


def spend(wire: LedgerConnection, calls: int, amount: int) -> int:
    """Make calls as long as there is something left: how many there were."""
    ledger = RemoteLedger(wire)
    for made in range(calls):
        try:
            held = ledger.hold(["all"], amount, amount, draft("all"))
        except BudgetExceededError:
            return made
        ledger.settle(held.id, charge(amount, "all"))
    return calls


# --- the address


def test_only_its_owner_can_enter_the_directory_of_the_socket(server: LedgerServer) -> None:
    directory = Path(server.path).parent.stat()
    assert stat.S_IMODE(directory.st_mode) == 0o700
    assert directory.st_uid == os.getuid()


def test_the_directory_of_the_socket_is_removed(ledger: WatchedLedger) -> None:
    with serving(ledger) as server:
        directory = Path(server.path).parent
        assert directory.is_dir()
    assert not directory.exists()


def test_a_server_that_was_never_started_can_be_stopped(ledger: WatchedLedger) -> None:
    server = LedgerServer(ledger)
    server.close()
    assert not Path(server.path).parent.exists()


def test_a_server_can_be_stopped_twice(ledger: WatchedLedger) -> None:
    with serving(ledger) as server:
        server.close()


def test_a_long_temporary_directory_is_no_reason_to_fail(
    ledger: WatchedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with serving(ledger) as server, connected(server) as wire:
        assert RemoteLedger(wire).total("all") == Totals()
        assert stat.S_IMODE(Path(server.path).parent.stat().st_mode) == 0o700
    assert not list(long.iterdir())


# --- a client that is gone


def test_what_a_lost_client_held_is_booked_in_full(
    server: LedgerServer, ledger: WatchedLedger
) -> None:
    with connected(server) as wire:
        hold(wire, 30)
        hold(wire, 12)
        RemoteLedger(wire).release(hold(wire, 400))
    assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=42, calls=2)
    assert {(c.status, c.estimated) for c in ledger.charges()} == {("lost", True)}


def test_what_a_client_told_before_it_hung_up_is_done(
    server: LedgerServer, ledger: WatchedLedger
) -> None:
    for _ in range(20):  # an answer to the first of them would have found no reader
        with connected(server) as wire:
            remote = RemoteLedger(wire, ahead=True)
            for number in [hold(wire, 100) for _ in range(8)]:
                remote.settle(number, charge(1, "all"))
        assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=160, calls=160)
    assert {charged.status for charged in ledger.charges()} == {"200"}


def test_what_another_client_holds_is_not_touched(
    server: LedgerServer, ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    kept = hold(wire, 5)
    with connected(server) as gone:
        hold(gone, 30)
    assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=30, held=5, calls=1)
    RemoteLedger(wire).settle(kept, charge(1, "all"))
    assert ledger.total("all") == Totals(spent=31, calls=2)


@forks
def test_what_a_killed_process_held_is_booked_in_full(
    server: LedgerServer, ledger: WatchedLedger
) -> None:
    def die() -> None:
        hold(LedgerConnection(server.path), 30)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Child(die).answer() == ""
    assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=30, calls=1)


def test_a_fork_knows_nothing_of_connections_that_are_gone(server: LedgerServer) -> None:
    gone = weakref.ref(LedgerConnection(server.path))
    gc.collect()
    assert gone() is None


def test_nothing_serves_a_client_that_is_gone(server: LedgerServer, ledger: WatchedLedger) -> None:
    before = connection_threads()
    with connected(server) as wire:
        wire.invoke("total", "all")
        (serving_it,) = set(connection_threads()) - set(before)
    assert ledger.wait_for_a_loss()
    serving_it.join(PATIENCE_S)
    assert not serving_it.is_alive()


def test_nothing_is_kept_of_a_client_that_is_gone(
    server: LedgerServer, ledger: WatchedLedger
) -> None:
    def kept() -> list[object]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, LedgerHandler)]

    before = set(connection_threads())
    with connected(server) as wire:
        wire.invoke("total", "all")
        assert len(kept()) == 1
        (serving_it,) = set(connection_threads()) - before
    serving_it.join(PATIENCE_S)
    assert kept() == []


def test_a_client_that_closed_its_connection_may_come_back(
    ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    hold(wire, 30)
    wire.close()
    assert ledger.wait_for_a_loss()
    assert RemoteLedger(wire).total("all") == Totals(spent=30, calls=1)


# --- a server that is gone


def test_a_client_of_a_stopped_server_is_refused_within_a_second(
    server: LedgerServer, wire: LedgerConnection
) -> None:
    hold(wire, 1)
    server.close()
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(LedgerUnreachableError, match="so nothing more is sent"):
            hold(wire, 1)
    assert time.monotonic() - started < 1


def test_a_client_that_never_asked_before_is_refused_as_well(
    server: LedgerServer, wire: LedgerConnection
) -> None:
    server.close()
    with pytest.raises(LedgerUnreachableError) as caught:
        hold(wire, 1)
    assert str(caught.value) == (
        "the process that keeps the budget of this run is gone (FileNotFoundError), "
        "so nothing more is sent"
    )


def test_servers_stop_at_once(ledger: WatchedLedger) -> None:
    started = time.monotonic()
    for _ in range(5):
        with serving(ledger):
            pass
    assert time.monotonic() - started < 1.5


def test_a_connection_that_arrives_while_the_server_stops_is_not_served(
    ledger: WatchedLedger,
) -> None:
    class Late(LedgerServer):
        def client(self) -> LedgerHandler:
            self.close()  # which can't hang up on what it does not know yet
            return super().client()

    server = Late(ledger)
    server.resume()
    with connected(server) as wire, pytest.raises(LedgerUnreachableError):
        wire.invoke("total", "all")


def test_a_server_does_not_keep_its_process_from_ending(server: LedgerServer) -> None:
    threads = [t for t in threading.enumerate() if t.name == "hfbudget-ledger"]
    assert threads
    assert all(thread.daemon for thread in threads)


def test_a_client_that_waits_for_an_answer_is_refused_within_a_second(
    ledger: WatchedLedger,
) -> None:
    asked, over = threading.Event(), threading.Event()

    def never() -> None:
        asked.set()
        over.wait(PATIENCE_S)

    with serving(ledger, never=never) as server, connected(server) as wire:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wire.invoke, "never")
            assert asked.wait(PATIENCE_S)
            server.close()
            with pytest.raises(LedgerUnreachableError):
                waiting.result(1)
        over.set()


def test_nothing_is_held_any_more_once_the_server_is_stopped(
    server: LedgerServer, ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    hold(wire, 30)
    server.close()
    assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=30, calls=1)


def test_a_refused_client_leaves_no_socket_behind(
    server: LedgerServer, wire: LedgerConnection
) -> None:
    hold(wire, 1)
    opened = len(os.listdir("/dev/fd"))
    server.close()
    with pytest.raises(LedgerUnreachableError):
        hold(wire, 1)
    with pytest.raises(LedgerUnreachableError):
        hold(wire, 1)
    gc.collect()  # a forgotten socket would warn here
    assert len(os.listdir("/dev/fd")) < opened


# --- lines that make no sense


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"",
        b"\xff\x00",
        b"{",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b"[[1]]",
        b'["no such operation"]',
        b'["abandon", null]',
        b'["hold"]',
        b'["hold", 1, 2, 3, 4]',
        b'["hold", ["all"], 1, 1, [1, 2]]',
        b'["settle", 99, null]',
        b'["total", []]',
    ],
)
def test_a_line_that_makes_no_sense_is_answered_with_an_error(
    raw: socket.socket, ledger: WatchedLedger, line: bytes
) -> None:
    raw.sendall(line + b"\n")
    answer = json.loads(raw.recv(65_536))
    assert answer["error"] == "HFBudgetError"
    assert answer["message"].startswith("the ledger failed: ")
    assert ledger.total("all") == Totals()


def test_a_line_that_makes_no_sense_kills_neither_connection_nor_server(
    raw: socket.socket, wire: LedgerConnection
) -> None:
    for _ in range(3):
        raw.sendall(b"garbage\n")
        raw.recv(65_536)
    raw.sendall(b'["total","all"]\n')
    assert json.loads(raw.recv(65_536)) == {"ok": [0, 0, 0, 0]}
    assert RemoteLedger(wire).total("all") == Totals()


def test_half_a_line_is_nothing_asked(raw: socket.socket, ledger: WatchedLedger) -> None:
    raw.sendall(b'["hold",["all"],')
    raw.close()
    assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals()


def test_an_answer_that_can_not_be_told_is_an_error(ledger: WatchedLedger) -> None:
    with serving(ledger, odd=object) as server, connected(server) as wire:
        with pytest.raises(HFBudgetError, match="the ledger failed: TypeError"):
            wire.invoke("odd")
        assert wire.invoke("total", "all") == [0, 0, 0, 0]


def test_a_question_that_can_not_be_put_is_not_sent(wire: LedgerConnection) -> None:
    with pytest.raises(TypeError):
        wire.invoke("total", object())
    assert wire.invoke("total", "all") == [0, 0, 0, 0]


def test_a_long_answer_arrives_as_it_is(ledger: WatchedLedger) -> None:
    with serving(ledger, echo=lambda text: text) as server, connected(server) as wire:
        assert wire.invoke("echo", "ü" * 10**6) == "ü" * 10**6


# --- errors


@pytest.mark.parametrize("kind", [BudgetExceededError, UnpricedCallError, LedgerUnreachableError])
def test_a_refusal_keeps_its_class_and_figures(
    ledger: WatchedLedger, kind: type[BudgetExceededError]
) -> None:
    figures = Figures(cap=10**9, spent=7, held=5, needed=3)
    told = kind("no", scope="test_a", scope_key="a", model="org/m", figures=figures)

    def fail() -> None:
        raise told

    with serving(ledger, fail=fail) as server, connected(server) as wire:
        with pytest.raises(BudgetExceededError) as caught:
            wire.invoke("fail")
    assert type(caught.value) is kind
    assert (str(caught.value), vars(caught.value)) == ("no", vars(told))


@pytest.mark.parametrize(
    ("told", "heard"),
    [
        (HFBudgetError, HFBudgetError),
        (EndpointError, EndpointError),
        (ConfigError, ConfigError),
        (OneOfTheirOwnError, EndpointError),
    ],
)
def test_an_error_arrives_as_the_nearest_kind_that_is_known(
    ledger: WatchedLedger, told: type[HFBudgetError], heard: type[HFBudgetError]
) -> None:
    def fail() -> None:
        raise told("acme/llm is paused; resume it first")

    with serving(ledger, fail=fail) as server, connected(server) as wire:
        with pytest.raises(HFBudgetError, match=r"^acme/llm is paused; resume it first$") as caught:
            wire.invoke("fail")
    assert type(caught.value) is heard


def test_every_error_of_ours_can_travel() -> None:
    from pytest_hfbudget.ledger.rpc import error_fields, raised

    ours = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in (kind for kind in ours if issubclass(kind, HFBudgetError)):
        assert type(raised(error_fields(kind("text")))) is kind


# --- an answer that no call waited for


def test_an_interrupted_question_does_not_leave_its_answer_to_the_next(
    ledger: WatchedLedger,
) -> None:
    over, main = threading.Event(), threading.main_thread().ident
    assert main is not None

    def interrupt() -> str:
        signal.pthread_kill(main, signal.SIGUSR1)
        over.wait(PATIENCE_S)
        return "an answer that comes too late"

    def stop_waiting(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop_waiting)
    try:
        with serving(ledger, interrupt=interrupt) as server, connected(server) as wire:
            with pytest.raises(KeyboardInterrupt):
                wire.invoke("interrupt")
            over.set()
            assert wire.invoke("total", "all") == [0, 0, 0, 0]
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- forks


@forks
def test_a_forked_child_has_a_connection_of_its_own(
    ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    ours = hold(wire, 30)
    child = Child(lambda: hold(wire, 12))
    assert int(child.answer()) != ours
    assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=12, held=30, calls=1)
    RemoteLedger(wire).settle(ours, charge(1, "all"))
    assert ledger.total("all") == Totals(spent=13, calls=2)


@forks
def test_a_child_that_was_forked_in_the_middle_of_a_question_can_ask(
    ledger: WatchedLedger,
) -> None:
    asked, over = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        over.wait(PATIENCE_S)
        return "at last"

    with serving(ledger, slow=slow) as server, connected(server) as wire:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wire.invoke, "slow")
            assert asked.wait(PATIENCE_S)
            assert Child(lambda: wire.invoke("total", "all")).answer() == "[0, 0, 0, 0]"
            over.set()
            assert waiting.result(PATIENCE_S) == "at last"


@forks
def test_the_end_of_a_process_is_noticed_though_its_child_lives_on(
    server: LedgerServer, ledger: WatchedLedger
) -> None:
    kept_open, until_then = os.pipe()

    def leave_a_child() -> None:
        wire = LedgerConnection(server.path)
        hold(wire, 30)
        if os.fork() == 0:
            os.close(until_then)
            os.read(kept_open, 1)
            os._exit(0)

    child = Child(leave_a_child)
    try:
        assert ledger.wait_for_a_loss()
        assert ledger.total("all") == Totals(spent=30, calls=1)
    finally:
        os.close(until_then)
        child.answer()
        os.close(kept_open)


# --- one cap for all


def test_many_threads_of_one_client_stay_under_one_cap(
    ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(lambda _: spend(wire, 100, 7), range(8)))
    assert made == CAP // 7
    assert ledger.total("all") == Totals(spent=made * 7, calls=made)


def test_many_clients_stay_under_one_cap(server: LedgerServer, ledger: WatchedLedger) -> None:
    def client(_: int) -> int:
        with connected(server) as wire:
            return spend(wire, 100, 7)

    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(client, range(8)))
    assert made == CAP // 7
    assert ledger.total("all") == Totals(spent=made * 7, calls=made)


@forks
def test_many_processes_stay_under_one_cap(server: LedgerServer, ledger: WatchedLedger) -> None:
    children = [Child(lambda: spend(LedgerConnection(server.path), 100, 7)) for _ in range(4)]
    made = sum(int(child.answer()) for child in children)
    assert made == CAP // 7
    assert ledger.total("all") == Totals(spent=made * 7, calls=made)
    assert sum(each.nano_usd or 0 for each in ledger.charges()) == made * 7


# --- what is told, and not waited for


def test_what_is_told_is_done_before_what_is_asked(
    server: LedgerServer, wire: LedgerConnection
) -> None:
    ahead = RemoteLedger(wire, ahead=True)
    for _ in range(100):
        ahead.settle(hold(wire, 10), charge(10, "all"))
    assert ahead.total("all").spent == 1000


def test_after_a_flush_all_that_was_told_is_done(
    ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    ahead = RemoteLedger(wire, ahead=True)
    for _ in range(100):
        ahead.settle(hold(wire, 10), charge(10, "all"))
    ahead.flush()
    assert ledger.total("all").spent == 1000


def test_a_told_error_does_not_answer_the_next_question(wire: LedgerConnection) -> None:
    ahead = RemoteLedger(wire, ahead=True)
    ahead.settle(12345, charge(1, "all"))  # no call holds that
    assert ahead.total("all").spent == 0


def test_nothing_can_be_told_to_a_server_that_is_gone(
    server: LedgerServer, wire: LedgerConnection
) -> None:
    ahead = RemoteLedger(wire, ahead=True)
    held = hold(wire, 10)
    server.close()
    with pytest.raises(LedgerUnreachableError):
        for _ in range(3):  # the first may still find room in a buffer
            ahead.settle(held, charge(10, "all"))
            ahead.flush()


def test_a_flush_of_nothing_sends_nothing(server: LedgerServer, wire: LedgerConnection) -> None:
    LedgerConnection("nowhere").flush()
    ahead = RemoteLedger(wire, ahead=True)
    ahead.settle(hold(wire, 10), charge(10, "all"))
    ahead.total("all")
    server.close()
    ahead.flush()


def test_what_was_told_over_a_closed_connection_is_not_waited_for(
    server: LedgerServer, wire: LedgerConnection
) -> None:
    RemoteLedger(wire, ahead=True).settle(hold(wire, 10), charge(10, "all"))
    wire.close()
    server.close()
    wire.flush()
