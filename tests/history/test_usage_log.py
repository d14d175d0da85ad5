"""The usage log: what is written of a run, and what can be asked of many."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from run_books import DAY_S, NOON, charge

from pytest_hfbudget.errors import HistoryError
from pytest_hfbudget.history.database import Schema, connect, transaction
from pytest_hfbudget.history.usage_log import (
    COLUMNS,
    FILE,
    GROUPS,
    LoggedRun,
    LogReader,
    UsageLog,
    UsageQuery,
    entries,
)
from pytest_hfbudget.history.usage_schema import SCHEMA
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.reporting import EndpointLine, Report


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE


def write(path: Path, run: str, *charges: Charge, at: float = NOON, **more: Any) -> None:
    """Log a run of a minute that ends at a time."""
    keep = more.pop("keep_days", 90)
    report = Report(spent=0, cap=None, calls=len(charges), refused=0, charges=charges, **more)
    logged = LoggedRun(run, more.pop("project", "/src/project"), at - 60, at)
    UsageLog(path).write(logged, entries(report, logged), keep_days=keep)


def ask(path: Path, **texts: str) -> list[str]:
    """The runs of the entries to which some texts apply."""
    return [entry.run for entry in LogReader(path).entries(UsageQuery(tuple(texts.items())))]


def test_a_call_is_found_as_it_was_charged(path: Path) -> None:
    call = charge(
        1234,
        input_tokens=10,
        output_tokens=20,
        price_source="prices.toml",
        estimated=True,
        seconds=0.5,
        at=NOON - 30.5,
        session_id="hfbudget-run",
        cached_tokens=7,
    )
    write(path, "run", call)
    (entry,) = LogReader(path).entries(UsageQuery())
    assert vars(entry) == {
        "run": "run",
        "at": NOON - 30.5,
        "kind": "call",
        "test": "test_a.py::test_a",
        "place": "",
        "task": "conversational",
        "model": "org/model",
        "provider": "groq",
        "endpoint": None,
        "input_tokens": 10,
        "output_tokens": 20,
        "minutes": 0,
        "nano_usd": 1234,
        "price_source": "prices.toml",
        "status": "200",
        "estimated": True,
        "seconds": 0.5,
        "session_id": "hfbudget-run",
        "cached_tokens": 7,
    }
    assert entry.estimated is True


def test_refusals_and_the_minutes_of_endpoints_are_in_it(path: Path) -> None:
    line = EndpointLine("acme/llm", "paused", 550_000, 3, True, True, True)
    refusal = Refusal("test_b", "daily budget", "org/model", "a text that is not logged")
    write(path, "run", endpoints=(line,), refusals=(refusal,))
    endpoint, refused = LogReader(path).entries(UsageQuery())
    assert (endpoint.kind, endpoint.endpoint, endpoint.minutes) == ("endpoint", "acme/llm", 3)
    assert endpoint.nano_usd == 550_000
    assert (refused.kind, refused.status, refused.nano_usd) == ("refusal", "daily budget", 0)


def test_a_call_to_a_leased_endpoint_names_it(path: Path) -> None:
    write(path, "run", charge(0, endpoint="acme/llm"))
    assert ask(path, endpoint="acme/llm") == ["run"]


def test_a_time_that_a_test_has_frozen_is_not_believed(path: Path) -> None:
    write(path, "run", charge(1, at=0.0), charge(1, at=NOON + DAY_S))
    assert [entry.at for entry in LogReader(path).entries(UsageQuery())] == [NOON, NOON]


def test_nothing_secret_in_a_url_is_kept(path: Path) -> None:
    write(path, "run", charge(1, model="https://me:hf_secret@host:80/v1/chat?token=hf_secret#hf_x"))
    (entry,) = LogReader(path).entries(UsageQuery())
    assert entry.model == "https://host:80/v1/chat"
    assert b"hf_" not in path.read_bytes()


def test_only_this_user_can_read_it(path: Path) -> None:
    write(path, "run", charge(1))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_run_that_is_written_twice_is_there_once(path: Path) -> None:
    write(path, "run", charge(1))
    write(path, "run", charge(1), charge(2))
    assert ask(path) == ["run", "run"]


def test_runs_that_are_too_old_are_forgotten(path: Path) -> None:
    write(path, "old", charge(1), at=NOON - 31 * DAY_S)
    write(path, "young", charge(1), at=NOON - 29 * DAY_S)
    write(path, "new", charge(1), keep_days=30)
    assert ask(path) == ["young", "new"]
    with closing(sqlite3.connect(path)) as file, file:
        assert file.execute("SELECT count(*) FROM run").fetchone() == (2,)
    file.close()


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"test": "test_a"}, ["a", "a"]),
        ({"test": "test_a[x]"}, ["a"]),
        ({"test": "*[[]x]"}, []),
        ({"test": "*[x]"}, ["a"]),
        ({"model": "llama"}, ["a"]),
        ({"model": "llama*"}, []),
        ({"model": "*/llama-?"}, ["a"]),
        ({"provider": "groq"}, ["a", "a"]),
        ({"status": "200"}, ["a", "b"]),
        ({"status": "5??"}, ["a"]),
        ({"run": "b"}, ["b"]),
        ({"project": "other"}, []),
        ({"provider": "groq", "status": "503"}, ["a"]),
    ],
)
def test_entries_are_found_by_what_is_in_them(
    path: Path, asked: dict[str, str], found: list[str]
) -> None:
    write(
        path,
        "a",
        charge(5, test="test_a[x]", model="meta/llama-3"),
        charge(None, test="test_a[y]", status="503"),
    )
    write(path, "b", charge(7, test="test_b", provider=None))
    assert ask(path, **asked) == found


def test_entries_are_found_by_when_they_were_made(path: Path) -> None:
    for day in range(3):
        write(path, f"day{day}", charge(1), at=NOON + day * DAY_S)
    question = UsageQuery(since=NOON + 1, until=NOON + 2 * DAY_S)
    assert [entry.run for entry in LogReader(path).entries(question)] == ["day1"]


def test_a_limit_keeps_the_latest(path: Path) -> None:
    write(path, "run", *(charge(number) for number in range(5)))
    found = LogReader(path).entries(UsageQuery(), limit=2)
    assert [entry.nano_usd for entry in found] == [3, 4]


def test_a_log_of_many_pages_is_read_whole_and_in_order(path: Path) -> None:
    calls = [charge(number, at=NOON - 30 + number % 3) for number in range(2_500)]
    write(path, "run", *calls)
    of_all = [(entry.at, entry.nano_usd) for entry in LogReader(path).entries(UsageQuery())]
    assert of_all == sorted((call.at, call.nano_usd) for call in calls)
    latest = LogReader(path).entries(UsageQuery(), limit=1_001)
    assert [(entry.at, entry.nano_usd) for entry in latest] == of_all[-1_001:]
    assert len(LogReader(path).entries(UsageQuery(), limit=9_999)) == 2_500


def test_a_run_is_written_while_another_process_reads(path: Path) -> None:
    write(path, "run", *(charge(1) for _ in range(1_500)))
    reading = LogReader(path).each(UsageQuery())
    next(reading)
    write(path, "other", charge(1), at=NOON + 1)
    assert len(list(reading)) == 1_500


@pytest.mark.slow
def test_the_memory_of_a_reader_does_not_grow_with_the_log(path: Path) -> None:
    write(path, "run", *(charge(1) for _ in range(20_000)))
    tracemalloc.start()
    try:
        for _ in LogReader(path).each(UsageQuery()):
            pass
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_sums_are_exact_and_name_what_is_not_in_them(path: Path) -> None:
    write(path, "a", charge(2**60, input_tokens=1), charge(1, output_tokens=2, estimated=True))
    write(path, "b", charge(None), charge(5, model="org/other"), at=NOON + DAY_S)
    first, second = LogReader(path).totals(UsageQuery(), "model")
    assert (first.name, first.calls, first.nano_usd) == ("org/model", 3, 2**60 + 1)
    assert (first.input_tokens, first.output_tokens) == (1, 2)
    assert (first.unpriced, first.estimated) == (1, 1)
    assert (second.name, second.nano_usd) == ("org/other", 5)
    assert LogReader(path).total(UsageQuery()).nano_usd == 2**60 + 6


def test_days_are_in_their_order_and_in_utc(path: Path) -> None:
    write(path, "b", charge(1), at=NOON + DAY_S / 2)
    write(path, "a", charge(5), at=NOON + DAY_S / 2 - 1)
    days = LogReader(path).totals(UsageQuery(), "day")
    assert [(day.name, day.nano_usd) for day in days] == [("2024-10-04", 5), ("2024-10-05", 1)]


@pytest.mark.parametrize("group", GROUPS)
def test_all_sums_add_up_to_the_total(path: Path, group: str) -> None:
    write(path, "a", charge(5), charge(3, test=None, provider=None))
    assert sum(one.nano_usd for one in LogReader(path).totals(UsageQuery(), group)) == 8


def test_a_log_that_is_not_there_is_empty(path: Path) -> None:
    assert LogReader(path).entries(UsageQuery()) == ()
    assert LogReader(path).total(UsageQuery()).calls == 0
    assert not path.exists()


# --- a log that can't be used


def test_a_corrupt_log_says_what_to_do(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("no database at all " * 100)
    with pytest.raises(HistoryError, match=r"log\.sqlite3: file is not a database\. .*hf_log_days"):
        write(path, "run", charge(1))


def test_a_log_of_a_newer_release_is_left_as_it_is(path: Path) -> None:
    write(path, "run", charge(1))
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("PRAGMA user_version = 9")
    file.close()
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="newer pytest-hfbudget") as caught:
        write(path, "other", charge(1))
    assert str(caught.value).endswith(f" Update pytest-hfbudget, or move {path} aside.")
    assert path.read_bytes() == before


def test_a_log_that_was_emptied_says_so(path: Path) -> None:
    write(path, "run", charge(1))
    path.write_bytes(b"")
    with pytest.raises(HistoryError) as caught:
        write(path, "other", charge(1))
    assert str(caught.value) == (
        f"{path} is empty: another program has truncated it. Move it aside."
    )


def test_an_absurd_amount_costs_only_its_own_run(path: Path) -> None:
    write(path, "run", charge(1))
    with pytest.raises(HistoryError):
        write(path, "other", charge(1), charge(2**64))
    assert ask(path) == ["run"]


# --- schemas


FIRST = ("CREATE TABLE thing (name TEXT)",)
SECOND = ("ALTER TABLE thing ADD COLUMN size INTEGER NOT NULL DEFAULT 7",)


def schema(*steps: tuple[str, ...]) -> Schema:
    return Schema(steps=steps, remedy="Do something.")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of the first schema, with a row in it."""
    path = tmp_path / "old.sqlite3"
    connection = connect(path, schema(FIRST))
    connection.execute("INSERT INTO thing VALUES ('a')")
    connection.close()
    return path


