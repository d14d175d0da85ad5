"""An answer's usage is found at its end only where it is certain to be the answer's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_hfbudget.metering.usage import ending_with_usage

USAGE = {"prompt_tokens": 40, "completion_tokens": 41, "total_tokens": 81}

keys = st.sampled_from(["usage", 'a"usage', "usage\\", "id", "choices", '"usage":', "é"])
values = st.recursive(
    st.none() | st.integers() | st.sampled_from(['"usage":{}}', '\\"usage":{}', "}", "é", USAGE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=5), st.booleans(), st.booleans())
def test_what_is_found_is_what_a_parser_finds(
    answer: dict[str, Any], ascii_only: bool, spaced: bool
) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    body = json.dumps(answer, ensure_ascii=ascii_only, separators=separators).encode()
    found = ending_with_usage(body)
    assert not found or found == {"usage": answer["usage"]}


@given(st.dictionaries(keys, values, max_size=3), st.dictionaries(keys, st.none(), max_size=2))
def test_a_usage_is_found_whatever_follows_it(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    before.pop("usage", None)
    after.pop("usage", None)
    body = json.dumps({**before, "usage": USAGE, **after}, separators=(",", ":")).encode()
    # What follows may show a key like it, and then it is not certain any more.
    assert ending_with_usage(body) == {"usage": USAGE} or b"usage" in json.dumps(after).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'"usage":{}',
        b'{"usage":{"prompt_tokens":1',
        b'{"usage":{"prompt_tokens":1}',
        b'{"choices":[{"usage":{"prompt_tokens":1}}]}',
        b'[{"usage":{"prompt_tokens":1}}]',
        b'{"a\\"usage":{"prompt_tokens":1}}',
        b'{"usage":{"prompt_tokens":1},"id":}',
        b'{"usage":\xff}',
        "no bytes",
        None,
    ],
)
def test_where_it_is_not_certain_nothing_is_found(body: object) -> None:
    assert ending_with_usage(body) == {}
