"""Credentials in a URL, and what a terminal obeys in a name, reach nothing that a run writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_suite import Suite

SECRETS = ("s3cr3t-user", "s3cr3t-pass", "s3cr3t-query", "s3cr3t-part")
SUITE = """
    import os

    HOST = os.environ["HFBUDGET_EMULATOR"].partition("://")[2]
    SECRET = f"http://s3cr3t-user:s3cr3t-pass@{HOST}/router/v1"
    MORE = f"{SECRET}?token=s3cr3t-query#s3cr3t-part"

    def ask(url=SECRET):
        try:
            client = InferenceClient(base_url=url)
            client.chat_completion(SAY, model="emulator/chat", max_tokens=5)
        except BudgetExceededError:
            raise
        except Exception:
            pass  # what the server says to such a URL does not matter here

    @pytest.fixture(scope="session", autouse=True)
    def outside():
        ask(MORE)

    @pytest.mark.parametrize("url", [SECRET, MORE], ids=["plain", "with a query"])
    def test_paid(url):
        with budget(price={"call": 0.0001}):
            ask(url)

    def test_refused():
        with pytest.raises(BudgetExceededError), budget(0.00001, price={"call": 0.0001}):
            ask()

    def test_unpriced():
        with pytest.raises(BudgetExceededError), budget(0.00001):
            ask()

    def test_with_a_fallback():
        other = {"at_pct": 0.01, "model": "acme/other"}
        with budget(1, price={"call": 0.1}, fallback=other):
            call()
            ask()
"""


def everything(suite: Suite, result: pytest.RunResult) -> dict[str, str]:
    """All that a run and the commands after it have written, by what it is."""
    command = (sys.executable, "-m", "pytest_hfbudget")
    said = {"standard output": result.stdout.str(), "standard error": result.stderr.str()}
    for arguments in (
        ("report", "report.json", "--top=0"),
        ("report", "report.json", "--html", "page.html"),
        ("log",),
        ("log", "--csv"),
        ("log", "--json"),
    ):
        done = subprocess.run(
            [*command, *arguments], cwd=suite.path, capture_output=True, text=True, check=True
        )
        said[" ".join(arguments)] = done.stdout + done.stderr
    written = (path for path in suite.path.rglob("*") if path.is_file() and path.suffix != ".py")
    state = suite.path.parent / f"{suite.path.name}-state"
    for path in (*written, *state.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            said[path.name] = path.read_bytes().decode(errors="replace")
    return said


@pytest.fixture
def told(real: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """One whose runs write all that they can."""
    monkeypatch.setenv("HFBUDGET_STATE_DIR", str(real.path.parent / f"{real.path.name}-state"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(real.path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    # The suite needs the emulator's address, and must not be a rehearsal, which has no log.
    monkeypatch.setenv("ADDRESS_FOR_TESTS", real.emulator.url)
    return real


WRITES = ("--hf-report=report.json", "--junitxml=junit.xml", "-o", "junit_logging=all", "-rA")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="serially"),
        pytest.param(("-n2",), id="in workers", marks=pytest.mark.slow),
    ],
)
def test_credentials_in_a_url_are_in_nothing_that_is_written(
    told: Suite, options: tuple[str, ...]
) -> None:
    told.test_file(SUITE.replace("HFBUDGET_EMULATOR", "ADDRESS_FOR_TESTS"))
    result = told.run(*WRITES, *options)
    said = everything(told, result)
    result.assert_outcomes(passed=5, warnings=1)
    assert [call["usd"] for call in told.report()["calls"]].count("0.1") == 1
    assert len(told.report()["refusals"]) == 2
    for name, text in said.items():
        assert not [secret for secret in SECRETS if secret in text], name
    assert re.search(r"http://127\.0\.0\.1:\d+/router/v1", said["report.json"])


@pytest.mark.slow
def test_a_price_for_a_server_counts_whatever_credentials_its_url_has(told: Suite) -> None:
    host = told.emulator.url.partition("://")[2]
    (told.path / "prices.toml").write_text(f'["http://me:s3cr3t-pass@{host}"]\ncall = 0.0001\n')
    told.test_file("""
        def test_it():
            import os
            host = os.environ["ADDRESS_FOR_TESTS"].partition("://")[2]
            try:
                InferenceClient(base_url=f"http://you:s3cr3t-pass@{host}/router/v1") \\
                    .chat_completion(SAY, max_tokens=5)
            except BudgetExceededError:
                raise
            except Exception:
                pass
    """)
    result = told.run(*WRITES, "--hf-prices=prices.toml", "--hf-session-budget=0.01")
    result.assert_outcomes(passed=1)
    (call,) = told.report()["calls"]
    assert call["price_source"].startswith("prices.toml: [")
    (told.path / "prices.toml").unlink()
    for name, text in everything(told, result).items():
        assert "s3cr3t" not in text, name


@pytest.mark.slow
def test_a_name_turns_nothing_and_clears_nothing(told: Suite) -> None:
    told.test_file("""
        NAME = "acme/\\x1b[2J\\x9b1m\\u202egpj\\nnext"

        def test_it():
            with pytest.raises(BudgetExceededError), budget(0.0001, price={"call": 1}):
                ask()
            with budget(price={"call": 0.0001}):
                ask()

        def ask():
            import os
            client = InferenceClient(base_url=os.environ["ADDRESS_FOR_TESTS"] + "/router/v1")
            try:
                client.chat_completion(SAY, model=NAME, max_tokens=5)
            except BudgetExceededError:
                raise
            except Exception:
                pass  # a router that does not know it
    """)
    said = everything(told, told.run(*WRITES, "--color=no"))
    assert len(told.report()["refusals"]) == len(told.report()["calls"]) == 1
    assert "gpj" in said["report.json"]
    for name, text in said.items():
        if not name.endswith(".sqlite3"):
            assert not re.search("[\x1b\x9b\u202e]", text), name


def test_a_copy_of_the_catalogue_that_is_nested_too_deeply_is_read_anew(
    real: Suite, tmp_path: Path
) -> None:
    real.test_file("""
        def test_it():
            call()
    """)
    real.run("--hf-session-budget=1").assert_outcomes(passed=1)
    (copy,) = (tmp_path / "cache").glob("catalogue-*.json")
    kept = json.loads(copy.read_text())
    copy.write_text(json.dumps({**kept, "models": "HERE"}).replace('"HERE"', "[" * 100_000))
    result = real.run("--hf-session-budget=1")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert json.loads(copy.read_text())["models"]["data"]
