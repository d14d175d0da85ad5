"""Any command that needs endpoints: they are up while it runs, and paused however it ends."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointReceipt
from pytest_hfbudget.endpoints.retry import TEND_S
from pytest_hfbudget.errors import HFBudgetError

NOT_FOUND = 127
FAILED = 1
_BY_SIGNAL = 128
_RELAYED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True)
class CommandOutcome:
    """How a command with endpoints went.

    Attributes:
        exit_code: the command's, 128 + N if signal N ended it; `FAILED` if an endpoint could
            not be brought up, `NOT_FOUND` if there is no such command.
        receipts: empty if nothing was leased.
        error: why the command was not run.
    """

    exit_code: int
    receipts: tuple[EndpointReceipt, ...]
    error: str | None = None

    @property
    def in_order(self) -> bool:
        """Whether every endpoint is verified as paused, or left to another run."""
        return all(receipt.in_order for receipt in self.receipts)


def run_command(
    lifecycle: Lifecycle,
    names: Iterable[str],
    command: Sequence[str],
    *,
    max_uptime_s: float | None = None,
) -> CommandOutcome:
    """Bring endpoints up, run a command in the foreground, pause them.

    Signals go on to the command, and the pause comes after its end. Should this process be
    killed, its reaper pauses at once. To be called in the main thread.

    Args:
        names: endpoints, ``namespace/name``.
        command: program and arguments.
        max_uptime_s: seconds after which the reaper pauses, whatever the command does.

    Raises:
        KeyboardInterrupt: Ctrl-C before the command was started, or after its end; by then the
            reaper pauses, and `Lifecycle.finish` waits for it.
    """
    if not command or shutil.which(command[0]) is None:
        missing = command[0] if command else "(nothing)"
        return CommandOutcome(
            NOT_FOUND, (), f"{missing}: there is no such command; nothing was resumed."
        )
    error: str | None = None
    exit_code = FAILED
    try:
        lifecycle.pause_after(max_uptime_s)
        _bring_up(lifecycle, tuple(dict.fromkeys(names)))
        exit_code = _run(command, lifecycle.tend)
    except (HFBudgetError, OSError) as trouble:
        error = str(trouble)
    except BaseException:
        lifecycle.ask_pause()
        raise
    return CommandOutcome(exit_code, lifecycle.finish(), error)


def _bring_up(lifecycle: Lifecycle, names: tuple[str, ...]) -> None:
    lifecycle.check(names)
    with ThreadPoolExecutor(max(len(names), 1), "hfbudget-ensure") as pool:
        coming = [pool.submit(lifecycle.ensure, name) for name in names]
        try:
            for each in as_completed(coming):  # the first that fails, not the first named
                each.result()
        except BaseException:
            lifecycle.ask_pause()  # so that no pause waits for another
            raise


def _run(command: Sequence[str], tend: Callable[[], None]) -> int:
    relay = _Relay()
    with relay.relaying():
        status = relay.wait(subprocess.Popen(command), tend)
    return _BY_SIGNAL - status if status < 0 else status


class _Relay:
    """Passes signals on to the command; this process ends after it, to verify the pause."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    @contextmanager
    def relaying(self) -> Iterator[None]:
        """From before the command is started until it has ended."""
        # What is ignored (by nohup, by a shell's "&") stays so, also for the command.
        numbers = [each for each in _RELAYED if signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, child: subprocess.Popen[bytes], tend: Callable[[], None]) -> int:
        """The command's return code; ``tend`` is called every second until there is one."""
        self._child = child
        for number in self._early:  # came while the command was being started
            child.send_signal(number)
        death = process.watch(child.pid, process.start_time(child.pid))
        poll = select.poll()
        if death.fileno() >= 0:
            poll.register(death.fileno(), select.POLLIN)
        every_s = min(death.period_s or TEND_S, TEND_S)
        while child.poll() is None:
            poll.poll(every_s * 1000)
            with suppress(HFBudgetError, OSError):  # met again, and reported, at the end
                tend()
        death.close()
        return child.wait()

    def _pass_on(self, number: int, _: object) -> None:
        if number in _FROM_TERMINAL and _in_foreground():
            return  # the terminal sends it to the command, too
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
