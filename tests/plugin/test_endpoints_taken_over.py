"""Endpoints that the tested code itself resumes or creates: leased before, paused at the end."""

from __future__ import annotations

import textwrap

import pytest
from huggingface_hub import HfApi
from plugin_suite import Suite

API = """
import asyncio, os, subprocess, sys
import pytest
from huggingface_hub import HfApi, constants

NAME = "acme/llm"
URL = constants.INFERENCE_ENDPOINTS_ENDPOINT + "/endpoint/acme/llm/resume"
HEADERS = {"authorization": "Bearer hf_user"}
FORM = {
    "repository": "acme/model", "framework": "pytorch", "task": "text-generation",
    "accelerator": "cpu", "vendor": "aws", "region": "us-east-1", "type": "authenticated",
    "instance_size": "x1", "instance_type": "intel-icl", "namespace": "acme", "token": "hf_user",
}

def resume():
    return HfApi(token="hf_user").resume_inference_endpoint("llm", namespace="acme")
"""
RESUMES = "\ndef test_it():\n    resume()\n"
BY = {
    "httpx": "import httpx\n    httpx.post(URL, headers=HEADERS).raise_for_status()",
    "requests": "import requests\n    requests.post(URL, headers=HEADERS).raise_for_status()",
    "urllib": (
        "from urllib.request import Request, urlopen\n"
        "    urlopen(Request(URL, b'', HEADERS, method='POST'))"
    ),
    "aiohttp": """import aiohttp
    async def main():
        async with aiohttp.ClientSession(headers=HEADERS) as session:
            async with session.post(URL) as answer:
                answer.raise_for_status()
    asyncio.run(main())""",
    "async httpx": """import httpx
    async def main():
        async with httpx.AsyncClient(headers=HEADERS) as client:
            (await client.post(URL)).raise_for_status()
    asyncio.run(main())""",
}
DONE = "*acme/llm: paused, verified; resumed *, paused *; 1 min, $*; started by the code under test"


catalogue = pytest.mark.skipif(
    not hasattr(HfApi, "create_inference_endpoint_from_catalog"),
    reason="this huggingface_hub knows no catalogue",
)


