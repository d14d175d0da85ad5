"""`hfbudget run`: runs any command with endpoints, and pauses them however it ends."""

from __future__ import annotations

import math
import os
import select
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.endpoints import process
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings, EndpointSummary
from pytest_hfbudget.endpoints.retry import TEND_S, RunTimings, Timings
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.money import show, usd_text
from pytest_hfbudget.reporting import endpoint_verdict

NOT_FOUND = 127
FAILED = 1
_BY_SIGNAL = 128
_CTRL_C = _BY_SIGNAL + signal.SIGINT
# Names, not numbers, because Windows lacks most of these signals.
_RELAYED = ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_FROM_TERMINAL = ("SIGINT", "SIGQUIT")


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAMESPACE/NAME",
    help="An endpoint to resume before and pause after; repeatable. Default: HFBUDGET_ENDPOINTS.",
)
@click.option(
    "--max-uptime",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MIN",
    help="Pause after so many minutes, even if the command still runs. "
    "Default: HFBUDGET_MAX_UPTIME.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the receipts as JSON to FILE.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    endpoints: tuple[str, ...],
    max_uptime: float | None,
    json_file: Path | None,
    command: tuple[str, ...],
) -> None:
    """Run a command with its endpoints up, and pause them after it.

    `hfbudget run` resumes the endpoints first. It passes signals on to COMMAND, and pauses the
    endpoints when COMMAND has ended. If `hfbudget run` is killed, its reaper pauses them. Receipts
    go to standard error.

    Exit codes: that of COMMAND, or 128 + N if signal N ended it; 1 instead of 0 if a pause is
    not verified; 1 if an endpoint did not come up; 2 wrong usage; 127 no such command, and nothing
    was resumed.
    """
    names = _names(endpoints)
    most_s = cli.settings().max_uptime if max_uptime is None else max_uptime * 60
    outcome = _run_or_interrupted(names, command, most_s)
    _show(outcome)
    if json_file is not None:
        content = {
            "exit_code": outcome.exit_code,
            "error": outcome.error,
            "endpoints": [_as_dict(one) for one in outcome.receipts],
        }
        json_file.write_text(output.as_json(content) + "\n", encoding="utf-8")
    sys.exit(outcome.exit_code if outcome.exit_code or outcome.in_order else 1)


def _run_or_interrupted(
    names: tuple[str, ...], command: tuple[str, ...], most_s: float | None
) -> CommandOutcome:

    lifecycle = _lifecycle(most_s)
    try:
        return run_command(lifecycle, names, command, max_uptime_s=most_s)
    except KeyboardInterrupt:
        return CommandOutcome(
            _CTRL_C, lifecycle.finish(), "interrupted by Ctrl-C before the command started."
        )


def _names(given: tuple[str, ...]) -> tuple[str, ...]:
    names = given or cli.settings().endpoints
    if not names:
        raise click.UsageError("which endpoint? Give --endpoint NAMESPACE/NAME.")
    return tuple(dict.fromkeys(map(cli.endpoint_name, names)))


def _lifecycle(most_s: float | None) -> Lifecycle:
    given = cli.services()
    settings = EndpointSettings(
        api=given.endpoints_api,
        token=cli.token(),
        run=uuid.uuid4().hex[:12],
        idle_timeout_min=given.idle_timeout,
        billing_minute_s=given.billing_minute,
        waits=RunTimings(wait_timeout_s=min(given.endpoint_wait, most_s or math.inf)),
        timings=Timings(looks_s=() if given.emulator else given.endpoint_looks),
        shared=cli.shared(None),
    )
    return Lifecycle(settings, progress=_progress)


def _progress(name: str, state: str, seconds: float) -> None:
    click.echo(f"{name}: {state}, {seconds:.0f} s", err=True)


def _show(outcome: CommandOutcome) -> None:
    if outcome.error:
        click.echo(outcome.error, err=True)
    for receipt in outcome.receipts:
        cost = f"{receipt.cost.minutes} min, {show(receipt.cost.nano_usd)}"
        click.echo(f"{receipt.name}: {_verdict(receipt)}; {cost}", err=True)
        for note in filter(None, (receipt.error, *receipt.warnings)):
            click.echo(f"  {note}", err=True)


