"""Answers that were recorded or made up for the openai SDK, httpx, requests and aiohttp cost $0."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from metering_bench import Bench
from replaying import ANSWER, as_events
from test_plain_http_calls import MODEL, URL, WAYS, Post, library, question

STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
NO_MORE = "0.0000001"  # USD: no call fits


def by_openai(url: str, payload: Any, *, stream: bool = False) -> tuple[int, str]:
    openai = library("openai")
    with openai.OpenAI(base_url=URL.removesuffix("/chat/completions"), api_key="hf_x") as client:
        answer = client.chat.completions.create(**{**payload, "stream": stream})
        if stream:
            return 200, "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
        return 200, answer.choices[0].message.content


def by_async_openai(url: str, payload: Any, *, stream: bool = False) -> tuple[int, str]:
    openai = library("openai")

    async def main() -> tuple[int, str]:
        base = URL.removesuffix("/chat/completions")
        async with openai.AsyncOpenAI(base_url=base, api_key="hf_x") as client:
            answer = await client.chat.completions.create(**{**payload, "stream": stream})
            if stream:
                parts = [c.choices[0].delta.content or "" async for c in answer if c.choices]
                return 200, "".join(parts)
            return 200, answer.choices[0].message.content

    return asyncio.run(main())


ALL: dict[str, Post] = {**WAYS, "openai": by_openai, "openai-async": by_async_openai}


def asked(stream: bool) -> dict[str, Any]:
    return question(max_tokens=50, stream=True) if stream else question(max_tokens=50)


def assert_replayed(bench: Bench) -> None:
    *_, charge = bench.ledger.charges()
    assert (charge.replayed, charge.nano_usd, charge.price_source) == (True, 0, "replayed")
    assert charge.input_tokens > 0
    assert charge.output_tokens == 10
    assert bench.held == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ALL)
@STREAMS
def test_what_vcrpy_records_is_charged_once_and_free_when_it_is_played_back(
    bench: Bench, tmp_path: Path, name: str, stream: bool
) -> None:
    vcr, post, tape = library("vcr"), ALL[name], str(tmp_path / "tape.yaml")
    bench.cap(1)
    with vcr.use_cassette(tape):
        said = post(URL, asked(stream), stream=stream)
    assert bench.spent == bench.billed > 0
    with vcr.use_cassette(tape, record_mode="none"):
        assert post(URL, asked(stream), stream=stream) == said
    assert bench.spent == bench.billed
    assert_replayed(bench)


def mocked(stream: bool) -> tuple[dict[str, str], str]:
    """The headers and the body of an answer."""
    import json

    kind = "text/event-stream" if stream else "application/json"
    return {"content-type": kind}, as_events(ANSWER) if stream else json.dumps(ANSWER)


def routed_url(bench: Bench) -> str:
    return f"{bench.emulator.router}/v1/chat/completions"


@pytest.mark.parametrize("name", ["httpx", "httpx-async"])
@STREAMS
def test_respx(bench: Bench, name: str, stream: bool) -> None:
    respx, httpx = library("respx"), library("httpx")
    bench.cap(NO_MORE)
    headers, body = mocked(stream)
    with respx.mock() as router:
        router.post(routed_url(bench)).mock(httpx.Response(200, headers=headers, content=body))
        assert ALL[name](URL, asked(stream), stream=stream)[0] == 200
    assert_replayed(bench)


@pytest.mark.parametrize("name", ["httpx", "httpx-async"])
@STREAMS
def test_pytest_httpx(
    bench: Bench, request: pytest.FixtureRequest, name: str, stream: bool
) -> None:
    library("pytest_httpx")
    bench.cap(NO_MORE)
    headers, body = mocked(stream)
    mock = request.getfixturevalue("httpx_mock")
    mock.add_response(url=routed_url(bench), headers=headers, text=body)
    assert ALL[name](URL, asked(stream), stream=stream)[0] == 200
    assert_replayed(bench)


@STREAMS
def test_responses(bench: Bench, stream: bool) -> None:
    responses = library("responses")
    bench.cap(NO_MORE)
    headers, body = mocked(stream)
    with responses.RequestsMock() as mock:
        kind = headers["content-type"]
        mock.post(routed_url(bench), body=body, content_type=kind)
        assert WAYS["requests"](URL, asked(stream), stream=stream)[0] == 200
    assert_replayed(bench)


@STREAMS
def test_aioresponses(bench: Bench, stream: bool) -> None:
    aioresponses = library("aioresponses")
    if tuple(map(int, library("aiohttp").__version__.split(".")[:2])) >= (3, 14):
        pytest.skip("aioresponses can't mock this aiohttp")
    bench.cap(NO_MORE)
    headers, body = mocked(stream)
    with aioresponses.aioresponses() as mock:
        mock.post(routed_url(bench), headers=headers, body=body)
        assert WAYS["aiohttp"](URL, asked(stream), stream=stream)[0] == 200
    assert_replayed(bench)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_a_transport_without_a_network_replays(bench: Bench, name: str) -> None:
    module = library(name)
    bench.cap(NO_MORE)
    transport = module.MockTransport(lambda request: module.Response(200, json=ANSWER))
    with module.Client(transport=transport) as client:
        assert client.post(URL, json={**asked(False), "model": MODEL}).status_code == 200
    assert_replayed(bench)
