"""responses and aioresponses, in front of requests and aiohttp: huggingface_hub before 1.0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pytest
from metering_bench import Bench
from replaying import ANSWER, ASYNC, SYNC, UNHEARD, Ask, assert_free, body_for, charge

from pytest_hfbudget import UnpricedCallError, budget

hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.skipif(
    not hub.__version__.startswith("0."), reason="this huggingface_hub uses no requests"
)
responses = pytest.importorskip("responses")
aioresponses = pytest.importorskip("aioresponses")

ANY = re.compile(".*")
# aioresponses builds aiohttp's responses in a way that its newer releases don't have any more.
OLD_AIOHTTP = tuple(map(int, version("aiohttp").split(".")[:2])) < (3, 14)
new_aiohttp = pytest.mark.skipif(not OLD_AIOHTTP, reason="aioresponses can't mock this aiohttp")
ALL = [*SYNC, *(pytest.param(ask, marks=new_aiohttp) for ask in ASYNC)]


@contextmanager
def mocked(ask: Ask) -> Iterator[None]:
    """Every POST is answered; huggingface_hub looks a model up by a GET, which is free."""
    if ask in SYNC:
        with responses.RequestsMock() as mock:
            mock.add_passthru("http://")
            mock.post(ANY, body=body_for(ask))
            yield
    else:
        with aioresponses.aioresponses() as mock:
            mock.post(ANY, body=body_for(ask))
            yield


@contextmanager
def passed_through(ask: Ask) -> Iterator[None]:
    """Nothing is answered by the mock that stands in front."""
    if ask in SYNC:
        with responses.RequestsMock() as mock:
            mock.add_passthru("http://")
            yield
    else:
        with aioresponses.aioresponses(passthrough=["http://"]):
            yield


@pytest.mark.parametrize("ask", ALL)
def test_a_mocked_answer_is_free(bench: Bench, ask: Ask) -> None:
    bench.cap("0.000000001")
    with mocked(ask):
        assert ask(bench) == ANSWER["choices"][0]["message"]["content"]
    assert_free(bench)
    assert bench.sent == 0


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_passed_through_is_charged(bench: Bench, ask: Ask) -> None:
    bench.cap(1)
    with passed_through(ask):
        ask(bench)
    assert not charge(bench).replayed
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_passed_through_without_a_price_is_refused(bench: Bench, ask: Ask) -> None:
    with pytest.raises(UnpricedCallError), budget(1), passed_through(ask):
        ask(bench, UNHEARD)
    assert bench.sent == 0


@pytest.mark.parametrize("ask", SYNC)
def test_a_session_with_an_adapter_of_its_own_is_taken_for_real(bench: Bench, ask: Ask) -> None:
    requests: Any = pytest.importorskip("requests")

    class Canned(requests.adapters.BaseAdapter):  # type: ignore[misc] # not in every environment
        """Might just as well reach the network by a library that is not watched."""

        def send(self, request: Any, **options: Any) -> Any:
            from io import BytesIO

            response = requests.Response()
            response.status_code, response.raw = 200, BytesIO(body_for(ask))
            return response

        def close(self) -> None:
            pass

    def factory() -> Any:
        session = requests.Session()
        session.mount("http://", Canned())
        return session

    bench.cap(1)
    ask(bench)  # before the first call, huggingface_hub asks the Hub for the provider's own name
    before = bench.spent
    hub.configure_http_backend(factory)
    try:
        ask(bench)
    finally:
        hub.configure_http_backend()
    assert not charge(bench).replayed
    assert bench.spent > before
