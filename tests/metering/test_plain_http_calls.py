"""Paid calls that are posted by hand: httpx, httpx2, requests, aiohttp."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from typing import Any
from urllib.request import urlopen

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError

URL = "https://router.huggingface.co/v1/chat/completions"
MODEL = "emulator/chat:groq"

TOKEN = {"authorization": "Bearer hf_of_the_tests"}

Post = Callable[..., "tuple[int, str]"]


def library(name: str) -> Any:
    return pytest.importorskip(name)


def by_httpx(name: str) -> Post:
    def post(url: str, payload: Any, *, stream: bool = False) -> tuple[int, str]:
        with library(name).Client() as client:
            if not stream:
                answer = client.post(url, json=payload, headers=TOKEN)
                return answer.status_code, answer.text
            with client.stream("POST", url, json=payload, headers=TOKEN) as answer:
                return answer.status_code, "".join(answer.iter_text())

    return post


def by_async_httpx(name: str) -> Post:
    def post(url: str, payload: Any, *, stream: bool = False) -> tuple[int, str]:
        async def main() -> tuple[int, str]:
            async with library(name).AsyncClient() as client:
                if not stream:
                    answer = await client.post(url, json=payload, headers=TOKEN)
                    return answer.status_code, answer.text
                async with client.stream("POST", url, json=payload, headers=TOKEN) as answer:
                    return answer.status_code, "".join([text async for text in answer.aiter_text()])

        return asyncio.run(main())

    return post


def by_requests(url: str, payload: Any, *, stream: bool = False) -> tuple[int, str]:
    with library("requests").Session() as session:
        with session.post(url, json=payload, headers=TOKEN, stream=stream) as answer:
            if not stream:
                return answer.status_code, answer.text
            return answer.status_code, b"".join(answer.iter_content(7)).decode()


def by_aiohttp(url: str, payload: Any, *, stream: bool = False) -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        async with library("aiohttp").ClientSession() as session:
            async with session.post(url, json=payload, headers=TOKEN) as answer:
                if not stream:
                    return answer.status, await answer.text()
                lines = [line async for line in answer.content]
                return answer.status, b"".join(lines).decode()

    return asyncio.run(main())


WAYS: dict[str, Post] = {
    "httpx": by_httpx("httpx"),
    "httpx-async": by_async_httpx("httpx"),
    "httpx2": by_httpx("httpx2"),
    "httpx2-async": by_async_httpx("httpx2"),
    "requests": by_requests,
    "aiohttp": by_aiohttp,
}
every_way = pytest.mark.parametrize("post", WAYS.values(), ids=WAYS)


def question(tokens: int = 10, **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": say(tokens), **options}


def written(text: str) -> int:
    """How many chunks of a stream have something to show."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    assert all(chunk["choices"] for chunk in chunks), "a chunk is shown that was not asked for"
    return sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks)


@every_way
def test_the_router_is_told_the_session_of_the_run_unless_the_caller_has_one(
    bench: Bench, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.budgets.session_id = "hfbudget-0123456789ab"
    post(URL, question(max_tokens=9))
    monkeypatch.setitem(TOKEN, "x-hf-session-id", "of-the-caller")
    post(URL, question(max_tokens=9))
    log = bench.emulator.client.log(kind="request", phase="arrived")
    told = [entry["session"] for entry in log if entry["method"] == "POST"]
    assert told == ["hfbudget-0123456789ab", "of-the-caller"]
    assert [charge.session_id for charge in bench.ledger.charges()] == told


@every_way
def test_a_call_is_charged_what_the_invoice_says(bench: Bench, post: Post) -> None:
    bench.cap(1)
    status, text = post(URL, question(max_tokens=50))
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, 10)
    (charge,) = bench.ledger.charges()
    assert (charge.task, charge.model) == ("conversational", "emulator/chat")
    assert (bench.spent, bench.held) == (bench.billed, 0)
    assert bench.spent > 0


@every_way
def test_without_a_cap_calls_are_watched(bench: Bench, post: Post) -> None:
    post(URL, question())
    assert bench.spent == bench.billed > 0


@every_way
@pytest.mark.parametrize("read_as_it_comes", [True, False])
def test_a_stream_is_charged_what_the_invoice_says(
    bench: Bench, post: Post, read_as_it_comes: bool
) -> None:
    bench.cap(1)
    _, text = post(URL, question(max_tokens=50, stream=True), stream=read_as_it_comes)
    assert written(text) == 10
    assert text.endswith("data: [DONE]\n\n")
    assert (bench.spent, bench.held) == (bench.billed, 0)
    assert not bench.ledger.charges()[0].estimated


