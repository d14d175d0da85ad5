"""What people see of a run on a terminal of eighty columns."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

COLUMNS = 80
LONG = "test_that_asks_the_assistant_a_question_and_has_a_long_name"
MANY = f"""
@pytest.mark.budget(max_usd=0.5)
def {LONG}():
    call()

@pytest.mark.budget(max_usd=0)
def {LONG}_too():
    call()

@pytest.mark.budget(max_usd=0.25, scope="class")
class TestTogether:
    def test_one(self):
        call()

    def test_two(self):
        call()

def test_that_is_not_run():
    call(limit=30_000_000)
"""


@pytest.fixture
def narrow(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    suite.test_file(MANY)
    return suite


def section(result: pytest.RunResult, title: str = "hf budget") -> list[str]:
    """The lines below a heading, to the next one."""
    lines = iter(result.outlines)
    assert any(title in line and line.startswith("=") for line in lines), result.outlines
    found = []
    for line in lines:
        if line.startswith("="):
            break
        found.append(line)
    return found


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


def test_no_line_of_the_summary_is_wider_and_no_word_is_broken(
    narrow: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = section(narrow.run("--hf-session-budget=1"))
    assert max(map(len, lines)) <= COLUMNS
    monkeypatch.setenv("COLUMNS", "")  # a log has no width
    whole = words(section(narrow.run("--hf-session-budget=1")))
    cut = {word for word in words(lines) if word.startswith("…")}
    assert words(lines) - whole <= cut
    assert all(any(other.endswith(word[1:]) for other in whole) for word in cut)


def test_refused_tests_and_those_that_were_not_run_come_first(narrow: Suite) -> None:
    _, _, not_run, why, *tests = section(narrow.run("--hf-session-budget=1"))
    assert not_run.startswith("  1 test not run: the session budget of $1.00")
    assert why.strip() == "--hf-session-budget."
    assert [("_too" in line, "not run" in line) for line in tests[:2]] == [
        (True, False),
        (False, True),
    ]
    assert "shared by class test_suite.py::TestTogether: <$0.0001 of $0.25" in tests[2]


def test_the_plan_breaks_no_word_either(narrow: Suite) -> None:
    narrow.run("--hf-session-budget=1", "--hf-store-costs")
    lines = section(narrow.run("--hf-session-budget=1", "--hf-plan"), "hf budget: plan")
    assert max(map(len, lines)) <= COLUMNS
    assert "--hf-store-costs" in words(lines)


def test_a_budget_that_is_spent_is_not_red_but_a_test_that_was_refused_is(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.test_file("""
        @pytest.mark.budget(max_usd=0)
        def test_refused():
            call()

        def test_paid():
            call()
    """)
    result = suite.run("--hf-session-budget=1", "--color=yes")
    red = "\x1b[31m"
    spent = next(line for line in result.outlines if "spent " in line and " of $1.00" in line)
    refused = next(line for line in result.outlines if "test_refused  " in line)
    assert red not in spent
    assert refused.startswith(red)


def test_a_quiet_rehearsal_says_that_its_money_is_pretend(narrow: Suite) -> None:
    result = narrow.run("-q", "--hf-session-budget=1", "-k", "TestTogether")
    result.stdout.fnmatch_lines(
        ["spent <$0.0001 of $1.00 *", "  a rehearsal against the emulator: nothing was paid"]
    )


def test_the_last_line_of_a_red_run_says_which_test_was_refused_a_call(narrow: Suite) -> None:
    result = narrow.run("-q", "--tb=no", "--hf-session-budget=1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    counts = next(n for n, line in enumerate(result.outlines) if " 1 skipped in " in line)
    last = result.outlines[counts + 1 :]
    assert all(len(line) <= COLUMNS or " " not in line.strip() for line in last)
    assert " ".join(" ".join(last).split()) == (
        "hfbudget: the run failed: a budget refused a call of 1 test: "
        f"test_suite.py::{LONG}_too. "
        "1 test not run: the session budget of $1.00 has too little left. "
        "Raise --hf-session-budget."
    )


@pytest.mark.parametrize("options", [["-q"], ["-n1"]])
def test_a_line_between_results_begins_a_line_of_its_own(suite: Suite, options: list[str]) -> None:
    suite.emulator.add_endpoint("acme/llm", initializing_s=0.2)
    suite.test_file("""
        def test_free(): pass

        @pytest.mark.hf_endpoint("acme/llm")
        def test_on_it(hf_endpoint): pass

        def test_free_too(): pass
    """)
    result = suite.run(*options)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["endpoint acme/llm: running, *"])
    result.stdout.no_fnmatch_line("?*endpoint acme/llm: *")


def test_the_lines_before_the_tests_break_no_word(
    narrow: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.test_file("""
        @pytest.mark.hf_endpoint("acme/llm", "acme/embeddings")
        def test_it(hf_endpoint): pass
    """)
    monkeypatch.setenv("HFBUDGET_TEST", "0.25")
    result = narrow.run("--hf-session-budget=1", "--hf-namespace=acme", "--hf-endpoint=acme/third")
    before, _, _ = "\n".join(result.outlines).partition("hf budget")
    ours = [line for line in before.splitlines() if line.startswith(("hfbudget:", "    "))]
    assert max(map(len, ours)) <= COLUMNS
    assert " keeps your order)" in " ".join(ours)


def test_a_run_that_fails_for_other_reasons_has_no_such_line(suite: Suite) -> None:
    suite.test_file("""
        def test_wrong():
            call()
            assert 0
    """)
    result = suite.run("--hf-session-budget=1")
    assert "1 failed" in result.outlines[-1]


def test_vv_shows_every_digit(narrow: Suite) -> None:
    report = ("--hf-report=report.json", "-vv")
    result = narrow.run("--hf-session-budget=1", *report, "-k", "TestTogether")
    spent = narrow.report()["session"]["spent_usd"]
    each = narrow.report()["tests"][0]["spent_usd"]
    assert len(spent) > len("0.0001")
    result.stdout.fnmatch_lines([f"*test_one PASSED [[]${each}]*", f"spent ${spent} of $1.00 *"])
