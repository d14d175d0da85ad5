"""When a run reads the router's catalogue: before its first test or not at all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from plugin_suite import Suite

from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.pricing.catalogue import DAY_S, CatalogueFile

CALLS = """
from huggingface_hub import InferenceClient

def test_it():
    say = [{"role": "user", "content": "Say something. [[tokens=10]]"}]
    InferenceClient(model="emulator/chat").chat_completion(say, max_tokens=20)
"""
CALLS_LATE = """
def test_it():
    from huggingface_hub import InferenceClient
    say = [{"role": "user", "content": "Say something. [[tokens=10]]"}]
    InferenceClient(model="emulator/chat").chat_completion(say, max_tokens=20)
"""
pytestmark = pytest.mark.slow

UNPRICED = "*without a known price*"


@pytest.fixture
def online(suite: Suite, one_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Not a rehearsal: a run that takes the emulator for the real thing."""
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.setenv("HFBUDGET_ROUTER", one_emulator.router)
    monkeypatch.setenv("HF_ENDPOINT", one_emulator.hub)
    return suite


def run(suite: Suite, code: str, *options: str) -> pytest.RunResult:
    (suite.path / "test_suite.py").write_text(code)
    result = suite.run(*options)
    if "--collect-only" not in options:
        result.assert_outcomes(passed=1)
    return result


def reads(suite: Suite) -> int:
    return len(suite.requests("models"))


def kept(router: str, *, age_s: float) -> None:
    """Have a copy on disk in which novita alone serves the model, for $1."""
    offer = {"provider": "novita", "status": "live", "pricing": {"input": 1, "output": 1}}
    models = {"data": [{"id": "emulator/chat", "providers": [offer]}]}
    path = CatalogueFile.of(router).path
    path.parent.mkdir(parents=True)
    copy = {"origin": router, "read_at": time.time() - age_s, "models": models}
    path.write_text(json.dumps(copy))


def test_an_imported_client_has_its_calls_priced_without_a_cap(online: Suite) -> None:
    result = run(online, CALLS, "--hf-report=report.json")
    assert reads(online) == 1
    result.stdout.no_fnmatch_line(UNPRICED)
    (call,) = online.report()["calls"]
    assert round(float(call["usd"]) * 10**9) == online.billed > 0


BY_OPENAI = """
import os
import openai

def test_it():
    say = [{"role": "user", "content": "Say something. [[tokens=10]]"}]
    with openai.OpenAI(base_url=os.environ["HFBUDGET_ROUTER"] + "/v1", api_key="hf_user") as client:
        client.chat.completions.create(model="emulator/chat:groq", messages=say, max_tokens=20)
"""


