"""The costs file: what is written, what is kept, what is refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.prompts import ALIKE, DOUBT, FORGET, Fact
from pytest_hfbudget.reporting.costs import Cost, Costs, increase

PAID = Cost(4900, calls=1, input_tokens=17, output_tokens=32)


def charge(
    nano_usd: int | None = 100, *, estimated: bool = False, replayed: bool = False
) -> Charge:
    return Charge(
        "t", "conversational", "a/b", None, 3, 4, nano_usd, "", "200", estimated, 0.1,
        replayed=replayed,
    )  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    costs = Costs({"t.py::a": PAID, "t.py::b": Cost(0, 1, 0, 0, 7, True)}, {"acme/llm": 42})
    assert Costs.parse(costs.text()) == costs
    assert Costs.parse(Costs().text()) == Costs()


def test_each_test_is_one_line_and_the_lines_are_sorted() -> None:
    text = Costs({"t.py::b[é]": Cost(), "t.py::a": PAID}, {"acme/llm": 42}).text()
    assert text.splitlines() == [
        "{",
        ' "schema": 1,',
        ' "endpoints": {',
        '  "acme/llm": {"cold_start_s": 42}',
        " },",
        ' "tests": {',
        '  "t.py::a": {"usd": "0.0000049", "calls": 1, "input_tokens": 17, "output_tokens": 32},',
        '  "t.py::b[\\u00e9]": {"usd": "0"}',
        " }",
        "}",
    ]
    assert json.loads(text)["schema"] == 1


def test_tests_that_did_not_run_keep_their_entry() -> None:
    after = Costs({"a": PAID, "b": PAID}).with_run({"b": Cost(1)}, {})
    assert after.tests == {"a": PAID, "b": Cost(1)}


def test_tests_that_are_gone_are_forgotten_when_the_whole_suite_ran() -> None:
    after = Costs({"gone": PAID, "failed": PAID}).with_run({"b": Cost(1)}, {}, {"b", "failed"})
    assert after.tests == {"failed": PAID, "b": Cost(1)}


def test_a_time_that_is_much_the_same_is_left_as_it_was() -> None:
    before = Costs({"a": Cost(1, endpoint_s=100)}, {"acme/llm": 50})
    assert before.with_run({"a": Cost(2, endpoint_s=119)}, {"acme/llm": 41}) == Costs(
        {"a": Cost(2, endpoint_s=100)}, {"acme/llm": 50}
    )
    changed = before.with_run({"a": Cost(1, endpoint_s=120)}, {"acme/llm": 40})
    assert changed == Costs({"a": Cost(1, endpoint_s=120)}, {"acme/llm": 40})


def test_the_cost_of_a_test_is_the_sum_of_its_calls() -> None:
    assert Cost.of([charge(), charge(50, estimated=True)], 9) == Cost(150, 2, 6, 8, 9, True)
    assert Cost.of([]) == Cost()


@pytest.mark.parametrize("call", [charge(0, replayed=True), charge(None)])
def test_replays_and_calls_without_a_price_tell_no_cost(call: Charge) -> None:
    assert Cost.of([charge(), call]) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[]", "the file is not an object"),
        ("{}", "its schema is None, and only 1 is known"),
        ('{"schema": 2}', "its schema is 2, and only 1 is known"),
        ('{"schema": 1, "tests": []}', "tests is not an object"),
        ('{"schema": 1, "tests": {"a": 1}}', "a is not an object"),
        ('{"schema": 1, "tests": {"a": {}}}', "a: usd is not a string"),
        ('{"schema": 1, "tests": {"a": {"usd": 0.1}}}', "a: usd is not a string"),
        ('{"schema": 1, "tests": {"a": {"usd": "NaN"}}}', "a: usd: 'NaN' is not a finite"),
        ('{"schema": 1, "tests": {"a": {"usd": "-1"}}}', "a: usd: '-1' is negative"),
        ('{"schema": 1, "tests": {"a": {"usd": "1", "calls": -1}}}', "a: calls is not a whole"),
        ('{"schema": 1, "tests": {"a": {"usd": "1", "calls": true}}}', "a: calls is not a whole"),
        ('{"schema": 1, "endpoints": {"a/b": {"cold_start_s": 0.5}}}', "a/b: cold_start_s is not"),
    ],
)
def test_garbage_is_one_line_that_says_what_to_do(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "hf-costs.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Costs.load(path)
    (line,) = str(caught.value).splitlines()
    assert says in line
    assert "--hf-store-costs" in line


def test_a_file_that_is_no_text_or_no_file_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "bytes", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            Costs.load(path)


def test_keys_that_are_newer_are_no_garbage() -> None:
    text = '{"schema": 1, "by": "x", "tests": {"a": {"usd": "1", "seconds": 2}}}'
    assert Costs.parse(text).tests == {"a": Cost(10**9)}


def test_writing_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "hf-costs.json"
    Costs({"a": PAID}).write(path)
    assert Costs.load(path).tests == {"a": PAID}
    assert list(path.parent.iterdir()) == [path]


def said(spent: int, recorded: Cost, most: str = "1/5", calls: tuple[Charge, ...] = ()) -> str:
    made = calls or (charge(spent),)
    return increase(spent, recorded, Fraction(most), lambda: made, where="f.json") or ""


def test_as_much_more_as_is_allowed_is_no_increase() -> None:
    assert not said(120, Cost(100))
    assert said(121, Cost(100))
    assert not said(100, Cost(100), "0")


def test_an_increase_is_told_with_both_figures_and_what_to_type() -> None:
    text = said(200, Cost(100))
    assert "cost $0.0000002, and $0.0000001 is recorded in f.json: 100% more" in text
    assert "--hf-max-increase allows 20%" in text
    assert "--hf-store-costs" in text


def test_any_cost_is_an_increase_over_nothing() -> None:
    assert not said(0, Cost(0))
    assert "any cost is an increase over $0" in said(1, Cost(0), "1000")


def test_uptime_is_not_recorded_and_so_it_is_no_increase() -> None:
    assert not said(10**6, Cost(100), calls=(charge(100),))
    assert "its calls cost $0.0000002," in said(10**6, Cost(100), calls=(charge(200),))


def test_an_upper_bound_proves_no_increase_over_an_exact_record() -> None:
    calls = charge(100), charge(80, estimated=True)
    assert not said(180, Cost(100), calls=calls)
    assert "now with charges at an upper bound" in said(180, Cost(50), calls=calls)


def test_an_upper_bound_is_compared_with_an_upper_bound() -> None:
    calls = (charge(180, estimated=True),)
    text = said(180, Cost(100, estimated=True), calls=calls)
    assert "recorded with charges at an upper bound; now with charges at an upper bound" in text


# --- what servers have counted


def test_counts_of_prompts_are_written_one_line_each_and_read_back() -> None:
    facts = (Fact("org/model", "groq", "cd", 7), Fact("org/model", "groq", "ab", 100))
    text = Costs().with_counts(facts, whole=False).text()
    assert '  "org/model:groq ab": 100,\n  "org/model:groq cd": 7\n' in text
    assert set(Costs.parse(text).counts) == set(facts)


def test_prompts_that_a_whole_run_did_not_send_are_removed() -> None:
    old, new = Fact("org/model", "groq", "ab", 100), Fact("org/model", "groq", "cd", 7)
    known = Costs().with_counts([old], whole=True)
    assert known.with_counts([new], whole=True).counts == (new,)
    assert known.with_counts([new], whole=False).counts == (old, new)


@pytest.mark.parametrize("sign", [DOUBT, FORGET])
def test_counts_of_a_provider_that_has_changed_are_removed(sign: str) -> None:
    old, other = Fact("org/model", "groq", "ab", 100), Fact("org/model", "novita", "ab", 90)
    known = Costs().with_counts([old, other], whole=True)
    learned = [Fact("org/model", "groq", sign), Fact("org/model", "groq", ALIKE)]
    assert known.with_counts(learned, whole=False).counts == (other,)


@pytest.mark.parametrize("tokens", ["-1", "0", "1.5", '"7"', "true"])
def test_a_count_that_is_none_is_an_error(tokens: str) -> None:
    with pytest.raises(ValueError, match="whole number of 1 or more"):
        Costs.parse(f'{{"schema": 1, "prompt_tokens_1": {{"org/model:groq ab": {tokens}}}}}')


def test_counts_by_another_rule_are_passed_over() -> None:
    read = Costs.parse('{"schema": 1, "prompt_tokens_0": {"org/model:groq ab": 5}}')
    assert read.counts == ()
