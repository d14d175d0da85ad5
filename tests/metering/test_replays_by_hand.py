"""Stand-ins that a test makes itself, and what must never be taken for one."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from metering_bench import MODEL, Bench, say
from replaying import (
    ANSWER,
    ASYNC,
    STREAMS,
    SYNC,
    UNHEARD,
    Ask,
    assert_free,
    body_for,
    charge,
    whole,
)

from pytest_hfbudget import BudgetExceededError, UnpricedCallError, budget
from pytest_hfbudget.errors import LedgerBusyError
from pytest_hfbudget.ledger import SESSION, Refusal

httpx: Any = pytest.importorskip(
    {"0": "nothing", "1": "httpx", "2": "httpx2"}[huggingface_hub.__version__[0]],
    reason="this huggingface_hub has no client factory",
)

Use = Callable[..., None]


@pytest.fixture
def use() -> Iterator[Use]:
    """Have huggingface_hub make its clients with a transport."""
    from huggingface_hub import set_async_client_factory, set_client_factory
    from huggingface_hub.utils._http import default_async_client_factory, default_client_factory

    def transports(sync: Any, asynchronous: Any = None) -> None:
        set_client_factory(lambda: httpx.Client(transport=sync))
        set_async_client_factory(lambda: httpx.AsyncClient(transport=asynchronous or sync))

    yield transports
    set_client_factory(default_client_factory)
    set_async_client_factory(default_async_client_factory)


def known_model(bench: Bench) -> None:
    """Have huggingface_hub look the model up, before a mock is in the way."""
    whole(bench)
    whole(bench, UNHEARD)


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_a_mock_transport_is_free(bench: Bench, use: Use, ask: Ask) -> None:
    known_model(bench)
    before = bench.spent
    use(httpx.MockTransport(lambda request: httpx.Response(200, content=body_for(ask))))
    with budget("0.000000001") as block:
        assert ask(bench) == ANSWER["choices"][0]["message"]["content"]
        assert ask(bench, UNHEARD)
    assert (block.spent, block.calls_used) == (Decimal(0), 2)
    assert_free(bench, before=before)
    assert bench.sent == 2


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_an_unknown_transport_is_taken_for_real(bench: Bench, use: Use, ask: Ask) -> None:
    """It might send by a library that has its own sockets."""

    class Own(httpx.BaseTransport, httpx.AsyncBaseTransport):  # type: ignore[misc] # of a later import
        def handle_request(self, request: Any) -> Any:
            return httpx.Response(200, content=body_for(ask))

        async def handle_async_request(self, request: Any) -> Any:
            return self.handle_request(request)

    known_model(bench)
    before = bench.spent
    use(Own())
    ask(bench)
    assert not charge(bench).replayed
    assert bench.spent > before
    with pytest.raises(UnpricedCallError), budget(1):
        ask(bench, UNHEARD)


def test_a_mock_that_asks_the_network_itself_is_charged(bench: Bench, use: Use) -> None:
    def forward(request: Any) -> Any:
        with httpx.Client() as client:
            answer = client.post(str(request.url), content=request.read(), headers=request.headers)
        return httpx.Response(200, content=answer.content)

    known_model(bench)
    use(httpx.MockTransport(forward))
    bench.cap(1)
    whole(bench)
    assert not charge(bench).replayed
    with pytest.raises(UnpricedCallError), budget(1):
        whole(bench, UNHEARD)
    assert bench.sent == 3
    assert bench.spent == bench.billed


def test_a_mock_that_asks_the_network_in_another_thread_is_charged(bench: Bench, use: Use) -> None:
    def forward(request: Any) -> Any:
        answers = []

        def ask() -> None:
            with httpx.Client() as client:
                answers.append(
                    client.post(str(request.url), content=request.read(), headers=request.headers)
                )

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return httpx.Response(200, content=answers[0].content)

    known_model(bench)
    use(httpx.MockTransport(forward))
    whole(bench)
    # The thread has no context: what it sends is a call by itself, and the mock has replayed one.
    assert bench.spent == bench.billed > 0


def test_a_connection_that_was_kept_alive_is_real(bench: Bench) -> None:
    bench.cap(1)
    for _ in range(3):
        whole(bench)
    assert [c.replayed for c in bench.ledger.charges()] == [False] * 3
    assert bench.spent == bench.billed


def test_a_session_that_is_a_mock_is_free(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    known_model(bench)
    before = bench.spent
    session = MagicMock()
    response = session.stream.return_value.__enter__.return_value
    response.read.return_value = body_for(whole)
    response.headers = {}
    monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
    monkeypatch.setattr("huggingface_hub.inference._client.hf_raise_for_status", lambda _: None)
    whole(bench)
    assert_free(bench, before=before)


def test_an_answer_cut_by_the_plugins_limit_is_no_refusal_where_it_is_replayed(
    bench: Bench, use: Use
) -> None:
    known_model(bench)
    cut = {**ANSWER, "choices": [{**ANSWER["choices"][0], "finish_reason": "length"}]}
    use(httpx.MockTransport(lambda request: httpx.Response(200, json=cut)))
    with budget("0.001"):
        bench.client(provider="groq").chat_completion(say(10))
    assert charge(bench).replayed


def test_a_call_that_was_stopped_on_its_way_out_is_refused_like_any_other(bench: Bench) -> None:
    test = bench.running("0.000000001")
    with pytest.raises(BudgetExceededError, match="is left") as caught:
        whole(bench)
    assert bench.sent == 0
    assert len(test.refusals) == 1
    total = bench.ledger.total("test:test_it")
    assert (total.calls, total.refused, total.held) == (0, 1, 0)
    here = [Path(entry.path).name for entry in caught.traceback]
    assert "http11.py" not in here


@pytest.mark.parametrize("ask", STREAMS)
def test_a_replayed_stream_without_usage_counts_what_it_wrote(
    bench: Bench, use: Use, ask: Ask
) -> None:
    known_model(bench)
    body = b"\n\n".join(line for line in body_for(ask).split(b"\n\n") if b"usage" not in line)
    use(httpx.MockTransport(lambda request: httpx.Response(200, content=body)))
    ask(bench)
    last = charge(bench)
    assert (last.replayed, last.nano_usd, last.estimated) == (True, 0, True)
    assert last.output_tokens > 0


@pytest.mark.parametrize("cap", [None, 1])
def test_a_call_that_the_collector_ends_inside_of_the_ledger_waits_for_no_lock(
    bench: Bench, use: Use, cap: int | None
) -> None:
    """The loop of its task is closed, as those do who don't know `asyncio.run`."""
    known_model(bench)
    under_way = threading.Event()

    async def never(request: Any) -> None:
        under_way.set()
        await asyncio.Event().wait()

    use(httpx.MockTransport(lambda request: None), httpx.MockTransport(never))
    if cap:
        bench.cap(cap)
    before = len(bench.ledger.charges())

    async def start() -> None:
        client = bench.async_client(provider="groq")
        tasks.append(asyncio.ensure_future(client.chat_completion(say(5), max_tokens=5)))
        while not under_way.is_set():
            await asyncio.sleep(0)

    tasks: list[asyncio.Task[Any]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]

    refusal = Refusal(None, "session budget", MODEL, "refused")

    class Keys(list[str]):
        """Scopes of a refusal; the collector runs while the ledger reads them."""

        def __iter__(self) -> Iterator[str]:
            with pytest.raises(LedgerBusyError):  # this is inside of the ledger
                bench.books.refuse([], refusal)
            tasks.clear()
            gc.collect()
            return super().__iter__()

    bench.books.refuse(Keys([SESSION]), refusal)
    (charge,) = bench.ledger.charges()[before:]
    assert (charge.status, charge.nano_usd) == ("refused", 0)
    assert bench.held == 0
