"""One call, several POSTs: each that leaves is held and charged, or stopped."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

import huggingface_hub
import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget import BudgetExceededError

PRICE = {"emulator__chat": {"input": 1, "output": 2}}

requests_based = int(huggingface_hub.__version__.partition(".")[0]) < 1
by_httpx = pytest.mark.skipif(requests_based, reason="this huggingface_hub posts by requests")


def http_library() -> Any:
    """What huggingface_hub posts by: httpx, and since its 2.0 httpx2."""
    from huggingface_hub.utils import _http

    return importlib.import_module("httpx2" if hasattr(_http, "httpx2") else "httpx")


def ask(bench: Bench, **options: Any) -> None:
    """One call, whatever comes of it."""
    bench.client(**options).chat_completion(say(10), max_tokens=50)


def redirect(bench: Bench, status: int, to: str, times: int = 1) -> None:
    """Have chats carried out, billed, and answered by a redirect."""
    bench.emulator.client.add_fault(
        "chat", status=status, headers={"location": to}, applied=True, times=times
    )


def itself(bench: Bench) -> str:
    return f"{bench.emulator.router}/v1/chat/completions"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_call_that_was_sent_and_then_redirected_nowhere_is_charged(
    bench: Bench, free_port: int, status: int
) -> None:
    bench.prices(**PRICE)
    bench.cap("0.01")
    redirect(bench, status, f"http://127.0.0.1:{free_port}/v1/chat/completions")
    with pytest.raises(Exception):  # noqa: B017, PT011 - each HTTP library has its own
        ask(bench)
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


@pytest.mark.parametrize("status", [302, 303])
def test_a_call_whose_redirect_ends_in_an_error_is_charged(bench: Bench, status: int) -> None:
    """The error is that of the GET to which the redirect has led."""
    bench.prices(**PRICE)
    bench.cap("0.01")
    redirect(bench, status, f"{bench.emulator.router}/nowhere")
    with pytest.raises(Exception, match="404"):
        ask(bench)
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_calls_that_are_redirected_nowhere_stay_within_the_cap(
    bench: Bench, free_port: int
) -> None:
    bench.prices(**PRICE)
    bench.cap("0.003")
    redirect(bench, 302, f"http://127.0.0.1:{free_port}/", times=100)
    for _ in range(60):
        with pytest.raises(Exception):  # noqa: B017, PT011 - lost, and refused in the end
            ask(bench)
    assert 0 < bench.billed <= bench.spent <= 3_000_000


def test_each_turn_of_a_redirect_loop_is_a_call(bench: Bench) -> None:
    bench.prices(**PRICE)
    bench.cap("0.01")
    redirect(bench, 307, itself(bench), times=100)
    with pytest.raises(BudgetExceededError, match="was not sent"):
        ask(bench)
    assert 0 < bench.billed <= bench.spent <= 10_000_000
    assert bench.sent == bench.ledger.total("session").calls
    assert bench.held == 0


def test_each_turn_of_a_redirect_loop_counts_for_max_calls(bench: Bench) -> None:
    from pytest_hfbudget import budget

    bench.prices(**PRICE)
    redirect(bench, 307, itself(bench), times=100)
    with pytest.raises(BudgetExceededError, match="max_calls"), budget(max_calls=1):
        ask(bench)
    assert bench.sent == 1


def test_a_redirect_that_ends_in_an_answer_is_charged_for_both(bench: Bench) -> None:
    bench.prices(**PRICE)
    bench.cap(1)
    redirect(bench, 307, itself(bench))
    ask(bench)
    assert [charge.status for charge in bench.ledger.charges()] == ["sent again", "200"]
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_without_a_cap_each_turn_is_counted(bench: Bench) -> None:
    bench.prices(**PRICE)
    redirect(bench, 307, itself(bench), times=2)
    ask(bench)
    assert [charge.status for charge in bench.ledger.charges()] == [
        "sent again",
        "sent again",
        "200",
    ]
    assert bench.spent >= bench.billed > 0


def test_each_turn_of_an_async_call_is_a_call(bench: Bench) -> None:
    bench.prices(**PRICE)
    bench.cap("0.002")  # aiohttp follows ten redirects
    redirect(bench, 307, itself(bench), times=100)

    async def main() -> None:
        async with bench.async_client() as client:
            await client.chat_completion(say(10), max_tokens=50)

    with pytest.raises(BudgetExceededError, match="was not sent"):
        asyncio.run(main())
    assert 0 < bench.billed <= bench.spent <= 2_000_000
    assert bench.sent == bench.ledger.total("session").calls


@pytest.fixture
def retrying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A transport of the user's, which sends a call 20 times and then says it never connected."""
    if requests_based:
        pytest.skip("this huggingface_hub posts by requests")
    httpx = http_library()

    class Retrying(httpx.HTTPTransport):  # type: ignore[name-defined, misc] # either library's
        def handle_request(self, request: Any) -> Any:
            for _ in range(20):
                try:
                    super().handle_request(request).close()
                except Exception:
                    continue
            raise httpx.ConnectError("gave up")

    made = httpx.Client(transport=Retrying(), timeout=10)
    monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: made, raising=True)
    yield made
    made.close()


