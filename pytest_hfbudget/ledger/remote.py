"""A ledger in another process, as a worker sees it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from pytest_hfbudget.errors import LedgerUnreachableError
from pytest_hfbudget.ledger import wire
from pytest_hfbudget.ledger.charge import Charge, Refusal
from pytest_hfbudget.ledger.ledger import Hold, Totals
from pytest_hfbudget.ledger.scope import Scope


class Wire:
    """One connection to a ledger's counter; reopened in a forked child, which must not share it.

    Args:
        path: the address of the Unix socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pid = 0
        self._socket: socket.socket | None = None
        self._lines: Any = None

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The answer of an operation.

        Raises:
            LedgerUnreachableError: the process that keeps the ledger is gone.
            HFBudgetError: what the operation itself raised there.
        """
        with self._lock:
            try:
                answer = wire.decode(self._exchange(wire.encode([operation, *arguments])))
            except (OSError, ValueError) as error:
                self._socket = None
                raise LedgerUnreachableError(
                    "the process that keeps the budget of this run is gone "
                    f"({type(error).__name__}), so nothing more is sent"
                ) from None
        if "error" in answer:
            raise wire.raised(answer)
        return answer["ok"]

    def _exchange(self, line: bytes) -> bytes:
        if self._socket is None or self._pid != os.getpid():
            self._connect()
        assert self._socket is not None  # noqa: S101 - set by _connect
        self._socket.sendall(line)
        answer = self._lines.readline()
        if not answer.endswith(b"\n"):
            raise ConnectionResetError("end of file")
        return bytes(answer)

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(self._path)
        self._lines = self._socket.makefile("rb")
        self._pid = os.getpid()

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._socket is not None and self._pid == os.getpid():
                self._lines.close()
                self._socket.close()
            self._socket = None


class RemoteLedger:
    """The ledger of the controller, over a `Wire`; every method raises as `Wire.ask` does."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def open(self, scope: Scope) -> None:
        self._wire.ask("open", scope)

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        return Hold(*self._wire.ask("hold", keys, least, most, draft))

    def settle(self, hold: int, charge: Charge) -> None:
        self._wire.ask("settle", hold, charge)

    def release(self, hold: int, charge: Charge | None = None) -> None:
        self._wire.ask("release", hold, charge)

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        self._wire.ask("refuse", keys, refusal)

    def total(self, key: str) -> Totals:
        return Totals(*self._wire.ask("total", key))

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        return tuple(wire.charge(fields) for fields in self._wire.ask("charges_in", key))
