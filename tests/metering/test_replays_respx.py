"""respx, in front of httpx (huggingface_hub 1.x) and, by pytest-httpx2, of httpx2 (2.x)."""

from __future__ import annotations

import pytest
from metering_bench import Bench
from replaying import ANSWER, ASYNC, SYNC, UNHEARD, Ask, assert_free, body_for, charge

from pytest_hfbudget import UnpricedCallError, budget

respx = pytest.importorskip("respx")
release = pytest.importorskip("huggingface_hub").__version__.partition(".")[0]
pytestmark = pytest.mark.skipif(release == "0", reason="this huggingface_hub uses no httpx")
if release == "2":
    pytest.importorskip("pytest_httpx2")

MOCKERS = {"0": (), "1": ("httpcore", "httpx"), "2": ("httpcore2",)}[release]


@pytest.mark.parametrize("using", MOCKERS)
@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_a_mocked_answer_is_free(bench: Bench, ask: Ask, using: str) -> None:
    bench.cap("0.000000001")
    with respx.mock(using=using, assert_all_called=False) as router:
        router.get().pass_through()  # huggingface_hub looks a model up, which is free
        router.post().respond(content=body_for(ask))
        assert ask(bench) == ANSWER["choices"][0]["message"]["content"]
    assert_free(bench)
    assert bench.sent == 0


@pytest.mark.parametrize("using", MOCKERS)
@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_passed_through_is_charged(bench: Bench, ask: Ask, using: str) -> None:
    bench.cap(1)
    with respx.mock(using=using) as router:
        router.route().pass_through()
        ask(bench)
    assert not charge(bench).replayed
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("using", MOCKERS)
@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_passed_through_without_a_price_is_refused(
    bench: Bench, ask: Ask, using: str
) -> None:
    with pytest.raises(UnpricedCallError), budget(1), respx.mock(using=using) as router:
        router.route().pass_through()
        ask(bench, UNHEARD)
    assert bench.sent == 0


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_a_mocked_timeout_bought_nothing(bench: Bench, ask: Ask) -> None:
    httpx = pytest.importorskip("httpx")
    bench.cap(1)
    using = MOCKERS[0]
    with (
        respx.mock(using=using, assert_all_called=False) as router,
        pytest.raises(Exception, match=r"timed out|too slow"),
    ):
        router.get().pass_through()
        router.post().mock(side_effect=httpx.ReadTimeout("too slow"))
        ask(bench)
    assert (charge(bench).status, charge(bench).replayed) == ("refused", False)
    assert (bench.spent, bench.held) == (0, 0)
