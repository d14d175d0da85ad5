"""Requests to paid hosts by clients that can't be read: refused under a cap, else counted."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError

TOKEN = {"Authorization": "Bearer hf_of_the_tests", "Content-Type": "application/json"}
BODY = json.dumps({"model": "emulator/chat:groq", "messages": say(3), "max_tokens": 9}).encode()
PATH = "/router/v1/chat/completions"


def by_urllib(url: str) -> None:
    with urlopen(Request(url + PATH, BODY, TOKEN)) as answer:
        assert answer.status == 200


def by_http_client(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", PATH, BODY, TOKEN)
    assert connection.getresponse().status == 200
    connection.close()


def by_urllib3(url: str) -> None:
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager() as pool:
        assert pool.request("POST", url + PATH, body=BODY, headers=TOKEN).status == 200


def by_a_transport(url: str) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.HTTPTransport() as transport:
        request = httpx.Request("POST", url + PATH, content=BODY, headers=TOKEN)
        answer = transport.handle_request(request)
        answer.read()
        assert answer.status_code == 200


def by_a_socket(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 80)) as one:
        lines = [f"POST {PATH} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(BODY)}"]
        lines += [f"{name}: {value}" for name, value in TOKEN.items()]
        one.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + BODY)
        assert one.recv(12) == b"HTTP/1.1 200"


def by_a_stream(url: str) -> None:
    async def main() -> None:
        parts = urlsplit(url)
        _, writer = await asyncio.open_connection("localhost", parts.port)
        writer.close()

    asyncio.run(main())


def by_connect(url: str) -> None:
    with socket.socket() as one:
        one.connect(("localhost", urlsplit(url).port))


def by_connect_ex(url: str) -> None:
    with socket.socket() as one:
        one.connect_ex(("localhost", urlsplit(url).port))


WAYS = (by_urllib, by_http_client, by_urllib3, by_a_transport, by_a_socket)
every_way = pytest.mark.parametrize("post", WAYS)


@every_way
def test_without_a_cap_it_is_sent_and_counted(bench: Bench, post: Callable[[str], None]) -> None:
    post(bench.emulator.url)
    (why,) = bench.books.unmetered()
    assert why.endswith(" to 127.0.0.1 by a client that pytest-hfbudget can't read")
    assert bench.books.unmetered()[why] == 1
    assert bench.sent == 1


@pytest.mark.parametrize("post", [*WAYS, by_a_stream, by_connect, by_connect_ex])
def test_under_a_cap_it_is_not_sent(bench: Bench, post: Callable[[str], None]) -> None:
    bench.pay_for("localhost")
    test = bench.running(1)
    with pytest.raises(
        BudgetExceededError, match=r"^test_it: a \w+ to (127\.0\.0\.1|localhost) comes from a "
    ):
        post(bench.emulator.url)
    assert (bench.sent, len(test.refusals)) == (0, 1)


@pytest.mark.parametrize("tunnel", [False, True])
def test_what_goes_by_a_proxy_is_not_sent_either(bench: Bench, tunnel: bool) -> None:
    """The connection is one to the proxy, whose host costs nothing."""
    parts = urlsplit(bench.emulator.url)
    heard: list[bytes] = []

    def listen() -> None:
        near, _ = proxy.accept()
        with near:
            if tunnel:
                near.recv(65536)
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            heard.append(near.recv(65536))

    bench.running(1)
    with socket.create_server(("localhost", 0)) as proxy:
        thread = threading.Thread(target=listen)
        thread.start()
        connection = http.client.HTTPConnection("localhost", proxy.getsockname()[1])
        if tunnel:
            connection.set_tunnel(parts.hostname or "", parts.port)
        path = PATH if tunnel else bench.emulator.url + PATH
        with pytest.raises(BudgetExceededError, match="comes from a client that"):
            connection.request("POST", path, BODY, TOKEN)
        connection.close()
        thread.join()
    assert heard == [b""]


def test_a_swallowed_refusal_is_recorded_where_the_test_fails_for_it(bench: Bench) -> None:
    test = bench.running(1)
    thread = threading.Thread(target=_quietly, args=(by_urllib, bench.emulator.url))
    thread.start()
    thread.join()
    assert "to 127.0.0.1 comes from a client" in str(test.refusals[0])


def _quietly(post: Callable[[str], None], url: str) -> None:
    with pytest.raises(BudgetExceededError):
        post(url)


@pytest.mark.parametrize("library", ["urllib", "httpx", "requests", "aiohttp"])
def test_what_costs_nothing_passes(bench: Bench, library: str) -> None:
    """GETs, and other places of a host."""
    bench.cap("0.0000001")
    url = f"{bench.emulator.router}/v1/models"
    if library == "urllib":
        assert urlopen(url).status == 200
    elif library == "aiohttp":
        assert asyncio.run(_get_by_aiohttp(url)) == 200
    else:
        assert pytest.importorskip(library).get(url).status_code == 200
    bench.emulator.client.configure()  # a POST by urllib3
    assert bench.books.unmetered() == {}


async def _get_by_aiohttp(url: str) -> int:
    aiohttp: Any = pytest.importorskip("aiohttp")
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return int(answer.status)


def test_a_server_may_look_up_its_own_address(bench: Bench) -> None:
    bench.cap(1)
    bench.pay_for("localhost")

    async def main() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "localhost", 0)
        server.close()

    asyncio.run(main())
    assert bench.books.unmetered() == {}


def test_calls_of_known_clients_are_not_taken_for_unseen_ones(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> None:
        async with bench.async_client() as client:
            asked = (client.chat_completion(say(3), max_tokens=9) for _ in range(8))
            await asyncio.gather(*asked)

    asyncio.run(main())
    threads = [
        threading.Thread(target=lambda: bench.client().chat_completion(say(3), max_tokens=9))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.books.unmetered() == {}
    assert bench.spent == bench.billed > 0
