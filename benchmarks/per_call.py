"""What the plugin costs per call, side by side with shekel, in one run.

Both are put around the same `InferenceClient.chat_completion`, whose `_inner_post` is a stub that
answers at once, so what is measured is huggingface_hub's own work plus theirs, in processor time.
Rounds take turns, and the best round of each counts: the rest is what else the machine was doing.

    python -m venv .venv/per-call
    .venv/per-call/bin/pip install -e '.[emulator]' shekel==1.2.0
    .venv/per-call/bin/python benchmarks/per_call.py [ROUNDS]

Without shekel its column stays empty. The rows:

- *outside of any budget*: a plain script that has imported the package, and no budget is open;
- *counted, without a cap* and *below a cap*: microseconds on top of the bare call;
- *open and close a budget*: an empty `with budget(...)`; and the same inside of a budget that is
  open already, as in every test of a run;
- *begin and end a test*: what the hooks of a real run do around one test with a marker;
- *hold and settle, -n 4*: four processes at once over the socket, per call, the median;
- *elsewhere by LIBRARY*: what a POST to a host that is not paid takes longer, where httpx or
  requests is installed;
- *memory per charge*: what 100,000 settled calls leave behind.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import statistics
import sys
import tempfile
import timeit
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pytest
from huggingface_hub import InferenceClient

from pytest_hfbudget import budget
from pytest_hfbudget.ledger import Charge, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.ledger.rpc import LedgerConnection, RemoteLedger
from pytest_hfbudget.ledger.rpc.server import LedgerServer
from pytest_hfbudget.metering.instrumentation.http_layer import POINTS
from pytest_hfbudget.metering.instrumentation.hub import INSTRUMENTATION

try:
    import shekel
except ImportError:
    shekel = None

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PRICES = {"input": 0.001, "output": 0.001}
QUESTION = [{"role": "user", "content": "Explain transformers in one sentence."}]
ANSWER = json.dumps(
    {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "system_fingerprint": "f",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "They pay attention. " * 10},
            }
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 41, "total_tokens": 81},
    }
).encode()

CALLS = 1000
WORKERS, PAIRS = 4, 2000
CHARGES = 100_000

Around = Callable[[], AbstractContextManager[Any]]
SUITE = """
import time, pytest
from pytest_hfbudget import budget
from pytest_hfbudget.plugin.run import RUN

@pytest.mark.budget(max_usd=1)
def test_itself(request):
    run, item = request.config.stash[RUN], request.node
    def once():
        start = time.perf_counter()
        run.leave(item)
        run.attribution.enter(item)
        return time.perf_counter() - start
    print("seconds:", min(once() for _ in range(2000)))
"""


def answer_at_once(self: Any, request_parameters: Any, *, stream: bool = False) -> bytes:
    """Stands for the network in `_inner_post`."""
    return ANSWER


def per_call(around: dict[str, Around], rounds: int) -> dict[str, float]:
    """Microseconds of one call inside of each of these, the best of the rounds."""
    client = InferenceClient(model=f"{MODEL}:novita", token="hf_none")  # noqa: S106 - none

    def call() -> None:
        client.chat_completion(QUESTION, max_tokens=50)

    best = dict.fromkeys(around, float("inf"))
    for _ in range(rounds):
        for name, enter in around.items():
            with enter():
                gc.collect()
                best[name] = min(
                    best[name], timeit.timeit(call, timer=process_time, number=CALLS) / CALLS
                )
    return {name: seconds * 1e6 for name, seconds in best.items()}


def per_block(make: Callable[[], AbstractContextManager[Any]]) -> float:
    """Microseconds of entering and leaving."""

    def enter_and_leave() -> None:
        with make():
            pass

    took = timeit.repeat(enter_and_leave, timer=process_time, number=100, repeat=20)
    return min(took) / 100 * 1e6


def per_test() -> float:
    """Microseconds of a run's hooks around one test, taken inside of a real run."""
    with tempfile.TemporaryDirectory() as name:
        suite = Path(name) / "test_itself.py"
        suite.write_text(SUITE)
        result = Path(name) / "said"
        with result.open("w") as said:
            before, sys.stdout = sys.stdout, said
            try:
                pytest.main(["-q", "-s", "-p", "no:cacheprovider", "--hf-emulator", str(suite)])
            finally:
                sys.stdout = before
        return float(result.read_text().split("seconds:")[1].split()[0]) * 1e6


def draft() -> Charge:
    """What is known of a call when it is sent."""
    scopes = ("session", "test:test_it.py::test_it")
    return Charge(
        scopes[1], "conversational", MODEL, "novita", 0, 0, None, "", "", False, 0.0, "", scopes
    )