def test_a_file_of_an_older_schema_is_brought_up_to_date(old: Path) -> None:
    for _ in range(2):
        connection = connect(old, schema(FIRST, SECOND))
        assert connection.execute("SELECT name, size FROM thing").fetchall() == [("a", 7)]
        connection.close()


def test_a_step_that_fails_changes_nothing(old: Path) -> None:
    with pytest.raises(HistoryError, match="Do something"):
        connect(old, schema(FIRST, (*SECOND, "CREATE TABLE thing (again TEXT)")))
    connection = connect(old, schema(FIRST))
    assert connection.execute("SELECT * FROM thing").fetchall() == [("a",)]
    connection.close()


def test_a_log_of_the_first_release_is_read_and_added_to(path: Path) -> None:
    connection = connect(path, SCHEMA._replace(steps=SCHEMA.steps[:1]))
    connection.execute("INSERT INTO run VALUES ('old', '/src', ?, ?)", (NOON - 60, NOON))
    names = [name for name in COLUMNS if name not in ("session_id", "cached_tokens")]
    marks = ", ".join("?" * len(names))
    values = [{"run": "old", "at": NOON, "nano_usd": 5}.get(name, "") for name in names]
    connection.execute(f"INSERT INTO entry ({', '.join(names)}) VALUES ({marks})", values)
    connection.close()
    write(path, "new", charge(7, session_id="hfbudget-new"), at=NOON + 1)
    found = LogReader(path).entries(UsageQuery())
    assert [(each.run, each.nano_usd, each.session_id) for each in found] == [
        ("old", 5, ""),
        ("new", 7, "hfbudget-new"),
    ]


def test_what_is_interrupted_is_not_written(old: Path) -> None:
    connection = connect(old, schema(FIRST))
    with pytest.raises(KeyboardInterrupt), transaction(connection):
        connection.execute("DELETE FROM thing")
        raise KeyboardInterrupt
    assert connection.execute("SELECT count(*) FROM thing").fetchone() == (1,)
    connection.close()
