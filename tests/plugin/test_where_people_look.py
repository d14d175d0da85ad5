"""What a run shows beside its own report: on verbose lines, and in a job of GitHub Actions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

TWO = """
    def test_is_free():
        pass

    @pytest.mark.budget(max_usd=0.1)
    def test_pays():
        call()

    @pytest.mark.budget(max_usd=0)
    def test_is_refused():
        call()
"""
RED = "\x1b[31m"
COST = r"\[<\$0\.0001\]"


@pytest.fixture
def job(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The summary of a step of a job, in which something stands already."""
    summary = suite.path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(suite.path.parent))
    return summary


# --- verbose lines


@pytest.mark.parametrize(("verbose", "cost"), [("-v", COST), ("-vv", r"\[\$0\.0000\d+\]")])
def test_a_verbose_line_has_the_cost_of_its_test(suite: Suite, verbose: str, cost: str) -> None:
    suite.test_file(TWO)
    said = suite.run(verbose).stdout.str()
    assert re.search(rf"::test_pays PASSED {cost} +\[ 66%\]", said)
    assert re.search(r"::test_is_free PASSED +\[ 33%\]", said)
    assert re.search(r"::test_is_refused FAILED +\[100%\]", said)


def test_a_verbose_line_has_the_cost_of_a_test_on_a_worker(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file(TWO)
    said = suite.run("-n2", "-v").stdout.str()
    assert re.search(rf"PASSED {COST} test_suite.py::test_pays", said)
    assert re.search(r"PASSED test_suite.py::test_is_free", said)


def test_a_verbose_line_has_the_cost_of_a_set_up_that_failed(suite: Suite) -> None:
    suite.test_file("""
        @pytest.fixture
        def broken():
            call()
            raise RuntimeError

        def test_it(broken): pass
    """)
    assert re.search(rf"::test_it ERROR {COST}", suite.run("-v").stdout.str())


def test_without_verbosity_no_line_has_a_cost(suite: Suite) -> None:
    suite.test_file(TWO)
    for option in ("-q", "--verbosity=0"):
        assert not re.search(COST, suite.run(option).stdout.str())


def test_the_short_summary_stays_as_tools_read_it(suite: Suite) -> None:
    suite.test_file("""
        def test_pays_and_fails():
            call()
            raise RuntimeError
    """)
    result = suite.run("-v", "-rA")
    result.stdout.fnmatch_lines(["FAILED test_suite.py::test_pays_and_fails*"])
    assert re.search(rf"::test_pays_and_fails FAILED {COST}", result.stdout.str())


def test_a_stream_that_a_fixture_goes_on_reading_is_not_ended_by_a_verbose_line(
    suite: Suite,
) -> None:
    suite.test_file("""
        @pytest.fixture
        def streams():
            opened = {}
            yield opened
            assert len(list(opened["stream"])) > 3

        @pytest.mark.budget(max_usd=0.1)
        def test_it(streams):
            client = streams["client"] = InferenceClient(model="emulator/chat", provider="groq")
            streams["stream"] = client.chat_completion(SAY, max_tokens=20, stream=True)
            next(streams["stream"])
    """)
    result = suite.run("-v", "--hf-report=report.json")
    result.assert_outcomes(passed=1)
    (call,) = suite.report()["calls"]
    assert (call["status"], call["estimated"]) == ("200", False)


def test_junit_has_each_figure_once_under_verbosity(suite: Suite) -> None:
    suite.test_file(TWO)
    suite.run("-v", "--junitxml=junit.xml")
    xml = (suite.path / "junit.xml").read_text()
    assert xml.count('name="hfbudget.usd"') == 2  # the test that pays, the one that is refused


# --- a job of GitHub Actions


def test_the_step_summary_gets_what_was_spent_of_the_cap_once(suite: Suite, job: Path) -> None:
    suite.test_file(TWO)
    suite.run("--hf-session-budget=1", "--hf-endpoint=acme/llm", "-v")
    text = job.read_text()
    assert text.startswith("before\n### hf budget\n")
    assert text.count("### hf budget\n") == 1
    assert re.search(r"\*\*\$0\.\d+\*\* of \$1.00 spent, 1 call, 1 refused", text)
    assert "| acme/llm | paused&#44; verified | 1 |" in text
    assert "test&#95;suite.py&#58;&#58;test&#95;pays" in text
    assert "The call was not sent." in text


def test_workers_leave_the_step_summary_to_their_controller(suite: Suite, job: Path) -> None:
    pytest.importorskip("xdist")
    suite.test_file(TWO)
    result = suite.run("-n2", "--hf-session-budget=1")
    assert job.read_text().count("### hf budget\n") == 1
    assert result.stdout.str().count("::error file=") == 1


def test_a_suite_without_calls_adds_nothing_to_a_job(suite: Suite, job: Path) -> None:
    suite.test_file("def test_it(): pass")
    assert "::error" not in suite.run("--hf-session-budget=1").stdout.str()
    assert job.read_text() == "before\n"


def test_a_run_that_is_interrupted_still_tells_its_job(suite: Suite, job: Path) -> None:
    suite.test_file("""
        def test_it():
            call()
            raise KeyboardInterrupt
    """)
    suite.run()
    assert "spent, 1 call\n" in job.read_text()


def test_a_step_summary_that_can_not_be_written_fails_no_run(
    suite: Suite, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.path))
    suite.test_file("def test_it(): call()")
    result = suite.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*the step summary could not be written: *"])


def test_a_step_summary_never_grows_beyond_what_github_takes(suite: Suite, job: Path) -> None:
    job.write_bytes(b"x" * ((1 << 20) - 100))
    suite.test_file("def test_it(): call()")
    suite.run()
    assert job.stat().st_size == (1 << 20) - 100


def test_a_refusal_is_an_error_at_the_line_of_its_test(suite: Suite, job: Path) -> None:
    suite.test_file(TWO)
    line = (suite.path / "test_suite.py").read_text().splitlines().index("def test_is_refused():")
    found = re.findall(r"^::error file=(.*),line=(\d+),title=(.*?)::(.*)$", _said(suite), re.M)
    ((file, at, title, message),) = found
    assert file == f"{suite.path.name}/test_suite.py"
    assert int(at) == line  # of the decorator, which is where pytest says that the test begins
    assert title == "hfbudget refused a call"
    assert "may cost up to" in message


def test_a_refusal_that_was_handled_in_a_green_run_is_one_warning_and_nothing_is_red(
    suite: Suite, job: Path
) -> None:
    suite.test_file("""
        def test_it():
            for limit in range(100, 120):
                with pytest.raises(BudgetExceededError), budget(max_usd=0, on_exceed="raise"):
                    call(limit)
    """)
    result = suite.run("--hf-session-budget=1", "--color=yes")
    assert result.ret == 0
    said = result.stdout.str()
    assert said.count("::warning file=") == 1
    assert "(20 such calls)" in said
    assert "::error" not in said
    assert RED not in said


def test_a_run_that_is_red_for_want_of_budget_alone_has_an_error(suite: Suite, job: Path) -> None:
    suite.test_file("def test_it(): call()")
    result = suite.run("--hf-session-budget=0", "--color=yes")
    assert result.ret == 1
    said = result.stdout.str()
    assert said.count("::error file=") == 1
    assert f"{RED}  1 test not run: " in said


def _said(suite: Suite) -> str:
    return suite.run().stdout.str()


def test_a_run_outside_of_a_job_writes_no_commands(suite: Suite) -> None:
    suite.test_file(TWO)
    assert "::error" not in _said(suite)
