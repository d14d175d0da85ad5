"""A dedicated endpoint's own address, in each of its states."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from pytest_hfbudget.emulator import Emulator, EmulatorClient

CHAT = "/endpoint/org/ci/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ("running", 200, ""),
        ("paused", 400, "Bad Request: Invalid state"),
        ("pending", 503, "Service Unavailable"),
        ("initializing", 503, "Service Unavailable"),
        ("updating", 503, "Service Unavailable"),
        ("scaledToZero", 503, "Service Unavailable"),
        ("failed", 500, "Endpoint failed"),
        ("updateFailed", 500, "Endpoint failed"),
    ],
)
def test_a_call_by_state(
    control: EmulatorClient, call: Callable[..., Any], state: str, status: int, words: str
) -> None:
    control.add_endpoint("org/ci", state=state)
    answer = call("POST", CHAT, HELLO)
    assert answer.status == status
    assert answer.json().get("error", "") == words
    [row] = control.invoice()["calls"]
    assert row["billed"] == ("uptime" if status == 200 else "none")


def test_the_client_sees_the_error_of_a_paused_endpoint(control: EmulatorClient) -> None:
    made = control.add_endpoint("org/ci")
    client = InferenceClient(made["status"]["url"], api_key="hf_tester")
    with pytest.raises(HfHubHTTPError, match="Invalid state"):
        client.chat_completion(HELLO["messages"])


@pytest.mark.parametrize("path", [CHAT, "/endpoint/org/ci", "/endpoint/org/ci/health"])
def test_any_request_wakes_an_endpoint_that_is_scaled_to_zero_and_starts_its_bill(
    control: EmulatorClient, call: Callable[..., Any], path: str
) -> None:
    control.add_endpoint("org/ci", state="scaledToZero", initializing_s=10)
    assert control.invoice()["endpoints_nano_usd"] == 0
    method = "GET" if path.endswith("health") else "POST"
    assert call(method, path, None if method == "GET" else HELLO).status == 503
    control.advance(1)
    assert control.invoice()["endpoints"][0]["minutes"] == 1


def test_a_request_that_may_not_pass_wakes_nothing(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="scaledToZero")
    before = control.last()
    assert call("POST", CHAT, HELLO, token="hf_noinfer").status == 403
    assert control.log(kind="state", after=before) == []


def test_the_proxy_holds_a_request_for_as_long_as_its_header_says(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="scaledToZero", initializing_s=600)
    answers = []
    caller = threading.Thread(
        target=lambda: answers.append(call("POST", CHAT, HELLO, X_Scale_Up_Timeout="30"))
    )
    caller.start()
    control.wait_for(kind="state", state="initializing")
    control.advance(600)
    caller.join(10)
    assert [answer.status for answer in answers] == [200]


def test_the_proxy_gives_up_after_the_time_in_its_header(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="scaledToZero", initializing_s=600)
    assert call("POST", CHAT, HELLO, X_Scale_Up_Timeout="0.05").status == 503


def test_running_can_come_before_the_model_answers(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="running", health_delay_s=5)
    health = "/endpoint/org/ci/health"
    assert call("GET", health).json() == {"error": "Loading model"}
    assert call("POST", CHAT, HELLO).status == 503
    control.advance(5)
    assert call("GET", health).status == 200


def test_the_clients_own_questions_are_answered(control: EmulatorClient) -> None:
    url = control.add_endpoint("org/ci", state="running", repository="org/model")["status"]["url"]
    client = InferenceClient(url, api_key="hf_tester", provider="hf-inference")
    assert client.health_check()
    assert client.get_endpoint_info()["model_id"] == "org/model"


def test_a_public_endpoint_needs_no_token_and_another_one_does(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="running", type="public")
    assert call("POST", CHAT, HELLO, token=None).status == 200
    control.change_endpoint("org/ci", type="authenticated")
    assert call("POST", CHAT, HELLO, token=None).status == 401


def test_an_endpoint_that_there_is_not_is_not_found(
    emulator: Emulator, call: Callable[..., Any]
) -> None:
    assert call("POST", CHAT, HELLO).status == 404


def test_traffic_keeps_an_endpoint_awake(control: EmulatorClient, call: Callable[..., Any]) -> None:
    control.add_endpoint("org/ci", state="running", scale_to_zero_timeout=15)
    control.advance(14 * 60)
    assert call("POST", CHAT, HELLO).status == 200
    control.advance(14 * 60)
    assert call("POST", CHAT, HELLO).status == 200
    control.advance(15 * 60)
    assert call("GET", "/v2/endpoint/org/ci").json()["status"]["state"] == "scaledToZero"


def test_what_is_streamed_by_an_endpoint_costs_only_its_time(control: EmulatorClient) -> None:
    url = control.add_endpoint("org/ci", state="running")["status"]["url"]
    client = InferenceClient(url, api_key="hf_tester")
    assert len(list(client.chat_completion(HELLO["messages"], stream=True))) == 33
    [row] = control.invoice()["calls"]
    assert (row["endpoint"], row["nano_usd"], row["billed"]) == ("org/ci", 0, "uptime")
