"""Scripted faults as a client meets them, and what they leave behind."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from pytest_hfbudget.emulator import Emulator, EmulatorClient

ONE = "/v2/endpoint/org/ci"
CHAT = "/router/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": "emulator/chat",
    "messages": [{"role": "user", "content": "[[tokens=8]]"}],
}
# What http.client raises for a connection that breaks, early or late.
BROKEN = (ConnectionError, http.client.HTTPException)


@pytest.fixture
def running(control: EmulatorClient) -> EmulatorClient:
    control.add_endpoint("org/ci", state="running")
    return control


def state_of(call: Callable[..., Any]) -> str:
    return str(call("GET", ONE).json()["status"]["state"])


def test_a_status_is_answered_in_place_of_the_service(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("pause", status=503, headers={"Retry-After": "1"}, json={"error": "busy"})
    answer = call("POST", ONE + "/pause")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "busy"}
    assert state_of(call) == "running"
    assert call("POST", ONE + "/pause").status == 200


def test_faults_come_as_often_and_as_late_as_the_script_says(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("get", times=2, skip=1, status=500)
    running.add_fault("get", path="/ci$", times=1, status=429)
    answers = [call("GET", ONE).status for _ in range(5)]
    assert answers == [429, 500, 500, 200, 200]


def test_a_fault_can_last_for_ever_until_it_is_taken_back(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("get", times=None, status=500)
    assert [call("GET", ONE).status for _ in range(3)] == [500] * 3
    running.clear_faults()
    assert call("GET", ONE).status == 200


def test_a_fault_can_be_for_one_endpoint(running: EmulatorClient, call: Callable[..., Any]) -> None:
    running.add_endpoint("org/other")
    running.add_fault(endpoint="org/other", times=None, status=502)
    assert call("GET", ONE).status == 200
    assert call("GET", "/v2/endpoint/org/other").status == 502
    assert call("POST", "/endpoint/org/other/v1/chat/completions", HELLO).status == 502


def test_a_reset_before_leaves_things_as_they_were(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("pause", reset="before")
    with pytest.raises(ConnectionResetError):
        call("POST", ONE + "/pause")
    assert state_of(call) == "running"
    [answered] = running.log(op="pause", phase="answered")
    assert (answered["status"], answered["fault"]) == (None, {"reset": "before"})


def test_a_reset_after_loses_the_answer_and_not_the_deed(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("pause", reset="after")
    with pytest.raises(ConnectionResetError):
        call("POST", ONE + "/pause")
    assert state_of(call) == "paused"


@pytest.mark.parametrize(("when", "billed", "nano"), [("before", "none", 0), ("after", "full", 1)])
def test_a_call_whose_answer_is_lost_is_billed_when_it_was_carried_out(
    control: EmulatorClient, call: Callable[..., Any], when: str, billed: str, nano: int
) -> None:
    control.add_fault("chat", reset=when)
    with pytest.raises(BROKEN):
        call("POST", CHAT, HELLO)
    control.wait_for(op="chat", phase="answered")
    [row] = control.invoice()["calls"]
    assert (row["billed"], bool(row["nano_usd"])) == (billed, bool(nano))


def test_a_hang_outlasts_the_client_and_then_is_carried_out(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("pause", hang=0.3)
    with pytest.raises(TimeoutError):
        call("POST", ONE + "/pause", timeout=0.1)
    running.wait_for(kind="state", state="paused")
    running.wait_for(kind="disconnect", op="pause")


def test_a_hang_can_end_without_an_answer(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("pause", hang=0.05, then="close")
    with pytest.raises(http.client.RemoteDisconnected):
        call("POST", ONE + "/pause")
    assert state_of(call) == "running"


@pytest.mark.parametrize(("op", "before"), [("pause", "running"), ("resume", "paused")])
def test_a_lie_says_yes_and_does_nothing(
    control: EmulatorClient, call: Callable[..., Any], op: str, before: str
) -> None:
    control.add_endpoint("org/ci", state=before)
    control.add_fault(op, lie=True)
    answer = call("POST", f"{ONE}/{op}")
    assert (answer.status, answer.json()["name"]) == (200, "ci")
    assert state_of(call) == before


def test_a_pause_can_flip_back(running: EmulatorClient, call: Callable[..., Any]) -> None:
    running.add_fault("pause", flip_back_s=5)
    assert call("POST", ONE + "/pause").json()["status"]["state"] == "paused"
    running.advance(5)
    assert state_of(call) == "running"


def test_garbage_is_200_and_no_json(running: EmulatorClient, call: Callable[..., Any]) -> None:
    running.add_fault("pause", garbage=True)
    answer = call("POST", ONE + "/pause")
    assert answer.status == 200
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()
    assert state_of(call) == "paused"


def test_an_error_can_be_answered_after_the_deed(
    running: EmulatorClient, call: Callable[..., Any]
) -> None:
    running.add_fault("pause", status=504, applied=True)
    assert call("POST", ONE + "/pause").status == 504
    assert state_of(call) == "paused"


def test_a_slow_body_arrives_whole(running: EmulatorClient, call: Callable[..., Any]) -> None:
    expected = call("GET", ONE).body
    running.add_fault("get", slow_body=0.00001)
    assert call("GET", ONE).body == expected


def test_a_delay_is_only_a_delay(running: EmulatorClient, call: Callable[..., Any]) -> None:
    running.add_fault("get", delay=0.05)
    assert call("GET", ONE).status == 200


def test_a_fault_that_there_is_not_is_refused_in_words(control: EmulatorClient) -> None:
    with pytest.raises(ValueError, match="an action has some of"):
        control.add_fault("pause", explode=True)


# -- streams


def stream_of(emulator: Emulator) -> tuple[InferenceClient, Any]:
    client = InferenceClient(base_url=f"{emulator.router}/v1", api_key="hf_tester")
    return client, client.chat_completion(**HELLO, stream=True)


def test_a_stream_can_break_off_and_what_was_written_is_billed(
    emulator: Emulator, control: EmulatorClient
) -> None:
    control.configure(routing="pin:together")
    control.add_fault("chat", cut_stream_after=3)
    client, stream = stream_of(emulator)
    with pytest.raises(Exception, match=r"."):  # each client has a class of its own for it
        list(stream)
    del client
    [row] = control.invoice()["calls"]
    assert (row["completion_tokens"], row["billed"]) == (3, "generated")
    assert row["nano_usd"] == (7 + 3 + 3) * 100


def test_an_error_inside_a_stream_reaches_the_user_after_the_words_before_it(
    emulator: Emulator, control: EmulatorClient
) -> None:
    control.add_fault("chat", error_in_stream_after=2)
    client, stream = stream_of(emulator)
    words = []
    with pytest.raises(Exception, match="scripted error in the stream"):
        for chunk in stream:
            words.append(chunk.choices[0].delta.content)
    del client
    assert len(words) == 2
    [row] = control.invoice()["calls"]
    assert (row["completion_tokens"], row["billed"]) == (2, "generated")


def test_a_failing_router_bills_nothing(emulator: Emulator, control: EmulatorClient) -> None:
    control.add_fault("chat", status=429)
    with pytest.raises(HfHubHTTPError, match="429"):
        stream_of(emulator)
    [row] = control.invoice()["calls"]
    assert (row["status"], row["billed"], row["model"]) == (429, "none", "emulator/chat")


def test_a_request_whose_body_does_not_arrive_is_not_billed(control: EmulatorClient) -> None:
    host = control.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.putrequest("POST", "/router/hf-inference/models/emulator/text-generation")
    connection.putheader("Authorization", "Bearer hf_hung_up")
    connection.putheader("Content-Length", "500")
    connection.endheaders()
    connection.close()
    control.wait_for(kind="request", phase="answered")
    assert control.invoice()["total_nano_usd"] == 0
    assert [call["billed"] for call in control.invoice()["calls"]] == ["none"]
