"""`python -m pytest_hfbudget.emulator`: the emulator as a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

try:
    from pytest_hfbudget.emulator import Emulator
except ModuleNotFoundError as error:
    sys.exit(str(error))

_LOOK_SECONDS = 0.2


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT, or the end of the process given by --exit-with."""
    options = _parser().parse_args(argv)
    config: dict[str, Any] = json.loads(options.config.read_text()) if options.config else {}
    # At once, without waiting for open requests: the sender of the signal is done with it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    emulator = _start(options, config)
    if options.ready_file:
        _write_ready(options.ready_file, emulator.url)
    else:
        print(emulator.url, flush=True)
    _stay(options.exit_with)
    return 0


def _start(options: argparse.Namespace, config: dict[str, Any]) -> Emulator:
    try:
        return Emulator(port=options.port, config=config, log_file=options.log).start()
    except OSError:
        if not options.or_any_port:
            raise
        return Emulator(config=config, log_file=options.log).start()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_hfbudget.emulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--or-any-port", action="store_true", help="if that port is taken")
    parser.add_argument("--ready-file", type=Path, help="gets {url, pid} as JSON when it listens")
    parser.add_argument("--log", type=Path, help="gets the event log as JSON lines")
    parser.add_argument("--config", type=Path, help="JSON with the parts of /_emulator/config")
    parser.add_argument("--exit-with", type=int, metavar="PID", help="end when that process ends")
    return parser


def _write_ready(path: Path, url: str) -> None:
    """Write the ready file in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"url": url, "pid": os.getpid()}, file)
    os.replace(name, path)


def _stay(pid: int | None) -> None:
    """Wait until process `pid` is gone; for ever if it is None."""
    if pid is not None and hasattr(os, "pidfd_open"):
        # Also tells of a process that was not reaped yet, and never mixes up two with one number.
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [])
        return
    never = threading.Event()
    while not never.wait(_LOOK_SECONDS):
        if pid is not None and not _alive(pid):
            return


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main())
