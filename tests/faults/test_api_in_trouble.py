"""A control plane that fails while an endpoint is to be resumed, or to be paused."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_box import NAME, REAPER, TOKEN, Box, gone

TRY_S, RESEND_S = 1.5, 1.0


# -- answers that are lost


def test_a_resume_whose_answer_is_lost_is_not_sent_again(box: Box) -> None:
    """Row 5."""
    box.hub.add_fault("resume", reset="after")
    box.suite()
    run = box.start()
    run.reached()
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_after_the_answer_to_its_resume_was_lost_is_paused(
    box: Box, number: signal.Signals
) -> None:
    """Row 5."""
    box.hurry(late_resume_s=1)
    box.hub.add_fault("resume", reset="after")
    box.suite()
    run = box.start()
    run.sees(kind="request", op="resume", phase="answered")
    end = run.send(number)
    run.wait()
    box.judge(end)


def test_a_resume_that_takes_effect_after_its_run_has_died_is_paused(box: Box) -> None:
    """Row 5: two seconds late; the reaper has to wait for it."""
    box.hurry(late_resume_s=4)
    box.hub.add_fault("resume", hang=2)
    box.suite()
    run = box.start()
    run.sees(op="resume")
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=3)
    assert box.hub.log(kind="state", state="running")


# -- a pause that does not go through at once

FLAWS: dict[str, tuple[dict[str, Any], float]] = {
    "503-three-times": ({"times": 3, "status": 503}, 4),
    "429-with-retry-after": ({"status": 429, "headers": {"Retry-After": "2"}}, 3.5),
    "500-twice": ({"times": 2, "status": 500}, 3),
    "reset-before": ({"times": 2, "reset": "before"}, 3),
    "reset-after": ({"reset": "after"}, 1),
    "accepted-and-silent": ({"hang": 60, "then": "close"}, TRY_S + 2),
    "slow-body": ({"slow_body": 0.05}, 1),
    "slow-headers": ({"slow_head": 0.1}, TRY_S + 2),
    "garbage": ({"garbage": True}, 1),
    "504-but-done": ({"status": 504, "applied": True}, 1),
    "says-yes-does-nothing": ({"lie": True}, RESEND_S + 1),
    "400-already-paused": ({"status": 400, "applied": True, "json": {"error": "paused"}}, 1),
    "flips-back": ({"flip_back_s": 0.0}, RESEND_S + 1),
    "401-once": ({"status": 401}, 3),
    "401-five-times": ({"times": 5, "status": 401}, 5),
    "403-five-times": ({"times": 5, "status": 403}, 5),
    "404-five-times": ({"times": 5, "status": 404}, 5),
}


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ends"])
@pytest.mark.parametrize("flaw", FLAWS)
def test_a_pause_that_fails_at_first_is_outlasted(box: Box, flaw: str, killed: bool) -> None:
    """Rows 32, 34."""
    fault, within = FLAWS[flaw]
    box.hurry(try_s=TRY_S, resend_s=RESEND_S)
    box.suite()
    run = box.start()
    run.reached()
    box.hub.add_fault("pause", **fault)
    if killed:
        end = run.send(signal.SIGKILL)
    else:
        end = box.now()
        box.open_gate("test")
    code = run.wait()
    box.judge(end, within=within if killed else within + 1)
    assert killed or code == 0


@pytest.mark.parametrize("lag", [0.8, 3.0])
def test_a_pause_that_takes_its_time_is_waited_for(box: Box, lag: float) -> None:
    """Row 34: the state still says that it runs."""
    box.hub.change_endpoint(NAME, pause_lag_s=lag)
    box.suite()
    run = box.start()
    run.reached()
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=lag + 0.5)


def test_a_look_that_fails_does_not_count_as_paused(box: Box) -> None:
    """Row 32: pausing works, but reading the state does not, for a while."""
    box.suite()
    run = box.start()
    run.reached()
    box.hub.add_fault("get", times=3, status=503)
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"hang": 60, "then": "close"}, {"lie": True}, {"reset": "before"}],
    ids=["500", "silent", "lies", "resets"],
)
def test_a_server_that_fails_for_ever_is_given_up_loudly(box: Box, fault: dict[str, Any]) -> None:
    """Row 32: red, with the command to type; and the journal keeps the open lease."""
    box.hurry(deadline_s=3, verify_deadline_s=8, try_s=TRY_S, resend_s=0.5)
    box.suite()
    run = box.start()
    run.reached()
    box.hub.add_fault("pause", times=None, **fault)
    box.open_gate("test")
    assert run.wait(30) == 1
    assert f"hfbudget pause {NAME}" in run.output
    assert box.all_gone() == []
    assert box.state_of() == "running"
    last = box.records()[0][-1]
    assert not (last["kind"] == "paused" and last["verified"])
    box.judge_secrecy()


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_at_the_pause_says_what_to_type(box: Box, status: int) -> None:
    """Row 33: the run ends, and its reaper goes on trying for its time."""
    box.hurry(doubt_s=1, deadline_s=4)
    box.suite()
    run = box.start()
    run.reached()
    box.hub.add_fault("pause", times=None, status=status)
    box.open_gate("test")
    assert run.wait() == 1
    assert f"hfbudget pause {NAME}" in run.output
    last = run.output.rstrip().splitlines()[-1]
    assert "1 passed" in last or "hfbudget pause" in last
    assert box.all_gone() == []
    box.judge_secrecy()


def test_a_token_that_is_revoked_in_the_run_is_said_loudly(box: Box) -> None:
    """Row 33: it is refused everywhere then."""
    box.hurry(doubt_s=1, deadline_s=4)
    box.suite()
    run = box.start()
    run.reached()
    box.hub.configure(bad_tokens=[TOKEN])
    box.open_gate("test")
    assert run.wait() == 1
    assert f"hfbudget pause {NAME}" in run.output
    assert box.all_gone() == []
    box.judge_secrecy()


# -- whatever state it is in

STATES = ("updating", "pending", "initializing", "failed", "updateFailed", "scaledToZero")


@pytest.mark.parametrize("state", STATES)
def test_an_endpoint_in_any_state_ends_up_paused(box: Box, state: str) -> None:
    """Row 35: it went there while a test ran."""
    box.suite()
    run = box.start()
    run.reached()
    box.hub.change_endpoint(NAME, state=state)
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None)


@pytest.mark.parametrize("outcome", ["failed", "updateFailed"])
def test_an_endpoint_that_does_not_start_is_paused(box: Box, outcome: str) -> None:
    """Row 35: a failed start may be billed, too."""
    box.hub.change_endpoint(NAME, resume_to=outcome)
    box.suite()
    assert box.start().wait() == 1
    box.judge(None)


def test_an_endpoint_that_never_comes_up_is_paused(box: Box) -> None:
    """Row 35."""
    box.hub.change_endpoint(NAME, resume_to="stuck")
    box.suite()
    assert box.start(env={"HFBUDGET_ENDPOINT_WAIT": "3"}).wait() == 1
    box.judge(None)


@pytest.mark.parametrize("how", ["paused", "deleted"])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ends"])
def test_another_user_was_faster(box: Box, how: str, killed: bool) -> None:
    """Row 36: already paused and gone are both a success."""
    box.hurry(doubt_s=1)
    box.suite()
    run = box.start()
    run.reached()
    _as_another_user(box, "POST", "/pause") if how == "paused" else _as_another_user(box, "DELETE")
    if killed:
        end = run.send(signal.SIGKILL)
    else:
        end = box.now()
        box.open_gate("test")
    assert run.wait() == (-signal.SIGKILL if killed else 0)
    if how == "paused":
        box.judge(end)
        return
    assert box.all_gone() == []
    last = box.records()[0][-1]
    assert (last["kind"], last["verified"]) == ("paused", True)


# -- answers that would end the pause

ALL, ALL_BUT_THE_LIST = ("pause", "get", "list"), ("pause", "get")
OTHER = {"name": "other", "status": {"state": "paused"}}
BURSTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "401": (ALL, {"status": 401}),
    "403": (ALL, {"status": 403}),
    "404": (ALL, {"status": 404}),
    "404-but-listed": (ALL_BUT_THE_LIST, {"status": 404}),
    "404-and-an-empty-list": (ALL_BUT_THE_LIST, {"status": 404}),
    "a-page": (ALL, {"garbage": True, "applied": False}),
    "another-endpoint": (ALL_BUT_THE_LIST, {"status": 200, "json": OTHER}),
}


@pytest.mark.parametrize("burst", BURSTS)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ends"])
def test_a_burst_of_answers_that_would_end_the_pause_is_outlasted(
    box: Box, burst: str, killed: bool
) -> None:
    """Row 49: of a service, or of a gateway before it, that is in trouble for a while."""
    box.hurry(resend_s=RESEND_S)
    box.suite()
    run = box.start()
    run.reached()
    ops, answer = BURSTS[burst]
    for op in ops:
        box.hub.add_fault(op, times=None, **answer)
    if burst == "404-and-an-empty-list":
        box.hub.add_fault("list", times=None, status=200, json={"items": []})
    if killed:
        end = run.send(signal.SIGKILL)
    else:
        box.open_gate("test")
        end = box.now()
    seen = end.seq
    for _ in range(5):
        seen = run.sees(op="get" if burst[0] == "a" else "pause", after=seen).seq
    box.hub.clear_faults()
    end = box.now()
    code = run.wait()
    box.judge(end, within=RESEND_S + 1.5)
    assert killed or code == 0


def test_a_resume_that_takes_effect_when_all_is_over_is_paused_by_a_later_look(box: Box) -> None:
    """Rows 5, 50: later than any resume was waited for."""
    box.hurry(late_resume_s=0.5)
    box.looks = "1 5"
    box.hub.add_fault("resume", hang=3)
    box.suite()
    run = box.start()
    run.sees(op="resume")
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=6)
    assert box.hub.log(kind="state", state="running")


def test_what_another_user_wakes_after_its_pause_is_paused_by_a_later_look(box: Box) -> None:
    """Row 50: within two minutes it can't be told from a resume that comes late."""
    box.looks = "1 3 5"  # pytest may take more than a second to end after the pause
    box.suite()
    run = box.start()
    run.reached()
    box.open_gate("test")
    assert run.wait() == 0
    box.hub.change_endpoint(NAME, state="running")
    box.judge(box.now(), within=3)


