"""What a person sees of a refusal: the line that called, and one sentence, once."""

from __future__ import annotations

import re
import textwrap

import pytest
from plugin_suite import Suite

slow = pytest.mark.slow

RAISED = """
    def helper(client):
        return client.chat_completion(SAY, max_tokens=50)

    @pytest.mark.budget(max_usd=0)
    def test_it():
        # A comment, so that this test is longer
        # than what may be shown of it:
        # it has to be cut
        # to the line
        # that called.
        client = InferenceClient(model="emulator/chat", provider="groq")
        assert helper(client)
"""
RAISED_ASYNC = """
    async def helper():
        async with AsyncInferenceClient(model="emulator/chat", provider="groq") as client:
            return await client.chat_completion(SAY, max_tokens=50)

    @pytest.mark.budget(max_usd=0)
    def test_it():
        asyncio.run(helper())
"""
IN_A_FIXTURE = """
    @pytest.fixture
    def helper():
        return call()

    @pytest.mark.budget(max_usd=0)
    def test_it(helper): pass
"""
OUT_OF_A_BLOCK = """
    def helper():
        try:
            call()
        except Exception:
            pass

    def test_it():
        with budget(max_usd=0):
            helper()
"""


def failure_in(said: str) -> list[str]:
    """The lines between a failure's headline and the next section."""
    found = re.search(r"^_+ (?:ERROR at setup of )?test_it _+$\n(.*?)^=+ ", said, re.M | re.S)
    assert found, said
    return found[1].splitlines()


@pytest.mark.parametrize("code", [RAISED, RAISED_ASYNC, IN_A_FIXTURE, OUT_OF_A_BLOCK])
def test_a_refusal_is_shown_by_the_users_lines_and_one_sentence(suite: Suite, code: str) -> None:
    suite.test_file(code)
    shown = failure_in(suite.run().stdout.str())
    assert len(shown) + 1 <= 12, "\n".join(shown)
    assert not any("huggingface_hub/" in line for line in shown)
    assert sum("may cost up to" in line for line in shown) == 1
    assert any(line.startswith("test_suite.py:") and "in " in line for line in shown)


@slow
def test_a_refusal_is_shown_as_shortly_by_a_worker(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file(RAISED)
    shown = failure_in(suite.run("-n1").stdout.str())
    assert len(shown) + 1 <= 12, "\n".join(shown)


@slow
def test_all_of_a_refusal_is_shown_when_asked_for(suite: Suite) -> None:
    suite.test_file(RAISED)
    for options in (["--tb=long", "-vv"], ["--full-trace"]):
        shown = failure_in(suite.run(*options).stdout.str())
        assert len(shown) > 100
        assert any("huggingface_hub/inference/_client.py" in line for line in shown)


@slow
def test_a_refusal_behind_another_error_is_shown_shortly_and_the_other_in_full(
    suite: Suite,
) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0)
        def test_it():
            try:
                call()
            except Exception as error:
                raise RuntimeError("no answer") from error
    """)
    shown = failure_in(suite.run().stdout.str())
    assert '>           raise RuntimeError("no answer") from error' in shown
    assert "The above exception was the direct cause of the following exception:" in shown
    assert len(shown) < 30
    assert not any("huggingface_hub/" in line for line in shown)


@slow
def test_other_failures_are_shown_as_pytest_shows_them(suite: Suite) -> None:
    code = "def helper(): raise ValueError\ndef test_it(): helper()"
    suite.test_file(code)
    with_us = failure_in(suite.run().stdout.str())
    suite.lean = False
    assert with_us == failure_in(suite.run("-p", "no:hfbudget").stdout.str())


@slow
@pytest.mark.parametrize("code", [RAISED, OUT_OF_A_BLOCK])
@slow
@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_tb_line_shows_a_raised_refusal_once_at_the_line_that_called(
    suite: Suite, code: str, workers: list[str]
) -> None:
    suite.test_file(code)
    said = suite.run("--tb=line", *workers).stdout.str()
    shown = [line for line in said.splitlines() if "may cost up to" in line]
    (line,) = (line for line in shown if not line.startswith("FAILED"))
    assert re.match(r"test_suite\.py:\d+: pytest_hfbudget\.errors\.BudgetExceededError: ", line)


# --- refusals that would not have failed the test

PASSED = "def test_it(): pytest.raises(BudgetExceededError, lambda: call())"
HANDLED = {
    "raises": ("", PASSED, "the test passed"),
    "xfail": (
        "@pytest.mark.xfail",
        "def test_it(): call()",
        "the test was expected to fail (xfail)",
    ),
    "xfail_raises": (
        "@pytest.mark.xfail(raises=BudgetExceededError, strict=True)",
        "def test_it(): call()",
        "the test was expected to fail (xfail)",
    ),
    "skip": (
        "",
        """def test_it():
    try:
        call()
    except BudgetExceededError:
        pytest.skip()""",
        "the test was skipped",
    ),
    "teardown": (
        """@pytest.fixture
