"""The client of the control plane, against the emulator and its faults."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.emulator import EmulatorClient
from pytest_hfbudget.endpoints.api import ControlPlane, ControlPlaneError
from pytest_hfbudget.endpoints.retry import RetryPolicy
from pytest_hfbudget.endpoints.transport import NoAnswerError, Route, Urllib3Transport
from pytest_hfbudget.errors import ConfigError

from .conftest import TOKEN


class FastClock:
    """Doesn't wait; remembers for how long it would have."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic() + sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock() -> FastClock:
    return FastClock()


@pytest.fixture
def fast(hub: EmulatorClient, clock: FastClock) -> ControlPlane:
    return ControlPlane(
        f"{hub.url}/v2", TOKEN, retry=RetryPolicy(try_s=0.3, total_s=30), clock=clock
    )


def tries(hub: EmulatorClient, op: str) -> int:
    return len(hub.log(op=op, phase="arrived"))


def test_get_pause_and_resume_speak_the_real_api(hub: EmulatorClient, plane: ControlPlane) -> None:
    assert plane.get("acme/llm").state == "paused"
    woken = plane.resume("acme/llm")
    assert woken is not None
    assert plane.get("acme/llm").state == "running"
    assert plane.pause("acme/llm").full_name == "acme/llm"
    assert plane.get("acme/llm").state == "paused"


def test_resuming_what_runs_is_a_success(hub: EmulatorClient, plane: ControlPlane) -> None:
    hub.change_endpoint("acme/llm", state="running")
    assert plane.resume("acme/llm") is None


def test_another_400_is_told_in_the_servers_own_words(
    hub: EmulatorClient, plane: ControlPlane
) -> None:
    hub.change_endpoint("acme/llm", quota_ok=False)
    with pytest.raises(ControlPlaneError, match="Quota exceeded for this hardware") as caught:
        plane.resume("acme/llm")
    assert (caught.value.status, caught.value.maybe_done) == (400, False)


def test_the_list_has_all_pages(hub: EmulatorClient, plane: ControlPlane) -> None:
    hub.configure(page_limit=2)
    for number in range(6):
        hub.add_endpoint(f"acme/more-{number}")
    assert len({endpoint.full_name for endpoint in plane.list("acme")}) == 7
    assert tries(hub, "list") == 4


def test_the_list_of_hardware_is_asked_without_the_token(
    hub: EmulatorClient, plane: ControlPlane
) -> None:
    assert plane.hardware()["vendors"]
    (asked,) = hub.log(op="provider", phase="arrived")
    assert asked["token"] is None


def test_an_update_leaves_the_rest(hub: EmulatorClient, plane: ControlPlane) -> None:
    plane.update("acme/llm", {"compute": {"scaling": {"minReplica": 0}}})
    assert plane.get("acme/llm").scaling.min_replica == 0
    assert plane.get("acme/llm").scaling.max_replica == 2


def test_replicas_have_times(hub: EmulatorClient, plane: ControlPlane) -> None:
    assert plane.replicas("acme/llm") == ()
    hub.change_endpoint("acme/llm", state="running")
    (replica,) = plane.replicas("acme/llm")
    assert replica["status"]["startedAt"]


def test_health_is_asked_at_the_endpoint(hub: EmulatorClient, plane: ControlPlane) -> None:
    hub.change_endpoint("acme/llm", state="running", health_delay_s=0)
    assert plane.healthy(plane.get("acme/llm"))
    hub.add_fault("health", status=503)
    assert not plane.healthy(plane.get("acme/llm"))
    hub.add_fault("health", reset="before")
    assert not plane.healthy(plane.get("acme/llm"))


def test_a_token_that_may_not_call_the_endpoint_is_named(
    hub: EmulatorClient, plane: ControlPlane
) -> None:
    hub.change_endpoint("acme/llm", state="running")
    hub.configure(no_infer_tokens=[TOKEN])
    with pytest.raises(ControlPlaneError, match="Make calls to Inference Endpoints"):
        plane.healthy(plane.get("acme/llm"))


