"""The header by which Hugging Face tells the cost of a run: on every call to the router."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget.metering.instrumentation.calls import put_session_id

RUN = "hfbudget-0123456789ab"
OWN = {"x-hf-session-id": "of-the-caller"}


@pytest.fixture(autouse=True)
def of_a_run(bench: Bench) -> None:
    bench.budgets.session_id = RUN


def sessions(bench: Bench) -> list[Any]:
    """What the emulator was told, call by call."""
    log = bench.emulator.client.log(kind="request", phase="arrived")
    return [entry["session"] for entry in log if entry["method"] == "POST"]


def charged(bench: Bench) -> list[str]:
    return [charge.session_id for charge in bench.ledger.charges()]


def test_every_kind_of_call_to_the_router_carries_it(bench: Bench) -> None:
    client = bench.client()
    client.chat_completion(say(5), max_tokens=9)
    list(client.chat_completion(say(5), max_tokens=9, stream=True))
    bench.client("emulator/fill-mask", provider="hf-inference").fill_mask("It is [MASK].")

    async def later() -> None:
        async with bench.async_client(provider="groq") as other:
            await other.chat_completion(say(5), max_tokens=9)

    asyncio.run(later())
    assert sessions(bench) == charged(bench) == [RUN] * 4


def test_it_is_there_under_a_cap_and_on_each_try(bench: Bench) -> None:
    bench.cap("0.0001")
    bench.emulator.client.configure(switches={"limit_names": "max_completion_tokens"})
    bench.client().chat_completion(say(5))
    assert sessions(bench) == [RUN, RUN]


def test_an_id_that_the_caller_has_set_is_kept(bench: Bench) -> None:
    bench.client(headers=OWN).chat_completion(say(5), max_tokens=9)
    bench.client().chat_completion(say(5), max_tokens=9)
    assert sessions(bench) == charged(bench) == ["of-the-caller", RUN]


def test_the_headers_of_the_client_stay_as_they_were(bench: Bench) -> None:
    client = bench.client()
    before = dict(client.headers)
    client.chat_completion(say(5), max_tokens=9)
    assert client.headers == before


def test_other_servers_are_not_told(bench: Bench) -> None:
    bench.emulator.client.add_endpoint("acme/llm", state="running")
    url = f"{bench.emulator.url}/endpoint/acme/llm"
    bench.client(url).chat_completion(say(5), max_tokens=9)
    assert sessions(bench) == [None]
    assert charged(bench) == [""]


def test_without_an_id_none_is_sent(bench: Bench) -> None:
    bench.budgets.session_id = ""
    bench.client(MODEL).chat_completion(say(5), max_tokens=9)
    assert sessions(bench) == [None]


@pytest.mark.parametrize("name", ["X-HF-Session-id", "x-hf-session-id", "X-HF-SESSION-ID"])
def test_any_spelling_is_the_callers_own(name: str) -> None:
    headers = {name: "theirs"}
    assert put_session_id(headers, RUN) == "theirs"
    assert headers == {name: "theirs"}


def test_what_is_remembered_of_a_callers_id_is_printable_and_bounded() -> None:
    assert put_session_id({"X-HF-Session-id": "\x1b[2J" + "x" * 999}, RUN) == "�[2J" + "x" * 252
