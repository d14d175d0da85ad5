"""Whole runs of suites that call by other clients than huggingface_hub's."""

from __future__ import annotations

import textwrap

import pytest
from plugin_suite import Suite

pytest.importorskip("openai")

OPENAI = """
import contextlib, os, subprocess, sys
import openai
import pytest

def call(limit=20, model="emulator/chat:groq", tokens=10, **options):
    with openai.OpenAI(base_url="https://router.huggingface.co/v1", api_key="hf_user") as client:
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Say something. [[tokens={tokens}]]"}],
            max_tokens=limit,
            **options,
        )
"""


@pytest.fixture
def others(suite: Suite) -> Suite:
    return suite


def write(suite: Suite, code: str) -> None:
    """A suite that never imports this package."""
    (suite.path / "test_suite.py").write_text(OPENAI + textwrap.dedent(code))


def test_a_run_tells_what_the_calls_of_openai_have_cost(others: Suite) -> None:
    write(others, "def test_it():\n    call()\n")
    result = others.run("--hf-session-budget=1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["spent <$0.0001 of $1.00 *(1 call)"])
    assert others.billed == 1500


@pytest.mark.slow
def test_without_a_cap_a_run_tells_it_too(others: Suite) -> None:
    write(others, "def test_it():\n    call()\n")
    result = others.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["spent <$0.0001 (1 call; no session budget)"])


def test_a_swallowed_refusal_fails_the_test(others: Suite) -> None:
    write(
        others,
        """
        @pytest.mark.budget(max_usd="0.0000001")
        def test_it():
            with contextlib.suppress(Exception):
                call()
        """,
    )
    result = others.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["refused, though the test passed: *emulator/chat may cost up to*"])
    assert others.sent == 0


def test_a_test_may_handle_its_refusals(others: Suite) -> None:
    write(
        others,
        """
        @pytest.mark.budget(max_usd="0.0000001", on_exceed="raise")
        def test_it():
            with pytest.raises(openai.APIStatusError, match="may cost up to"):
                call()
        """,
    )
    others.run().assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_session_budget_that_is_used_up_skips_the_rest_and_the_run_is_red(others: Suite) -> None:
    write(others, "@pytest.mark.parametrize('n', range(20))\ndef test_it(n):\n    call()\n")
    result = others.run("--hf-session-budget=0.00002")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert result.ret == 1
    assert others.billed <= 20_000


@pytest.mark.slow
def test_workers_share_the_cap(others: Suite) -> None:
    write(others, "@pytest.mark.parametrize('n', range(24))\ndef test_it(n):\n    call()\n")
    result = others.run("--hf-session-budget=0.00002", "-n2", "--hf-report=report.json")
    assert {"passed", "skipped"} == set(result.parseoutcomes())
    assert 0 < others.billed <= 20_000
    assert others.report()["session"]["spent_usd"] == f"{others.billed / 10**9:.7f}".rstrip("0")


@pytest.mark.slow
def test_a_child_process_that_joins_spends_from_the_budget_of_the_test(others: Suite) -> None:
    child = OPENAI + "\ncall()\n"
    (others.path / "child.py").write_text(child)
    write(
        others,
        """
        RUN = [sys.executable, "-m", "pytest_hfbudget.join", "child.py"]

        @pytest.mark.budget(max_usd=1)
        def test_within():
            subprocess.run(RUN, check=True)

        @pytest.mark.budget(max_usd="0.0000001")
        def test_beyond():
            assert "may cost up to" in subprocess.run(RUN, capture_output=True, text=True).stderr
        """,
    )
    result = others.run()
    result.assert_outcomes(passed=1, failed=1)
    assert others.sent == 1
    result.stdout.fnmatch_lines(["*test_within *(1 call)"])


@pytest.mark.slow
def test_warn_at_and_fallback_count_these_calls(others: Suite) -> None:
    write(
        others,
        """
        @pytest.mark.budget(
            max_usd=1,
            warn_at=1e-9,
            fallback={"at_pct": 1e-9, "model": "meta-llama/Llama-3.1-8B-Instruct:novita"},
        )
        def test_it():
            call()
            assert call().model == "meta-llama/Llama-3.1-8B-Instruct"
        """,
    )
    result = others.run("--hf-report=report.json")
    result.assert_outcomes(passed=1, warnings=1)
    first, second = others.report()["calls"]
    assert (second["model"], second["instead_of"]) == (
        "meta-llama/Llama-3.1-8B-Instruct",
        "emulator/chat:groq",
    )
    assert first["model"] == "emulator/chat"


