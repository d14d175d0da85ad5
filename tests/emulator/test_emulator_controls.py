"""The log, access, configuration and reset of the running emulator."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.emulator import Emulator, EmulatorClient

ONE = "/v2/endpoint/org/ci"
CHAT = "/router/v1/chat/completions"
HELLO = {"model": "emulator/chat", "messages": [{"role": "user", "content": "hello"}]}


# -- the log


def test_a_request_is_logged_when_it_arrives_and_when_it_is_answered(
    emulator: Emulator, control: EmulatorClient, call: Callable[..., Any]
) -> None:
    call("POST", CHAT, HELLO, User_Agent="tests/1")
    arrived, answered = control.log()
    assert (arrived["phase"], arrived["op"], arrived["model"]) == (
        "arrived",
        "chat",
        HELLO["model"],
    )
    assert (answered["phase"], answered["status"], answered["request"]) == (
        "answered",
        200,
        arrived["seq"],
    )
    assert arrived["agent"] == "tests/1"
    assert arrived["mono"] <= answered["mono"]


def test_no_token_is_ever_in_the_log_or_the_state(
    emulator: Emulator, control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.configure(bad_tokens=["hf_topsecret"])
    for token in ("hf_topsecret", "hf_topsecret", "hf_other"):
        call("GET", "/v2/endpoint/org", token=token)
    prints = [entry["token"] for entry in control.log(phase="arrived")]
    assert prints[0] == prints[1] != prints[2]
    assert "topsecret" not in json.dumps([control.log(), control.state()])


def test_the_long_poll_returns_as_soon_as_the_entry_is_there(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="running")
    found: list[dict[str, Any]] = []
    waiter = threading.Thread(target=lambda: found.append(control.wait_for(op="pause")))
    waiter.start()
    call("GET", ONE)
    call("POST", ONE + "/pause")
    waiter.join(10)
    assert [entry["path"] for entry in found] == [ONE + "/pause"]


def test_a_waiter_takes_no_entry_from_before(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci")
    call("GET", ONE)
    with pytest.raises(TimeoutError, match="there came: nothing"):
        control.wait_for(op="get", after=control.last(), timeout=0.05)


def test_a_vain_wait_names_what_came_instead(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci")
    call("POST", ONE + "/resume")
    with pytest.raises(TimeoutError, match="request arrived resume org/ci"):
        control.wait_for(op="pause", timeout=0.05)


def test_many_waiters_do_not_hold_up_the_server(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci")
    waiters = [threading.Thread(target=control.wait_for, kwargs={"op": "pause"}) for _ in range(20)]
    for waiter in waiters:
        waiter.start()
    assert all(call("GET", ONE).status == 200 for _ in range(20))
    call("POST", ONE + "/pause")
    for waiter in waiters:
        waiter.join(10)
    assert not any(waiter.is_alive() for waiter in waiters)


def test_the_log_file_gets_every_entry_as_a_line_of_json(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "log.jsonl"
    with Emulator(log_file=file) as emulator:
        emulator.client.add_endpoint("org/ci", state="running")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines == emulator.client.log()
    assert [line["state"] for line in lines] == ["running"]


def test_timers_of_the_configuration_run_without_any_request(tmp_path: Path) -> None:
    idle = {"state": "running", "scale_to_zero_timeout": 1}
    config = {
        "switches": {"idle_minute_s": 0.05},
        "endpoints": [{"namespace": "org", "name": "ci", **idle}],
    }
    log = tmp_path / "log.jsonl"
    with Emulator(config=config, log_file=log):
        while "scaledToZero" not in log.read_text():
            os.sched_yield()


# -- access


@pytest.mark.parametrize("path", ["/v2/endpoint/org", "/hub/api/whoami-v2", "/v2/provider/org"])
@pytest.mark.parametrize("token", [None, "hf_wrong", "sk-foreign"])
def test_without_a_good_token_the_answer_is_401(
    emulator: Emulator, call: Callable[..., Any], path: str, token: str | None
) -> None:
    assert call("GET", path, token=token).status == 401


def test_a_call_without_a_good_token_is_not_billed(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    answer = call("POST", CHAT, HELLO, token="hf_wrong")
    assert (answer.status, answer.json()) == (401, {"error": "Invalid username or password."})
    assert control.invoice()["calls"][0]["billed"] == "none"


def test_a_token_without_the_permission_may_infer_but_not_manage(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="running")
    assert call("POST", ONE + "/pause", token="hf_limited").status == 403
    chat = "/endpoint/org/ci/v1/chat/completions"
    assert call("POST", chat, HELLO, token="hf_limited").status == 200


def test_a_token_can_be_revoked_during_a_run(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    assert call("GET", "/v2/endpoint/org").status == 200
    control.configure(bad_tokens=["hf_tester"])
    assert call("GET", "/v2/endpoint/org").status == 401


# -- configuration and reset


def test_a_reset_forgets_everything_but_the_configuration_of_the_start() -> None:
    config = {
        "switches": {"natural_tokens": 3},
        "endpoints": [{"namespace": "org", "name": "ci", "state": "running"}],
        "models": [{"id": "org/m", "providers": [{"provider": "groq"}]}],
        "prices": {"groq": {"call": "0.5"}},
        "faults": [{"match": {"op": "list"}, "action": {"status": 500}}],
    }
    with Emulator(config=config) as emulator:
        client = emulator.client
        client.add_endpoint("org/other")
        client.configure(natural_tokens=99)
        client.reset()
        state = client.state()
        assert [endpoint["name"] for endpoint in state["endpoints"]] == ["org/ci"]
        assert (state["switches"]["natural_tokens"], state["faults"]) == (3, 1)
        assert "org/m" in state["models"]
        assert [entry["seq"] for entry in client.log()] == [1]


def test_a_reset_can_bring_a_configuration(control: EmulatorClient) -> None:
    control.reset(endpoints=[{"name": "ci"}], natural_tokens=4)
    state = control.state()
    assert state["endpoints"][0]["name"] == "emulator/ci"
    assert state["switches"]["natural_tokens"] == 4


def test_a_reset_drops_requests_that_hang(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_fault("models", hang=600)
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            call("GET", "/router/v1/models")
        except OSError as error:
            outcome.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    control.wait_for(op="models")
    control.reset()
    caller.join(10)
    assert len(outcome) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"no_such": 1}, "no switch 'no_such'; the switches are answer_delay_s"),
        ({"disconnect_bills": "half"}, "disconnect_bills is one of generated, full"),
        ({"provider_header": "yes"}, "provider_header is a bool"),
        ({"endpoints": [{"name": "ci", "state": "asleep"}]}, "state is one of"),
        ({"models": [{"id": "a/b", "providers": [{"provider": "x", "cost": 1}]}]}, "cost"),
        ({"prices": {"groq": {"input": "-1"}}}, "not negative"),
        ({"endpoints": [{"name": "ci", "intializing_s": 3}]}, "no .'intializing_s'.; it has"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_in_words(
    control: EmulatorClient, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        control.configure(**config)


def test_an_unknown_path_is_not_found_and_a_wrong_method_is_told(
    emulator: Emulator, call: Callable[..., Any]
) -> None:
    assert call("GET", "/nowhere").status == 404
    assert call("GET", ONE + "/pause").status == 405


def test_eight_threads_are_served_and_every_call_is_billed_once(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    def ask() -> None:
        for _ in range(25):
            assert call("POST", CHAT, HELLO).status == 200

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bill = control.invoice()
    assert len(bill["calls"]) == 200
    assert bill["total_nano_usd"] == 200 * (9 * 50 + 32 * 80)


def test_an_emulator_starts_once_and_may_be_stopped_twice() -> None:
    emulator = Emulator().start()
    with pytest.raises(RuntimeError, match="runs already"):
        emulator.start()
    emulator.stop()
    emulator.stop()


@pytest.mark.parametrize("system", ["Linux", "Windows"])
@pytest.mark.parametrize("frozen_at", [0.0, 1e9], ids=["in the past", "in the future"])
def test_it_stops_at_once_after_a_test_that_froze_time(
    monkeypatch: pytest.MonkeyPatch, frozen_at: float, system: str
) -> None:
    if system == "Windows":
        monkeypatch.delattr(time, "clock_gettime")
    emulator = Emulator().start()
    with monkeypatch.context() as frozen:
        frozen.setattr(time, "monotonic", lambda: frozen_at)
        assert emulator.client.log() == []
        threading.Event().wait(0.3)  # its loop has looked at the clock for the last time
    stopping = threading.Thread(target=emulator.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()


def test_it_serves_and_stops_while_time_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator().start()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert emulator.client.log() == []
    stopping = threading.Thread(target=emulator.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()
