"""What endpoints and tests did when: the figures, and the way into a file and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

from pytest_hfbudget.endpoints.uptime import UptimeWindow, UseInterval
from pytest_hfbudget.endpoints.uptime_meter import EndpointUse
from pytest_hfbudget.reporting import Report
from pytest_hfbudget.reporting.json_report import as_json, parse
from pytest_hfbudget.reporting.timeline import Minutes, Paid, Timeline, timeline
from pytest_hfbudget.reporting.timeline import TestSpan as Ran
from pytest_hfbudget.scheduling import CollectedTest

TESTS = [CollectedTest("a1", ("acme/a",)), CollectedTest("free"), CollectedTest("a2", ("acme/a",))]
RUNS = [
    Ran("free", "", 1000.0, 1010.0),
    Ran("a1", "", 1010.0, 1030.0),
    Ran("a2", "", 1030.0, 1060.0),
]
WINDOW = UptimeWindow(0.0, 62.0, (UseInterval(0.0, 10.0),), 120.0)
USES = (EndpointUse("a1", 10.0, 30.0), EndpointUse("a2", 30.0, 60.0))


def made() -> Timeline:
    paid = Paid("acme/a", WINDOW, USES, minutes=2, nano_usd=2_000)
    return timeline(TESTS, RUNS, [paid], clock=1000.0, minute_s=60.0)


def test_the_states_of_an_endpoint_follow_each_other() -> None:
    (lane,) = made().lanes
    assert [tuple(each) for each in lane.stretches] == [
        ("cold start", 0.0, 10.0),
        ("in use", 10.0, 60.0),
        ("idle", 60.0, 62.0),
    ]


def test_the_minutes_are_compared_with_the_least_and_with_the_collection() -> None:
    found = made()
    assert found.paid == Minutes(2, 2_000)
    assert found.least == Minutes(1, 1_000)  # 10 s and 50 s
    assert found.collected == Minutes(2, 2_000)  # 10 s, then 60 s to the end of the run
    assert found.line == (
        "endpoint minutes: 2 (<$0.0001) paid, 1 (<$0.0001) are the least; "
        "as many as in the order of the collection"
    )


def test_minutes_of_which_none_could_be_saved_are_not_compared() -> None:
    same = Minutes(2, 2_000)
    found = replace(made(), paid=same, least=same, collected=same)
    assert found.line == "endpoint minutes: 2 (<$0.0001) paid, as few as possible"


def test_a_test_begins_when_it_has_its_endpoint() -> None:
    late = [RUNS[0], RUNS[1]._replace(start=1000.0), RUNS[2]]
    paid = Paid("acme/a", WINDOW, USES, minutes=2, nano_usd=2_000)
    found = timeline(TESTS, late, [paid], clock=1000.0, minute_s=60.0)
    assert {test.test: test.start for test in found.tests}["a1"] == 10.0


def test_a_file_keeps_all_of_it() -> None:
    report = Report(spent=0, cap=None, calls=0, refused=0, timeline=made())
    read = parse(as_json(report), written=datetime.now(timezone.utc))
    assert read.timeline == report.timeline