@every_way
def test_a_call_that_no_cap_holds_is_never_sent(bench: Bench, post: Post) -> None:
    bench.running("0.00001")
    with pytest.raises(BudgetExceededError, match=r"test_it: emulator/chat may cost up to"):
        post(URL, question(max_tokens=5000))
    assert (bench.sent, bench.spent, bench.held) == (0, 0, 0)
    assert len(bench.budgets.test.refusals) == 1  # type: ignore[union-attr]


@every_way
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_meets_the_limit_of_a_cap_is_a_refusal(
    bench: Bench, post: Post, stream: bool
) -> None:
    bench.cap("0.0001")
    with pytest.raises(BudgetExceededError, match="was stopped after"):
        post(URL, question(5000, stream=stream), stream=stream)
    assert bench.spent == bench.billed <= 100_000
    assert bench.held == 0


@every_way
def test_what_the_service_refuses_costs_nothing(bench: Bench, post: Post) -> None:
    bench.cap(1)
    assert post(URL, question(max_tokens=5, n=0))[0] == 400
    assert (bench.spent, bench.held) == (0, 0)
    assert [charge.status for charge in bench.ledger.charges()] == ["400"]


@every_way
def test_a_call_that_is_redirected_to_an_error_is_charged(bench: Bench, post: Post) -> None:
    bench.cap(1)
    nowhere = {"location": f"{bench.emulator.router}/nowhere"}
    bench.emulator.client.add_fault("chat", status=303, headers=nowhere, applied=True)
    status, _ = post(URL, question(max_tokens=50))
    assert status in (303, 404)  # httpx follows no redirect, unless it is told to
    assert bench.spent >= bench.billed > 0


@every_way
def test_a_lost_answer_is_charged_what_was_held(bench: Bench, post: Post) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault(op="chat", reset="after")
    with pytest.raises(Exception) as told:  # noqa: PT011 - each library has its own
        post(URL, question(max_tokens=50))
    assert not isinstance(told.value, BudgetExceededError)
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


@every_way
def test_a_stream_that_breaks_off_is_charged_what_was_held(bench: Bench, post: Post) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault(op="chat", cut_stream_after=3)
    with pytest.raises(Exception) as told:  # noqa: PT011 - each library has its own
        post(URL, question(max_tokens=50, stream=True), stream=True)
    assert not isinstance(told.value, BudgetExceededError)
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


@every_way
def test_a_dedicated_endpoint_or_a_server_of_one_s_own_is_paid_where_it_is_named(
    bench: Bench, post: Post
) -> None:
    bench.emulator.client.add_endpoint("acme/own", state="running")
    url = f"{bench.emulator.url}/endpoint/acme/own"
    bench.cap(1)
    bench.pay_for(url)
    bench.prices(**{url: {"input": 1, "output": 2}})
    post(f"{url}/v1/chat/completions", question(10, max_tokens=50))
    (charge,) = bench.ledger.charges()
    assert charge.model == f"{url}/v1/chat/completions"
    assert charge.nano_usd == charge.input_tokens * 1000 + 10 * 2000


@every_way
def test_a_server_of_this_machine_is_paid_by_each_of_its_names(bench: Bench, post: Post) -> None:
    """The settings say ``localhost``, and the code under test has its address."""
    bench.emulator.client.add_endpoint("acme/own", state="running")
    url = f"{bench.emulator.url}/endpoint/acme/own"
    bench.pay_for(url.replace("127.0.0.1", "LOCALHOST"))
    test = bench.running(1)
    with pytest.raises(BudgetExceededError, match="has no known price"):
        post(f"{url}/v1/chat/completions", question(max_tokens=50))
    assert len(test.refusals) == 1
    assert bench.sent == 0
    bench.running()
    post(f"{url}/v1/chat/completions", question(max_tokens=50))
    (charge,) = bench.ledger.charges()
    assert charge.nano_usd is None


@pytest.mark.parametrize(
    ("paid", "url"),
    [
        ("https://bücher.example/v1", "https://bücher.example/v1/embeddings"),
        ("https://bücher.example/v1", "https://xn--bcher-kva.example/v1/embeddings"),
        ("xn--bcher-kva.example", "https://BÜCHER.example/v1/embeddings"),
        ("https://gateway.example.com/v1", "https://gateway.example.com//v1//embeddings"),
    ],
)
@every_way
def test_a_host_is_paid_in_its_own_letters_in_ascii_and_behind_a_slash_too_many(
    bench: Bench, post: Post, paid: str, url: str
) -> None:
    bench.pay_for(paid)
    test = bench.running(1)
    with pytest.raises(BudgetExceededError, match="has no known price"):
        post(url, {"input": "a text"})
    assert len(test.refusals) == 1


