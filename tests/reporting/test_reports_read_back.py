"""Reports that are read back: what is accepted, what is refused, and how that is said."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from written_report import LEAST, full, saved

from pytest_hfbudget import reporting
from pytest_hfbudget.ledger import Charge, Refusal
from pytest_hfbudget.reporting.json_report import ReportFileError, as_json, parse, read

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


def test_what_was_written_is_read_back() -> None:
    report = saved(full())
    assert (report.run, report.day) == ("5f0c2d9e71ab", "2026-11-22 03:10")
    assert (report.spent, report.cap, report.calls, report.refused) == (554_900, 50_000_000, 3, 1)
    assert report.tests[0].spent == 4_900
    assert report.charges[0].nano_usd == 4_900
    assert report.charges[2].nano_usd is None
    assert report.endpoints[0].shares == (("test_a.py::test_a", 300_000),)
    assert report.endpoints[0].idle == 250_000


def test_a_report_of_the_first_release_is_read_and_dated_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(LEAST))
    os.utime(path, (0, 0))
    report = read(path)
    assert (report.run, report.date.year, report.rehearsal) == ("", 1970, False)


def test_keys_of_a_later_release_are_passed_over() -> None:
    assert saved({**LEAST, "weather": "fair"}).spent == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schema": 2}, "its schema is 2, and this release reads 1"),
        ({"session": []}, "the report, session, is not a JSON object"),
        ({"tests": None}, "tests is not a list: None"),
        ({"tests": "x"}, "tests is not a list: 'x'"),
        ({"tests": [3]}, "tests[0] is not a JSON object"),
        ({"tests": [{"spent_usd": "NaN"}]}, "tests[0]: spent_usd is not USD as a decimal string"),
        ({"tests": [{"spent_usd": 0.1}]}, "tests[0]: spent_usd is not USD as a decimal string"),
        ({"tests": [{"spent_usd": "-1"}]}, "tests[0]: spent_usd is not USD as a decimal string"),
        ({"tests": [{"calls": -1}]}, "tests[0]: calls is not a count: -1"),
        ({"tests": [{"calls": True}]}, "tests[0]: calls is not a count: True"),
        ({"calls": [{"seconds": float("nan")}]}, "calls[0]: seconds is not a number of seconds"),
        ({"calls": [{"estimated": "no"}]}, "calls[0]: estimated is not true or false: 'no'"),
        ({"date": "yesterday"}, "the report: date is not a date: 'yesterday'"),
    ],
)
def test_an_error_says_where_a_report_is_wrong(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ReportFileError) as raised:
        parse({**LEAST, **wrong}, written=NOW)
    assert said in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'"a"'])
def test_a_file_that_is_no_report_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ReportFileError, match=r"other\.json is not a report of --hf-report: "):
        read(path)


def test_a_file_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReportFileError, match=r"none\.json could not be read: No such file"):
        read(tmp_path / "none.json")


def test_replayed_is_a_status_or_a_flag() -> None:
    calls = [{"status": "replayed"}, {"status": "200", "replayed": True}, {"status": "200"}]
    charges = saved({**LEAST, "calls": calls}).charges
    assert [charge.replayed for charge in charges] == [True, True, False]


def test_the_report_of_a_run_is_the_same_value_when_it_is_read_back() -> None:
    charge = Charge(
        *("test_a", "conversational", "org/model", "groq", 17, 32, 4_900, "prices.toml", "200"),
        *(True, 0.25),
        over=100,
        instead_of="org/large",
        endpoint="acme/llm",
    )
    report = reporting.Report(
        spent=554_900,
        cap=50_000_000,
        calls=2,
        refused=1,
        tests=(
            reporting.TestLine(
                "test_a", "not run", 4_900, 10_000_000, 2, 1, replayed=1, uptime=300
            ),
        ),
        charges=(charge, charge._replace(test=None, provider=None, nano_usd=None, where="fixture")),
        refusals=(
            Refusal("test_a", "test_a", "org/model", "too much", "test:test_a", "", 9, 2, 3, 5),
        ),
        endpoints=(
            reporting.EndpointLine(
                *("acme/llm", "running", 550_000, 1, True, True, False),
                left_to="b",
                kept=True,
                resumed_at=1_700_000_000.0,
                paused_at=1_700_000_060.5,
                shares=(("test_a", 300),),
                idle=250,
                cold_start=50,
            ),
        ),
        run="5f0c2d9e71ab",
        date=NOW,
        rehearsal=True,
        project="rag-service",
        unmetered=(("RuntimeError", 2),),
    )
    assert parse(as_json(report), written=datetime.now(timezone.utc)) == report
