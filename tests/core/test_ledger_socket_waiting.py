"""Waiting over the ledger's socket: other calls go on, and a lost process leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from bookkeeping import (
    PATIENCE_S,
    Child,
    WatchedLedger,
    charge,
    connected,
    connection_threads,
    draft,
)

from pytest_hfbudget.errors import BudgetExceededError, LedgerUnreachableError
from pytest_hfbudget.ledger import Caller, Hold, Scope, Totals, WaitingHold
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import LedgerServer

A, B, C = Caller(1, 1), Caller(1, 2), Caller(2, 1)
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture
def ledger() -> WatchedLedger:
    kept = WatchedLedger()
    kept.open(Scope("all", "the session", 100))
    return kept


@pytest.fixture
def remote(wire: LedgerConnection) -> RemoteLedger:
    return RemoteLedger(wire)


def take(ledger: RemoteLedger, amount: int, caller: Caller = A) -> Hold:
    hold = ledger.hold_or_queue(["all"], amount, amount, draft("all"), caller)
    assert isinstance(hold, Hold)
    return hold


def stand(ledger: RemoteLedger, amount: int, caller: Caller = B) -> WaitingHold:
    place = ledger.hold_or_queue(["all"], amount, amount, draft("all"), caller)
    assert isinstance(place, WaitingHold)
    return place


def waiting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hfbudget-waits"]


def test_another_thread_of_the_same_connection_settles_while_one_waits(
    remote: RemoteLedger,
) -> None:
    held = take(remote, 60)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: stand(remote, 60).answer.result(PATIENCE_S))
        remote.settle(held.id, charge(1, "all"))
        assert waiting.result(PATIENCE_S).amount == 60


def test_one_worker_waits_for_another_one(server: LedgerServer, remote: RemoteLedger) -> None:
    with connected(server) as wire:
        other = RemoteLedger(wire)
        held = take(other, 60, C)
        place = stand(remote, 60)
        other.settle(held.id, charge(1, "all"))
        assert place.answer.result(PATIENCE_S) == Hold(place.id, 60)


def test_a_worker_waits_behind_one_that_came_before_it(
    server: LedgerServer, ledger: WatchedLedger, remote: RemoteLedger
) -> None:
    held = take(remote, 60)
    with connected(server) as wire:
        first = stand(RemoteLedger(wire), 60, C)
        second = stand(remote, 60)
        remote.settle(held.id, charge(1, "all"))
        assert first.answer.result(PATIENCE_S).amount == 60
        assert not second.answer.done()
        assert ledger.waiting() == 1


def test_who_waits_over_the_wire_is_refused_in_the_ledgers_own_words(
    remote: RemoteLedger,
) -> None:
    held = take(remote, 60)
    place = stand(remote, 60)
    remote.settle(held.id, charge(60, "all"))
    error = place.answer.exception(PATIENCE_S)
    assert isinstance(error, BudgetExceededError)
    assert (error.scope_key, error.figures.spent, error.figures.needed) == ("all", 60, 60)


def test_what_a_lost_worker_held_is_booked_before_those_who_waited_for_it_are_answered(
    server: LedgerServer, remote: RemoteLedger
) -> None:
    with connected(server) as wire:
        take(RemoteLedger(wire), 60, C)
        fits, too_much = stand(remote, 40 + 1), stand(remote, 40, Caller(1, 3))
    assert isinstance(fits.answer.exception(PATIENCE_S), BudgetExceededError)
    assert too_much.answer.result(PATIENCE_S).amount == 40


def test_what_a_lost_worker_was_granted_after_a_wait_is_booked_in_full(
    server: LedgerServer, ledger: WatchedLedger, remote: RemoteLedger
) -> None:
    held = take(remote, 60)
    with connected(server) as wire:
        place = stand(RemoteLedger(wire), 60, C)
        remote.settle(held.id, charge(1, "all"))
        assert place.answer.result(PATIENCE_S).amount == 60
    for _ in range(2):  # its connection, and the one over which it has waited
        assert ledger.wait_for_a_loss()
    assert ledger.total("all") == Totals(spent=61, calls=2)


def test_a_lost_worker_waits_no_more(
    server: LedgerServer, ledger: WatchedLedger, remote: RemoteLedger
) -> None:
    held = take(remote, 60)
    with connected(server) as wire:
        place = stand(RemoteLedger(wire), 60, C)
    assert ledger.wait_for_a_loss()
    assert isinstance(place.answer.exception(PATIENCE_S), LedgerUnreachableError)
    assert ledger.waiting() == 0
    remote.settle(held.id, charge(1, "all"))
    assert ledger.total("all") == Totals(spent=1, calls=1)


@forks
def test_a_killed_worker_waits_no_more(
    server: LedgerServer, ledger: WatchedLedger, remote: RemoteLedger
) -> None:
    held = take(remote, 60)

    def die() -> None:
        stand(RemoteLedger(LedgerConnection(server.path)), 60, C)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Child(die).answer() == ""
    assert ledger.wait_for_a_loss()
    while ledger.waiting():
        assert ledger.wait_for_a_loss()  # of its other connection
    remote.settle(held.id, charge(1, "all"))
    assert ledger.total("all") == Totals(spent=1, calls=1)


def test_who_waits_is_refused_within_a_second_when_the_server_is_gone(
    server: LedgerServer, remote: RemoteLedger
) -> None:
    take(remote, 60)
    place = stand(remote, 60)
    started = time.monotonic()
    server.close()
    assert isinstance(place.answer.exception(PATIENCE_S), LedgerUnreachableError)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("end", ["answered", "left", "gave up"])
def test_nothing_is_left_of_a_wait_that_is_over(
    server: LedgerServer, ledger: WatchedLedger, remote: RemoteLedger, end: str
) -> None:
    held = take(remote, 60)
    serving_before = set(connection_threads())
    place = stand(remote, 60)
    (listener,) = waiting_threads()
    if end == "answered":
        remote.settle(held.id, charge(1, "all"))
    elif end == "left":
        remote.leave(place.id)
    else:
        with pytest.raises(BudgetExceededError, match=r"within 1 s \(hf_hold_wait\)"):
            remote.give_up(place.id, 1)
    listener.join(PATIENCE_S)
    for thread in set(connection_threads()) - serving_before:
        thread.join(PATIENCE_S)
    assert not waiting_threads()
    assert set(connection_threads()) == serving_before
    assert ledger.waiting() == 0


def test_who_is_told_of_no_answer_yet_asks_again(ledger: WatchedLedger) -> None:
    """A counter that listens for a while only, as that of a process with children does."""
    said = iter([None, None, (2, 60)])
    server = LedgerServer(ledger, {"answer": lambda place: next(said)})
    server.resume()
    try:
        with connected(server) as wire:
            remote = RemoteLedger(wire)
            take(remote, 60)
            assert stand(remote, 60).answer.result(PATIENCE_S) == Hold(2, 60)
    finally:
        server.close()


def test_an_answer_is_kept_until_it_is_asked_for(
    ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    place, amount = wire.invoke("hold_or_queue", ["all"], 60, 60, draft("all"), A)
    assert amount == 60
    waits, nothing = wire.invoke("hold_or_queue", ["all"], 60, 60, draft("all"), B)
    assert nothing is None
    RemoteLedger(wire).settle(place, charge(1, "all"))
    assert wire.invoke("answer", waits) == [waits, 60]


def test_no_answer_is_kept_for_a_worker_that_is_lost(
    server: LedgerServer, ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    take(RemoteLedger(wire), 60)
    with connected(server) as gone:
        place, _ = gone.invoke("hold_or_queue", ["all"], 60, 60, draft("all"), C)
    assert ledger.wait_for_a_loss()
    lost = r"^the connection of the call that waited was lost$"
    with pytest.raises(LedgerUnreachableError, match=lost):
        wire.invoke("answer", place)


def test_an_answer_outlives_the_loss_of_another_process(
    server: LedgerServer, ledger: WatchedLedger, wire: LedgerConnection
) -> None:
    held = take(RemoteLedger(wire), 60)
    place, _ = wire.invoke("hold_or_queue", ["all"], 60, 60, draft("all"), B)
    with connected(server) as gone:
        gone.invoke("total", "all")
    assert ledger.wait_for_a_loss()
    RemoteLedger(wire).release(held.id)
    assert wire.invoke("answer", place) == [place, 60]


def test_a_process_that_ends_does_not_wait_for_an_answer(remote: RemoteLedger) -> None:
    take(remote, 60)
    stand(remote, 60)
    assert [thread.daemon for thread in waiting_threads()] == [True]


def test_a_place_that_can_not_be_listened_to_is_given_back(
    ledger: WatchedLedger, remote: RemoteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_threads(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    take(remote, 60)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(RuntimeError, match="new thread"):
            stand(remote, 60)
    assert ledger.waiting() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@forks
def test_another_user_of_the_machine_can_not_call_at_the_counter(server: LedgerServer) -> None:
    def as_another_user() -> str:
        os.setgid(65_534)
        os.setuid(65_534)
        try:
            LedgerConnection(server.path).invoke("total", "all")
        except LedgerUnreachableError as error:
            return str(error)
        return "came in"

    assert "PermissionError" in Child(as_another_user).answer()


def test_a_counter_that_lost_a_client_uses_no_time(
    server: LedgerServer, ledger: WatchedLedger
) -> None:
    with connected(server) as wire:
        take(RemoteLedger(wire), 10)
    assert ledger.wait_for_a_loss()
    used, started = time.process_time(), time.monotonic()
    assert not ledger.lost.acquire(timeout=0.5)  # nothing else is lost; time passes
    assert time.process_time() - used < (time.monotonic() - started) / 4