def test_the_next_run_is_not_disturbed_by_the_reaper_of_the_one_before(box: Box) -> None:
    """Rows 38, 50: a live lease is worth more than a later look."""
    box.looks = "3 5"
    box.suite()
    first = box.start()
    first.reached()
    end = first.send(signal.SIGKILL)
    first.wait()
    box.hub.wait_for(kind="state", state="paused", after=end.seq)
    (reaper,) = box.reapers()
    (box.path / "test").unlink()
    run = box.start()
    up = run.reached(after=end.seq)
    assert gone(reaper)
    assert box.requests("get", after=up.seq, agent=REAPER), "it did not look again"
    assert box.requests("pause", after=up.seq) == []
    box.open_gate("test")
    assert run.wait() == 0
    box.judge(None, resumes=2)


def _as_another_user(box: Box, method: str, verb: str = "") -> None:
    connection = http.client.HTTPConnection(box.hub.url.partition("://")[2])
    path = f"/v2/endpoint/{NAME}{verb}"
    connection.request(method, path, headers={"authorization": "Bearer hf_another_user"})
    assert connection.getresponse().status == 200
    connection.close()


# -- a network that fails below HTTP


class Wire:
    """A proxy on loopback in front of the emulator, whose connections can be made to fail.

    With a certificate it speaks TLS to clients that do.
    """

    def __init__(self, hub: str, certificate: Path | None = None) -> None:
        host, _, port = hub.partition("://")[2].partition(":")
        self._hub = (host, int(port))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self.tls and certificate:
            self.tls.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.stalling = threading.Event()
        self.stalled = threading.Semaphore(0)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, stall: bool) -> None:
        """End all connections; new ones are let in, but nothing is said to them while stalled."""
        if stall:
            self.stalling.set()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The end."""
        self.cut(stall=True)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            if self.stalling.is_set():
                self.stalled.release()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            # The endpoint's own address is on this port too, and is not https there.
            if self.tls and client.recv(1, socket.MSG_PEEK) == b"\x16":
                client = self.tls.wrap_socket(client, server_side=True)
                self._open.append(client)
            server = socket.create_connection(self._hub)
            self._open.append(server)
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            _copy(client, server)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a server on loopback, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write(path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def wire(box: Box, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A plain wire, or one with TLS."""
    tls = getattr(request, "param", False)
    made = Wire(box.hub.url, request.getfixturevalue("certificate") if tls else None)
    yield made
    made.close()