def test_what_a_retrying_transport_sends_is_charged_each_time(bench: Bench, retrying: Any) -> None:
    bench.prices(**PRICE)
    bench.cap(1)
    with pytest.raises(Exception, match="gave up"):
        ask(bench)
    assert bench.sent == bench.ledger.total("session").calls == 20
    assert bench.spent >= bench.billed > 0


def test_a_retrying_transport_stops_at_the_cap(bench: Bench, retrying: Any) -> None:
    bench.prices(**PRICE)
    bench.cap("0.002")
    with pytest.raises(BudgetExceededError):
        ask(bench)
    assert 0 < bench.sent < 20
    assert bench.billed <= bench.spent <= 2_000_000
    assert bench.held == 0


@by_httpx
def test_a_connection_that_another_thread_has_taken_sends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool may hand one idle connection to two threads; the second goes on to another."""
    core = http_library().__name__.replace("httpx", "httpcore")
    connection = importlib.import_module(f"{core}._sync.http11").HTTP11Connection
    handle = connection.handle_request
    found: list[object] = []

    def taken_at_first(self: Any, request: Any) -> Any:
        if self.is_idle() and not found:
            found.append(self)
            self._state = type(self._state).ACTIVE
        return handle(self, request)

    bench.prices(**PRICE)
    bench.cap(1)
    ask(bench)
    monkeypatch.setattr(connection, "handle_request", taken_at_first)
    ask(bench)
    assert found
    assert [charge.status for charge in bench.ledger.charges()] == ["200", "200"]
    assert bench.sent == 2


@by_httpx
def test_what_another_thread_reads_of_that_host_is_not_refused_with_a_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused call is stopped on its way out, and only it: not a GET of the same moment."""
    httpx = http_library()
    read: list[int] = []

    def elsewhere() -> None:
        read.append(httpx.get(f"{bench.emulator.router}/v1/models").status_code)

    def on_its_way(request: Any) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    with httpx.Client(event_hooks={"request": [on_its_way]}) as session:
        monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
        bench.prices(**PRICE)
        bench.cap(0)
        with pytest.raises(BudgetExceededError):
            ask(bench)
    assert read == [200]
    assert bench.sent == 0


@by_httpx
@pytest.mark.parametrize("limit", [5000, "many"])
def test_a_hook_that_makes_the_request_larger_is_stopped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: object
) -> None:
    httpx = http_library()

    def enlarge(request: Any) -> None:
        body = json.loads(request.content)
        replaced = json.dumps({**body, "max_tokens": limit}).encode()
        request.stream = httpx.ByteStream(replaced)
        request._content = replaced
        request.headers["content-length"] = str(len(replaced))

    with httpx.Client(event_hooks={"request": [enlarge]}) as session:
        monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
        bench.prices(**PRICE)
        bench.cap("0.002")
        with pytest.raises(BudgetExceededError, match="has changed the request"):
            ask(bench)
    assert (bench.sent, bench.spent, bench.held) == (0, 0, 0)


