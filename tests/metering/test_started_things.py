"""What a test starts by itself and pays for by the minute is named."""

from __future__ import annotations

from typing import Any

import httpcore
import httpx
import pytest
from metering_bench import Bench

from pytest_hfbudget import BudgetExceededError

STARTED = {
    "/v2/endpoint/acme/own/resume": "the Inference Endpoint acme/own",
    "/v2/endpoint/acme": "a new Inference Endpoint of acme",
    "/hub/api/jobs/acme": "a Job of acme",
    "/hub/api/jobs/acme/1/duplicate": "a Job of acme",
    "/hub/api/scheduled-jobs/acme": "a Job of acme",
    "/hub/api/scheduled-jobs/acme/1/run": "a Job of acme",
    "/v2/model/acme/model/deploy": "a new Inference Endpoint of acme/model",
    "/hub/api/spaces/acme/demo/hardware": "hardware for the Space acme/demo",
    "/hub/api/spaces/acme/demo/restart": "the Space acme/demo",
}


class Answered(httpx.BaseTransport):
    """Sends by a real pool, whose connections have their answer in memory."""

    def __init__(self, answer: bytes) -> None:
        backend = httpcore.MockBackend([answer])
        self.pool = httpcore.ConnectionPool(network_backend=backend)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        answer = self.pool.request(
            request.method, str(request.url), headers=request.headers.raw, content=content
        )
        return httpx.Response(answer.status, content=answer.content)


def post(bench: Bench, path: str, **options: Any) -> None:
    httpx.post(bench.emulator.url + path, headers={"authorization": "Bearer hf_x"}, **options)


@pytest.mark.parametrize("path", STARTED)
@pytest.mark.parametrize("cap", [None, 1])
def test_it_is_named(bench: Bench, path: str, cap: object) -> None:
    if cap is not None:
        bench.cap(cap)
    post(bench, path, json={})
    (why,) = bench.books.unmetered()
    assert why.startswith(f"the code under test has started {STARTED[path]};")


NEW_SPACE = {"name": "demo", "organization": "acme", "type": "space", "sdk": "gradio"}


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/hub/api/repos/create", NEW_SPACE),
        ("/hub/api/spaces/of/others/duplicate", {"repository": "acme/demo"}),
    ],
)
@pytest.mark.parametrize("hardware", ["t4-medium", "cpu-basic", None])
def test_hardware_of_a_new_space_is_named(
    bench: Bench, path: str, form: dict[str, Any], hardware: str | None
) -> None:
    post(bench, path, json=form if hardware is None else {**form, "hardware": hardware})
    named = "the code under test has started hardware for the Space acme/demo; "
    assert [why.startswith(named) for why in bench.books.unmetered()] == (
        [True] if hardware == "t4-medium" else []
    )


def test_a_rehearsal_creates_no_space_that_costs_something(bench: Bench) -> None:
    bench.runtime.meter.emulator = bench.emulator.url
    url, answer = "https://huggingface.co/api/repos/create", b"HTTP/1.1 200 OK\r\n\r\n"
    with httpx.Client(transport=Answered(answer)) as client:
        client.post(url, json=NEW_SPACE)
        with pytest.raises(
            BudgetExceededError, match="a rehearsal pays for nothing, so the request"
        ):
            client.post(url, json={**NEW_SPACE, "hardware": "t4-medium"})


@pytest.mark.parametrize("path", ["/v2/endpoint/acme/own/pause", "/hub/api/jobs/acme/1/cancel"])
def test_what_stops_something_is_not(bench: Bench, path: str) -> None:
    post(bench, path)
    assert bench.books.unmetered() == {}


def test_an_endpoint_of_the_run_is_not(bench: Bench) -> None:
    bench.book.leased["http://127.0.0.1:1/own"] = "acme/own"
    post(bench, "/v2/endpoint/acme/own/resume")
    assert bench.books.unmetered() == {}


@pytest.mark.parametrize(
    "url",
    [
        "https://u:p@huggingface.co/api/jobs/acme",
        "https://huggingface.co:443/api/jobs/acme",
        "https://endpoints.huggingface.co/api/v1/catalog/model/acme/model/deploy",
    ],
)
def test_nothing_is_started_at_a_real_service_in_a_rehearsal(bench: Bench, url: str) -> None:
    """A user, and a port that goes without saying, hide nothing."""
    bench.runtime.meter.emulator = bench.emulator.url
    with pytest.raises(BudgetExceededError, match="a rehearsal pays for nothing, so the request"):
        httpx.post(url, json={})
