"""Every task of both clients: priced, bounded and settled, by whatever it can be billed by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from every_task import ADDED_LATER, OTHERS, ROWS, TASKS, Task, offer, perform, public_methods
from huggingface_hub import AsyncInferenceClient, InferenceClient
from metering_bench import Bench

from pytest_hfbudget import BudgetExceededError, UnpricedCallError
from pytest_hfbudget.pricing import CallRequest, Quote, UnboundedCallError
from pytest_hfbudget.pricing.table import parse_price

# httpx does not like how the async client hands over bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

CLIENTS = [
    pytest.param(InferenceClient, id="sync"),
    pytest.param(AsyncInferenceClient, id="async"),
]
CHARGES = re.compile(r"^\| `(\w+)` \| (.+?) \| .+ \|$", re.MULTILINE)


INSTALLED = {name: task for name, task in TASKS.items() if hasattr(InferenceClient, name)}


def cases() -> Iterator[Any]:
    for name, task in INSTALLED.items():
        # Only hf-inference's answers tell how long they took.
        kinds = task.kinds if task.provider == "hf-inference" else ("call",)
        for kind in kinds if task.provider else ():
            yield pytest.param(task, kind, id=f"{name}-{kind}")


SERVED = [pytest.param(task, id=name) for name, task in INSTALLED.items() if task.provider]


@pytest.mark.parametrize("client", CLIENTS)
def test_every_public_method_of_the_installed_huggingface_hub_is_known_here(client: type) -> None:
    assert (public_methods(client) - OTHERS) | ADDED_LATER == set(TASKS)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("task", "kind"), list(cases()))
def test_a_task_is_charged_what_the_invoice_says(
    bench: Bench, task: Task, kind: str, client: type
) -> None:
    offer(bench, task, ROWS[kind])
    bench.cap(1)
    perform(bench, task, client)
    (charge,) = bench.ledger.charges()
    assert (charge.task, charge.status, charge.over) == (task.task, "200", 0)
    assert bench.spent == bench.billed > 0
    assert bench.held == 0


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("task", "kind"), list(cases()))
def test_a_task_that_a_cap_does_not_hold_is_never_sent(
    bench: Bench, task: Task, kind: str, client: type
) -> None:
    offer(bench, task, ROWS[kind])
    bench.cap("0.000000001")
    with pytest.raises(BudgetExceededError, match="may cost up to"):
        perform(bench, task, client)
    assert bench.emulator.client.invoice()["calls"] == []
    assert (bench.spent, bench.held) == (0, 0)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("task", SERVED)
def test_a_task_without_a_price_is_never_sent_under_a_cap(
    bench: Bench, task: Task, client: type
) -> None:
    offer(bench, task, ROWS["call"])
    bench.prices()
    bench.cap(1)
    with pytest.raises(UnpricedCallError, match=task.task):
        perform(bench, task, client)
    assert bench.emulator.client.invoice()["calls"] == []


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if not task.provider], ids=str
)
def test_a_task_without_a_provider_is_refused_by_huggingface_hub_itself(
    bench: Bench, name: str, client: type
) -> None:
    from huggingface_hub.inference._providers import PROVIDERS

    task = TASKS[name]
    assert not any(task.task in served for served in PROVIDERS.values())
    bench.cap(1)
    with pytest.raises(ValueError, match="not supported for provider"):
        perform(bench, task._replace(provider="hf-inference"), client)
    assert bench.emulator.client.invoice()["calls"] == []


def kinds_that_bound(task: str) -> set[str]:
    """What the code itself takes as a price that says enough about a task."""
    found = set()
    for kind, row in ROWS.items():
        request = CallRequest(task, "acme/model", input_bound=1)
        try:
            Quote.of(parse_price(row, kind), kind).most(request, 1)
        except UnboundedCallError:
            continue
        found.add(kind)
    # Where input alone is enough, output is no more than allowed.
    return found - {"tokens"} if "input" in found else found


@pytest.mark.parametrize("name", TASKS)
def test_what_can_be_billed_is_what_bounds_a_task(name: str) -> None:
    assert kinds_that_bound(TASKS[name].task) == set(TASKS[name].kinds)


def test_the_table_in_the_docs_says_of_each_task_what_can_be_billed() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-a-call-is-charged.md"
    told = dict(CHARGES.findall(page.read_text(encoding="utf-8")))
    words = {"tokens": "`input` + `output`"}
    said = {
        name: {words.get(kind, f"`{kind}`") for kind in task.kinds} for name, task in TASKS.items()
    }
    assert {name: set(kinds.split(", ")) for name, kinds in told.items()} == said
