"""What is taken out of text that others wrote before it is shown."""

from __future__ import annotations

import pytest

from pytest_hfbudget.text import parse_json, printable, public_url, public_value, undirected

HOST = "https://host:80/v1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host:80/v1", HOST),
        ("https://me@host:80/v1", HOST),
        ("https://me:secret@host:80/v1", HOST),
        ("https://me:se@cret@host:80/v1", HOST),
        ("https://me:se/cret@host:80/v1", HOST),
        ("https://me:se?cret@host:80/v1", HOST),
        ("https://me:se#cret@host:80/v1", HOST),
        ("https://host:80/v1?token=secret", HOST),
        ("https://host:80/v1#secret", HOST),
        ("https://me:secret@host?token=secret", "https://host"),
        ("https://me:secret@[::1]:80/v1", "https://[::1]:80/v1"),
        ("https://[::1]:80/v1", "https://[::1]:80/v1"),
        ("https://host/@me/v1", "https://host/@me/v1"),
        ("https://", "https://"),
        ("org/model", "org/model"),
        ("org/model?what", "org/model?what"),
        ("org/model@20240620", "org/model@20240620"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret_in_it(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert public_url(shown) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://me:secret@host:80/v1?token=secret", HOST),
        ("https://me:se/cret@host:80/v1", HOST),
        ("me:secret@host:6379", "***@host:6379"),
        ("secret@host", "***@host"),
        ("me:se@cret@host", "***@host"),
        ("me:se?cret@host", "***"),
        ("host:6379?password=secret", "host:6379"),
        ("host?password=se@cret", "***"),
        ("http://a https://me:secret@b", "***@b"),
        ("http://a,https://me:secret@b", "***@b"),
        ("https://me:se cret@host", "***@host"),
        ("b?key=secret ftp://a", "b"),
        ("some words", "some words"),
        ("", ""),
    ],
)
def test_a_refused_value_is_shown_without_what_may_be_secret_in_it(given: str, shown: str) -> None:
    assert public_value(given) == shown
    assert public_value(shown) == shown


@pytest.mark.parametrize("obeyed", ["\x1b", "\x9b", "\x07", "\r", "\n", "\t", "\u202e", "\u2066"])
def test_what_a_terminal_obeys_is_shown_as_unshowable(obeyed: str) -> None:
    assert printable(f"a{obeyed}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_what_is_welcome_stays() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\N{REPLACEMENT CHARACTER}"
    assert printable("Zoë 模型 ✓") == "Zoë 模型 ✓"


@pytest.mark.parametrize("mark", ["\u202e", "\u2067", "\u200f", "\u061c", "\x1b", "\x00"])
def test_a_page_turns_no_direction(mark: str) -> None:
    assert undirected(f"a{mark}b\nc") == "a\N{REPLACEMENT CHARACTER}b\nc"


def test_json_that_is_nested_too_deeply_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 1_000_000)
