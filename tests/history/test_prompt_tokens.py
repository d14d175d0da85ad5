"""What servers have counted in prompts, as the usage log keeps it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from run_books import DAY_S, NOON

from pytest_hfbudget.history.usage_log import FILE, LoggedRun, LogReader, UsageLog
from pytest_hfbudget.metering.prompts import ALIKE, DOUBT, FORGET, Fact

MODEL = "org/model"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE


def learn(path: Path, *facts: tuple[object, ...], at: float = NOON) -> None:
    """Log a run of a minute that has learned this of a provider: ``provider, key, tokens``."""
    run = LoggedRun(f"run at {at}", "/src/project", at - 60, at)
    learned = [Fact(MODEL, *each) for each in facts]  # type: ignore[arg-type]
    UsageLog(path).write(run, (), learned, keep_days=90)


def known(path: Path) -> dict[tuple[str, str], int]:
    return {(fact.provider, fact.key): fact.tokens for fact in LogReader(path).counts(MODEL)}


def test_the_last_count_of_a_prompt_is_kept(path: Path) -> None:
    learn(path, ("groq", "ab", 100), ("groq", "cd", 7))
    learn(path, ("groq", "ab", 100), ("novita", "ab", 90), at=NOON + 100)
    assert known(path) == {("groq", "ab"): 100, ("groq", "cd"): 7, ("novita", "ab"): 90}
    assert LogReader(path).counts("org/other") == ()


def test_a_doubt_leaves_nothing_of_its_provider_beside_it(path: Path) -> None:
    learn(path, ("groq", "ab", 100), ("novita", "ab", 90))
    learn(path, ("groq", "cd", 8), ("groq", DOUBT), ("groq", "ef", 9), at=NOON + 100)
    assert known(path) == {("groq", DOUBT): 0, ("novita", "ab"): 90}


def test_what_a_run_forgets_is_what_earlier_runs_have_learned(path: Path) -> None:
    learn(path, ("groq", "ab", 100), ("groq", "cd", 7), ("novita", "ab", 90))
    learn(path, ("groq", "ef", 9), ("groq", FORGET), ("groq", "ab", 110), at=NOON + 100)
    assert known(path) == {("groq", "ab"): 110, ("groq", "ef"): 9, ("novita", "ab"): 90}


def test_that_a_provider_counts_alike_has_to_be_seen_anew_in_each_run(path: Path) -> None:
    learn(path, ("groq", "ab", 100), ("groq", ALIKE))
    assert known(path) == {("groq", "ab"): 100}


def test_what_was_not_confirmed_for_as_long_as_runs_are_kept_is_forgotten(path: Path) -> None:
    learn(path, ("groq", "ab", 100), ("groq", "cd", 7))
    learn(path, ("groq", "ab", 100), at=NOON + 91 * DAY_S)
    assert known(path) == {("groq", "ab"): 100}


def test_a_server_that_is_addressed_by_url_may_have_another_model_tomorrow(path: Path) -> None:
    run = LoggedRun("run", "/src/project", NOON - 60, NOON)
    url = "http://localhost:8000"
    UsageLog(path).write(run, (), [Fact(url, "", "ab", 100)], keep_days=90)
    assert LogReader(path).counts(url) == ()


def test_rows_that_make_no_sense_are_passed_over(path: Path) -> None:
    learn(path, ("groq", "ab", 100), ("groq", "cd", 7), ("groq", "ef", 8))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE prompt_tokens SET tokens = -1 WHERE key = 'ab'")
        connection.execute("UPDATE prompt_tokens SET tokens = 'many' WHERE key = 'cd'")
    assert known(path) == {("groq", "ef"): 8}


def test_a_log_of_an_earlier_release_gets_the_table(path: Path) -> None:
    learn(path, ("groq", "ab", 100))
    with closing(sqlite3.connect(path)) as connection, connection:
        for table in ("prompt_tokens", "duration", "bill"):
            connection.execute(f"DROP TABLE {table}")
        for table, column in (("run", "session_id"), ("entry", "session_id")):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("ALTER TABLE entry DROP COLUMN cached_tokens")
        connection.execute("PRAGMA user_version = 1")
    assert known(path) == {}
    learn(path, ("groq", "ab", 100))
    assert known(path) == {("groq", "ab"): 100}