def hold_and_settle(path: str, barrier: Any, times: Any) -> None:
    """One worker: holds and settles as fast as it can, and tells how long each took."""
    ledger, charge = RemoteLedger(LedgerConnection(path), ahead=True), draft()
    settled = charge._replace(input_tokens=40, output_tokens=41, nano_usd=81, status="200")
    barrier.wait()
    took = []
    for _ in range(PAIRS):
        start = perf_counter()
        hold = ledger.hold(charge.scopes, 1000, 1000, charge)
        ledger.settle(hold.id, settled)
        took.append(perf_counter() - start)
    times.put(took)


def over_the_socket() -> float:
    """Microseconds of a hold and its settlement with four workers at once, the median."""
    ledger = Ledger()
    for key in draft().scopes:
        ledger.open(Scope(key, key, 10**15))
    server = LedgerServer(ledger)
    server.resume()
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(WORKERS), context.Queue()
    workers = [
        context.Process(target=hold_and_settle, args=(server.path, barrier, times))
        for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    took = [seconds for _ in workers for seconds in times.get()]
    for worker in workers:
        worker.join()
    server.close()
    return statistics.median(took) * 1e6


def bytes_per_charge() -> float:
    """What a settled call leaves behind in the ledger."""
    ledger, charge = Ledger(), draft()
    for key in charge.scopes:
        ledger.open(Scope(key, key))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(CHARGES):
        hold = ledger.hold(charge.scopes, 0, 0, charge)
        settled = charge._replace(
            input_tokens=1000 + number % 500,
            output_tokens=1000 + number % 300,
            nano_usd=10_000 + number,
            seconds=round(0.1 + number * 1e-6, 6),
            status="200",
        )
        ledger.settle(hold.id, settled)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / CHARGES


def per_other_request() -> dict[str, float]:
    """Microseconds that a POST to a host which is not paid takes longer, by library."""
    layer, url = INSTRUMENTATION.http, "https://api.example.com/v1/answer"
    taken = {}
    with budget(1):
        for name, make in (("httpx", _httpx_request), ("requests", _requests_request)):
            if (request := make(url)) is not None:
                point = next(p for p in POINTS if p.module.startswith(f"{name}."))
                metered = point.wrapper(layer, _answer_nothing)
                both = [best(partial(each, None, request)) for each in (metered, _answer_nothing)]
                taken[name] = both[0] - both[1]
    return taken


def _answer_nothing(self: Any, request: Any, **options: Any) -> None:
    return None


def _httpx_request(url: str) -> Any:
    try:
        import httpx
    except ImportError:
        return None
    return httpx.Request("POST", url, json={})


def _requests_request(url: str) -> Any:
    try:
        import requests
    except ImportError:
        return None
    return requests.Request("POST", url, json={}).prepare()


def best(call: Callable[[], object]) -> float:
    """Microseconds of processor time that a call takes in its best round."""
    return min(timeit.repeat(call, number=CALLS, repeat=100, timer=process_time)) / CALLS * 1e6


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    InferenceClient._inner_post = answer_at_once
    around: dict[str, Around] = {
        "bare": nullcontext,
        "counted": lambda: budget(price_per_1k_tokens=PRICES),
        "capped": lambda: budget(1000, price_per_1k_tokens=PRICES),
    }
    theirs: dict[str, Around] = {}
    if shekel is not None:
        theirs = {
            "counted": lambda: shekel.budget(price_per_1k_tokens=PRICES),
            "capped": lambda: shekel.budget(max_usd=1000, price_per_1k_tokens=PRICES),
        }
    ours = per_call({**around, **{f"their {k}": v for k, v in theirs.items()}}, rounds)
    bare = ours["bare"]
    print(f"a bare call: {bare:.1f} us\n")
    print(f"{'':32}{'pytest-hfbudget':>20}{'shekel':>20}{'ratio':>8}")

    def row(name: str, mine: float, other: float | None, unit: str = "us") -> None:
        left = f"{mine:.1f} {unit}"
        right, ratio = ("", "") if other is None else (f"{other:.1f} {unit}", f"{mine / other:.2f}")
        print(f"{name:32}{left:>20}{right:>20}{ratio:>8}")

    for key, name in (("counted", "counted, without a cap"), ("capped", "below a cap")):
        other = ours.get(f"their {key}")
        row(name, ours[key] - bare, None if other is None else other - bare)
    their_block = per_block(lambda: shekel.budget(max_usd=1)) if shekel else None
    row("open and close a budget", per_block(lambda: budget(1)), their_block)
    with budget(2):
        mine = per_block(lambda: budget(1))
    row("the same inside of another", mine, None)
    row("begin and end a test", per_test(), their_block)
    row("hold and settle, -n 4", over_the_socket(), None)
    for name, seconds in per_other_request().items():
        row(f"elsewhere by {name}", seconds, None)
    row("memory per charge", bytes_per_charge(), 279.0 if shekel else None, "B")


if __name__ == "__main__":
    main()
