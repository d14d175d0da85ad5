"""A signal handler that calls, wherever it interrupts: nothing hangs, and no cap is broken."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from metering_bench import MODEL, Bench, say

import pytest_hfbudget
from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.history import BudgetWindow, windows
from pytest_hfbudget.history.database import SqliteStore
from pytest_hfbudget.history.window_ledger import WindowLedger
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import LedgerServer
from pytest_hfbudget.locks import own_lock
from pytest_hfbudget.money import parse_usd
from pytest_hfbudget.settings import Settings

OURS = Path(pytest_hfbudget.__file__).parent
BOOKS = str(OURS / "ledger"), str(OURS / "history")
ALL = *BOOKS, str(OURS / "metering"), str(OURS / "pricing")
HANGS_AFTER_S = 60
BUSY = "a signal handler interrupted a change of the ledger, and made this call."


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A handler that raises ends also a wait for a lock."""

    def hangs(*_: object) -> None:
        raise AssertionError("a signal handler and what it has interrupted wait for each other")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_AFTER_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Everywhere:
    """Raises a signal at each line that the main thread comes to, once for each.

    Args:
        handler: handles it.
        folders: where these lines are.
    """

    def __init__(self, handler: Callable[[], object], folders: tuple[str, ...] = BOOKS) -> None:
        self._handler = handler
        self._folders = folders
        self._seen: set[tuple[str, int]] = set()

    @property
    def places(self) -> int:
        return len(self._seen)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        before = signal.signal(signal.SIGUSR1, lambda *_: self._handler())
        tracing = sys.gettrace()
        sys.settrace(self._enters)
        try:
            yield
        finally:
            sys.settrace(tracing)
            signal.signal(signal.SIGUSR1, before)

    def _enters(self, frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        return self._goes_on if file.startswith(self._folders) else None

    def _goes_on(self, frame: FrameType, event: str, argument: object) -> Any:
        place = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and place not in self._seen:
            self._seen.add(place)
            signal.raise_signal(signal.SIGUSR1)
        return self._goes_on


def own_ledger(bench: Bench, path: Path) -> Iterator[None]:
    yield


def ledger_of_many_runs(bench: Bench, path: Path) -> Iterator[None]:
    shared = windows(Settings(daily_cap=parse_usd(1)))
    bench.runtime.meter.ledger = bench.books = WindowLedger(
        SqliteStore(path / "tabs", "p", "r"), shared
    )
    bench.budgets.over_runs = tuple(map(BudgetWindow.scope, shared))
    yield
    bench.books.close()


def ledger_of_a_controller(bench: Bench, path: Path) -> Iterator[None]:
    server = LedgerServer(bench.books)
    server.resume()
    wire = LedgerConnection(server.path)
    bench.runtime.meter.ledger = RemoteLedger(wire, ahead=True)
    yield
    wire.close()
    bench.runtime.meter.ledger = Ledger()
    server.close()


every_ledger = pytest.mark.parametrize(
    "ledger", [own_ledger, ledger_of_many_runs, ledger_of_a_controller]
)


@pytest.mark.parametrize(
    ("folders", "places"), [(BOOKS, 40), pytest.param(ALL, 300, marks=pytest.mark.slow)]
)
@every_ledger
def test_a_handler_that_calls_is_answered_or_refused_with_a_line(
    bench: Bench,
    tmp_path: Path,
    ledger: Callable[[Bench, Path], Iterator[None]],
    folders: tuple[str, ...],
    places: int,
) -> None:
    bench.cap(1)
    with contextmanager(ledger)(bench, tmp_path):
        client, answered, refused = bench.client(), [], []

        def handler() -> None:
            try:
                answered.append(client.chat_completion(say(1), max_tokens=1))
            except BudgetExceededError as error:
                refused.append(str(error))

        everywhere = Everywhere(handler, folders)
        with everywhere.at_work():
            client.chat_completion(say(5), max_tokens=5)
            list(client.chat_completion(say(5), max_tokens=5, stream=True))
            with budget(max_calls=0, on_exceed="raise"), pytest.raises(BudgetExceededError):
                client.chat_completion(say(5), max_tokens=5)
            bench.runtime.meter.settle_all()
        bench.runtime.meter.settle_all()
        counted = [why for why in refused if BUSY in why]
        assert everywhere.places > places
        assert answered
        assert counted
        assert all("max_calls" in why for why in refused if why not in counted)
        assert bench.books.waiting() == bench.held == 0
        assert bench.spent == bench.billed > 0
        assert len(bench.books.charges()) == bench.sent == len(answered) + 2
        # What it could not write at once is written later.
        assert len(bench.books.refusals()) == len(refused) + 1


@pytest.mark.parametrize("folders", [BOOKS, pytest.param(ALL, marks=pytest.mark.slow)])
def test_without_a_cap_a_handler_that_calls_is_charged(
    bench: Bench, folders: tuple[str, ...]
) -> None:
    client = bench.client()
    answered: list[object] = []

    def handler() -> None:
        answered.append(client.chat_completion(say(1), max_tokens=1))

    everywhere = Everywhere(handler, folders)
    with everywhere.at_work():
        for _ in range(2):
            client.chat_completion(say(5), max_tokens=5)
            bench.runtime.meter.settle_all()
    bench.runtime.meter.settle_all()
    assert len(bench.books.charges()) == bench.sent == len(answered) + 2
    assert bench.spent == bench.billed > 0


def test_a_stream_that_a_handler_reads_to_its_end_is_charged_once(bench: Bench) -> None:
    httpx = pytest.importorskip("httpx")
    url = f"{bench.emulator.router}/v1/chat/completions"
    asked = {"model": MODEL, "messages": say(3), "max_tokens": 5, "stream": True}
    asked["stream_options"] = {"include_usage": True}
    headers = {"authorization": "Bearer hf_x"}
    with own_lock(), httpx.stream("POST", url, json=asked, headers=headers) as answer:
        assert list(answer.iter_lines())
    bench.runtime.meter.settle_all()
    assert len(bench.books.charges()) == bench.sent == 1
    assert bench.spent == bench.billed > 0


def test_a_stream_that_a_handler_drops_is_charged_at_the_end_of_its_test(bench: Bench) -> None:
    bench.running()
    with own_lock():
        stream = bench.client().chat_completion(say(5), max_tokens=5, stream=True)
        next(iter(stream))
        del stream
    bench.runtime.meter.settle_open("test_it")
    assert len(bench.books.charges()) == bench.sent == 1


def test_hundreds_of_calls_of_handlers_are_charged_before_the_next_call(bench: Bench) -> None:
    client = bench.client()
    with own_lock():
        for _ in range(300):
            client.chat_completion(say(1), max_tokens=1)
    client.chat_completion(say(1), max_tokens=1)
    assert len(bench.books.charges()) == bench.sent == 301
    assert bench.spent == bench.billed


def test_an_unreadable_answer_of_a_handler_disturbs_no_other_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: object, request: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("of some kind")

    with own_lock():
        bench.client().chat_completion(say(1), max_tokens=1)
    monkeypatch.setattr("pytest_hfbudget.metering.call.usage_of", fails)
    bench.client().chat_completion(say(2), max_tokens=2)
    assert [charge.estimated for charge in bench.books.charges()] == [True, False]


def test_a_call_of_a_handler_takes_until_its_answer(bench: Bench) -> None:
    now = [0.0]
    bench.runtime.meter.clock = lambda: now[0]
    with own_lock():
        bench.client().chat_completion(say(1), max_tokens=1)
    now[0] = 100.0
    bench.runtime.meter.settle_all()
    assert [charge.seconds for charge in bench.books.charges()] == [0.0]


def test_a_ctrl_c_while_calls_of_handlers_are_charged_loses_none(bench: Bench) -> None:
    def ctrl_c(request: object) -> None:
        bench.book.hook = None
        raise KeyboardInterrupt

    with own_lock():
        bench.client().chat_completion(say(1), max_tokens=1)
        bench.client().chat_completion(say(2), max_tokens=2)
    bench.book.hook = ctrl_c
    with pytest.raises(KeyboardInterrupt):
        bench.runtime.meter.settle_all()
    bench.runtime.meter.settle_all()
    assert len(bench.books.charges()) == 2
    assert bench.spent == bench.billed > 0


@every_ledger
def test_a_handler_may_close_a_stream_of_what_it_has_interrupted(
    bench: Bench, tmp_path: Path, ledger: Callable[[Bench, Path], Iterator[None]]
) -> None:
    bench.cap(1)
    with contextmanager(ledger)(bench, tmp_path):
        client = bench.client()
        streams: list[Any] = []
        everywhere = Everywhere(lambda: streams.pop().close() if streams else None)
        for _ in range(4):
            streams += [client.chat_completion(say(5), max_tokens=5, stream=True) for _ in range(8)]
            with everywhere.at_work():
                client.chat_completion(say(1), max_tokens=1)
            while streams:
                streams.pop().close()
        bench.runtime.meter.settle_all()
        assert bench.held == 0
        assert len(bench.books.charges()) == bench.sent
        assert bench.spent >= bench.billed > 0
