"""What the tests of the ledger share: drafts, ledgers here and elsewhere, and other processes."""

from __future__ import annotations

import os
import select
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from pytest_hfbudget.ledger import Charge, LedgerLike, WaitingHold
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import LedgerHandler, LedgerServer

PATIENCE_S = 10.0


class Books(NamedTuple):
    """A ledger as its user sees it, and the same one where it is kept."""

    user: LedgerLike
    kept: Ledger


class WatchedLedger(Ledger):
    """A ledger that tells when a lost connection has been dealt with."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = threading.Semaphore(0)

    def wait_for_a_loss(self) -> bool:
        return self.lost.acquire(timeout=PATIENCE_S)


class WatchedClient(LedgerHandler):
    """A client whose end is told to its watched ledger."""

    watched: WatchedLedger | None = None

    def close(self) -> None:
        super().close()
        if self.watched is not None:
            self.watched.lost.release()


class WatchedServer(LedgerServer):
    """A server that tells a watched ledger when a lost connection has been dealt with."""

    def __init__(self, ledger: Ledger, more: Mapping[str, Callable[..., object]]) -> None:
        super().__init__(ledger, more)
        self.ledger, self.more = ledger, more
        self.waiting: dict[int, WaitingHold] = {}

    def client(self) -> LedgerHandler:
        made = WatchedClient(self.ledger, self.waiting, self.more)
        made.watched = self.ledger if isinstance(self.ledger, WatchedLedger) else None
        return made


def draft(*scopes: str, model: str = "org/model") -> Charge:
    """What is known of a call before it is sent."""
    return Charge(
        test="test_a",
        task="conversational",
        model=model,
        provider=None,
        input_tokens=0,
        output_tokens=0,
        nano_usd=None,
        price_source="",
        status="",
        estimated=False,
        seconds=0.0,
        scopes=scopes,
    )


def charge(nano_usd: int | None, *scopes: str) -> Charge:
    """A settled call."""
    return draft(*scopes)._replace(nano_usd=nano_usd, status="200", price_source="test")


@contextmanager
def serving(ledger: Ledger, **more: Callable[..., object]) -> Iterator[LedgerServer]:
    server = WatchedServer(ledger, more)
    server.resume()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def connected(server: LedgerServer) -> Iterator[LedgerConnection]:
    wire = LedgerConnection(server.path)
    try:
        yield wire
    finally:
        wire.close()


@contextmanager
def books(kind: str) -> Iterator[Books]:
    """A ledger in this process, or the same one behind its socket."""
    kept = Ledger()
    if kind == "local":
        yield Books(kept, kept)
        return
    with serving(kept) as server, connected(server) as wire:
        yield Books(RemoteLedger(wire), kept)


def connection_threads() -> list[threading.Thread]:
    """The threads that serve one client each."""
    return [t for t in threading.enumerate() if t.name == "hfbudget-ledger-client"]


class Child:
    """A forked process that runs one function and says what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._answer, ours = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(ours)
            return
        try:
            text = str(work())
        except BaseException:
            text = traceback.format_exc()
        os.write(ours, text.encode())
        os._exit(0)  # nothing of pytest may run twice

    def answer(self) -> str:
        """What the function returned; or the traceback, or why there is none."""
        try:
            ready, _, _ = select.select([self._answer], [], [], PATIENCE_S)
            return os.read(self._answer, 65_536).decode() if ready else "no answer"
        finally:
            os.close(self._answer)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
