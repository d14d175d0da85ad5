"""The project's price table: what its rows mean, which row a call gets, what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.pricing import Price, Usage
from pytest_hfbudget.pricing.table import PriceTable, parse_price

MODEL = "org/model"
GENERAL_NAMES = ["org/model:p", "org/model", "model:p", "model", "*:p", "*"]


def table(*names: str) -> PriceTable:
    """Rows of these names; the first costs $1 per call, the second $2 and so on."""
    return PriceTable.parse({name: {"call": n} for n, name in enumerate(names, 1)}, "t")


def found(rows: PriceTable, model: str, provider: str | None = None) -> str | None:
    """The name of the row that a call gets."""
    row = rows.find(model, provider)
    return row[1].partition('"')[2].rpartition('"')[0] if row else None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


# --- rows


@pytest.mark.parametrize("key", ["input", "output", "cached"])
def test_tokens_are_priced_per_million(key: str) -> None:
    price = parse_price({"call": 0, key: "0.0375"}, "row")
    assert getattr(price, key) == parse_rate("0.0375", units=10**6)


@pytest.mark.parametrize("key", ["call", "image", "second"])
def test_everything_else_is_priced_each(key: str) -> None:
    price = parse_price({key: 0.003}, "row")
    rates: dict[str, Any] = {key: parse_rate("0.003")}
    assert price == replace(Price(), **rates)
    assert not price.by_token


@pytest.mark.parametrize(
    "row",
    [
        {"free": True},
        {"input": "0.0000000375", "output": "12", "cached": "0.01"},
        {"call": "0.1234567890123456"},
        {"image": "0.003", "second": "0.00012"},
        {"input": "0", "output": "1"},
    ],
)
def test_a_price_can_be_written_as_the_row_that_it_was(row: dict[str, object]) -> None:
    assert parse_price(row, "row").as_row() == row


def test_a_negative_zero_is_no_price() -> None:
    with pytest.raises(ConfigError, match=r"^row: call = -0\.0: -0\.0 is negative"):
        parse_price({"call": -0.0}, "row")


def test_a_row_may_be_free() -> None:
    price = parse_price({"free": True}, "row")
    assert price.free
    assert price.cost(Usage(input_tokens=10**9, output_tokens=10**9, images=9)) == 0


def test_a_price_of_nothing_has_to_be_written_as_free() -> None:
    with pytest.raises(ConfigError, match="write free = true"):
        parse_price({"input": 0, "output": 0}, "row")


def test_a_half_of_a_price_may_be_nothing() -> None:
    assert parse_price({"input": 0, "output": 1}, "row").known


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "expected a table"),
        ("free", "expected a table"),
        ([{"input": 1}], "expected a table"),
        ({}, "has no price"),
        ({"free": False}, "has no price"),
        ({"cached": 1}, "has no price"),
        ({"free": "yes"}, "free = 'yes'; write true or false"),
        ({"free": 1}, "free = 1; write true or false"),
        ({"free": True, "input": 1}, "free = true next to a price"),
        (
            {"in": 1},
            "unknown key 'in'; known are cached, input, output, call, image, second, free, max_",
        ),
        ({"input": "cheap"}, "input = cheap: 'cheap' is not an amount"),
        ({"output": float("nan")}, "output = nan: nan is not a finite amount"),
        ({"cached": Decimal("Infinity")}, "cached = Infinity: "),
        ({"call": -0.1}, "call = -0.1: -0.1 is negative"),
        ({"image": True}, "image = True: True is not an amount"),
        ({"second": {"gpu": 1}}, "second = {'gpu': 1}: "),
        ({"second": 1, "max_seconds": "soon"}, "max_seconds = soon: "),
        ({"second": 1, "max_seconds": -1}, "max_seconds = -1: "),
        ({"second": 1, "max_seconds": 0}, "max_seconds = 0; write how long a call may take"),
        ({"call": 1, "max_seconds": 60}, "max_seconds without second"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_file_row_and_key(row: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PriceTable.parse({MODEL: row}, "prices.toml")
    text = str(caught.value)
    assert text.startswith(f'prices.toml: ["{MODEL}"]: {message}')
    assert len(text.splitlines()) == 1


def test_prices_that_are_no_table_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^pyproject\.toml: prices must be tables by name$"):
        PriceTable.parse([1], "pyproject.toml")  # type: ignore[arg-type]


# --- files


def test_a_file_holds_rows_at_its_top_level(file: Path) -> None:
    file.write_text('["org/model:p"]\ninput = 0.0000000375\noutput = 1\n', encoding="utf-8")
    price, where = PriceTable.load(file).find(MODEL, "p") or (None, "")
    assert price == Price(input=37_500, output=10**12)
    assert where == f'{file}: ["org/model:p"]'


def test_numbers_in_a_file_are_taken_as_they_are_written(file: Path) -> None:
    # As a float, this many digits would be another number.
    file.write_text('["m"]\ncall = 0.1234567890123456789\n', encoding="utf-8")
    row = PriceTable.load(file).find("m", None)
    assert row
    assert row[0].call == 123_456_789_012_345_679


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[org/model]\ninput = 1\n", "is not TOML: "),
        (b'["m"]\ninput = \n', "is not TOML: "),
        (b'["m"]\ninput = 1\n["m"]\n', "is not TOML: "),
        (b"\xff\xfe", "is not TOML: "),
        (b'["m"]\ncall = 1e99999999999999999999\n', "is not TOML: "),
        (b'["m"]\ncall = ' + b"9" * 5000, "is not TOML: "),
        (b'["m"]\ninput = nan\n', '["m"]: input = NaN: '),
        (b'["m"]\ninput = 1979-05-27\n', '["m"]: input = 1979-05-27: '),
        (b'm = "free"\n', '["m"]: expected a table'),
        (b"[Qwen2.5]\ninput = 1\n", '["Qwen2"]: unknown key'),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        PriceTable.load(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: {message}")
    assert len(text.splitlines()) == 1


def test_a_file_that_is_not_there_is_one_line_with_its_name(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"prices\.toml: can't be read \(No such file"):
        PriceTable.load(file)


# --- names


@pytest.mark.parametrize("first", range(len(GENERAL_NAMES)))
def test_the_most_exact_name_wins(first: int) -> None:
    rows = table(*reversed(GENERAL_NAMES[first:]))
    assert found(rows, MODEL, "p") == GENERAL_NAMES[first]


@pytest.mark.parametrize("name", ["org/model:p", "model:p", "*:p"])
def test_a_row_of_one_provider_is_for_no_other(name: str) -> None:
    assert found(table(name), MODEL, "q") is None
    assert found(table(name), MODEL) is None


@pytest.mark.parametrize(
    "model", ["other/model2", "model-distill", "org/mode", "someorg/o1-model", "org/model/x"]
)
def test_a_row_is_for_no_model_that_only_looks_like_it(model: str) -> None:
    assert found(table("org/model", "mod", "model"), model) is None


def test_a_name_without_an_organisation_is_for_all_of_them() -> None:
    assert found(table("model"), "any/model") == "model"
    assert found(table("org/model"), "any/model") is None


def test_an_empty_table_knows_nothing() -> None:
    assert found(PriceTable(), MODEL, "p") is None


def test_a_row_of_the_file_counts_over_one_of_the_project() -> None:
    project, file = table("a", "b"), PriceTable.parse({"a": {"call": 9}}, "file")
    both = file.over(project)
    assert {name: price.call for name, (price, _) in both.rows.items()} == {
        "a": parse_rate(9),
        "b": parse_rate(2),
    }


def test_a_model_has_the_providers_of_its_rows() -> None:
    rows = table("org/model:p", "model:q", "org/model", "org/other:r", "*:s", "http://model:8080")
    assert rows.providers(MODEL) == {"p", "q"}


# --- servers


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:8", "http://a:8"),
        ("http://a:8/", "http://a:8"),
        ("http://a:8/v1/chat/completions", "http://a:8"),
        ("http://a:80/v1", "http://a:80"),
        ("http://a:8080", None),
        ("http://a", None),
        ("https://a:8", None),
        ("http://b/team/v1", "http://b/team/"),
        ("http://b/team", "http://b/team/"),
        ("http://b/teams", "http://b"),
        ("http://b/team/x/y", "http://b/team/x"),
    ],
)
def test_a_server_gets_the_longest_row_that_it_is_below(url: str, expected: str | None) -> None:
    rows = table("http://a:8", "http://a:80", "http://b", "http://b/team/", "http://b/team/x")
    assert found(rows, url) == expected


@pytest.mark.parametrize("names", [("*", "http://a:8"), ("http://a:8", "*")])
def test_a_row_for_all_does_not_hide_that_of_a_server(names: tuple[str, ...]) -> None:
    assert found(table(*names), "http://a:8/v1") == "http://a:8"


def test_a_server_without_a_row_gets_the_row_for_all() -> None:
    assert found(table("*", "http://b"), "http://a:8/v1") == "*"


def test_no_name_of_a_model_is_for_a_server() -> None:
    assert found(table("v1", "a:8", "", "/"), "http://a:8/v1") is None


@pytest.mark.parametrize(
    ("row", "usage", "expected"),
    [
        ({"input": 1, "output": 2}, Usage(input_tokens=10, output_tokens=5), 20_000),
        ({"input": "0.0375", "output": 0}, Usage(input_tokens=1), 38),
        ({"input": "0.0375", "output": "0.0375"}, Usage(1, 1), 75),
        ({"input": 1, "output": 0, "cached": "0.5"}, Usage(10, cached_tokens=4), 8_000),
        ({"input": 1, "output": 0}, Usage(10, cached_tokens=4), 10_000),
        ({"call": "0.01"}, Usage(input_tokens=99, output_tokens=99), 10**7),
        ({"image": "0.003"}, Usage(images=2), 6 * 10**6),
        ({"second": "0.00012"}, Usage(microseconds=1_500_000), 180_000),
        ({"second": "0.000000001"}, Usage(microseconds=1), 1),
    ],
)
def test_a_call_is_rounded_up_once_for_the_whole_of_it(
    row: Mapping[str, object], usage: Usage, expected: int
) -> None:
    assert parse_price(row, "row").cost(usage) == expected
