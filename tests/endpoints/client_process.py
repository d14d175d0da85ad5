"""A run with endpoints, for tests to kill: does what it is told on standard input."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pytest_hfbudget.cli.run import run_command
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings
from pytest_hfbudget.endpoints.retry import RunTimings, Timings
from pytest_hfbudget.shared import SharedConnection


def fork() -> str:
    """Leave a child that holds every descriptor open."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return str(child)


def wreck() -> str:
    """What an unruly test may do to its process."""
    os.environ.clear()
    os.closerange(3, 256)
    return "wrecked"


def command(lifecycle: Lifecycle) -> str:
    """Run a command that ends with its standard input."""
    argv = [sys.executable, "-c", "import sys; print('ran', flush=True); sys.stdin.read()"]
    return str(run_command(lifecycle, sys.argv[1:], argv).exit_code)


def main() -> None:
    """Bring up the endpoints named in the arguments."""
    told = json.loads(os.environ["RUN_SETTINGS"])
    told["state_dir"] = Path(told["state_dir"])
    told["waits"] = RunTimings(**told["waits"])
    told["timings"] = Timings(**told["timings"])
    if told["shared"] is not None:
        told["shared"] = SharedConnection(**told["shared"])
    lifecycle = Lifecycle(EndpointSettings(**told))
    print("begun", flush=True)
    for name in sys.argv[1:]:
        lifecycle.ensure(name)
    print("up", lifecycle.reaper_pid, flush=True)
    deeds: dict[str, Callable[[], object]] = {
        "exit": lambda: os._exit(3),
        "segfault": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "fork": fork,
        "wreck": wreck,
        "finish": lambda: json.dumps([each.verified for each in lifecycle.finish()]),
        "receipts": lambda: json.dumps([asdict(each) for each in lifecycle.finish()]),
        "limit": lambda: lifecycle.pause_after(0.05),
        "revive": lambda: lifecycle.revive(sys.argv[1]).state,
        "command": lambda: command(lifecycle),
        "hang": lambda: threading.Event().wait(60),
    }
    for line in sys.stdin:
        print(deeds[line.strip()](), flush=True)


main()
