"""A price file that can't be used is refused in one line: the file, the line, the key."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.pricing.book import project_table
from pytest_hfbudget.pricing.table import MOST_BYTES, PriceTable, TomlFile

GOOD = '# prices\n["a/b"]\ninput = 1\noutput = 2\n\n'


def refusal(file: Path, content: bytes | str) -> str:
    """The one line with which a file is refused."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        PriceTable.load(file)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix(f"{file}: ")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("input = 1\ninptu = 1", "unknown key 'inptu'; known are "),
        ("input = 1\noutput = nan", "output = NaN: "),
        ("input = 1\noutput = inf", "output = Infinity: "),
        ("input = 1\noutput = -inf", "output = -Infinity: "),
        ("input = 1\noutput = -1", "output = -1: -1 is negative"),
        ("input = 1\noutput = -0.0", "output = -0.0: "),
        ("input = 1\noutput = -1e-30", "output = -1E-30: "),
        ("input = 1\noutput = true", "output = True: True is not an amount"),
        ("input = 1\noutput = 'cheap'", "output = cheap: "),
        ("input = 1\noutput = '''two\nlines'''", "output = two lines: "),
        ("input = 1\noutput = [2]", "output = [2]: "),
        ("input = 1\noutput = { usd = 2 }", "output = {'usd': 2}: "),
        ("input = 1\noutput = 1e30", "output = 1E+30: "),
        ("free = true\ninput = 1", "free = true next to a price"),
        ("call = 1\nfree = 0", "free = 0; write true or false"),
        ("input = 0\noutput = 0.0", "a price of 0; write free = true"),
        ("second = 1\nmax_seconds = 0", "max_seconds = 0; write how long"),
        ("call = 1\nmax_seconds = 9", "max_seconds without second; "),
        ("", "has no price"),
        ("free = false", "has no price"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(file: Path, row: str, says: str) -> None:
    text = refusal(file, f'{GOOD}["c/d:groq"]\n{row}\n')
    assert text.startswith(f'["c/d:groq"]: {says}')
    whole_row = any(word in says for word in ("next to", "price of 0", "has no price"))
    assert text.endswith(f" (at line {6 if whole_row else 8})")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('["a=b"]\ncall = -1\n', 2),
        ('"http://h/?a=b" = { call = -1 }\n', 1),
        ('"a/b".call = -1\n', 1),
        ("  [ 'a/b' ]   # a comment\n  call=-1\n", 2),
        ("[['a/b']]\ncall = 1\n", 1),
        ("\n\n['a/b']\n\n\n'call' = -1\n", 6),
        ("['a/b']\r\ncall = -1\r\n", 2),
        ("a = { call = 1 }\nb = 3\n", 2),
    ],
)
def test_the_line_is_found_however_a_key_is_written(file: Path, content: str, line: int) -> None:
    assert refusal(file, content).endswith(f" (at line {line})")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"{GOOD}['c/d]\ncall = 1\n", "see line 6: ['c/d]"),
        (f"{GOOD}['c/d']\ncall = \n", "line 7"),
        (f"{GOOD}['c/d']\ncall = 1\ncall = 2\n", "line 8, column 9): call = 2"),
        (f"{GOOD}['c/d']\ncall = 1\ncall = 2", "line 8, column 9): call = 2"),
        (f"{GOOD}['a/b']\ncall = 1\n", "line 6, column 7): ['a/b']"),
        (f"{GOOD}['c/d']\ncall = '1\n", "line 7"),
        (f"{GOOD}'x' = {{ call = 1", "line 6"),
        ("a = [\n1,\n2]\nb = [\n1,\n" + "2,\n" * 99, "line 4: b = ["),
        ("x = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(file: Path, content: str, says: str) -> None:
    text = refusal(file, content)
    assert text.startswith("is not TOML: ")
    assert says in text


def test_bytes_that_are_not_utf_8_are_named_with_their_line(file: Path) -> None:
    text = refusal(file, f"{GOOD}# prix d'\u00e9t\u00e9\n".encode("latin-1"))
    assert text == "is not TOML: byte 0xe9 is not UTF-8 (at line 6)"


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert set(PriceTable.load(file).rows) == {"a/b"}


def test_a_number_may_be_written_as_a_string(file: Path) -> None:
    file.write_text('["a/b"]\ninput = "0.02"\noutput = 0.05\n')
    (row,) = PriceTable.load(file).rows.values()
    assert row[0].input == parse_rate(Decimal("0.02"), units=10**6)


def test_a_directory_is_no_price_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read \(Is a directory\)$"):
        PriceTable.load(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"can't be read \(not a regular file\)$"):
        PriceTable.load(tmp_path / "pipe")


def test_a_file_that_can_not_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=r"loop: can't be read \(Too many levels"):
        PriceTable.load(tmp_path / "loop")


def test_a_huge_file_is_not_read(file: Path) -> None:
    assert refusal(file, b"#" * (MOST_BYTES + 1)).startswith("has 2,000,001 bytes; ")


@pytest.mark.parametrize("policy", ["fastest", "cheapest", "preferred"])
def test_a_choice_of_the_router_is_no_provider(file: Path, policy: str) -> None:
    text = refusal(file, f"{GOOD}['c/d:{policy}']\ncall = 1\n")
    assert "leave the choice to the router" in text
    assert text.endswith("(at line 6)")


# --- the project's own


PROJECT = """\
[project]
description = '''
[tool.hfbudget.prices.looks-like-it]
'''
[tool.ruff]
select = [
  "E",
]
"""


def load(tmp_path: Path, content: str, file: Path | None = None) -> PriceTable:
    (tmp_path / "pyproject.toml").write_text(content)
    return project_table(file, root=tmp_path, here=tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[tool.hfbudget.prices]\n"a/b" = { inptu = 1 }\n', "(at line 10)"),
        ('[tool.hfbudget.prices."a/b"]\ncall = 1\ninput = nan\n', "(at line 11)"),
        ("[tool.hfbudget]\nprices = 3\n", "prices must be tables by name (at line 10)"),
        ("[tool]\nhfbudget = 3\n", "tool.hfbudget must be a table (at line 10)"),
    ],
)
def test_a_wrong_row_of_pyproject_is_named_with_its_line(
    tmp_path: Path, content: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, PROJECT + content)
    assert "pyproject.toml: " in str(caught.value)
    assert str(caught.value).endswith(says)


def test_a_broken_pyproject_without_our_tables_is_for_others_to_complain_of(tmp_path: Path) -> None:
    assert not load(tmp_path, "[tool").rows


def test_a_row_that_the_files_own_hides_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("['a/b']\ncall = 2\n")
    both = load(tmp_path, "[tool.hfbudget.prices.'a/b']\ncall = 1\n", Path("more.toml"))
    assert [row.price.call for row in both.matches("a/b", None)] == [2 * 10**18, 10**18]


def test_a_key_without_a_line_of_its_own_is_found_at_the_next_outer_one(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("\n[a.b]\n")
    file = TomlFile.read(tmp_path / "f.toml")
    assert file.line(("a", "b", "c")) == " (at line 2)"
    assert file.line(("x",)) == ""