def client():
    yield
    pytest.raises(BudgetExceededError, lambda: call())
@pytest.mark.usefixtures("client")""",
        "def test_it(): pass",
        "the tear-down passed",
    ),
}


@slow
@pytest.mark.parametrize("way", HANDLED)
def test_it_says_what_happened_to_a_refusal_and_how_a_test_may_have_it(
    suite: Suite, way: str
) -> None:
    before, code, ending = HANDLED[way]
    suite.test_file(f"{before}\n@pytest.mark.budget(max_usd=0)\n{code}")
    said = suite.run().stdout.str()
    assert f"refused, though {ending}: test_suite.py::test_it: emulator/chat may cost" in said
    assert 'mark it with @pytest.mark.budget(on_exceed="raise").' in said


@slow
@pytest.mark.parametrize("way", HANDLED)
def test_the_mark_that_it_names_lets_the_test_handle_refusals(suite: Suite, way: str) -> None:
    before, code, _ = HANDLED[way]
    marks = '@pytest.mark.budget(on_exceed="raise")\n@pytest.mark.budget(max_usd=0)'
    suite.test_file(f"{before}\n{marks}\n{code}")
    assert suite.run().ret == 0


@slow
@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_tb_line_shows_a_hidden_refusal_once_and_whole(suite: Suite, workers: list[str]) -> None:
    suite.test_file(f"@pytest.mark.budget(max_usd=0)\n{PASSED}")
    said = suite.run("--tb=line", *workers).stdout.str()
    assert said.count("refused, though the test passed: test_suite.py::test_it: emulator/chat") == 1
    assert re.search(r"^test_suite\.py:\d+: refused, though .*on_exceed=\"raise\"\)\.$", said, re.M)


@pytest.mark.parametrize("debugger", ["", "--pdb"])
def test_a_plugin_that_asks_the_call_sees_a_hidden_refusal_as_a_failure(
    suite: Suite, debugger: str
) -> None:
    """The plugin flaky drops the report of a failure that comes without an exception."""
    (suite.path / "conftest.py").write_text(
        textwrap.dedent("""
        import pytest

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.when == "call":
                print(f"{report.outcome}: {call.excinfo.exconly()}")
            return report
    """)
    )
    suite.test_file("""
        @pytest.mark.budget(max_calls=0)
        def test_it():
            with pytest.raises(BudgetExceededError):
                call()
    """)
    result = suite.run("-s", *debugger.split())
    result.stdout.fnmatch_lines(["*failed: *refused, though the test passed: *"])
    result.stdout.no_fnmatch_line("*entering PDB*")
    assert result.ret == 1


def test_a_hidden_refusal_fails_a_run_without_a_terminal_plugin(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_calls=0)
        def test_it():
            with pytest.raises(BudgetExceededError):
                call()
    """)
    result = suite.run("-p", "no:terminal")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@slow
def test_junit_has_a_hidden_refusal_whole_under_tb_line(suite: Suite) -> None:
    suite.test_file(f"@pytest.mark.budget(max_usd=0)\n{PASSED}")
    suite.run("--tb=line", "--junitxml=junit.xml")
    xml = (suite.path / "junit.xml").read_text()
    assert xml.count("refused, though the test passed") == 2  # the message, and the text