# --- what a service says of every call to come


BY_HUB = """
from huggingface_hub import InferenceClient

def call():
    SAY = [{"role": "user", "content": "Say something."}]
    return InferenceClient("emulator/chat", provider="groq").chat_completion(SAY, max_tokens=5)
"""
NO_CREDIT = "You have exceeded your monthly included credits for Inference Providers."
NO_PERMISSION = "This authentication method does not have sufficient permissions to call this."


@pytest.mark.parametrize("caps", [(), ("--hf-session-budget=1",)], ids=["no cap", "cap"])
@pytest.mark.parametrize("client", ["", BY_HUB], ids=["openai", "hub"])
def test_without_credit_a_test_is_not_run(
    others: Suite, client: str, caps: tuple[str, ...]
) -> None:
    write(others, client + "\ndef test_it():\n    call()\n")
    others.emulator.add_fault(op="chat", times=None, status=402, json={"error": NO_CREDIT})
    result = others.run(*caps, "-rs")
    result.assert_outcomes(skipped=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"*not run: emulator/chat: the service has answered 402*{NO_CREDIT} Add*"]
    )
    assert (
        "hfbudget: the run failed: 1 test not run: the service refused the calls, because the "
        "account has no credit left. Run pytest with -rs to see the details."
    ) in " ".join(result.stdout.str().split())


def test_a_run_that_lacks_credit_and_budget_names_both(others: Suite) -> None:
    write(others, "def test_one():\n    call()\ndef test_two():\n    call(limit=10**6)\n")
    others.emulator.add_fault(op="chat", times=1, status=402, json={"error": NO_CREDIT})
    result = others.run("--hf-session-budget=0.0001")
    result.assert_outcomes(skipped=2)
    assert (
        "hfbudget: the run failed: 2 tests not run: a budget has too little left, or the account "
        "has no credit left; -rs says which."
    ) in " ".join(result.stdout.str().split())


@pytest.mark.parametrize("client", ["", BY_HUB], ids=["openai", "hub"])
def test_a_permission_that_a_token_lacks_is_named(others: Suite, client: str) -> None:
    write(others, client + "\ndef test_it():\n    call()\n")
    others.emulator.add_fault(op="chat", times=None, status=403, json={"error": NO_PERMISSION})
    result = others.run("--hf-session-budget=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['*lacks the permission "Make calls to Inference Providers":*'])


# --- clients that can't be read


URLLIB = """
from urllib.request import Request, urlopen

def test_it():
    router = os.environ["TEST_ROUTER"]
    with contextlib.suppress(Exception):
        urlopen(Request(f"{router}/v1/chat/completions", b"{}", {"Authorization": "Bearer hf_x"}))
"""


def test_a_request_that_can_not_be_read_fails_a_test_under_a_cap(
    others: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ROUTER", f"{others.emulator.url}/router")
    (others.path / "test_suite.py").write_text("import contextlib, os\n" + URLLIB)
    result = others.run("--hf-session-budget=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*a request to 127.0.0.1 comes from a client that pytest-hfbudget can't read*"]
    )
    assert others.sent == 0


def test_a_request_that_can_not_be_read_is_counted_without_a_cap(
    others: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ROUTER", f"{others.emulator.url}/router")
    (others.path / "test_suite.py").write_text("import contextlib, os\n" + URLLIB)
    result = others.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 call could not be metered: a request to 127.0.0.1 by a*"])


# --- runs that have nothing to do with Hugging Face


@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp", "openai", "urllib.request"])
def test_a_run_that_imports_a_client_and_pays_nothing_says_nothing(
    others: Suite, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pytest.importorskip(library)
    (others.path / "test_suite.py").write_text(
        f"import sys\nimport {library}\ndef test_it():\n"
        "    assert not [m for m in sys.modules if m.startswith('pytest_hfbudget.pricing')]\n"
    )
    result = others.run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*hf*budget*")
