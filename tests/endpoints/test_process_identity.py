"""Telling a process from a later one, and noticing its end."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from pytest_hfbudget.endpoints.process import (
    DeathWatch,
    PollingWatch,
    ProcessHost,
    alive,
    judgeable,
    start_time,
    watch,
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_this_process_is_alive_and_its_start_does_not_change() -> None:
    start = start_time(os.getpid())
    assert start is not None
    assert start == start_time(os.getpid())
    assert alive(os.getpid(), start)


def test_a_later_process_of_the_same_pid_is_another() -> None:
    assert not alive(os.getpid(), "1")
    assert not alive(os.getpid(), None)


def test_a_dead_process_is_not_alive_though_it_was_not_collected_yet(
    child: subprocess.Popen[bytes],
) -> None:
    start = start_time(child.pid)
    fd = os.pidfd_open(child.pid)
    child.kill()
    select.select([fd], [], [], 10)
    os.close(fd)
    assert start_time(child.pid) is None
    assert not alive(child.pid, start)


def test_an_unused_pid_is_dead() -> None:
    assert start_time(2**22 + 1) is None


@pytest.mark.parametrize("make", [watch, PollingWatch])
def test_a_watch_notices_the_end(
    make: Callable[[int, str | None], DeathWatch], child: subprocess.Popen[bytes]
) -> None:
    death = make(child.pid, start_time(child.pid))
    assert not death.dead()
    child.kill()
    child.wait()
    assert death.dead()
    death.close()


def test_the_kernel_wakes_a_selector(child: subprocess.Popen[bytes]) -> None:
    death = watch(child.pid, start_time(child.pid))
    assert death.period_s is None
    child.kill()
    assert select.select([death.fileno()], [], [], 10)[0]
    death.close()


@pytest.mark.parametrize("start", ["1", None])
def test_a_watch_on_a_process_that_was_replaced_is_over_at_once(start: str | None) -> None:
    assert watch(os.getpid(), start).dead()


def test_without_a_pidfd_start_times_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    death = watch(os.getpid(), start_time(os.getpid()))
    assert isinstance(death, PollingWatch)
    assert death.fileno() == -1
    assert not death.dead()


OUTSIDE_OF_CONTAINERS = "pid:[4026531836]"


def test_what_was_written_here_can_be_judged_here() -> None:
    assert judgeable(ProcessHost())


def test_what_was_written_on_another_host_can_not() -> None:
    assert not judgeable(ProcessHost(host="elsewhere"))


def test_a_container_without_a_process_left_can_be_judged_from_outside_only() -> None:
    outside = ProcessHost().pid_namespace == OUTSIDE_OF_CONTAINERS
    assert judgeable(ProcessHost(pid_namespace="pid:[1]")) == outside


def test_an_earlier_boot_of_this_machine_has_no_processes_left() -> None:
    outside = ProcessHost().pid_namespace == OUTSIDE_OF_CONTAINERS
    assert judgeable(ProcessHost(boot_id="another")) == outside


def test_what_an_older_version_wrote_is_judged_by_its_host() -> None:
    assert judgeable(ProcessHost(boot_id="", pid_namespace=""))
    assert not judgeable(ProcessHost(boot_id="", pid_namespace="", host="elsewhere"))