@pytest.fixture
def starts(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    suite.emulator.add_endpoint("acme/llm", state="paused")
    return suite


def write(suite: Suite, code: str = RESUMES) -> None:
    (suite.path / "test_suite.py").write_text(API + textwrap.dedent(code))


def state(suite: Suite, name: str = "acme/llm") -> str:
    every = suite.emulator.state()["endpoints"]
    return next(str(one["state"]) for one in every if one["name"] == name)


def spent(suite: Suite) -> int:
    return round(float(suite.report()["session"]["spent_usd"]) * 10**9)


def test_what_the_tested_code_resumes_is_paused_and_paid_for(starts: Suite) -> None:
    write(starts)
    result = starts.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([DONE])
    result.stdout.no_fnmatch_line("*the code under test has started*")
    assert state(starts) == "paused"
    assert len(starts.requests("resume")) == 1
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("library", BY)
def test_a_resume_by_plain_http_is_taken_over_too(starts: Suite, library: str) -> None:
    write(starts, f"\ndef test_it():\n    {BY[library]}\n")
    result = starts.run("--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([DONE])
    assert state(starts) == "paused"
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


@pytest.mark.slow
def test_what_the_tested_code_creates_is_paused(starts: Suite) -> None:
    write(
        starts,
        """
        def test_it():
            endpoint = HfApi().create_inference_endpoint("new", **FORM)
            endpoint.wait(timeout=20, refresh_every=0.1)
        """,
    )
    result = starts.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([DONE.replace("llm", "new")])
    assert state(starts, "acme/new") == "paused"
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


DEPLOYS = """
    from pytest_hfbudget.emulator import EmulatorClient

    emulator = EmulatorClient(os.environ["HFBUDGET_EMULATOR"])
    # A rehearsal lets nothing out to the real catalogue.
    constants.INFERENCE_CATALOG_ENDPOINT = constants.INFERENCE_ENDPOINTS_ENDPOINT

    def deploy(**named):
        HfApi(token="hf_user").create_inference_endpoint_from_catalog(
            "acme/model", namespace="acme", **named
        )

    def test_it():
        emulator.add_fault("unknown", path="/deploy$", status=200, json={"endpoint": MADE})
        deploy(name="new")
        # The catalogue has started it by now.
        emulator.add_endpoint("acme/new", instance_type="intel-icl", state="running")
"""
MADE = """
MADE = {
    "name": "new", "type": "authenticated", "healthRoute": "/health", "status": {
        "state": "initializing", "createdAt": "2026-11-01T00:00:00Z",
        "updatedAt": "2026-11-01T00:00:00Z"},
    "model": {"repository": "acme/model", "framework": "custom", "revision": "main",
              "task": "text-generation"},
}
"""


@catalogue
def test_what_the_tested_code_deploys_from_the_catalogue_is_paused(starts: Suite) -> None:
    write(starts, MADE + textwrap.dedent(DEPLOYS))
    starts.run().assert_outcomes(passed=1)
    assert state(starts, "acme/new") == "paused"


@catalogue
def test_under_a_cap_what_the_catalogue_would_start_is_refused(starts: Suite) -> None:
    """Its hardware is the catalogue's choice, so its price is not known before."""
    write(starts, MADE + textwrap.dedent(DEPLOYS))
    result = starts.run("--hf-session-budget=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*acme/new was not started, because no cap can hold its cost: *"])
    assert starts.requests("unknown") == []


@pytest.mark.slow
def test_what_the_tested_code_deletes_again_is_in_order(starts: Suite) -> None:
    write(
        starts,
        """
        def test_it():
            endpoint = HfApi().create_inference_endpoint("new", **FORM)
            endpoint.wait(timeout=20, refresh_every=0.1)
            endpoint.delete()
        """,
    )
    result = starts.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    (endpoint,) = starts.report()["endpoints"]
    assert (endpoint["name"], endpoint["verified"]) == ("acme/new", True)
    assert spent(starts) >= starts.emulator.invoice()["total_nano_usd"] > 0


def test_the_lease_is_in_the_journal_before_the_request_is_sent(starts: Suite) -> None:
    write(
        starts,
        """
        from pathlib import Path
        import httpx

        class Transport(httpx.HTTPTransport):
            def handle_request(self, request):
                journals = Path(os.environ["HFBUDGET_STATE_DIR"]).rglob("*.jsonl")
                self.seen = "".join(path.read_text() for path in journals)
                return super().handle_request(request)

        def test_it():
            transport = Transport()
            with httpx.Client(transport=transport, headers=HEADERS) as client:
                client.post(URL).raise_for_status()
            assert '"intent"' in transport.seen and "acme/llm" in transport.seen
        """,
    )
    starts.run().assert_outcomes(passed=1)


def test_what_runs_already_is_left_alone(starts: Suite) -> None:
    starts.emulator.change_endpoint("acme/llm", state="running")
    write(
        starts,
        "def test_it():\n    import httpx\n    httpx.post(URL, headers=HEADERS)\n",
    )
    result = starts.run("--hf-session-budget=1")
    result.assert_outcomes(passed=1)
    assert state(starts) == "running"
    assert starts.requests("pause") == []


MOCKED = {
    "httpx, as pytest-httpx does": """
    import httpx
    from unittest.mock import patch
    answer = lambda self, request: httpx.Response(200, json={})
    with patch.object(httpx.HTTPTransport, "handle_request", answer):
        httpx.post(URL, headers=HEADERS).raise_for_status()
    """,
    "requests, as responses does": """
    import requests
    from unittest.mock import patch
    def answer(self, request, **options):
        response = requests.Response()
        response.status_code, response.request, response.url = 200, request, request.url
        response._content = b"{}"
        return response
    with patch.object(requests.adapters.HTTPAdapter, "send", answer):
        requests.post(URL, headers=HEADERS).raise_for_status()
    """,
    "a transport": """
    import httpx
    answer = httpx.MockTransport(lambda request: httpx.Response(200, json={}))
    with httpx.Client(transport=answer) as client:
        client.post(URL, headers=HEADERS).raise_for_status()
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("by", [*MOCKED])
def test_for_what_a_stand_in_for_the_network_answers_nothing_is_looked_up_or_paused(
    starts: Suite, by: str
) -> None:
    write(starts, f"def test_it():{MOCKED[by]}")
    result = starts.run("--hf-session-budget=0.000001")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*acme/llm*")
    assert starts.emulator.log(kind="request", phase="arrived", endpoint="acme/llm") == []


@pytest.mark.slow
@pytest.mark.parametrize(("how", "named"), [("report", True), ("off", False)])
def test_it_can_be_only_named_or_not_even_that(starts: Suite, how: str, named: bool) -> None:
    write(starts)
    result = starts.run("-o", f"hf_adopt={how}")
    result.assert_outcomes(passed=1)
    assert state(starts) != "paused"
    line = "*the code under test has started the Inference Endpoint acme/llm;*"
    (result.stdout.fnmatch_lines if named else result.stdout.no_fnmatch_line)(
        [line] if named else line  # type: ignore[arg-type]
    )


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "stop"])
def test_a_value_that_is_none_ends_the_run(
    starts: Suite, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFBUDGET_ADOPT", value)
    write(starts)
    result = starts.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "HFBUDGET_ADOPT" in result.stderr.str()
    assert starts.requests("resume") == []


def test_a_minute_that_the_session_budget_does_not_hold_is_not_started(starts: Suite) -> None:
    write(
        starts,
        """
        import contextlib
        def test_it():
            with contextlib.suppress(Exception):
                resume()
        """,
    )
    result = starts.run("--hf-session-budget=0.000001", "-rs")
    result.assert_outcomes(skipped=1)
    said = (
        "*not run: session budget: acme/llm: its first minute costs $*, but only $0.000001 of "
        "$0.000001 is left. The endpoint was not resumed. Raise --hf-session-budget.*"
    )
    result.stdout.fnmatch_lines([said])
    assert starts.requests("resume") == []


@pytest.mark.slow
def test_where_the_token_may_not_manage_it_it_is_named_and_under_a_cap_refused(
    starts: Suite,
) -> None:
    starts.emulator.add_fault(op="get", times=None, status=403, json={"error": "not yours"})
    write(starts, "def test_it():\n    import httpx\n    httpx.post(URL, headers=HEADERS)\n")
    result = starts.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*has started the Inference Endpoint acme/llm; it can't be paused at the end: *403*"]
    )
    starts.emulator.change_endpoint("acme/llm", state="paused")
    result = starts.run("--hf-session-budget=1")
    result.assert_outcomes(failed=1)
    refused = (
        "*acme/llm was not started, because no cap can hold its cost: *the token may not do this*"
    )
    result.stdout.fnmatch_lines([refused])
    assert state(starts) == "paused"


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_nothing_to_pay(starts: Suite) -> None:
    starts.emulator.add_fault(op="resume", times=None, status=403, json={"error": "no quota"})
    write(
        starts,
        "def test_it():\n    with pytest.raises(Exception, match='403'):\n        resume()\n",
    )
    result = starts.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    assert (state(starts), spent(starts)) == ("paused", 0)


@pytest.mark.slow
def test_calls_to_it_cost_its_uptime_alone(starts: Suite) -> None:
    write(
        starts,
        """
        def test_it():
            endpoint = resume().wait(timeout=20, refresh_every=0.1)
            say = [{"role": "user", "content": "Say something. [[tokens=10]]"}]
            assert endpoint.client.chat_completion(say, max_tokens=20)
        """,
    )
    result = starts.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    (call,) = starts.report()["calls"]
    assert (call["usd"], call["price_source"]) == ("0", "uptime of acme/llm")
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


PAUSES = """
def pause_and_wait(endpoint):
    endpoint.pause()
    while endpoint.fetch().status != "paused":
        pass
"""


@pytest.mark.slow
def test_what_the_tested_code_pauses_itself_and_resumes_again_is_paid_for_twice(
    starts: Suite,
) -> None:
    write(
        starts,
        PAUSES
        + """
def test_it():
    for _ in range(2):
        endpoint = resume().wait(timeout=20, refresh_every=0.1)
        pause_and_wait(endpoint)

def test_later():
    resume()
""",
    )
    result = starts.run("--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=2)
    assert state(starts) == "paused"
    assert len(starts.requests("resume")) == 3
    (endpoint,) = starts.report()["endpoints"]
    assert endpoint["verified"]
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


@pytest.mark.slow
def test_a_test_that_needs_it_later_has_it_resumed(starts: Suite) -> None:
    write(
        starts,
        PAUSES
        + """
def test_own():
    pause_and_wait(resume().wait(timeout=20, refresh_every=0.1))

@pytest.mark.hf_endpoint("acme/llm")
def test_marked(hf_endpoint):
    assert hf_endpoint.fetch().status == "running"
""",
    )
    result = starts.run("-p", "no:randomly", "--hf-order=collected", "--hf-report=report.json")
    result.assert_outcomes(passed=2)
    assert state(starts) == "paused"
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


@pytest.mark.slow
def test_a_worker_has_its_controller_pause_what_it_starts(starts: Suite) -> None:
    starts.emulator.add_endpoint("acme/two", state="paused")
    write(
        starts,
        """
        @pytest.mark.parametrize("name", ["llm", "two"])
        def test_it(name):
            HfApi().resume_inference_endpoint(name, namespace="acme")
        """,
    )
    result = starts.run("-n2", "--hf-session-budget=1", "--hf-report=report.json")
    result.assert_outcomes(passed=2)
    assert (state(starts), state(starts, "acme/two")) == ("paused", "paused")
    assert spent(starts) == starts.emulator.invoice()["total_nano_usd"] > 0


@pytest.mark.slow
def test_a_child_process_that_has_joined_has_paused_what_it_starts(starts: Suite) -> None:
    (starts.path / "child.py").write_text(API + "\nresume()\n")
    write(
        starts,
        """
        @pytest.mark.budget(max_usd=1)
        def test_it():
            run = [sys.executable, "-m", "pytest_hfbudget.join", "child.py"]
            subprocess.run(run, check=True)
        """,
    )
    result = starts.run("--hf-report=report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([DONE])
    assert state(starts) == "paused"


LATE = """
def pytest_unconfigure():
    try:
        resume()
    except Exception as error:
        print("MET", type(error).__name__)
"""


def test_under_a_cap_a_start_after_the_report_is_refused_and_fails_the_run(starts: Suite) -> None:
    (starts.path / "conftest.py").write_text(API + LATE)
    write(starts, "def test_it():\n    pass\n")
    result = starts.run("--hf-session-budget=1")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["MET RunOverError", "*the Inference Endpoint acme/llm: the run is *"]
    )
    assert not starts.requests("resume")


def test_without_a_cap_a_start_after_the_report_is_paused_and_told(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    real.emulator.add_endpoint("acme/llm", state="paused")
    (real.path / "conftest.py").write_text(API + LATE)
    write(real, "def test_it():\n    pass\n")
    result = real.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["hfbudget: 1 call came after the report, so it is missing there"])
    (resumed,) = real.requests("resume")
    real.emulator.wait_for(op="pause", phase="answered", status=200, after=resumed["seq"])
    assert state(real) == "paused"


NO_ENDPOINT = "def test_it():\n    pass\n"
ANOTHER = "@pytest.mark.hf_endpoint('acme/other')\ndef test_it():\n    pass\n"
THE_SAME = "@pytest.mark.hf_endpoint('acme/llm')\ndef test_it():\n    pass\n"
IN_THE_SUMMARY = """
@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary():
    resume()
"""
AS_IT_ENDS = """
def pytest_sessionfinish():
    resume()
"""


@pytest.mark.usefixtures("reapers_end")
@pytest.mark.parametrize(
    ("tests", "when"),
    [
        pytest.param(NO_ENDPOINT, IN_THE_SUMMARY, id="none-summary"),
        pytest.param(ANOTHER, AS_IT_ENDS, id="another-sessionfinish"),
        pytest.param(THE_SAME, LATE, id="the-same-unconfigure"),
    ],
)
def test_what_is_started_as_the_run_ends_is_paused_whatever_the_run_has_paused_before(
    tests: str, when: str, real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    for name in ("acme/llm", "acme/other"):
        real.emulator.add_endpoint(name, state="paused")
    (real.path / "conftest.py").write_text(API + when)
    write(real, tests)
    result = real.run("--hf-report=report.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["endpoint acme/llm: paused, verified: started as the run ended*"])
    result.stdout.no_fnmatch_line("*NOT VERIFIED*")
    assert state(real) == "paused"
    assert all(line["verified"] for line in real.report()["endpoints"])


@pytest.mark.slow
def test_such_a_pause_that_can_not_be_verified_fails_the_run(
    real: Suite, monkeypatch: pytest.MonkeyPatch, reapers_end: None
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_user")
    real.emulator.add_endpoint("acme/llm", state="paused")
    real.emulator.add_fault("pause", times=None, status=403)
    (real.path / "conftest.py").write_text(API + LATE)
    write(real, NO_ENDPOINT)
    result = real.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["endpoint acme/llm: NOT VERIFIED AS PAUSED (*`hfbudget pause acme/llm`*"]
    )
