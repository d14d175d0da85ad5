"""Files that only this user writes: made so, and not believed otherwise."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pytest_hfbudget.files import (
    check_own,
    own_folder,
    read_cache,
    read_own,
    replace_file,
    write_cache,
)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
STRANGER = 12_345


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _generous_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "copy.json"
    write_cache(path, {"a": 1})
    return path


def test_what_is_kept_is_for_this_user_alone(file: Path) -> None:
    assert (mode(file.parent), mode(file)) == (0o700, 0o600)
    assert read_cache(file) == {"a": 1}


@root_only
def test_a_file_of_another_user_is_not_believed(file: Path) -> None:
    os.chown(file, STRANGER, STRANGER)
    with pytest.raises(OSError, match="another user"):
        read_own(file)
    with pytest.raises(OSError, match="another user"):
        check_own(file)


@root_only
def test_a_folder_of_another_user_is_neither_read_nor_written(file: Path) -> None:
    os.chown(file.parent, STRANGER, STRANGER)
    with pytest.raises(OSError, match="another user"):
        read_own(file)
    with pytest.raises(OSError, match="another user"):
        own_folder(file.parent)
    write_cache(file, {"a": 2})
    assert "1" in file.read_text()


def test_a_file_that_others_can_write_is_not_believed(file: Path) -> None:
    file.chmod(0o666)
    with pytest.raises(OSError, match="other users can write it"):
        read_own(file)


def test_a_link_is_not_followed_when_a_file_is_read(file: Path) -> None:
    link = file.with_name("link.json")
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic"):
        read_own(link)
    with pytest.raises(OSError, match="not a file"):
        check_own(link)


def test_a_pipe_does_not_keep_a_reader_waiting(file: Path) -> None:
    pipe = file.with_name("pipe.json")
    os.mkfifo(pipe, 0o600)
    with pytest.raises(OSError, match="not a file"):
        read_own(pipe)


def test_a_link_under_the_name_of_a_file_is_replaced_and_not_followed(file: Path) -> None:
    victim = file.with_name("victim")
    victim.write_text("mine")
    file.unlink()
    file.symlink_to(victim)
    replace_file(file, "new")
    assert (victim.read_text(), file.read_text()) == ("mine", "new")
    assert not file.is_symlink()


def test_links_under_the_names_of_processes_are_not_followed(file: Path) -> None:
    victim = file.with_name("victim")
    victim.write_text("mine")
    file.with_name(f"{file.name}.{os.getpid()}").symlink_to(victim)
    file.with_name(f".{file.name}.{os.getpid()}").symlink_to(victim)
    write_cache(file, {"a": 2})
    assert (victim.read_text(), read_cache(file)) == ("mine", {"a": 2})


def test_a_folder_of_ours_is_closed_to_other_writers(tmp_path: Path) -> None:
    open_to_all = tmp_path / "state"
    open_to_all.mkdir(0o777)
    own_folder(open_to_all)
    assert mode(open_to_all) == 0o755


def test_a_folder_like_tmp_stays_open_to_all(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    own_folder(shared)
    assert mode(shared) == 0o777 | stat.S_ISVTX


def test_a_write_that_fails_leaves_nothing_behind(file: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        replace_file(file, "\ud800")
    assert list(file.parent.iterdir()) == [file]
