"""Random suites, and their bill: it is the ledger, or off by just the factor of the prices.

Each has its own mix of clients, providers, models, streams, threads, forks and workers. What the
emulator bills is what its router lists, times a factor.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from forked_python import ForkServer
from lean_pytest import run_lean

from pytest_hfbudget.emulator import Emulator

QUICK, MORE = range(1), range(1, 40)
SEEDS = [*QUICK, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MORE)]
PROVIDERS = ("groq", "novita", "together")
# Rates that are whole nano-dollars per token, times each of the factors: no call is rounded.
RATES = ("0.02", "0.1", "0.4", "2")
FACTORS = ("1", "1", "1.5", "0.5", "1.25", "3")

HEAD = """
import asyncio, os
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import AsyncInferenceClient, InferenceClient


def call(kind, model, provider, words, stream, bill_to=None):
    say = [{"role": "user", "content": f"Say something. [[tokens={words}]]"}]
    options = {"model": model, "provider": provider, "token": "hf_random"}
    if kind == "async":
        asyncio.run(later(options, say, stream))
    elif kind == "fork":
        pid = os.fork()
        if not pid:
            try:
                whole(options, say, stream)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    elif kind == "thread":
        with ThreadPoolExecutor(2) as pool:
            pool.submit(whole, options, say, stream).result()
    else:
        whole(options, say, stream)


def whole(options, say, stream):
    extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = InferenceClient(**options).chat_completion(say, max_tokens=60, **extra)
    if stream:
        list(answer)


async def later(options, say, stream):
    extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    async with AsyncInferenceClient(**options) as client:
        answer = await client.chat_completion(say, max_tokens=60, **extra)
        if stream:
            async for _ in answer:
                pass
"""


@dataclass(frozen=True)
class RandomSuite:
    """A suite, and what the router lists and bills."""

    code: str
    models: tuple[dict[str, Any], ...]
    factor: Decimal
    options: tuple[str, ...]
    switches: dict[str, Any]
    calls: int
    routes: frozenset[tuple[str, str]]


def random_suite(seed: int) -> RandomSuite:
    draw = random.Random(seed)
    factor = Decimal(draw.choice(FACTORS))
    models = tuple(_model(draw, number, factor) for number in range(draw.choice((1, 1, 3))))
    names = [model["id"] for model in models]
    calls = [
        (
            draw.choice(("sync", "async", "thread", "fork")),
            draw.choice(names),
            draw.choice((*PROVIDERS, "auto")) if len(names) > 1 else PROVIDERS[seed % 3],
            draw.choice((1, 7, 30)),
            draw.random() < 0.4,
        )
        for _ in range(draw.randint(4, 9))
    ]
    tests = [f"def test_{at}():\n    call(*{one!r})\n" for at, one in enumerate(calls)]
    options = ["-n2"] if draw.random() < 0.5 else []
    options += ["--hf-session-budget=1"] if draw.random() < 0.5 else []
    switches: dict[str, Any] = {"cached_tokens": draw.choice((0, 5))}
    switches["billing_page_limit"] = draw.choice((0, 1))
    switches["cost_in_usage"] = draw.choice(([], ["novita"])) if factor == 1 else []
    routes = frozenset((one[1], one[2]) for one in calls)
    return RandomSuite(
        HEAD + "\n".join(tests), models, factor, tuple(options), switches, len(calls), routes
    )


def _model(draw: random.Random, number: int, factor: Decimal) -> dict[str, Any]:
    cached = draw.random() < 0.5
    offers = []
    for provider in PROVIDERS:
        keys = ("input", "output", "cached") if cached else ("input", "output")
        listed = {key: draw.choice(RATES) for key in keys}
        price = {key: str(Decimal(rate) * factor) for key, rate in listed.items()}
        offer = {"provider": provider, "pricing": listed, "price": price, "context_length": 8192}
        offers.append({**offer, "throughput": draw.random()})
    return {"id": f"acme/model-{number}", "providers": offers}


def hfbudget(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_hfbudget", *words, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def nano(usd: str) -> int:
    return int(Decimal(usd) * 10**9)


@pytest.mark.parametrize("number", SEEDS)
def test_the_bill_is_the_ledger_or_off_by_the_factor_of_the_prices(
    one_emulator: Emulator,
    fork_server: ForkServer,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    suite, emulator = random_suite(number), one_emulator
    if "-n2" in suite.options:
        pytest.importorskip("xdist")
    emulator.client.reset(models=list(suite.models), switches=suite.switches)
    monkeypatch.setenv("HFBUDGET_ROUTER", emulator.router)
    monkeypatch.setenv("HFBUDGET_ENDPOINTS_API", emulator.endpoints_api)
    monkeypatch.setenv("HF_ENDPOINT", emulator.hub)
    monkeypatch.setenv("PYTHONPATH", "")
    Path(pytester.path / "test_suite.py").write_text(suite.code)
    done = run_lean(pytester, fork_server, *suite.options)
    done.assert_outcomes(passed=suite.calls)
    found = hfbudget("bill")
    invoice = emulator.client.invoice()
    assert found["status"] == "reported"
    assert (found["requests"], found["billed_requests"]) == (suite.calls, suite.calls)
    assert nano(found["billed_usd"]) == invoice["calls_nano_usd"] > 0
    assert nano(found["ledger_usd"]) * suite.factor == nano(found["billed_usd"])
    assert found["drift"] == float(suite.factor - 1)
    if len(suite.models) == 1:
        the_row_is_right(suite)


def the_row_is_right(suite: RandomSuite) -> None:
    """One model of one provider: what is suggested bills the same."""
    (found,) = hfbudget("prices", "--suggest")["suggestions"]
    ((_, provider),) = suite.routes
    assert found["name"] == f"acme/model-0:{provider}"
    assert found["exact"]
    assert found["right"] is (suite.factor == 1)
    if suite.factor != 1 and not suite.switches["cached_tokens"]:
        (row,) = (one for one in suite.models[0]["providers"] if one["provider"] == provider)
        prices = {key: Decimal(rate) for key, rate in row["price"].items()}
        assert {key: Decimal(rate) for key, rate in found["price"].items()} == prices
