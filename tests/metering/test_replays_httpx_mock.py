"""pytest-httpx, in front of httpx: huggingface_hub 1.x."""

from __future__ import annotations

from typing import Any

import pytest
from metering_bench import Bench
from replaying import ANSWER, ASYNC, SYNC, UNHEARD, Ask, assert_free, body_for, charge

from pytest_hfbudget import UnpricedCallError, budget

pytest.importorskip("pytest_httpx")
hub_uses_httpx = pytest.importorskip("huggingface_hub").__version__.startswith("1.")
pytestmark = pytest.mark.skipif(not hub_uses_httpx, reason="this huggingface_hub uses no httpx")


# huggingface_hub looks a model up by a GET, which is free.
@pytest.mark.httpx_mock(should_mock=lambda request: request.method == "POST")
@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_a_mocked_answer_is_free(bench: Bench, httpx_mock: Any, ask: Ask) -> None:
    bench.cap("0.000000001")
    httpx_mock.add_response(content=body_for(ask))
    assert ask(bench) == ANSWER["choices"][0]["message"]["content"]
    assert_free(bench)
    assert bench.sent == 0


@pytest.mark.httpx_mock(should_mock=lambda request: False)
@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_not_mocked_is_charged(bench: Bench, httpx_mock: Any, ask: Ask) -> None:
    bench.cap(1)
    ask(bench)
    assert not charge(bench).replayed
    assert bench.spent == bench.billed > 0


@pytest.mark.httpx_mock(should_mock=lambda request: False)
@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_not_mocked_and_has_no_price_is_refused(
    bench: Bench, httpx_mock: Any, ask: Ask
) -> None:
    with pytest.raises(UnpricedCallError), budget(1):
        ask(bench, UNHEARD)
    assert bench.sent == 0
