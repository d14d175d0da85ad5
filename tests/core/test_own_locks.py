"""What the plugin keeps apart from handlers and clocks of tests: its locks, and its own clock."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from bookkeeping import PATIENCE_S

from pytest_hfbudget.errors import LedgerBusyError
from pytest_hfbudget.locks import (
    OWN_LOCKS,
    SYSTEM_CLOCK,
    at_work,
    holds_own_lock,
    non_reentrant,
    own_lock,
)


def test_code_inside_of_an_own_lock_knows_that_it_is() -> None:
    lock = own_lock()
    assert not holds_own_lock()
    with lock:
        assert holds_own_lock()
    assert not holds_own_lock()


def test_a_lock_that_another_thread_has_interrupts_nothing() -> None:
    lock, held, done = own_lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(PATIENCE_S)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(PATIENCE_S)
    assert not holds_own_lock()
    done.set()
    other.join()


def test_only_the_main_thread_can_be_interrupted_by_a_handler() -> None:
    seen = []

    def look() -> None:
        with own_lock():
            seen.append(holds_own_lock())

    other = threading.Thread(target=look)
    other.start()
    other.join()
    assert seen == [False]


def test_a_lock_that_is_gone_is_forgotten() -> None:
    lock = own_lock()
    (reference,) = [known for known in OWN_LOCKS if known() is lock]
    del lock
    gc.collect()
    assert reference() is None
    assert not [known for known in OWN_LOCKS if known is reference]


def test_a_ledger_that_is_interrupted_says_so() -> None:
    lock = own_lock()
    with non_reentrant(lock), pytest.raises(LedgerBusyError, match=r"^the ledger: "):
        non_reentrant(lock)


def test_a_method_at_work_counts_as_inside() -> None:
    assert at_work(holds_own_lock)()
    assert not holds_own_lock()


def test_the_plugins_clock_goes_on_where_a_test_has_frozen_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    today, now = time.time(), time.monotonic()
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: 0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert 0 <= SYSTEM_CLOCK.time() - today < PATIENCE_S
    before = SYSTEM_CLOCK.monotonic()
    assert 0 <= before - now < PATIENCE_S
    SYSTEM_CLOCK.sleep(-1)
    SYSTEM_CLOCK.sleep(0.01)
    assert SYSTEM_CLOCK.monotonic() - before >= 0.01
