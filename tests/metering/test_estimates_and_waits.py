"""What a charge says of itself: how much is estimated above what came back, how long it waited."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget.ledger import Charge

ROW = {"input": "1", "output": "1"}


@pytest.fixture
def priced(bench: Bench) -> Bench:
    bench.emulator.client.add_model(MODEL, provider="groq", price=ROW)
    bench.prices(**{MODEL: ROW})
    return bench


def charges(bench: Bench) -> tuple[Charge, ...]:
    bench.runtime.meter.drain()
    return bench.ledger.charges()


def test_of_a_stream_that_was_left_only_its_input_and_what_it_wrote_came_back(
    priced: Bench,
) -> None:
    priced.cap(1)
    client: Any = priced.client(provider="groq")
    stream = client.chat_completion(say(20), max_tokens=500, stream=True)
    written = len(next(stream).choices[0].delta.content or "")
    stream.close()
    (charge,) = charges(priced)
    assert (charge.status, charge.estimated) == ("closed", True)
    assert 0 < written < 20
    assert 400_000 < charge.above < 500_000
    assert charge.above <= (charge.nano_usd or 0) - priced.billed


def test_an_exact_charge_has_nothing_above_what_came_back(priced: Bench) -> None:
    priced.cap(1)
    priced.client(provider="groq").chat_completion(say(20), max_tokens=500)
    (charge,) = charges(priced)
    assert (charge.estimated, charge.above, charge.waited) == (False, 0, 0)


def test_a_call_tells_how_long_it_waited_for_calls_in_flight(priced: Bench) -> None:
    priced.emulator.client.configure(answer_delay_s=0.2)
    priced.running("0.0006")  # one of the two has room
    barrier = threading.Barrier(2)

    def ask(_: int) -> None:
        barrier.wait()
        priced.client(provider="groq").chat_completion(say(5), max_tokens=20)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, range(2)))
    first, second = charges(priced)
    assert first.waited == 0
    assert 0.05 < second.waited < 10