def test_an_unknown_endpoint_says_how_to_find_the_right_one(plane: ControlPlane) -> None:
    with pytest.raises(ControlPlaneError) as caught:
        plane.get("acme/lmm")
    assert caught.value.gone
    assert 'there is no endpoint "acme/lmm"' in str(caught.value)
    assert "hfbudget status acme" in str(caught.value)


def test_a_refused_token_says_which_variable_to_set(hub: EmulatorClient) -> None:
    with pytest.raises(ControlPlaneError, match="set HF_TOKEN") as caught:
        ControlPlane(f"{hub.url}/v2", "hf_wrong").get("acme/llm")
    assert caught.value.denied
    assert "hf_wrong" not in str(caught.value)


def test_a_token_without_the_permission_names_it(hub: EmulatorClient) -> None:
    with pytest.raises(ControlPlaneError, match='"Manage Inference Endpoints"') as caught:
        ControlPlane(f"{hub.url}/v2", "hf_limited").get("acme/llm")
    assert caught.value.denied


def test_the_token_is_in_no_repr(plane: ControlPlane) -> None:
    assert TOKEN not in repr(plane)
    assert TOKEN not in repr(vars(plane)["_transport"])


def test_a_name_without_a_namespace_is_never_sent(plane: ControlPlane) -> None:
    with pytest.raises(ConfigError):
        plane.pause("llm")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_busy_server_is_asked_again(
    hub: EmulatorClient, fast: ControlPlane, clock: FastClock, status: int
) -> None:
    hub.add_fault("pause", times=3, status=status)
    fast.pause("acme/llm")
    assert tries(hub, "pause") == 4
    assert len(clock.slept) == 3
    assert all(seconds <= 1.0 for seconds in clock.slept)


def test_retry_after_is_respected(
    hub: EmulatorClient, fast: ControlPlane, clock: FastClock
) -> None:
    hub.add_fault("get", status=429, headers={"Retry-After": "7"})
    fast.get("acme/llm")
    assert clock.slept == [7.0]


def test_a_date_in_retry_after_is_understood(
    hub: EmulatorClient, fast: ControlPlane, clock: FastClock
) -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 9))
    hub.add_fault("get", status=503, headers={"Retry-After": later})
    fast.get("acme/llm")
    assert 7.0 < clock.slept[0] <= 9.0


def test_trying_ends_with_the_total_time(
    hub: EmulatorClient, fast: ControlPlane, clock: FastClock
) -> None:
    hub.add_fault("get", times=None, status=500)
    with pytest.raises(ControlPlaneError, match="HTTP 500: scripted fault"):
        fast.get("acme/llm")
    assert sum(clock.slept) <= 30


def test_a_lost_connection_is_tried_again(hub: EmulatorClient, fast: ControlPlane) -> None:
    hub.add_fault("get", reset="before")
    assert fast.get("acme/llm").state == "paused"


def test_a_pause_whose_answer_was_lost_is_sent_again(
    hub: EmulatorClient, fast: ControlPlane
) -> None:
    hub.add_fault("pause", reset="after")
    fast.pause("acme/llm")
    assert tries(hub, "pause") == 2


def test_a_server_that_hangs_costs_one_try_only(hub: EmulatorClient, fast: ControlPlane) -> None:
    hub.add_fault("get", hang=5)
    began = time.monotonic()
    assert fast.get("acme/llm").state == "paused"
    assert time.monotonic() - began < 2


def test_an_answer_that_drips_ends(hub: EmulatorClient, fast: ControlPlane) -> None:
    hub.add_fault("get", slow_body=0.1)
    began = time.monotonic()
    assert fast.get("acme/llm").state == "paused"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("op", ["get", "pause"])
