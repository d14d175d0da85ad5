"""A meter around the real huggingface_hub, in front of the emulator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.request import urlopen

import huggingface_hub
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.inference._providers import _common

from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.ledger import SESSION, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.metering.budget_context import BudgetContext, RunningTest
from pytest_hfbudget.metering.instrumentation import Addresses
from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.runtime import Runtime
from pytest_hfbudget.money import parse_usd
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.pricing.table import PriceTable

MODEL = "emulator/chat"
PAID = ("chat", "task", "completions", "responses", "embeddings", "images")


# Before 1.0 the client itself chose the provider, and knew no suffixes.
routed = pytest.mark.skipif(
    int(huggingface_hub.__version__.partition(".")[0]) < 1,
    reason="this huggingface_hub leaves no choice to the router",
)


def say(tokens: int) -> list[dict[str, str]]:
    """A question that the emulated model answers with so many tokens."""
    return [{"role": "user", "content": f"Say something. [[tokens={tokens}]]"}]


@dataclass
class Bench:
    """A running meter, and the emulator's own word on what it did."""

    emulator: Emulator
    runtime: Runtime
    books: Ledger

    @property
    def ledger(self) -> Ledger:
        """The ledger, with the steps that were put off."""
        self.runtime.meter.drain()
        return self.books

    @property
    def budgets(self) -> BudgetContext:
        return self.runtime.meter.budgets

    @property
    def book(self) -> PriceBook:
        return self.runtime.meter.book

    def know(self, catalogue: Catalogue) -> None:
        """Have the router's prices and contexts be these."""
        self.runtime.meter.book = replace(self.book, load_catalogue=lambda: catalogue)

    def client(self, model: str = MODEL, **options: Any) -> InferenceClient:
        return InferenceClient(model=model, token="hf_of_the_tests", **options)

    def async_client(self, model: str = MODEL, **options: Any) -> AsyncInferenceClient:
        return AsyncInferenceClient(model=model, token="hf_of_the_tests", **options)

    def cap(self, usd: object) -> None:
        """Give the session a cap, before its first call."""
        self.budgets.session = Scope(SESSION, "session budget", parse_usd(usd))

    def running(self, usd: object = None, **options: Any) -> RunningTest:
        """Let a test run, with a cap of its own if one is given."""
        cap = None if usd is None else parse_usd(usd)
        self.budgets.test = RunningTest("test_it", (Scope("test:test_it", "test_it", cap),))
        return self.budgets.test

    def prices(self, **rows: Any) -> None:
        """Rows of a price table; in names ``__`` stands for a slash."""
        named = {name.replace("__", "/"): row for name, row in rows.items()}
        self.book.table = PriceTable.parse(named, "prices.toml")

    def pay_for(self, *hosts: str) -> None:
        """Have calls to these be paid, as `hf_paid_hosts` does."""
        paid = self.runtime.addresses._replace(paid_hosts=hosts)
        self.runtime.release()
        self.runtime.addresses = paid
        self.runtime.acquire()

    @property
    def spent(self) -> int:
        return self.ledger.total(SESSION).spent

    @property
    def held(self) -> int:
        return self.ledger.total(SESSION).held

    @property
    def billed(self) -> int:
        """Nano-USD of calls on the emulator's invoice."""
        return int(self.emulator.client.invoice()["calls_nano_usd"])

    @property
    def sent(self) -> int:
        """Paid requests that arrived at the emulator."""
        log = self.emulator.client.log(kind="request", phase="arrived")
        return sum(entry["op"] in PAID for entry in log)


@pytest.fixture(scope="session")
def one_emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def bench(one_emulator: Emulator) -> Iterator[Bench]:
    one_emulator.client.reset()
    # Kept for all of a process: the providers of a model, as a test before has changed them.
    _common._fetch_inference_provider_mapping.cache_clear()
    with urlopen(f"{one_emulator.router}/v1/models") as answer:
        models = json.load(answer)
    catalogue = Catalogue.parse(models, read_at=0.0, origin=one_emulator.router)
    ledger = Ledger()
    book = PriceBook(load_catalogue=lambda: catalogue)
    addresses = Addresses(one_emulator.router, one_emulator.endpoints_api, one_emulator.hub)
    meter = Meter(ledger, book, BudgetContext(), router=one_emulator.router)
    runtime = Runtime(meter, addresses=addresses)
    runtime.acquire()
    yield Bench(one_emulator, runtime, ledger)
    runtime.release()