@every_way
def test_other_hosts_and_other_methods_pass(bench: Bench, post: Post) -> None:
    bench.cap("0.0000001")
    bench.emulator.client.add_endpoint("acme/own", state="running")
    assert post(f"{bench.emulator.url}/endpoint/acme/own/v1/chat/completions", question())[0] == 200
    with library("httpx").Client() as client:
        assert client.get(f"{bench.emulator.router}/v1/models").status_code == 200
    assert bench.ledger.charges() == ()


@every_way
def test_a_body_of_bytes_is_read_too(bench: Bench, post: Post) -> None:
    """What some libraries do with ``json=``, others leave to their caller."""
    bench.cap("0.0001")
    payload = question(20, note="prefix " * 3)
    assert post(URL, payload)[0] == 200
    assert bench.spent == bench.billed > 0


# --- what only some libraries can do


def test_a_body_that_is_read_while_it_is_sent_can_be_held_by_httpx(bench: Bench) -> None:
    bench.cap("0.0001")
    body = json.dumps(question(20)).encode()
    with library("httpx").Client() as client:
        answer = client.post(URL, content=iter([body[:9], body[9:]]), headers=TOKEN)
    assert answer.status_code == 200
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("post", [by_requests, by_aiohttp], ids=["requests", "aiohttp"])
def test_a_body_that_can_not_be_read_ahead_is_refused(bench: Bench, post: Post) -> None:
    bench.cap(1)
    body = json.dumps(question(20)).encode()

    def by_requests_from_a_generator() -> None:
        library("requests").post(URL, data=iter([body]))

    async def by_aiohttp_from_a_generator() -> None:
        async def pieces() -> Any:
            yield body

        async with library("aiohttp").ClientSession() as session:
            await session.post(URL, data=pieces())

    with pytest.raises(BudgetExceededError, match="read only while it is sent"):
        if post is by_requests:
            by_requests_from_a_generator()
        else:
            asyncio.run(by_aiohttp_from_a_generator())
    assert bench.sent == 0


@pytest.mark.parametrize("library_name", ["httpx", "requests"])
@pytest.mark.parametrize(
    ("encode", "headers"),
    [
        (gzip.compress, {"content-encoding": "gzip"}),
        (lambda body: body.decode().encode("utf-16"), {}),
        (lambda body: b"[" + body + b"]", {}),
        (lambda body: b'{"max_tokens": 9, "max_tokens": 1, ' + body[1:], {}),
    ],
    ids=["gzip", "utf-16", "a list", "a name twice"],
)
def test_a_body_that_does_not_tell_its_limits_is_refused(
    bench: Bench,
    library_name: str,
    encode: Callable[[bytes], bytes],
    headers: dict[str, str],
) -> None:
    """A server addressed by URL has its price by that, whatever the body says."""
    url = f"{bench.emulator.url}/endpoint/ns/name/v1/chat/completions"
    bench.pay_for(f"{bench.emulator.url}/endpoint")
    bench.prices(**{url: {"input": 1, "output": 2}})
    bench.cap(1)
    body = encode(json.dumps(question(2000)).encode())
    given: Any = {"content" if library_name == "httpx" else "data": body}
    with pytest.raises(BudgetExceededError, match=r"is compressed|can't read the limits"):
        library(library_name).post(url, headers=headers, **given)
    assert bench.sent == 0


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_encoded_answer_is_read(bench: Bench, name: str, stream: bool) -> None:
    bench.cap(1)
    bench.prices(**{"*": {"input": 1, "output": 2}})
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    event = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    events = f"data: {json.dumps({**event, 'usage': usage})}\n\ndata: [DONE]\n\n"
    whole = json.dumps({"choices": [], "usage": usage})
    kind = "text/event-stream" if stream else "application/json"
    module = library(name)

    def answer(request: Any) -> Any:
        body = gzip.compress((events if stream else whole).encode())
        headers = {"content-encoding": "gzip", "content-type": kind}
        return module.Response(200, headers=headers, stream=module.ByteStream(body))

    with module.Client(transport=module.MockTransport(answer)) as client:
        with client.stream("POST", URL, json=question(stream=stream)) as got:
            assert got.read().decode() == (events if stream else whole)
    (charge,) = bench.ledger.charges()
    assert (charge.input_tokens, charge.output_tokens) == (3, 4)
    assert (charge.replayed, charge.nano_usd) == (True, 0)


