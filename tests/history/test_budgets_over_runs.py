"""A budget over many runs: what all of them spend and hold, in a file that all of them write."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from run_books import DAY_S, NOON, Project, Run

from pytest_hfbudget.errors import BudgetExceededError, HistoryError, LedgerUnreachableError
from pytest_hfbudget.history import BudgetWindow, day_of
from pytest_hfbudget.history.database import SqliteStore
from pytest_hfbudget.ledger import SESSION

MIDNIGHT = NOON + DAY_S // 2


def refused(run: Run, nano_usd: int) -> BudgetExceededError:
    with pytest.raises(BudgetExceededError) as caught:
        run.hold(nano_usd)
    return caught.value


def test_what_one_run_has_spent_another_one_may_not_spend(project: Project) -> None:
    first, second = project.run(), project.run()
    first.spend(60)
    second.spend(40)
    refused(first, 1)
    refused(second, 1)


def test_what_one_run_holds_another_one_may_not_spend(project: Project) -> None:
    first, second = project.run(), project.run()
    hold = first.hold(60)
    refused(second, 41)
    first.settle(hold, 10)
    second.spend(90)


def test_a_call_without_a_limit_gets_what_the_others_leave(project: Project) -> None:
    first, second = project.run(), project.run()
    first.spend(30)
    assert second.hold(1, 1000).amount == 70


@pytest.mark.slow
def test_a_file_that_another_process_keeps_locked_is_waited_for_once(project: Project) -> None:
    run = project.run()
    run.spend(30)
    with closing(sqlite3.connect(project.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(LedgerUnreachableError, match="locked"):
                run.hold(10)
        waited = time.monotonic() - began
        other.rollback()
    assert 9 < waited < 14
    run.spend(70)
    refused(run, 1)


def test_a_run_that_is_over_has_spent_what_it_has_spent(project: Project) -> None:
    first = project.run()
    first.spend(30)
    first.ledger.close()
    second = project.run()
    assert second.spent() == 30
    refused(second, 71)


@pytest.mark.parametrize("length", ["day", "week", "month"])
def test_a_clock_that_goes_into_the_next_window_and_back_forgets_nothing(
    project: Project, length: str
) -> None:
    project.windows = (BudgetWindow(length, 100),)
    project.run().spend(30)
    window, today = project.windows[0], day_of(NOON)
    project.now = float(window.next_day(today) * DAY_S)
    assert project.run().spent(length) == 0
    project.now = float(NOON)
    assert project.run().spent(length) == 30


def test_what_no_window_needs_any_more_is_forgotten(project: Project) -> None:
    project.run().spend(30)
    project.now += 63 * DAY_S
    project.run().spend(1)
    with closing(sqlite3.connect(project.path)) as connection:
        assert connection.execute("SELECT nano_usd FROM tab").fetchall() == [(1,)]


def test_a_thousand_runs_leave_one_row_a_day(project: Project) -> None:
    for _ in range(5):
        run = project.run()
        run.spend(3)
        run.ledger.close()
    with closing(sqlite3.connect(project.path)) as file, file:
        assert file.execute("SELECT run, nano_usd FROM tab").fetchall() == [("", 15)]
    file.close()


def test_a_run_that_is_never_closed_counts_with_all_that_it_held(project: Project) -> None:
    dead = project.run()
    dead.spend(10)
    dead.hold(50)
    assert project.run().spent() == 60


def test_projects_have_budgets_of_their_own(project: Project) -> None:
    project.run().spend(100)
    other = Project(project.folder, name="other", runs=project.runs)
    other.run().spend(100)


def test_the_refusal_says_both_numbers_and_when_there_is_money_again(project: Project) -> None:
    project.run().spend(60)
    error = refused(project.run(), 41)
    assert str(error) == (
        "daily budget (the next one begins 2024-10-05 00:00 UTC): org/model may cost up to "
        "$0.000000041, but only $0.00000004 of $0.0000001 is left ($0.00000006 spent). The call "
        "was not sent. Raise the cap, or give the call a smaller max_tokens."
    )
    assert error.scope_key == "window:day"


def test_at_midnight_the_next_budget_begins(project: Project) -> None:
    run = project.run()
    run.spend(100)
    project.now = MIDNIGHT - 1
    refused(run, 1)
    project.now = MIDNIGHT
    run.spend(100)
    refused(run, 1)


def test_a_call_in_flight_at_midnight_is_charged_once_to_the_day_it_ends_on(
    project: Project,
) -> None:
    project.windows = (BudgetWindow("day", 100), BudgetWindow("month", 1000))
    run, other = project.run(), project.run()
    run.spend(20)
    hold = run.hold(70)
    project.now = MIDNIGHT
    assert other.spent() == 0  # run has not looked at the clock yet
    run.settle(hold, 50)
    assert (other.spent("day"), other.spent("month")) == (50, 70)


def test_what_is_held_at_midnight_is_held_once(project: Project) -> None:
    project.windows = (BudgetWindow("month", 100),)
    run = project.run()
    run.spend(50)
    run.hold(40)
    project.now = MIDNIGHT
    run.hold(10)
    refused(run, 1)


def test_a_clock_that_is_set_back_brings_no_money_back(project: Project) -> None:
    run = project.run()
    run.spend(100)
    project.now = MIDNIGHT - 2 * DAY_S
    refused(run, 1)
    refused(project.run(), 1)


@pytest.mark.parametrize(
    ("length", "first", "after"),
    [
        ("day", "2024-02-29", "2024-03-01"),
        ("week", "2024-02-26", "2024-03-04"),
        ("month", "2024-02-01", "2024-03-01"),
    ],
)
def test_windows_are_those_of_the_calendar(length: str, first: str, after: str) -> None:
    from datetime import datetime, timezone

    def number(text: str) -> int:
        return day_of(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp())

    window, leap_day = BudgetWindow(length, 1), number("2024-02-29")
    assert (window.first_day(leap_day), window.next_day(leap_day)) == (number(first), number(after))
    assert window.next_day(number(after) - 1) == number(after)


def test_every_window_has_to_hold_a_call(project: Project) -> None:
    project.windows = (
        BudgetWindow("day", 100),
        BudgetWindow("week", 150),
        BudgetWindow("month", 160),
    )
    run = project.run()
    run.spend(100)
    project.now += DAY_S  # a Saturday
    assert refused(run, 51).scope_key == "window:week"
    run.spend(50)
    project.now += 2 * DAY_S  # Monday
    assert refused(run, 11).scope_key == "window:month"
    run.spend(10)
    assert run.spent("month") == 160


def test_uptime_counts_in_every_window_and_is_refused_by_any(project: Project) -> None:
    run, other = project.run(), project.run()
    run.ledger.book(SESSION, 60, what="ns/name")
    with pytest.raises(BudgetExceededError):
        other.ledger.book(SESSION, 41, what="ns/other")
    assert other.ledger.total(SESSION).spent == 0
    run.ledger.book(SESSION, -20)  # at its end an uptime may be less
    assert other.spent() == 40


def test_two_ledgers_at_the_same_time_never_take_more_than_there_is(project: Project) -> None:
    runs = [project.run() for _ in range(2)]

    def take(number: int) -> int:
        run = runs[number % 2]
        try:
            hold = run.hold(3)
        except BudgetExceededError:
            return 0
        run.settle(hold, 2)
        return 2

    with ThreadPoolExecutor(8) as pool:
        spent = sum(pool.map(take, range(200)))
    assert spent == project.run().spent()
    assert 98 <= spent <= 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_tab_of_its_own(project: Project) -> None:
    run = project.run()
    run.spend(10)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run.spend(30)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    run.spend(5)
    assert project.run().spent() == 45


# --- a store that can't be used


def test_a_corrupt_store_ends_a_run_before_it_begins(project: Project) -> None:
    project.path.write_text("this is no database, but it is long enough to be read as one" * 40)
    with pytest.raises(HistoryError, match=r"file is not a database.*move it aside.*hf-daily"):
        project.run()


@pytest.mark.parametrize("left", [b"", b"\0"])
def test_a_store_that_was_emptied_ends_a_run_before_it_begins(
    project: Project, left: bytes
) -> None:
    run = project.run()
    run.spend(90)
    run.store.close()
    project.path.write_bytes(left)
    emptied = r"is empty: another program has truncated it\. Move it aside\. Without it, what other"
    with pytest.raises(HistoryError, match=f"{emptied} runs have spent|not a database.*it aside"):
        project.run()


def test_runs_that_begin_at_once_make_one_store(project: Project) -> None:
    start = threading.Barrier(8)

    def begin(number: int) -> Run:
        store = SqliteStore(
            project.path, project.name, f"at once {number}", clock=lambda: project.now
        )
        start.wait()
        return Run(store, project.windows)

    with ThreadPoolExecutor(8) as pool:
        project.runs += pool.map(begin, range(8))
    for run in project.runs:
        run.spend(10)
    assert project.run().spent() == 80
    assert not list(project.folder.glob("*.draft"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_store_of_another_user_ends_a_run_before_it_begins(project: Project) -> None:
    project.run()
    os.chown(project.path, 12_345, 12_345)
    with pytest.raises(HistoryError, match="belongs to another user"):
        project.run()


def test_a_store_of_a_newer_release_ends_a_run_before_it_begins(project: Project) -> None:
    project.run()
    with closing(sqlite3.connect(project.path)) as file, file:
        file.execute("PRAGMA user_version = 7")
    file.close()
    with pytest.raises(HistoryError, match=r"newer pytest-hfbudget .its schema is 7") as caught:
        project.run()
    assert str(caught.value).endswith(
        f" Update pytest-hfbudget, or move {project.path} aside. Without it, what other runs have "
        "spent is unknown."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_ends_a_run_before_it_begins(project: Project) -> None:
    project.folder.chmod(0o500)
    try:
        with pytest.raises(HistoryError, match="Permission denied"):
            project.run()
    finally:
        project.folder.chmod(0o700)


def test_a_folder_that_cannot_be_made_ends_a_run_before_it_begins(project: Project) -> None:
    with pytest.raises(HistoryError, match="/proc/hfbudget"):
        Project(Path("/proc/hfbudget")).run()


def test_a_state_folder_that_is_a_file_ends_a_run_before_it_begins(project: Project) -> None:
    (project.folder / "file").write_text("")
    with pytest.raises(HistoryError, match=r"(File exists|Not a directory).*HFBUDGET_STATE_DIR"):
        Project(project.folder / "file").run()


def test_a_store_that_breaks_in_mid_run_lets_nothing_more_be_sent(project: Project) -> None:
    run = project.run()
    hold = run.hold(10)
    break_it(project)
    with pytest.raises(LedgerUnreachableError, match="a budget over many runs can't be read"):
        run.hold(1)
    run.settle(hold, 7)  # it was sent: the caller that waits for the answer gets it
    run.hold(0)  # and what costs nothing needs no budget
    assert run.ledger.total(SESSION).spent == 7


def test_a_store_that_works_again_hears_of_what_happened_meanwhile(project: Project) -> None:
    run = project.run()
    hold = run.hold(10)
    break_it(project)
    run.settle(hold, 7)
    with pytest.raises(LedgerUnreachableError):
        run.hold(1)
    repair(project)
    run.spend(1)
    assert project.run().spent() == 8


def break_it(project: Project) -> None:
    with closing(sqlite3.connect(project.path, isolation_level=None)) as file:
        file.execute("ALTER TABLE tab RENAME TO elsewhere")


def repair(project: Project) -> None:
    with closing(sqlite3.connect(project.path, isolation_level=None)) as file:
        file.execute("ALTER TABLE elsewhere RENAME TO tab")


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_run_goes_on_in_the_new_store_where_its_own_was_deleted(
    project: Project, whole_folder: bool
) -> None:
    first = project.run()
    first.spend(60)
    if whole_folder:
        shutil.rmtree(project.folder)
    else:
        project.path.unlink()
    second = project.run()
    second.spend(30)
    with pytest.raises(BudgetExceededError):
        first.hold(11)
    first.hold(10)
    with pytest.raises(BudgetExceededError):
        second.hold(1)


def test_only_this_user_can_read_it(project: Project) -> None:
    project.run()
    assert project.path.stat().st_mode & 0o777 == 0o600


def test_the_clock_is_that_of_the_file_and_can_not_be_frozen(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from pytest_hfbudget.history.database import SqliteStore

    today = day_of(time.time())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    run = Run(SqliteStore(project.path, "p", "r"), project.windows)
    run.spend(1)
    run.ledger.close()
    with closing(sqlite3.connect(project.path)) as file, file:
        (day,) = file.execute("SELECT max(day) FROM tab").fetchone()
    file.close()
    assert day in (today, today + 1)