@pytest.mark.parametrize("wire", [False, True], indirect=True, ids=["tcp", "tls"])
def test_a_network_that_stalls_at_the_pause_is_outlasted(
    box: Box, wire: Wire, request: pytest.FixtureRequest
) -> None:
    """Row 32: connections are accepted, and then nothing, not even a handshake."""
    box.hurry(try_s=TRY_S)
    tls = wire.tls is not None
    env = {"HFBUDGET_ENDPOINTS_API": f"{'https' if tls else 'http'}://127.0.0.1:{wire.port}/v2"}
    if tls:
        certificate = request.getfixturevalue("certificate").with_suffix(".crt")
        env |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(certificate))
    box.suite()
    run = box.start(env=env)
    run.reached()
    wire.cut(stall=True)
    end = run.send(signal.SIGKILL)
    run.wait()
    assert wire.stalled.acquire(timeout=5)
    assert wire.stalled.acquire(timeout=5), "it gave up after one try"
    wire.stalling.clear()
    box.judge(end, within=3 * TRY_S + 2)


def test_a_server_that_hangs_up_on_everybody_is_outlasted(box: Box, wire: Wire) -> None:
    """Row 32: idle connections are dead, and the next ones are reset."""
    box.suite()
    run = box.start(env={"HFBUDGET_ENDPOINTS_API": f"http://127.0.0.1:{wire.port}/v2"})
    run.reached()
    box.hub.add_fault("pause", times=2, reset="before")
    wire.cut(stall=False)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, within=3)


