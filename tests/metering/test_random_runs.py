"""Runs of random steps: in every one the ledger's total is the emulator's invoice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from random import Random

import pytest
from huggingface_hub.errors import HfHubHTTPError
from metering_bench import Bench, routed, say

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.metering.budget_context import RunningTest
from pytest_hfbudget.plugin.endpoints import RunEndpoints
from pytest_hfbudget.settings import Settings

MODELS = [
    ("emulator/chat", "novita"),
    ("emulator/chat", "groq"),
    ("emulator/chat", "together"),
    ("meta-llama/Llama-3.3-70B-Instruct", "auto"),
    ("openai/gpt-oss-20b", "groq"),
    ("CohereLabs/c4ai-command-r7b-12-2024", "cohere"),
    ("zai-org/GLM-4.6", "zai-org"),
]
HARDWARE = [
    {"instanceType": "intel-spr", "instanceSize": "x1"},
    {"instanceType": "nvidia-l4", "instanceSize": "x4"},
    {"instanceType": "nvidia-t4", "instanceSize": "x1"},
]
ENDPOINTS = ("acme/one", "acme/two")
TESTS = ("test_a", "test_b", "test_c")
# Steps of a run; some seconds in which nothing happens come between them.
STEPS = 14


class RandomRun:
    """One run of steps that a random generator chooses; its time is the emulator's."""

    def __init__(self, bench: Bench, endpoints: RunEndpoints, random: Random) -> None:
        self.bench, self.endpoints, self.random = bench, endpoints, random
        self.control = bench.emulator.client
        self.up: dict[str, str] = {}
        for name in ENDPOINTS:
            self.control.add_endpoint(
                name,
                compute=random.choice(HARDWARE),
                pending_s=random.choice([0, 0.02]),
                initializing_s=random.choice([0, 0.05]),
                max_replica=4,
            )

    def go(self) -> None:
        """Do all steps, each in one of the tests or in none."""
        steps: list[Callable[[], None]] = [
            self.chat,
            self.stream,
            self.failure,
            self.resume,
            self.use,
            self.use,
            self.scale,
            self.scale,
            self.another_user_pauses,
            self.another_test,
        ]
        for _ in range(STEPS):
            self.control.advance(self.random.choice([0, 0.4, 7, 59.9, 61, 200]))
            self.random.choice(steps)()

    def chat(self) -> None:
        model, provider = self.random.choice(MODELS)
        client = self.bench.client(model, provider=provider)
        client.chat_completion(say(self.random.randint(1, 40)), max_tokens=50)

    def stream(self) -> None:
        model, provider = self.random.choice(MODELS)
        client = self.bench.client(model, provider=provider)
        answer = say(self.random.randint(1, 40))
        assert list(client.chat_completion(answer, max_tokens=50, stream=True))

    def failure(self) -> None:
        """Only what was answered with 2xx is billed."""
        self.control.add_fault(op="chat", status=self.random.choice([400, 429, 500]))
        with pytest.raises(HfHubHTTPError):
            self.bench.client(provider="groq").chat_completion(say(3), max_tokens=5)

    def resume(self) -> None:
        asleep = [name for name in ENDPOINTS if name not in self.up]
        if asleep:
            name = self.random.choice(asleep)
            self.up[name] = self.endpoints.ensure(name).url
            self.bench.book.leased[self.up[name]] = name

    def use(self) -> None:
        """One that another user has paused is brought back, once in a run."""
        if not self.up:
            return
        name = self.random.choice(list(self.up))
        if (test := self.bench.budgets.test) is not None:
            self.endpoints.begin_use(test.id, name, test.scopes, "")
        before = self.state(name)
        try:
            self.bench.client(self.up[name]).chat_completion(say(5), max_tokens=50)
        except (HfHubHTTPError, HFBudgetError):
            assert before != "running"

    def scale(self) -> None:
        running = [name for name in self.up if self.state(name) == "running"]
        if running:
            name = self.random.choice(running)
            self.control.change_endpoint(name, replicas=self.random.randint(1, 4))

    def another_user_pauses(self) -> None:
        if self.up:
            name = self.random.choice(list(self.up))
            self.control.change_endpoint(name, state="paused")

    def another_test(self) -> None:
        if (test := self.bench.budgets.test) is not None:
            self.endpoints.end_use(test.id)
        name = self.random.choice([*TESTS, None])
        scopes = (Scope(f"test:{name}", f"{name}"),)
        self.bench.budgets.test = RunningTest(name, scopes) if name else None

    def state(self, name: str) -> str:
        states = {each["name"]: each["state"] for each in self.control.state()["endpoints"]}
        return str(states[name])


@pytest.fixture
def endpoints(bench: Bench, pytester: pytest.Pytester) -> Iterator[RunEndpoints]:
    bench.cap(10_000)
    bench.ledger.open(bench.budgets.session)
    settings = Settings(emulator=bench.emulator.url, endpoints_api=bench.emulator.endpoints_api)
    config = pytester.parseconfig("-p", "no:terminal", "-p", "no:hfbudget", "-s")
    endpoints = RunEndpoints(config, settings, "random-run", bench.ledger, None)
    bench.runtime.meter.endpoints.revive = endpoints.revive
    yield endpoints
    endpoints.finish()


# A second each: CI takes some, RANDOM_RUNS=210 and more.
RUNS = int(os.environ.get("RANDOM_RUNS", "40"))
SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, RUNS)]


@routed
@pytest.mark.parametrize("seed", [*range(4), *SLOW])
def test_the_ledger_is_the_invoice_to_the_nano_dollar(
    bench: Bench, endpoints: RunEndpoints, seed: int
) -> None:
    RandomRun(bench, endpoints, Random(seed)).go()
    assert endpoints.finish()
    invoice = bench.emulator.client.invoice()
    assert bench.held == 0
    assert bench.ledger.total(SESSION).spent == invoice["total_nano_usd"]
    billed = {each["name"]: each["nano_usd"] for each in invoice["endpoints"]}
    for line in endpoints.lines():
        parts = [*dict(line.shares).values(), line.idle or 0, line.cold_start or 0]
        assert sum(parts) == line.nano_usd == billed[line.name]
