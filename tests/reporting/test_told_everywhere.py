"""What a run has had is in its lines, in its JSON, in its page and in its job."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone

import jsonschema
import pytest

from pytest_hfbudget.ledger import SESSION, Charge, Refusal, Scope
from pytest_hfbudget.ledger.ledger import Ledger
from pytest_hfbudget.reporting import Report
from pytest_hfbudget.reporting.ci import step_summary
from pytest_hfbudget.reporting.html import page
from pytest_hfbudget.reporting.json_report import SCHEMA_FILE, as_json, parse
from pytest_hfbudget.reporting.terminal import TOP, summary

CLASS = "class:test_a.py::TestA:class test_a.py::TestA:500:3"


def _charge(test: str, *keys: str) -> Charge:
    return Charge(test, "conversational", "org/m", "groq", 1, 1, 100, "test", "200", False, 0.1)


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.open(Scope(SESSION, "session budget"))
    return made


def _call(ledger: Ledger, test: str, *more: Scope) -> None:
    scopes = (Scope(f"test:{test}", test), *more)
    for scope in scopes:
        ledger.open(scope)
    keys = (SESSION, *(scope.key for scope in scopes))
    charge = _charge(test)._replace(scopes=keys)
    ledger.settle(ledger.hold(keys, 100, 100, charge).id, charge)


def _refuse(ledger: Ledger, test: str) -> None:
    ledger.open(Scope(f"test:{test}", test))
    ledger.refuse((SESSION, f"test:{test}"), Refusal(test, test, "org/m", "too dear"))


def test_a_budget_that_tests_share_is_told(ledger: Ledger) -> None:
    shared = Scope(CLASS, "class test_a.py::TestA", 500, 3)
    for name in ("test_one", "test_two"):
        _call(ledger, f"test_a.py::TestA::{name}", shared)
    report = Report.of(ledger, None, {})

    spent = "$0.0000002 of $0.0000005 (2 calls; at most 3 calls)"
    lines = [line.text for line in summary(report)]
    assert f"  shared by class test_a.py::TestA: {spent}" in lines
    content = {**as_json(report), "run": "r", "date": "2026-11-22T03:10:00+00:00"}
    jsonschema.validate(content, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    assert content["shared"] == [
        {
            "name": "class test_a.py::TestA",
            "level": "class",
            "spent_usd": "0.0000002",
            "cap_usd": "0.0000005",
            "max_calls": 3,
            "calls": 2,
            "refused": 0,
        }
    ]
    saved = parse(content, written=datetime(2026, 1, 1, tzinfo=timezone.utc))
    assert '<section id="shared"' in page([saved])
    assert "#### Shared budgets" in step_summary(saved)


def test_calls_that_could_not_be_metered_are_on_the_page() -> None:
    report = Report(0, None, 0, 0, unmetered=(("it went out by <urllib>", 2),))
    assert "2 calls could not be metered: it went out by &lt;urllib&gt;" in page([report])


def test_a_test_that_was_refused_is_not_hidden_behind_dearer_ones(ledger: Ledger) -> None:
    for number in range(TOP + 3):
        _call(ledger, f"test_a.py::test_{number}")
    _refuse(ledger, "test_a.py::test_refused")
    _refuse(ledger, "test_a.py::test_that_expects_it")
    outcomes = {"test_a.py::test_refused": "failed", "test_a.py::test_that_expects_it": "passed"}
    lines = list(summary(Report.of(ledger, None, outcomes)))

    assert [line.colour for line in lines if "test_refused" in line.text] == ["red"]
    assert [line.colour for line in lines if "more tests" in line.text] == [""]
    assert not [line for line in lines if "test_that_expects_it" in line.text]


def test_a_test_that_no_budget_and_no_lack_of_credit_kept_from_running_names_neither() -> None:
    report = Report.of(Ledger(), None, {"test_a.py::test_it": "not run"})
    lines = [line.text for line in summary(report)]
    assert "  1 test not run: run pytest with -rs to see why." in lines


def test_refused_tests_that_do_not_fit_are_counted(ledger: Ledger) -> None:
    for number in range(40):
        _refuse(ledger, f"test_a.py::test_{number}")
    outcomes = {f"test_a.py::test_{number}": "failed" for number in range(40)}
    last = list(summary(Report.of(ledger, None, outcomes)))[-1]
    assert (last.text, last.colour) == (
        "  … and 20 more tests refused or not run",
        "red",
    )


def test_what_is_estimated_above_what_came_back_is_told(ledger: Ledger) -> None:
    lost = _charge("test_a")._replace(above=60, estimated=True, waited=1.5, status="timeout")
    ledger.settle(ledger.hold([SESSION], 100, 100, lost).id, lost._replace(scopes=(SESSION,)))
    report = Report.of(ledger, None, {})
    said = "$0.00000006 of $0.0000001 may not have been spent: pytest-hfbudget charges"
    assert any(said in line.text for line in summary(report))
    assert any("1 call waited 1.5 s in all" in line.text for line in summary(report))
    assert said in step_summary(report)
    assert "upper bound only" in page([report])
    told = as_json(report)
    assert told["session"]["estimated_above_usd"] == "0.00000006"
    assert told["session"]["waited_s"] == 1.5
    read = parse(json.loads(json.dumps(told)), written=datetime.now(timezone.utc))
    assert (read.above, read.waited) == (60, read.charges)


def test_how_servers_count_is_told(ledger: Ledger) -> None:
    note = "groq counts a prompt of org/m differently each time, so bytes bound it"
    report = replace(Report.of(ledger, None, {}), notes=(note,))
    assert any(note in line.text for line in summary(report))
    assert note.partition(",")[0] in step_summary(report)
    assert as_json(report)["notes"] == [note]
    assert parse(as_json(report), written=datetime.now(timezone.utc)).notes == (note,)