@pytest.mark.parametrize(
    ("code", "token", "options"),
    [
        pytest.param(BY_OPENAI, "HF_TOKEN", (), id="openai"),
        pytest.param(BY_OPENAI, "HUGGINGFACEHUB_API_TOKEN", ("-n1",), id="openai in a worker"),
        pytest.param(BY_OPENAI, "HUGGINGFACE_API_KEY", (), id="a key for litellm"),
    ],
)
def test_where_a_token_is_set_the_calls_of_other_clients_are_priced_without_a_cap(
    online: Suite,
    code: str,
    token: str,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv(token, "hf_user")
    result = run(online, code, "--hf-report=report.json", *options)
    assert reads(online) == 1
    result.stdout.no_fnmatch_line(UNPRICED)
    (call,) = online.report()["calls"]
    assert round(float(call["usd"]) * 10**9) == online.billed > 0


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_token_a_run_of_other_clients_reads_nothing(
    online: Suite, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_TOKEN", value)
    pytest.importorskip("openai")
    run(online, "import openai\ndef test_it(): pass")
    assert reads(online) == 0


def test_an_http_library_and_a_token_are_no_reason_to_read_prices(
    online: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    run(online, "import httpx\ndef test_it(): pass")
    assert reads(online) == 0


def test_a_run_that_makes_no_call_does_not_say_that_prices_could_not_be_read(
    online: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    pytest.importorskip("openai")
    online.emulator.add_fault(op="models", times=None, status=503)
    result = run(online, "import openai\ndef test_it(): pass")
    assert reads(online) == 1
    result.stdout.no_fnmatch_line("*hfbudget*could not read*")


def test_it_is_read_before_the_first_call_and_once_a_day(online: Suite) -> None:
    run(online, CALLS)
    run(online, CALLS)
    order = [e["op"] for e in online.emulator.log(kind="request", phase="arrived")]
    assert [op for op in order if op in ("models", "chat")] == ["models", "chat", "chat"]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("def test_it(): pass", ()),
        pytest.param(
            "import huggingface_hub\ndef test_it(): huggingface_hub.__version__",
            (),
            id="hub-only",
            marks=pytest.mark.slow,
        ),
        pytest.param(CALLS_LATE, (), id="imported-in-a-test"),
        pytest.param(CALLS, ("--collect-only",), id="collect-only", marks=pytest.mark.slow),
    ],
)
def test_a_run_without_a_cap_that_expects_no_call_reads_nothing(
    online: Suite, code: str, options: tuple[str, ...]
) -> None:
    run(online, code, *options)
    assert reads(online) == 0


def test_a_cap_has_it_read_whatever_is_imported(online: Suite) -> None:
    run(online, CALLS_LATE, "--hf-session-budget=1")
    assert reads(online) == 1


@pytest.mark.parametrize(
    "code",
    [pytest.param(CALLS, marks=pytest.mark.slow), CALLS_LATE],
    ids=["at-collection", "in-a-test"],
)
def test_a_first_rehearsal_has_prices(suite: Suite, code: str) -> None:
    result = run(suite, code)
    result.stdout.no_fnmatch_line(UNPRICED)
    result.stdout.fnmatch_lines(["spent <$0.0001 *"])


def test_workers_have_it_read_once_by_their_controller(suite: Suite) -> None:
    pytest.importorskip("xdist")
    result = run(suite, CALLS, "-n2")
    assert reads(suite) == 1
    result.stdout.no_fnmatch_line(UNPRICED)


# --- without a network


@pytest.mark.parametrize("options", [(), ("--hf-session-budget=1",)], ids=["free", "capped"])
def test_without_a_network_the_last_one_is_used_and_its_age_is_shown(
    online: Suite, one_emulator: Emulator, options: tuple[str, ...]
) -> None:
    kept(one_emulator.router, age_s=2 * DAY_S + 60)
    online.emulator.add_fault("models", status=503, times=None)
    result = run(online, CALLS, "--hf-report=report.json", *options)
    result.stdout.fnmatch_lines(["hfbudget: could not read the prices of *(2 days old) are used"])
    (call,) = online.report()["calls"]
    assert call["price_source"].endswith("emulator/chat:novita")


@pytest.mark.slow
def test_a_copy_of_today_is_used_as_it_is(online: Suite, one_emulator: Emulator) -> None:
    kept(one_emulator.router, age_s=60)
    run(online, CALLS, "--hf-session-budget=1")
    assert reads(online) == 0


@pytest.mark.parametrize(
    "age_s",
    [DAY_S + 60, pytest.param(-DAY_S, marks=pytest.mark.slow)],
    ids=["yesterday", "tomorrow"],
)
def test_a_copy_of_another_day_is_read_anew(
    online: Suite, one_emulator: Emulator, age_s: float
) -> None:
    kept(one_emulator.router, age_s=age_s)
    run(online, CALLS)
    assert reads(online) == 1


def test_a_suite_that_blocks_sockets_runs_all_the_same(online: Suite) -> None:
    # As pytest-socket does it.
    online.pytester.makeconftest("""
        import socket

        class Guarded(socket.socket):
            def __new__(cls, *args, **kwargs):
                raise RuntimeError("A test tried to use socket.socket.")

        def pytest_collection():
            socket.socket = Guarded
    """)
    result = run(online, "from huggingface_hub import InferenceClient\ndef test_it(): pass")
    result.stdout.fnmatch_lines(["hfbudget: could not read the prices of *; no prices were read*"])


def test_nothing_is_read_while_huggingface_hub_is_offline(
    online: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(
        online,
        "import huggingface_hub\nfrom huggingface_hub import InferenceClient\ndef test_it(): pass",
    )
    assert reads(online) == 0


def test_a_wrong_price_of_the_project_does_not_end_a_run_without_caps(online: Suite) -> None:
    Path(online.path / "pyproject.toml").write_text("[tool.hfbudget]\nprices = 3\n")
    result = run(online, CALLS)
    result.stdout.fnmatch_lines(["hfbudget: no prices are known: *(at line 2)"])
