"""What a job of GitHub Actions is told: nothing of others is Markdown, HTML or a command."""

from __future__ import annotations

import re
from typing import Any

from written_report import full, saved

from pytest_hfbudget.reporting.ci import (
    ANNOTATIONS,
    MOST_BYTES,
    SourceLocation,
    notices,
    step_summary,
)


def _red(content: dict[str, Any], places: dict[str, SourceLocation]) -> list[str]:
    return list(notices(saved(content), places, green=False))


def test_the_summary_has_all_that_matters() -> None:
    text = step_summary(saved(full()))
    assert "**$0.000555** of $0.05 spent, 3 calls, 1 refused" in text
    assert "1 call without usage, charged at an upper bound" in text
    assert "1 call without a known price, not in the sum" in text
    assert "#### Endpoints" in text
    assert "NOT VERIFIED AS PAUSED" in text


def test_names_are_neither_markdown_nor_html() -> None:
    content = full()
    evil = "<b>|`x`|[a](http://b)|@someone|#1|**x**|\n| row |\\|<!--"
    content["tests"][0]["id"] = evil
    row = next(line for line in step_summary(saved(content)).splitlines() if "someone" in line)
    inner = row.split(" | ")[0].removeprefix("| ")
    assert re.sub(r"&#\d+;", "", inner).replace(" ", "").replace("/", "").isalnum()


def test_a_summary_of_ten_thousand_long_names_stays_within_what_github_takes() -> None:
    content = full()
    content["tests"] = [{**content["tests"][0], "id": "<" * 5000}] * 10_000
    one = content["refusals"][0]
    content["refusals"] = [{**one, "test": f"test_a.py::test_{n}"} for n in range(10_000)]
    text = step_summary(saved(content))
    assert len(text.encode()) < MOST_BYTES // 10
    assert "… and 9,990 more" in text


def test_an_error_names_file_and_line_and_stays_one_line() -> None:
    (line,) = _red(full(), {"test_a.py::test_a": SourceLocation("a,b:c%.py", 7)})
    assert line == (
        "::error file=a%2Cb%3Ac%25.py,line=7,title=hfbudget refused a call"
        "::org/model may cost up to 100%25,%0Abut only $0.01 is left"
    )


def test_a_refusal_of_no_test_is_an_error_without_a_place() -> None:
    content = full()
    content["refusals"][0]["test"] = None
    (line,) = _red(content, {})
    assert line.startswith("::error title=hfbudget refused a call::")


def test_no_more_errors_are_written_than_github_shows() -> None:
    content = full()
    one = content["refusals"][0]
    content["refusals"] = [{**one, "test": f"test_a.py::test_{n}"} for n in range(50)]
    assert len(_red(content, {})) == ANNOTATIONS


def test_what_a_test_was_refused_time_and_again_is_one_error_and_one_row() -> None:
    content = full()
    one = content["refusals"][0]
    content["refusals"] = [
        {**one, "message": f"org/model may cost up to ${n}.5, but only $0.01 is left"}
        for n in range(100)
    ]
    content["refusals"].append({**one, "test": "test_a.py::test_b"})
    first, second = _red(content, {})
    assert first.endswith(
        "::org/model may cost up to $0.5, but only $0.01 is left (100 such calls)"
    )
    assert second.endswith("but only $0.01 is left")
    rows = [line for line in step_summary(saved(content)).splitlines() if "may cost up to" in line]
    assert [row.split(" | ")[2] for row in rows] == ["100", "1"]


def test_a_refusal_that_its_test_has_dealt_with_is_a_warning() -> None:
    content = full()
    content["tests"][0]["outcome"] = "passed"
    (line,) = _red(content, {})
    assert line.startswith("::warning title=hfbudget refused a call::")


def test_in_a_green_run_nothing_is_an_error() -> None:
    content = full()
    content["refusals"][0]["test"] = None
    (line,) = notices(saved(content), {}, green=True)
    assert line.startswith("::warning ")
