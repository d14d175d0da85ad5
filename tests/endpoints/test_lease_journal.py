"""The journal of leases: what is written is there, what is torn is only itself lost."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.endpoints.journal import (
    INTENT,
    PAUSED,
    RESUMED,
    Journal,
    Record,
    default_state_dir,
    leases,
    prune,
    read_all,
    unfinished,
)
from pytest_hfbudget.errors import EndpointError


def record(kind: str, *, run: str = "r", endpoint: str = "acme/llm", **more: Any) -> Record:
    known = {"api": "http://x/v2", "at": 1.0, "owner_pid": 7, "owner_start": "99"}
    return Record(kind=kind, run=run, endpoint=endpoint, **{**known, **more})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.of("r", tmp_path)


def test_what_was_written_is_read_back(journal: Journal, tmp_path: Path) -> None:
    journal.write(record(INTENT, scaling={"minReplica": 0}, state="paused"))
    journal.write(record(RESUMED, at=2.0))
    first, second = read_all(tmp_path)
    assert first == record(INTENT, scaling={"minReplica": 0}, state="paused")
    assert (second.kind, second.at) == (RESUMED, 2.0)


def test_a_lease_is_finished_by_a_verified_pause_only(journal: Journal, tmp_path: Path) -> None:
    journal.write(record(INTENT))
    journal.write(record(RESUMED, at=2.0))
    journal.write(record(PAUSED, error="no answer"))
    (lease,) = unfinished(tmp_path)
    assert (lease.intent.kind, lease.resumed_at) == (INTENT, 2.0)
    journal.write(record(PAUSED, verified=True))
    assert unfinished(tmp_path) == ()
    assert leases(tmp_path)[0].finished


def test_each_run_and_endpoint_has_its_own_lease(tmp_path: Path) -> None:
    for run, endpoint in (("a", "acme/x"), ("a", "acme/y"), ("b", "acme/x")):
        opened = Journal.of(run, tmp_path)
        opened.write(record(INTENT, run=run, endpoint=endpoint))
    assert len(unfinished(tmp_path)) == 3


def test_garbage_and_a_torn_tail_lose_only_themselves(journal: Journal, tmp_path: Path) -> None:
    journal.write(record(INTENT))
    with journal.path.open("ab") as file:
        file.write(
            b'{"kind":1,"run":2,"endpoint":[],"api":{},"at":0,"owner_pid":0,"owner_start":0}\n'
        )
        file.write(b'\x00\xff garbage\n{"kind":"paused"}\n[1]\n{"kind":"paused","run":"r","end')
    journal.write(record(PAUSED, verified=True))
    assert [each.kind for each in read_all(tmp_path)] == [INTENT, PAUSED]
    assert unfinished(tmp_path) == ()


def test_keys_of_a_later_version_are_passed_over(journal: Journal, tmp_path: Path) -> None:
    journal.write(record(INTENT))
    line = journal.path.read_text().replace('"kind"', '"news":1,"kind"')
    journal.path.write_text(line)
    assert read_all(tmp_path) == (record(INTENT),)


def test_a_resume_whose_intent_is_torn_is_still_a_lease(journal: Journal, tmp_path: Path) -> None:
    journal.write(record(RESUMED))
    assert len(unfinished(tmp_path)) == 1


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        opened = Journal.of("r", tmp_path)
        for index in range(50):
            opened.write(record(INTENT, endpoint=f"acme/{number}-{index}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leases(tmp_path)) == 100


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    opened = Journal.of("a/b", tmp_path / "leases")
    assert (tmp_path / "leases").stat().st_mode & 0o777 == 0o700
    assert opened.path.stat().st_mode & 0o777 == 0o600
    assert opened.path.parent == tmp_path / "leases"


def test_a_folder_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EndpointError, match="HFBUDGET_STATE_DIR"):
        Journal.of("r", tmp_path / "file" / "leases")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_not_a_silent_loss() -> None:
    with pytest.raises(EndpointError, match="No space left"):
        Journal(Path("/dev/full")).write(record(INTENT))


def test_only_old_journals_of_finished_runs_are_removed(tmp_path: Path) -> None:
    for run, old, verified in (("a", True, True), ("b", True, False), ("c", False, True)):
        journal = Journal.of(run, tmp_path)
        journal.write(record(INTENT, run=run))
        journal.write(record(PAUSED, run=run, verified=verified))
        if old:
            os.utime(journal.path, (1000, 1000))
    prune(tmp_path, before=2000)
    assert [path.stem for path in sorted(tmp_path.iterdir())] == ["b", "c"]


def test_the_state_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HFBUDGET_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_dir().name == "hfbudget"
    monkeypatch.setenv("HFBUDGET_STATE_DIR", str(tmp_path / "mine"))
    assert default_state_dir() == tmp_path / "mine"
