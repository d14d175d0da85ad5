"""What the Hub tells of the bill, and every odd answer as one line."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import InferenceClient

from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.endpoints.transport import HttpAnswer
from pytest_hfbudget.history.billing import BillError, BillingClient
from pytest_hfbudget.reporting.bill import FORBIDDEN, UNAVAILABLE, Booked

TOKEN = "hf_of_the_tests"
OP = "bill_by_session"
DAY_S = 86_400


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(running: Emulator) -> Emulator:
    running.client.reset()
    return running


def call(emulator: Emulator, session: str, bill_to: str | None = None) -> None:
    client = InferenceClient(
        base_url=f"{emulator.router}/v1",
        api_key=TOKEN,
        headers={"X-HF-Session-id": session},
        bill_to=bill_to,
    )
    question = [{"role": "user", "content": "Hello"}]
    client.chat_completion(question, model="emulator/chat:groq", max_tokens=9)


def ask(emulator: Emulator, *sessions: str, org: str | None = None, ago_s: float = 60) -> Any:
    now = time.time()
    return BillingClient(emulator.hub, TOKEN, org).sessions(sessions, now - ago_s, now)


def billed(emulator: Emulator) -> int:
    return int(emulator.client.invoice()["calls_nano_usd"])


def test_a_session_is_booked_to_the_nano_dollar(emulator: Emulator) -> None:
    call(emulator, "one")
    call(emulator, "one")
    assert ask(emulator, "one") == {"one": Booked(billed(emulator), 2)}


def test_a_session_that_is_not_told_yet_is_missing(emulator: Emulator) -> None:
    emulator.client.configure(billing_lag_s=60.0)
    call(emulator, "one")
    assert ask(emulator, "one") == {}


def test_several_sessions_are_found_on_several_pages(emulator: Emulator) -> None:
    for name in "abcde":
        call(emulator, name)
    emulator.client.configure(billing_page_limit=2)
    found = ask(emulator, "a", "e")
    assert {name: one.requests for name, one in found.items()} == {"a": 1, "e": 1}
    assert len(emulator.client.log(op=OP, phase="arrived")) == 3


def test_an_organisation_has_a_bill_of_its_own(emulator: Emulator) -> None:
    call(emulator, "one", bill_to="acme")
    assert ask(emulator, "one") == {}
    assert ask(emulator, "one", org="acme") == {"one": Booked(billed(emulator), 1)}


def told(*periods: Any, currency: Any = "USD") -> dict[str, Any]:
    return {"currency": currency, "periods": list(periods)}


def row(requests: Any = 1, cents: Any = 2, name: Any = "one") -> dict[str, Any]:
    return {"id": name, "requestCount": requests, "costCents": cents}


def period(*rows: Any) -> dict[str, Any]:
    return {"period": "2026-11", "sessions": list(rows)}


def test_a_session_in_several_periods_is_their_sum(emulator: Emulator) -> None:
    answer = told(period(row(1, 0.1)), period(row(2, 0.0000002), row(9, 9, "other")), period())
    emulator.client.add_fault(OP, status=200, json=answer)
    assert ask(emulator, "one") == {"one": Booked(1_000_002, 3)}


def test_what_a_float_adds_to_an_amount_is_rounded_off(emulator: Emulator) -> None:
    answer = told(period(row(1, 0.1 + 0.2)))
    emulator.client.add_fault(OP, status=200, json=answer)
    assert ask(emulator, "one") == {"one": Booked(3_000_000, 1)}


def test_an_odd_row_of_another_session_is_in_the_way_of_none(emulator: Emulator) -> None:
    emulator.client.add_fault(OP, status=200, json=told(period(row(), row(-1, "x", "other"))))
    assert ask(emulator, "one") == {"one": Booked(20_000_000, 1)}


ODD = {
    "no currency": ({"periods": []}, "the bill has no currency"),
    "another currency": (told(currency="EUR"), "the bill is in EUR, the ledger in USD"),
    "no periods": ({"currency": "USD"}, "the bill has no periods"),
    "periods as an object": (
        {"currency": "USD", "periods": {}},
        "the bill has an unexpected periods",
    ),
    "a list": ([], "the bill is not an object"),
    "null": (None, None),
    "a period that is a text": (told("2026-11"), "an item of periods is not an object"),
    "no sessions": (told({"period": "2026-11"}), "an item of periods has no sessions"),
    "no id": (told(period({"requestCount": 1, "costCents": 1})), "an item of sessions has no id"),
    "an id that is a number": (
        told(period(row(name=1))),
        "an item of sessions has an unexpected id: 1",
    ),
    "no cost": (
        told(period({"id": "one", "requestCount": 1})),
        "an item of sessions has no costCents",
    ),
    "no count": (
        told(period({"id": "one", "costCents": 1})),
        "an item of sessions has no requestCount",
    ),
    "a negative cost": (told(period(row(1, -1))), "has an unexpected costCents: -1"),
    "a cost that is a text": (told(period(row(1, "2"))), "has an unexpected costCents: '2'"),
    "a cost that is true": (told(period(row(1, True))), "has an unexpected costCents: True"),
    "an absurd cost": (told(period(row(1, 1e300))), "has an unexpected costCents: "),
    "a count with a fraction": (told(period(row(1.5))), "has an unexpected requestCount: "),
}


@pytest.mark.parametrize("name", [name for name, (_, line) in ODD.items() if line])
def test_an_odd_answer_is_one_line(emulator: Emulator, name: str) -> None:
    answer, line = ODD[name]
    emulator.client.add_fault(OP, status=200, json=answer)
    with pytest.raises(BillError) as caught:
        ask(emulator, "one")
    assert str(line) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == UNAVAILABLE


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[[" * 99_999, b'{"currency": NaN}', b"\xff\xfe", b"1e9"]
)
def test_an_answer_that_is_no_bill_is_one_line(body: bytes) -> None:
    class Answering:
        def send(self, *_: Any) -> HttpAnswer:
            return HttpAnswer(200, body, {"content-type": "text/html\x1b[2J"})

    hub = BillingClient("https://hub.example", TOKEN, transport=Answering())
    with pytest.raises(BillError) as caught:
        hub.sessions({"one"}, 0, 0)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("amount", [b"NaN", b"Infinity", b"-0.5", b"1e999999", b"1e99999999999"])
def test_an_amount_that_is_none_is_one_line(amount: bytes) -> None:
    row = b'{"id": "one", "requestCount": 1, "costCents": %s}' % amount

    class Answering:
        def send(self, *_: Any) -> HttpAnswer:
            body = b'{"currency": "USD", "periods": [{"sessions": [%s]}]}' % row
            return HttpAnswer(200, body)

    with pytest.raises(BillError):
        BillingClient("https://hub.example", TOKEN, transport=Answering()).sessions({"one"}, 0, 0)


def test_a_page_of_html_says_so(emulator: Emulator) -> None:
    emulator.client.add_fault(OP, garbage=True)
    with pytest.raises(BillError, match=r"the answer is not JSON \(text/html"):
        ask(emulator, "one")


def test_a_server_that_is_busy_is_asked_again(emulator: Emulator) -> None:
    call(emulator, "one")
    emulator.client.add_fault(OP, status=503, times=2)
    assert ask(emulator, "one")["one"].requests == 1


def test_a_server_that_stays_busy_or_is_gone_is_one_line(emulator: Emulator) -> None:
    emulator.client.add_fault(OP, status=503, times=None)
    with pytest.raises(BillError, match=r"/hub answered HTTP 503$"):
        ask(emulator, "one")
    with pytest.raises(BillError, match=r"http://127.0.0.1:1 did not answer"):
        BillingClient("http://127.0.0.1:1", TOKEN).sessions({"one"}, 0, 0)


@pytest.mark.parametrize(
    ("org", "needed"), [(None, '"Read billing usage"'), ("acme", "org.billing.read")]
)
def test_a_token_without_the_permission_is_told_which(
    emulator: Emulator, org: str | None, needed: str
) -> None:
    hub = BillingClient(emulator.hub, "hf_nobilling", org)
    for read in (lambda: hub.sessions({"one"}, 0, 0), lambda: hub.period(time.time())):
        with pytest.raises(BillError, match=needed) as caught:
            read()
        assert caught.value.status == FORBIDDEN
        assert "hf_nobilling" not in str(caught.value)


def test_a_token_that_is_not_known_is_told_so(emulator: Emulator) -> None:
    with pytest.raises(BillError, match=r"token was refused \(HTTP 401\)") as caught:
        BillingClient(emulator.hub, "hf_wrong").sessions({"one"}, 0, 0)
    assert caught.value.status == FORBIDDEN


# --- the token goes to the Hub's own host only


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that is not the Hub, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    emulator: Emulator, elsewhere: tuple[str, list[str]], status: int
) -> None:
    url, asked = elsewhere
    emulator.client.add_fault(OP, status=status, headers={"location": f"{url}/x"})
    with pytest.raises(BillError, match=r"redirects to 127.0.0.1 \(HTTP 3..\), where the token"):
        ask(emulator, "one")
    assert asked == []


@pytest.mark.parametrize("form", ["{0}/x", "//{1}/x", "{2}@{1}/x", "http:/\\{1}/x"])
def test_no_page_elsewhere_is_read(
    emulator: Emulator, elsewhere: tuple[str, list[str]], form: str
) -> None:
    url, asked = elsewhere
    there = form.format(url, url.removeprefix("http://"), emulator.url)
    link = {"link": f'<{there}>; rel="next"'}
    emulator.client.add_fault(OP, status=200, headers=link, json=told())
    with suppress(BillError):
        ask(emulator, "one")
    assert asked == []


def test_a_page_elsewhere_is_named(emulator: Emulator) -> None:
    link = {"link": '<https://evil.example/x>; rel="next"'}
    emulator.client.add_fault(OP, status=200, headers=link, json=told())
    with pytest.raises(BillError, match=r"next page at evil\.example, where the token is not sent"):
        ask(emulator, "one")


def test_pages_that_lead_to_each_other_end(emulator: Emulator) -> None:
    path = "/hub/api/settings/billing/usage-by-inference-session"
    link = {"link": f'<{path}?again=1>; rel="next", <{path}>; rel="prev"'}
    emulator.client.add_fault(OP, status=200, headers=link, json=told(), times=None)
    assert ask(emulator, "one") == {}
    assert len(emulator.client.log(op=OP, phase="arrived")) == 2


# --- a billing period


def test_a_period_has_inference_and_endpoints(emulator: Emulator) -> None:
    emulator.client.add_endpoint("me/llm", state="running", instance_type="nvidia-l4")
    emulator.client.advance(90)
    call(emulator, "one")
    emulator.client.change_endpoint("me/llm", state="paused")
    now = time.time() + 180
    found = BillingClient(emulator.hub, TOKEN).period(now)
    invoice = emulator.client.invoice()
    assert (found.inference, found.requests) == (invoice["calls_nano_usd"], 1)
    assert found.endpoints == pytest.approx(invoice["endpoints_nano_usd"], abs=1)
    assert found.start < now


def test_a_period_begins_when_the_account_renews(emulator: Emulator) -> None:
    emulator.client.configure(renewal_day=7)
    start = time.gmtime(BillingClient(emulator.hub, TOKEN).period(time.time()).start)
    assert (start.tm_mday, start.tm_hour) == (7, 0)


def test_a_month_of_an_organisation_is_the_sum_of_its_groups(emulator: Emulator) -> None:
    emulator.client.configure(organizations=["acme"])
    emulator.client.add_endpoint("acme/llm", state="running")
    emulator.client.advance(60)
    call(emulator, "one", bill_to="acme")
    emulator.client.change_endpoint("acme/llm", state="paused")
    found = BillingClient(emulator.hub, TOKEN, "acme").period(time.time() + 120)
    invoice = emulator.client.invoice()
    assert (found.inference, found.requests) == (invoice["calls_nano_usd"], 1)
    assert found.endpoints == invoice["endpoints_nano_usd"]


@pytest.mark.parametrize(
    ("op", "answer", "line"),
    [
        ("bill_usage", {"usage": {}}, "has no period"),
        (
            "bill_usage",
            {"period": {"periodStart": "soon"}, "usage": {}},
            "unexpected periodStart: 'soon'",
        ),
        (
            "bill_usage",
            {
                "period": {"periodStart": "2026-11-01T00:00:00Z"},
                "usage": {"endpoints": [{"product": "endpoints/x", "totalCostMicroUSD": None}]},
            },
            "unexpected totalCostMicroUSD: None",
        ),
        ("bill_usage_v2", {}, "the usage has no usage"),
        ("bill_usage_v2", {"usage": {"jobs": {}}}, "usage has no inferenceProviders"),
    ],
)
def test_an_odd_period_is_one_line(
    emulator: Emulator, op: str, answer: dict[str, Any], line: str
) -> None:
    emulator.client.add_fault(op, status=200, json=answer)
    with pytest.raises(BillError, match=line):
        BillingClient(emulator.hub, TOKEN).period(time.time())
