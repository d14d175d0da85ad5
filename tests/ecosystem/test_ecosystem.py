"""Tools on top of huggingface_hub spend seen and capped money, without a line of code for it.

`suites/` has a suite for each tool, written as its users would. Each environment has one of them:
they need different releases of huggingface_hub.
"""

from __future__ import annotations

import re

import pytest
from ecosystem_bench import Suite

from pytest_hfbudget.money import usd_text

pytestmark = pytest.mark.ecosystem

# USD: what holds any call of these suites, and what holds none.
PLENTY = "--hf-test-budget=1"
NEXT_TO_NOTHING = "--hf-test-budget=0.0000001"
AGENT = ("-k", "test_agent")
# Seconds within which a refusal has ended a call, retries of the tool included.
AT_ONCE = 0.1


def ended(result: pytest.RunResult) -> set[str]:
    """The ways in which tests ended; a tool's warnings are its own affair."""
    return set(result.parseoutcomes()) - {"warnings"}


def test_each_call_below_a_cap_is_charged_what_the_invoice_says(suite: Suite) -> None:
    result = suite.run(PLENTY)

    assert ended(result) == {"passed"}
    assert len(suite.invoice) > result.parseoutcomes()["passed"]
    assert suite.charged == suite.invoice
    suite.facts["below a cap"] = f"{len(suite.invoice)} calls, charged as invoiced"


def test_in_two_workers_each_call_is_charged_what_the_invoice_says(suite: Suite) -> None:
    result = suite.run(PLENTY, "--hf-session-budget=1", "-n2")

    assert ended(result) == {"passed"}
    assert suite.charged == suite.invoice
    suite.facts["in two workers"] = f"{len(suite.invoice)} calls, charged as invoiced"


def test_two_workers_break_no_cap(suite: Suite) -> None:
    suite.run()
    whole = sum(suite.invoice)

    result = suite.run(f"--hf-session-budget={usd_text(whole // 2)}", "-n2")

    assert "skipped" in result.parseoutcomes()
    assert 0 < sum(suite.invoice) <= whole // 2
    assert suite.charged == suite.invoice


def test_a_refused_call_is_tried_once_and_ends_at_once(suite: Suite) -> None:
    if not suite.retries:
        pytest.skip("its suite asks by huggingface_hub, which does not try again")
    suite.run(NEXT_TO_NOTHING, "-k", "_answer and not at_a_time")

    took = {name: seconds for name, seconds in suite.seconds().items() if "again" in name}
    assert "test_answer_again" in took
    assert 0 < max(took.values()) <= AT_ONCE, took
    assert suite.posts == 0
    assert set(suite.refused.values()) == {1}
    assert set(took) <= set(suite.refused)
    print(f"{suite.tool}: {took}")


def test_without_a_cap_each_call_is_counted_and_no_test_notices(suite: Suite) -> None:
    result = suite.run()

    assert ended(result) == {"passed"}
    assert suite.counted == len(suite.invoice)
    suite.facts["without a cap"] = f"{suite.counted} calls, each counted"


def test_where_no_call_fits_none_is_sent_and_each_test_says_what_to_do(suite: Suite) -> None:
    result = suite.run(NEXT_TO_NOTHING)

    outcomes = result.parseoutcomes()
    assert ended(result) == {"failed"}
    # A task that was cancelled with others, before it was refused, is a call of $0.
    assert (suite.invoice, sum(suite.charged)) == ([], 0)
    # A tool may wrap the error, or swallow it: its sentence is in the failure all the same.
    failures = result.stdout.str().split("hf budget")[0].split("FAILURES")[1]
    sentence = "but only $0.0000001 of $0.0000001 is left"
    each = re.split(r"^_+ test_[\w\[\]-]+ _+$", failures, flags=re.MULTILINE)[1:]
    assert len(each) == outcomes["failed"]
    assert all(sentence in failure for failure in each)
    suite.facts["under a cap too small"] = f"0 calls sent, {len(each)} tests failed with the reason"
    result.stdout.fnmatch_lines(
        ["refused, though the test passed: *test_swallowing: emulator/chat may cost up to *"]
    )


def test_an_agent_stops_in_the_middle_where_its_cap_is(suite: Suite) -> None:
    suite.run(*AGENT, NEXT_TO_NOTHING)
    first = suite.needed
    suite.run(*AGENT)
    whole = suite.invoice
    cap = first + sum(whole) // 2

    result = suite.run(*AGENT, f"--hf-test-budget={usd_text(cap)}")

    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*The call was not sent.*"])
    assert 1 < len(suite.invoice) < len(whole)
    assert sum(suite.invoice) == sum(suite.charged) <= cap