@pytest.mark.parametrize(
    "headers",
    [{"x-long": "a" * 9000}, {"content-encoding": "zstd"}],
    ids=["too long a header", "an encoding that is not known"],
)
def test_an_answer_that_aiohttp_takes_for_a_bad_request_is_charged_what_was_held(
    bench: Bench, headers: dict[str, str]
) -> None:
    """It raises a status of 400 that the server has not said."""
    bench.cap(1)
    bench.emulator.client.add_fault("chat", status=200, applied=True, headers=headers, json={})
    with pytest.raises(library("aiohttp").ClientError):
        by_aiohttp(URL, question(max_tokens=50))
    assert bench.held == 0
    assert bench.spent >= bench.billed > 0


def test_aiohttp_takes_a_method_in_small_letters(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> None:
        async with library("aiohttp").ClientSession() as session:
            async with session.request("post", URL, json=question(), headers=TOKEN) as answer:
                await answer.read()

    asyncio.run(main())
    assert bench.spent == bench.billed > 0


def test_an_answer_of_aiohttp_that_is_not_read_is_settled(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> None:
        async with library("aiohttp").ClientSession() as session:
            async with session.post(URL, json=question(max_tokens=50), headers=TOKEN) as answer:
                assert answer.status == 200

    asyncio.run(main())
    assert bench.held == 0
    assert bench.spent >= bench.billed > 0


def test_lines_of_a_stream_can_be_read_by_requests(bench: Bench) -> None:
    bench.cap(1)
    payload = question(max_tokens=50, stream=True)
    with closing(library("requests").post(URL, json=payload, headers=TOKEN, stream=True)) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert written("\n".join(map(bytes.decode, lines))) == 10
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("name", ["httpx", "requests", "aiohttp.client"])
def test_the_libraries_are_put_back_after_the_run(bench: Bench, name: str) -> None:
    library(name.partition(".")[0])
    module = import_module(name)
    owner, method = {
        "httpx": ("Client", "send"),
        "requests": ("Session", "send"),
        "aiohttp.client": ("ClientSession", "_request"),
    }[name]
    assert hasattr(getattr(getattr(module, owner), method), "__wrapped__")
    bench.runtime.release()
    assert not hasattr(getattr(getattr(module, owner), method), "__wrapped__")
    bench.runtime.acquire()


ENDPOINT = "https://abc.us-east-1.aws.endpoints.huggingface.cloud"


def ask_by_hub(**options: Any) -> None:
    from huggingface_hub import InferenceClient

    InferenceClient(**options).chat_completion(question(3)["messages"], max_tokens=3)


REAL = {
    "an endpoint, by httpx": lambda: by_httpx("httpx")(f"{ENDPOINT}/v1/chat/completions", {}),
    "an endpoint, by requests": lambda: by_requests(f"{ENDPOINT}/v1/chat/completions", {}),
    "an endpoint, by aiohttp": lambda: by_aiohttp(f"{ENDPOINT}/v1/chat/completions", {}),
    "an endpoint, by huggingface_hub": lambda: ask_by_hub(base_url=ENDPOINT, token="hf_x"),
    "a provider": lambda: ask_by_hub(model="emulator/chat", provider="together", api_key="sk-x"),
    "a paid host": lambda: by_httpx("httpx")("https://gateway.example.com/v1/embeddings", {}),
    "a Job": lambda: by_httpx("httpx")("https://huggingface.co/api/jobs/me", {}),
}


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("ask", REAL.values(), ids=REAL)
def test_a_rehearsal_sends_nothing_to_a_real_service(
    bench: Bench, ask: Callable[[], object], capped: bool
) -> None:
    bench.pay_for("gateway.example.com")
    bench.prices(**{"*": {"input": 1, "output": 1}, ENDPOINT: {"input": 1, "output": 1}})
    if capped:
        bench.cap(1)
    test = bench.running()
    bench.runtime.meter.emulator = bench.emulator.url
    with pytest.raises(BudgetExceededError, match="is not the emulator"):
        ask()
    assert len(test.refusals) == 1
    assert (bench.spent, bench.held) == (0, 0)


def test_a_stand_in_answers_for_a_real_service_in_a_rehearsal(bench: Bench) -> None:
    httpx = library("httpx")
    bench.runtime.meter.emulator = bench.emulator.url
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"choices": []}))
    with httpx.Client(transport=transport) as client:
        assert client.post(f"{ENDPOINT}/v1/chat/completions", json=question(3)).status_code == 200


def test_a_client_that_can_not_be_read_leaves_no_rehearsal(bench: Bench) -> None:
    """127.0.0.2 stands for another machine."""
    with socket.create_server(("127.0.0.2", 0)) as server:
        address = f"127.0.0.2:{server.getsockname()[1]}"
        bench.pay_for(address)
        bench.runtime.meter.emulator = bench.emulator.url
        with pytest.raises(BudgetExceededError, match="is not the emulator"):
            urlopen(f"http://{address}/v1/chat/completions", b"{}", timeout=5)