def _verdict(receipt: EndpointSummary) -> str:
    if receipt.verified and receipt.reason == "deadline":
        return "paused by --max-uptime, verified"
    return endpoint_verdict(receipt.state, receipt.verified, receipt.left_to, receipt.kept)


def _as_dict(receipt: EndpointSummary) -> dict[str, Any]:
    return {
        "name": receipt.name,
        "state": receipt.state,
        "resumed": receipt.resumed,
        "resumed_at": output.moment(receipt.resumed_at),
        "paused_at": output.moment(receipt.paused_at),
        "verified": receipt.verified,
        "left_to": receipt.left_to,
        "reason": receipt.reason,
        "minutes": receipt.cost.minutes,
        "usd": usd_text(receipt.cost.nano_usd),
        "error": receipt.error,
        "warnings": list(receipt.warnings),
    }


@dataclass(frozen=True)
class CommandOutcome:
    """The result of a command with endpoints.

    Attributes:
        exit_code: that of the command, or 128 + N if signal N ended it; `FAILED` if an endpoint
            did not come up; `NOT_FOUND` if there is no such command.
        receipts: one for each endpoint; empty if nothing was leased.
        error: why the command was not run; None if it was.
    """

    exit_code: int
    receipts: tuple[EndpointSummary, ...]
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
    """Bring endpoints up, run a command in the foreground, and pause the endpoints.

    Signals are passed on to the command; the endpoints are paused after its end. If this process is
    killed, its reaper pauses them at once. Call this in the main thread.

    Args:
        names: endpoints, ``namespace/name``.
        command: program and arguments.
        max_uptime_s: seconds after which the reaper pauses, whatever the command does.

    Raises:
        KeyboardInterrupt: Ctrl-C before the start of the command. The reaper is already pausing
            then; call `Lifecycle.finish` to wait for it.
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
        lifecycle.request_pause()
        raise
    try:
        return CommandOutcome(exit_code, lifecycle.finish(), error)
    except KeyboardInterrupt:
        error = error or "interrupted by Ctrl-C after the command had ended."
        return CommandOutcome(_CTRL_C, lifecycle.finish(), error)


def _bring_up(lifecycle: Lifecycle, names: tuple[str, ...]) -> None:
    lifecycle.check(names)
    with ThreadPoolExecutor(max(len(names), 1), "hfbudget-ensure") as pool:
        coming = [pool.submit(lifecycle.ensure, name) for name in names]
        try:
            for each in as_completed(coming):  # to raise the earliest failure
                each.result()
        except BaseException:
            lifecycle.request_pause()  # at once: the pool waits for the other endpoints first
            raise


def _run(command: Sequence[str], tend: Callable[[], None]) -> int:
    relay = _Relay()
    with relay.relaying():
        status = relay.wait(subprocess.Popen(command), tend)
    return _BY_SIGNAL - status if status < 0 else status


class _Relay:
    """Passes signals on to the command, so that this process ends after it and can pause."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    @contextmanager
    def relaying(self) -> Iterator[None]:
        """Pass on signals inside this block, which starts before the command does."""
        # A signal that is ignored (by nohup, or by a shell's "&") stays ignored.
        every = [signal.Signals[name] for name in _RELAYED]
        numbers = [each for each in every if signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, child: subprocess.Popen[bytes], tend: Callable[[], None]) -> int:
        """Wait for the command; returns its return code. Calls ``tend`` every second."""
        self._child = child
        for number in self._early:  # signals that came while the command was being started
            child.send_signal(number)
        death = process.watch(child.pid, process.start_time(child.pid))
        poll = select.poll()
        if death.fileno() >= 0:
            poll.register(death.fileno(), select.POLLIN)
        every_s = min(death.period_s or TEND_S, TEND_S)
        while child.poll() is None:
            poll.poll(every_s * 1000)
            with suppress(HFBudgetError, OSError):  # `finish` reports it at the end
                tend()
        death.close()
        return child.wait()

    def _pass_on(self, number: int, _: object) -> None:
        if signal.Signals(number).name in _FROM_TERMINAL and _in_foreground():
            return  # the terminal sends it to the command as well
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