@by_httpx
def test_a_hook_that_changes_no_limit_is_no_reason_to_refuse(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx = http_library()
    seen: list[str] = []
    hooks = {"request": [lambda request: seen.append(request.method)]}
    with httpx.Client(event_hooks=hooks) as session:
        monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
        bench.cap("0.01")
        ask(bench)
    assert seen == ["POST"]
    assert bench.spent == bench.billed > 0


@by_httpx
@pytest.mark.parametrize("limit", [5, None])
def test_what_the_plugin_itself_adds_to_a_request_is_no_change_by_a_hook(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """A stream is asked for its usage under a cap, and a call without a limit gets one."""
    httpx = http_library()
    with httpx.Client(event_hooks={"request": [lambda request: None]}) as session:
        monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
        bench.cap("0.01")
        answer = bench.client().chat_completion(say(3), max_tokens=limit, stream=True)
        assert list(answer)
    assert bench.spent == bench.billed > 0


def test_what_another_thread_adds_to_a_question_is_not_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger asks for the time that the question is held: a moment to change it in."""
    bench.prices(**PRICE)
    bench.cap("0.01")
    question = say(1)
    hold = bench.books.hold_or_queue

    def slow(*args: Any) -> Any:
        answer = hold(*args)
        question[0]["content"] += " and more" * 10_000
        return answer

    monkeypatch.setattr(bench.books, "hold_or_queue", slow)  # stands for the other thread
    bench.client(MODEL).chat_completion(question, max_tokens=5)
    (charge,) = bench.ledger.charges()
    assert charge.input_tokens < 100
    assert not charge.estimated


def test_the_first_async_call_of_a_process_is_sent_under_a_cap(bench: Bench) -> None:
    """Before huggingface_hub 1.0 aiohttp is imported in the middle of that call."""
    code = """
        import asyncio, sys
        from huggingface_hub import AsyncInferenceClient
        from pytest_hfbudget import budget

        async def main():
            client = AsyncInferenceClient(model="emulator/chat", token="hf_of_the_tests")
            question = [{"role": "user", "content": "Say something."}]
            await client.chat_completion(question, max_tokens=5)

        with budget(1, price_per_1k_tokens={"input": 0.001, "output": 0.001}) as block:
            asyncio.run(main())
        assert block.calls_used == 1
    """
    environment = {
        **os.environ,
        "HFBUDGET_ROUTER": bench.emulator.router,
        "HF_ENDPOINT": bench.emulator.hub,
    }
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert bench.sent == 1


URL = "https://router.huggingface.co/v1/chat/completions"
TOKEN = {"authorization": "Bearer hf_of_the_tests"}


def chat(tokens: int, limit: int) -> dict[str, Any]:
    """The body of a request whose answer has so many tokens."""
    return {"model": MODEL, "messages": say(tokens), "max_tokens": limit}


def with_response_hook(library: str, hook: Callable[..., object]) -> Any:
    """A client of a library that calls a function with each answer."""
    module = pytest.importorskip(library)
    if library == "requests":
        session = module.Session()
        session.hooks["response"].append(hook)
        return session
    return module.Client(event_hooks={"response": [hook]})


@pytest.mark.parametrize("library", ["httpx", "httpx2", "requests"])
def test_a_call_that_a_response_hook_makes_is_one_of_its_own(bench: Bench, library: str) -> None:
    module = pytest.importorskip(library)
    bench.cap(1)

    def hook(*_: object, **__: object) -> None:
        module.post(URL, json=chat(300, 300), headers=TOKEN)

    with with_response_hook(library, hook) as client:
        client.post(URL, json=chat(3, 5), headers=TOKEN)
    assert [charge.status for charge in bench.ledger.charges()] == ["200", "200"]
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_call_that_a_request_hook_makes_is_one_of_its_own(bench: Bench, library: str) -> None:
    """Nothing of the other one has left by then."""
    module = pytest.importorskip(library)
    bench.cap(1)

    def hook(_: object) -> None:
        module.post(URL, json=chat(300, 300), headers=TOKEN)

    with module.Client(event_hooks={"request": [hook]}) as client:
        client.post(URL, json=chat(3, 5), headers=TOKEN)
    assert [charge.status for charge in bench.ledger.charges()] == ["200", "200"]
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("library", ["httpx", "httpx2", "requests"])
def test_a_cap_holds_the_calls_of_a_response_hook(bench: Bench, library: str) -> None:
    module = pytest.importorskip(library)
    bench.prices(**PRICE)
    bench.cap("0.0012")

    def hook(*_: object, **__: object) -> None:
        with pytest.raises(BudgetExceededError):
            module.post(URL, json=chat(2000, 2000), headers=TOKEN)

    with with_response_hook(library, hook) as client:
        client.post(URL, json=chat(3, 5), headers=TOKEN)
    assert bench.sent == 1
    assert 0 < bench.billed <= bench.spent <= 1_200_000


def test_a_cap_holds_a_call_of_a_signal_handler_beside_the_one_in_flight(bench: Bench) -> None:
    httpx = pytest.importorskip("httpx")
    bench.prices(**PRICE)
    bench.cap("0.0012")
    bench.emulator.client.configure(answer_delay_s=0.3)
    refused: list[object] = []

    def handler(*_: object) -> None:
        with pytest.raises(BudgetExceededError) as caught:
            httpx.post(URL, json=chat(2000, 2000), headers=TOKEN)
        refused.append(caught.value)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        httpx.post(URL, json=chat(3, 5), headers=TOKEN)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(refused) == bench.sent == 1
    assert 0 < bench.billed <= bench.spent <= 1_200_000


def test_a_larger_request_of_a_plain_thread_is_not_taken_for_the_call_in_flight(
    bench: Bench,
) -> None:
    httpx = pytest.importorskip("httpx")
    bench.prices(**PRICE)
    bench.cap("0.0012")
    bench.emulator.client.configure(answer_delay_s=0.3)

    def elsewhere() -> None:
        bench.emulator.client.wait_for(op="chat")
        body = json.dumps(chat(2000, 2000)).encode()
        with pytest.raises(BudgetExceededError):
            urlopen(Request(itself(bench), body, {**TOKEN, "content-type": "application/json"}))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with pytest.raises(BudgetExceededError, match="has changed the request"):
        httpx.post(URL, json=chat(3, 5), headers=TOKEN)
    thread.join()
    assert 0 < bench.billed <= bench.spent <= 1_200_000
    assert bench.held == 0


def larger_by_a_middleware() -> None:
    aiohttp = pytest.importorskip("aiohttp", minversion="3.12")

    async def enlarge(request: Any, handler: Any) -> Any:
        await request.update_body(json.dumps(chat(2000, 2000)).encode())
        return await handler(request)

    async def main() -> None:
        async with aiohttp.ClientSession(middlewares=(enlarge,)) as session:
            await session.post(URL, json=chat(3, 5), headers=TOKEN)

    asyncio.run(main())


def larger_by_auth() -> None:
    httpx = pytest.importorskip("httpx")

    class Enlarging(httpx.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Any:
            yield httpx.Request("POST", request.url, headers=TOKEN, json=chat(2000, 2000))

    httpx.post(URL, json=chat(3, 5), headers=TOKEN, auth=Enlarging())


def larger_by_a_replaced_method() -> None:
    adapters = pytest.importorskip("requests").adapters
    original = adapters.HTTPAdapter.send

    def send(self: Any, request: Any, **options: Any) -> Any:
        request.body = json.dumps(chat(2000, 2000)).encode()
        request.headers["Content-Length"] = str(len(request.body))
        return original(self, request, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters.HTTPAdapter, "send", send)
        importlib.import_module("requests").post(URL, json=chat(3, 5), headers=TOKEN)


def another_model_by_a_hook() -> None:
    httpx = pytest.importorskip("httpx")

    def replace(request: Any) -> None:
        body = json.dumps({**chat(3, 5), "model": "emulator/many"}).encode()
        request.stream, request._content = httpx.ByteStream(body), body
        request.headers["content-length"] = str(len(body))

    with httpx.Client(event_hooks={"request": [replace]}) as client:
        client.post(URL, json=chat(3, 5), headers=TOKEN)


@pytest.mark.parametrize(
    "post",
    [
        larger_by_a_middleware,
        larger_by_auth,
        larger_by_a_replaced_method,
        another_model_by_a_hook,
    ],
)
def test_what_is_changed_on_its_way_is_stopped(bench: Bench, post: Callable[[], None]) -> None:
    bench.prices(**PRICE)
    bench.cap("0.0012")
    with pytest.raises(BudgetExceededError, match="has changed the request"):
        post()
    assert (bench.billed, bench.spent, bench.held) == (0, 0, 0)


def test_what_was_sent_before_a_larger_one_was_stopped_is_charged(bench: Bench) -> None:
    httpx = pytest.importorskip("httpx")

    class Growing(httpx.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            super().handle_request(request).read()
            larger = httpx.Request("POST", request.url, headers=TOKEN, json=chat(2000, 2000))
            return super().handle_request(larger)

    bench.prices(**PRICE)
    bench.cap("0.0045")
    with (
        pytest.raises(BudgetExceededError, match="has changed the request"),
        httpx.Client(transport=Growing()) as client,
    ):
        client.post(URL, json=chat(3, 5), headers=TOKEN)
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_what_a_hook_reports_to_another_host_is_no_call(bench: Bench, library: str) -> None:
    """The emulator's control is such a place: it is on a paid host, and costs nothing there."""

    def report(*_: object, **__: object) -> None:
        bench.emulator.client.configure(answer_delay_s=0.0)

    bench.cap("0.01")
    with with_response_hook(library, report) as client:
        client.post(URL, json=chat(3, 5), headers=TOKEN)
    assert [charge.status for charge in bench.ledger.charges()] == ["200"]
    assert bench.spent == bench.billed > 0
