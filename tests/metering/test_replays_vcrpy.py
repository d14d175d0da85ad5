"""vcrpy: what it records is charged, what it plays back is free; with every HTTP library."""

from __future__ import annotations

import threading
from decimal import Decimal
from pathlib import Path

import pytest
from metering_bench import Bench
from replaying import ASYNC, SYNC, UNHEARD, Ask, assert_free, charge, whole

from pytest_hfbudget import UnpricedCallError, budget

vcr = pytest.importorskip("vcr")
# It drops connections that it finds in the pools of requests without closing them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def tape(tmp_path: Path) -> str:
    return str(tmp_path / "tape.yaml")


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_recording_is_charged_once_and_playing_it_back_is_free(
    bench: Bench, tape: str, ask: Ask
) -> None:
    bench.cap(1)
    with vcr.use_cassette(tape):
        said = ask(bench)
    recorded = charge(bench)
    assert (recorded.replayed, recorded.nano_usd) == (False, bench.billed)
    with vcr.use_cassette(tape, record_mode="none"):
        assert ask(bench) == said
    assert_free(bench, before=bench.billed)
    assert charge(bench).input_tokens == recorded.input_tokens > 0
    assert bench.sent == 1


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_new_episodes_are_charged_between_replays(bench: Bench, tape: str, ask: Ask) -> None:
    bench.cap(1)
    with vcr.use_cassette(tape, record_mode="new_episodes"):
        ask(bench)
    with vcr.use_cassette(tape, record_mode="new_episodes"):
        ask(bench)
        ask(bench)
    bench.runtime.meter.drain()
    assert [c.replayed for c in bench.ledger.charges()] == [False, True, False]
    assert bench.sent == 2
    assert bench.spent == bench.billed


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_without_a_cap_a_replay_is_free_too(bench: Bench, tape: str, ask: Ask) -> None:
    with vcr.use_cassette(tape):
        ask(bench)
    recorded = bench.spent
    with vcr.use_cassette(tape, record_mode="none"):
        ask(bench)
    last = charge(bench)
    assert (last.replayed, last.nano_usd, bench.spent) == (True, 0, recorded)
    assert last.output_tokens > 0


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_what_is_not_on_the_tape_was_not_sent(bench: Bench, tape: str, ask: Ask) -> None:
    bench.cap(1)
    ask(bench)  # before the first call, huggingface_hub asks the Hub for the provider's own name
    before = bench.spent
    with vcr.use_cassette(tape, record_mode="none"):
        with pytest.raises(vcr.errors.CannotOverwriteExistingCassetteException):
            ask(bench)
    assert (charge(bench).status, charge(bench).replayed) == ("refused", False)
    assert (bench.spent, bench.held, bench.sent) == (before, 0, 1)


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_a_recorded_error_is_a_replay_as_well(bench: Bench, tape: str, ask: Ask) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault("chat", status=503, json={"error": "busy"})
    for mode in ("once", "none"):
        with vcr.use_cassette(tape, record_mode=mode), pytest.raises(Exception, match="503"):
            ask(bench)
    assert [(c.status, c.replayed) for c in bench.ledger.charges()] == [
        ("503", False),
        ("503", True),
    ]


@pytest.mark.parametrize("ask", [*SYNC, *ASYNC])
def test_an_unknown_price_refuses_a_recording_and_not_its_replay(
    bench: Bench, tape: str, ask: Ask
) -> None:
    with vcr.use_cassette(tape):
        ask(bench, UNHEARD)
    with budget(1) as block, vcr.use_cassette(tape, record_mode="none"):
        ask(bench, UNHEARD)
    assert (block.spent, block.calls_used) == (Decimal(0), 1)
    assert charge(bench).replayed
    with pytest.raises(UnpricedCallError), budget(1):
        with vcr.use_cassette(tape, record_mode="new_episodes"):
            ask(bench, UNHEARD)
            ask(bench, UNHEARD)
    assert bench.sent == 1


def test_of_eight_threads_just_those_are_charged_whose_calls_arrive(
    bench: Bench, tape: str
) -> None:
    """With requests, vcrpy lets some of them through: it takes its patches away for moments."""
    bench.cap(1)
    with vcr.use_cassette(tape):
        whole(bench)
    with vcr.use_cassette(tape, record_mode="none", allow_playback_repeats=True):
        threads = [threading.Thread(target=whole, args=(bench,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    charges = bench.ledger.charges()
    assert len(charges) == 9
    assert sum(not c.replayed for c in charges) == bench.sent
    assert bench.spent == bench.billed