def test_headers_that_never_end_cost_one_try_only(
    hub: EmulatorClient, fast: ControlPlane, op: str
) -> None:
    hub.add_fault(op, slow_head=0.02)
    began = time.monotonic()
    getattr(fast, op)("acme/llm")
    assert time.monotonic() - began < 1.5
    assert tries(hub, op) == 2


def test_a_proxy_that_answers_byte_by_byte_costs_one_try_only(hub: EmulatorClient) -> None:
    """To the request for a tunnel, before any handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        transport = Urllib3Transport(Route(proxy=proxy))
        began = time.monotonic()
        with pytest.raises(NoAnswerError):
            transport.send("GET", "https://acme.invalid/", {}, None, 0.3)
    assert time.monotonic() - began < 1.5


def drip(listener: socket.socket) -> None:
    sock, _ = listener.accept()
    with suppress(OSError), sock:
        for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nx-slow: ", itertools.repeat(97)):
            sock.sendall(bytes([byte]))
            threading.Event().wait(0.02)


def test_an_unreadable_state_is_no_state(hub: EmulatorClient, fast: ControlPlane) -> None:
    hub.add_fault("get", garbage=True)
    assert fast.get("acme/llm").state == "paused"
    assert tries(hub, "get") == 2


@pytest.mark.parametrize("fault", [{"reset": "after"}, {"status": 500}, {"hang": 2}])
def test_a_resume_that_may_have_worked_is_not_repeated(
    hub: EmulatorClient, fast: ControlPlane, fault: dict[str, Any]
) -> None:
    hub.add_fault("resume", **fault)
    with pytest.raises(ControlPlaneError) as caught:
        fast.resume("acme/llm")
    assert caught.value.maybe_done
    assert tries(hub, "resume") == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_resume_that_was_turned_away_is_repeated(
    hub: EmulatorClient, fast: ControlPlane, status: int
) -> None:
    hub.add_fault("resume", times=2, status=status)
    assert fast.resume("acme/llm") is not None
    assert tries(hub, "resume") == 3


def test_an_address_without_a_server_is_an_error_that_says_so() -> None:
    plane = ControlPlane("http://127.0.0.1:9/v2", TOKEN, retry=RetryPolicy(try_s=0.2, total_s=0))
    with pytest.raises(
        ControlPlaneError, match=r"127\.0\.0\.1:9.* did not answer .*refused"
    ) as caught:
        plane.get("acme/llm")
    assert not caught.value.maybe_done
    assert TOKEN not in str(caught.value)


def test_old_connections_are_not_trusted(clock: FastClock) -> None:
    callers = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            callers.append(self.client_address)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Into no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        transport = Urllib3Transport(clock=clock)
        url = f"http://127.0.0.1:{server.server_port}/"
        for pause_s in (0, 60, 0):
            clock.sleep(pause_s)
            assert transport.send("GET", url, {}, None, 1).status == 200
        server.shutdown()
    first, after_a_minute, at_once = callers
    assert first != after_a_minute == at_once


def test_a_redirect_is_not_followed(hub: EmulatorClient, fast: ControlPlane) -> None:
    hub.add_fault("get", status=307, headers={"Location": "https://elsewhere.invalid/"})
    with pytest.raises(ControlPlaneError, match="HTTP 307"):
        fast.get("acme/llm")


def test_proxies_and_certificates_come_from_the_usual_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    route = Route.find("https://api.endpoints.huggingface.cloud/v2")
    assert (route.ca_file, route.proxy) == (str(bundle), "http://user:secret@proxy:3128")
    assert "secret" not in repr(route)
    monkeypatch.setenv("NO_PROXY", ".huggingface.cloud")
    assert Route.find("https://api.endpoints.huggingface.cloud/v2").proxy is None
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy:1080")
    monkeypatch.delenv("NO_PROXY")
    assert Route.find("https://api.endpoints.huggingface.cloud/v2").proxy is None
