"""What a change does to the cost of the tests: two reports side by side."""

from __future__ import annotations

import re
from typing import Any

import pytest
from written_report import full, saved

from pytest_hfbudget.reporting.ci import MARKER, TOP, comparison, comparison_comment

# GitHub refuses a longer comment.
MOST_CHARACTERS = 65_536


def run(costs: dict[str, str], *, spent: str, **more: Any) -> dict[str, Any]:
    """A report of tests by their costs."""
    content = full()
    sample = content["tests"][0]
    tests = [{**sample, "id": name, "spent_usd": usd} for name, usd in costs.items()]
    session = {"spent_usd": spent, "cap_usd": None, "calls": len(tests), "refused": 0}
    return {**content, "calls": [], "endpoints": [], "tests": tests, "session": session, **more}


def comment(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return comparison_comment(saved(before), saved(after)).splitlines()


BEFORE = run(
    {"a::same": "0.01", "a::more": "0.10", "a::less": "0.50", "a::old": "0.04"}, spent="0.65"
)
AFTER = run(
    {"a::same": "0.01", "a::more": "0.30", "a::less": "0.45", "a::now": "0.02"}, spent="0.78"
)


def test_the_sum_comes_first_with_its_difference_in_usd_and_per_cent() -> None:
    lines = [line for line in comment(BEFORE, AFTER) if line]
    assert lines[0] == MARKER
    assert lines[2] == "**$0.78, before $0.65: +$0.13 (+20 %)**"
    table = lines.index("| cost | before | after | difference | change |")
    assert lines[table + 2] == "| in all | $0.65 | $0.78 | +$0.13 | &#43;20 &#37; |"
    assert table < lines.index("#### Changed most")


def test_tests_that_changed_most_come_first_and_the_others_are_counted() -> None:
    lines = comment(BEFORE, AFTER)
    rows = lines[lines.index("#### Changed most") + 4 :][:2]
    assert [row.split(" | ")[1:4] for row in rows] == [
        ["$0.10", "$0.30", "+$0.20"],
        ["$0.50", "$0.45", "-$0.05"],
    ]
    assert "1 test costs the same" in lines


def test_new_and_gone_tests_have_tables_of_their_own() -> None:
    lines = comment(BEFORE, AFTER)
    new, gone = (lines[lines.index(title) + 4] for title in ("#### New", "#### Gone"))
    assert new == "| a&#58;&#58;now | $0.02 |"
    assert gone == "| a&#58;&#58;old | $0.04 |"


def test_two_equal_runs_have_no_table_of_tests() -> None:
    lines = comment(BEFORE, BEFORE)
    assert "**$0.65, as before**" in lines
    assert not [line for line in lines if line.startswith("####")]
    assert "4 tests cost the same" in lines


def test_amounts_that_differ_look_different() -> None:
    lines = comment(run({"t": "0.0100001"}, spent="0.0100001"), run({"t": "0.01"}, spent="0.01"))
    assert "**$0.01, before $0.0100001: -$0.0000001 (-<0.01 %)**" in lines


def test_the_share_of_a_test_in_an_endpoint_is_in_its_cost_and_in_the_totals() -> None:
    before, after = saved({**full(), "endpoints": []}), saved(full())
    totals = next(table for table in comparison(before, after) if table.key == "totals")
    assert [row[:4] for row in totals.rows][2] == ("endpoints", 0, 550_000, 550_000)
    assert totals.rows[0][1] == totals.rows[1][1] + totals.rows[2][1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (True, True, "Both are rehearsals: nothing was paid."),
        (False, True, "One of the two is a rehearsal, with the prices of the emulator"),
        (False, False, None),
    ],
)
def test_a_rehearsal_is_not_taken_for_money(before: bool, after: bool, said: str | None) -> None:
    text = "\n".join(comment({**BEFORE, "rehearsal": before}, {**AFTER, "rehearsal": after}))
    assert said in text if said else "rehearsal" not in text


def test_what_makes_a_sum_incomplete_is_said() -> None:
    after = run({"a::same": "0"}, spent="0", calls=full()["calls"])
    after["tests"][0]["outcome"] = "not run"
    lines = comment(BEFORE, after)
    assert "1 test not run, so their costs are missing; before 0" in lines
    assert "1 call without a known price, not in the sum; before 0" in lines


def test_a_comment_stays_below_what_github_takes() -> None:
    names = [f"{'[' * 300}{number}" for number in range(3 * TOP)]
    before = run(dict.fromkeys(names[: 2 * TOP], "0.1"), spent="2")
    after = run(dict.fromkeys(names[TOP:], "0.2"), spent="4")
    text = comparison_comment(saved(before), saved(after))
    assert len(text) < MOST_CHARACTERS
    long = run(dict.fromkeys(map(str, range(500)), "0.1"), spent="2")
    assert "… and 490 more" in comment(run({}, spent="0"), long)


def test_names_of_tests_are_neither_markdown_nor_html() -> None:
    name = "a::test[<img src=x>|**b**]\nmore"
    rows = [
        line for line in comment(run({}, spent="0"), run({name: "1"}, spent="1")) if "img" in line
    ]
    assert len(rows) == 1
    assert not re.search(r"[<>*\[\]]", rows[0])
