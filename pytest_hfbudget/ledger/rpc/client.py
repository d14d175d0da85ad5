"""A ledger in another process, as a worker sees it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from pytest_hfbudget.errors import LedgerUnreachableError
from pytest_hfbudget.ledger import (
    Caller,
    Charge,
    Hold,
    Refusal,
    Scope,
    Totals,
    WaitingHold,
    rpc,
    unanswered,
)
from pytest_hfbudget.ledger.rpc import Address, PlainSocket
from pytest_hfbudget.locks import alone, own_lock

CHUNK = 65_536


class LedgerConnection:
    """One connection to a ledger's server; a forked child must not share it, and opens its own.

    Args:
        path: the `Address` of the ledger, as text.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = own_lock()
        self._socket: PlainSocket | None = None
        self._told = False
        _connections.add(self)

    def another(self) -> LedgerConnection:
        """A second connection to the same place."""
        return LedgerConnection(self._path)

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The answer of an operation.

        Raises:
            LedgerUnreachableError: the process that keeps the ledger is gone.
            HFBudgetError: what the operation itself raised there.
        """
        answer = self._exchange([operation, *arguments], answered=True)
        if "error" in answer:
            raise rpc.raised(answer)
        return answer["ok"]

    def tell(self, operation: str, *arguments: Any) -> None:
        """Have an operation done, without waiting for it: in its turn, before all that is asked.

        Raises:
            LedgerUnreachableError: as `ask`.
        """
        self._exchange([rpc.TELL, operation, *arguments], answered=False)

    def flush(self) -> None:
        """Wait until all that was told is done.

        Raises:
            LedgerUnreachableError: as `ask`.
        """
        if self._told:
            self.ask("flush")

    def _exchange(self, message: list[Any], *, answered: bool) -> Any:
        """Send a message, and wait for its answer, where there is to be one."""
        line, answer = rpc.encode(message), None
        with alone(self._lock):
            try:
                connection = self._send(line)
                if answered:
                    answer = rpc.decode(_received(connection))
                self._told = not answered
            except (OSError, ValueError) as error:
                self._hang_up()
                raise LedgerUnreachableError(
                    "the process that keeps the budget of this run is gone "
                    f"({type(error).__name__}), so nothing more is sent"
                ) from None
            except BaseException:
                # Ctrl-C or a time-out: the answer is still to come, and must not be taken for
                # that of the next question.
                self._hang_up()
                raise
        return answer

    def _send(self, line: bytes) -> PlainSocket:
        if self._socket is None:
            address = Address.parse(self._path)
            self._socket = PlainSocket()
            self._socket.connect(address.target)
            line = address.greeting + line
        self._socket.sendall(line)
        return self._socket

    def close(self) -> None:
        """Hang up."""
        with alone(self._lock):
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._told = None, False

    def forked(self) -> None:
        """A child closes its copy, or the ledger would not notice the end of its parent.

        The lock is a new one: the thread that held the old one does not exist in the child.
        """
        self._lock = own_lock()
        self._hang_up()


def _received(connection: PlainSocket) -> bytes:
    # One answer follows one question. No buffered file: its lock would not survive a fork.
    answer = bytearray()
    while not answer.endswith(b"\n"):
        more = connection.recv(CHUNK)
        if not more:
            raise ConnectionResetError
        answer += more
    return bytes(answer)


def _after_fork_in_child() -> None:
    for each in tuple(_connections):
        each.forked()


# What is registered can't be taken back, so it is done once, for all that there are by then.
_connections: weakref.WeakSet[LedgerConnection] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class RemoteLedger:
    """The ledger of the controller, over a connection; every method raises as its `ask` does.

    Args:
        ahead: whether a call may go on before its settlement is booked. Its process has to `flush`
            before another process reads the ledger.
    """

    def __init__(self, wire: LedgerConnection, *, ahead: bool = False) -> None:
        self._connection = wire
        self._touched: set[str] = set()
        self._settle = wire.tell if ahead else wire.ask

    def open(self, scope: Scope) -> None:
        self._connection.ask("open", scope)

    def hold(self, keys: Sequence[str], least: int, most: int | None, draft: Charge) -> Hold:
        self._touched.update(keys)
        return Hold(*self._connection.ask("hold", keys, least, most, draft))

    def ask(
        self, keys: Sequence[str], least: int, most: int | None, draft: Charge, caller: Caller
    ) -> Hold | WaitingHold:
        self._touched.update(keys)
        place, amount = self._connection.ask("ask", keys, least, most, draft, caller)
        if amount is not None:
            return Hold(place, amount)
        try:
            return WaitingHold(place, self._answer_to(place))
        except BaseException:
            self.leave(place)
            raise

    def _answer_to(self, place: int) -> Future[Hold]:
        """What the ledger answers, by a connection and a thread of its own.

        Neither the wire nor an event loop may wait meanwhile: what is waited for is settled there.
        """
        answer = unanswered()

        def listen() -> None:
            wire = self._connection.another()
            try:
                while (hold := wire.ask("answer", place)) is None:
                    continue  # there was none in the time for which the server listens
                answer.set_result(Hold(*hold))
            except BaseException as error:
                answer.set_exception(error)
            finally:
                wire.close()

        threading.Thread(target=listen, name="hfbudget-waits", daemon=True).start()
        return answer

    def give_up(self, place: int, seconds: float) -> Hold | None:
        hold = self._connection.ask("give_up", place, seconds)
        return None if hold is None else Hold(*hold)

    def leave(self, place: int) -> None:
        self._connection.ask("leave", place)

    def settle(self, hold: int, charge: Charge) -> None:
        self._settle("settle", hold, charge)

    def release(self, hold: int, charge: Charge | None = None) -> None:
        self._settle("release", hold, charge)

    def flush(self) -> None:
        self._connection.flush()

    def refuse(self, keys: Sequence[str], refusal: Refusal) -> None:
        self._touched.update(keys)
        self._connection.ask("refuse", keys, refusal)

    def miss(self, why: str, calls: int) -> None:
        self._connection.ask("miss", why, calls)

    def total(self, key: str) -> Totals:
        return Totals(*self._connection.ask("total", key))

    def touched(self, key: str) -> bool:
        return key in self._touched

    def charges_in(self, key: str) -> tuple[Charge, ...]:
        return tuple(Charge.read(fields) for fields in self._connection.ask("charges_in", key))