def test_a_server_that_stalls_from_the_start_resumes_nothing_and_ends(box: Box, wire: Wire) -> None:
    """Row 32."""
    box.hurry(try_s=TRY_S, retry_s=2 * TRY_S)
    wire.stalling.set()
    box.suite()
    run = box.start(env={"HFBUDGET_ENDPOINTS_API": f"https://127.0.0.1:{wire.port}/v2"})
    assert run.wait(20) == 4
    assert "did not answer" in run.output
    box.judge(None, resumes=0)


def test_a_server_whose_headers_never_end_resumes_nothing_and_ends(box: Box) -> None:
    """Row 32: a byte now and then, for as long as it is listened to."""
    box.hurry(try_s=TRY_S, retry_s=2 * TRY_S)
    box.hub.add_fault("get", times=None, slow_head=0.1)
    box.suite()
    assert box.start().wait(20) == 4
    box.judge(None, resumes=0)


def test_a_certificate_that_is_not_trusted_resumes_nothing_and_ends_at_once(
    box: Box, certificate: Path
) -> None:
    """Row 32: it will not be trusted in a minute either."""
    wire = Wire(box.hub.url, certificate)
    box.suite()
    run = box.start(env={"HFBUDGET_ENDPOINTS_API": f"https://127.0.0.1:{wire.port}/v2"})
    assert run.wait(20) == 4  # of the 60 s for which a server that is away is tried
    wire.close()
    assert "CERTIFICATE_VERIFY_FAILED" in run.output
    box.judge(None, resumes=0)


def test_a_name_that_can_not_be_resolved_resumes_nothing_and_ends(box: Box) -> None:
    """Row 32."""
    box.hurry(retry_s=1)
    box.suite()
    run = box.start(env={"HFBUDGET_ENDPOINTS_API": "http://no-such-host.invalid/v2"})
    assert run.wait(30) == 4
    assert "did not answer" in run.output
    box.judge(None, resumes=0)


def test_a_name_that_can_not_be_resolved_at_the_pause_is_outlasted(box: Box, wire: Wire) -> None:
    """Row 32: in a file system where the list of hosts is ours."""
    if os.getuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    hosts = box.path / "hosts"
    known = "127.0.0.1 localhost hub.faults.test\n"
    hosts.write_text(known)
    script = f"mount --bind {hosts} /etc/hosts; exec {' '.join(box.pytest())}"
    api = f"http://hub.faults.test:{wire.port}/v2"
    box.suite()
    run = box.start(
        command=["unshare", "--mount", "sh", "-c", script], env={"HFBUDGET_ENDPOINTS_API": api}
    )
    run.reached()
    hosts.write_text("127.0.0.1 localhost\n")
    wire.cut(stall=False)
    end = run.send(signal.SIGKILL)
    run.wait()
    assert box.reapers()
    assert box.requests("pause", agent=REAPER) == []
    hosts.write_text(known)
    box.judge(end, within=12)
