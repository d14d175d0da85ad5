"""Reports that are read back: what is accepted, what is refused, and how that is said."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from written_report import LEAST, full, saved

from pytest_hfbudget.reporting.saved import ReportFileError, parse, read

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


def test_what_was_written_is_read_back() -> None:
    report = saved(full())
    assert (report.run, report.day) == ("5f0c2d9e71ab", "2026-11-22 03:10")
    assert (report.spent, report.cap, report.sent, report.refused) == (554_900, 50_000_000, 3, 1)
    assert report.tests[0].spent == 4_900
    assert report.calls[0].usd == 4_900
    assert report.calls[2].usd is None
    assert report.endpoints[0].shares == {"test_a.py::test_a": 300_000}
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
        ({"session": []}, "the report, session, is no JSON object"),
        ({"tests": None}, "tests is not a list: None"),
        ({"tests": "x"}, "tests is not a list: 'x'"),
        ({"tests": [3]}, "tests[0] is no JSON object"),
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
    with pytest.raises(ReportFileError, match=r"other\.json is no report of --hf-report: "):
        read(path)


def test_a_file_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReportFileError, match=r"none\.json could not be read: No such file"):
        read(tmp_path / "none.json")


def test_replayed_is_a_status_or_a_flag() -> None:
    calls = [{"status": "replayed"}, {"status": "200", "replayed": True}, {"status": "200"}]
    assert [call.replayed for call in saved({**LEAST, "calls": calls}).calls] == [True, True, False]
