"""The words and token counts of the emulated model, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("starlette")

from pytest_hfbudget.emulator.chat import answer, prompt_tokens, read_chat, read_completion, usage
from pytest_hfbudget.emulator.refusal import Refusal

CONTEXT = 8192
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **more}


def reply(body: dict[str, object], context: int = CONTEXT) -> list[Any]:
    return answer(read_chat(body, context, natural=32))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("éé", 1), ("éééé", 2), ("a" * 400, 100)],
)
def test_a_prompt_counts_seven_tokens_and_one_for_every_four_bytes(text: str, tokens: int) -> None:
    assert prompt_tokens(user(text)) == 4 + 3 + tokens


@pytest.mark.parametrize("text", ["", "hi", "日本語のテキスト", "a b c " * 50, "\ud800"])
@pytest.mark.parametrize("messages", [1, 2, 9])
def test_a_text_prompt_never_has_more_tokens_than_bytes_and_16_per_message(
    text: str, messages: int
) -> None:
    body = {"messages": [{"role": "user", "content": text}] * messages}
    size = messages * len(text.encode("utf-8", "surrogatepass"))
    assert prompt_tokens(body) <= size + 16 * messages + 16


def test_an_image_counts_85_tokens_and_a_text_part_counts_as_text() -> None:
    parts = [
        {"type": "text", "text": "abcdefgh"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    assert prompt_tokens({"messages": [{"role": "user", "content": parts}]}) == 4 + 3 + 2 + 85


def test_tool_definitions_and_earlier_tool_calls_count_as_their_json() -> None:
    size = -(-len(json.dumps([TOOL], separators=(",", ":"))) // 4)
    assert prompt_tokens(user("", tools=[TOOL])) == 7 + size
    called = {"role": "assistant", "content": None, "tool_calls": [TOOL]}
    assert prompt_tokens({"messages": [called]}) == 7 + size


def test_an_answer_is_the_same_every_time_and_differs_between_choices() -> None:
    first, again = reply(user("hello", n=2)), reply(user("hello", n=2))
    assert first == again
    assert first[0].text("content") != first[1].text("content")


def test_a_natural_answer_has_32_words_and_stops_by_itself() -> None:
    [choice] = reply(user("hello"))
    assert (choice.tokens, choice.finish_reason) == (32, "stop")
    assert len(choice.text("content").split()) == 32


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("limit", "tokens", "reason"), [(5, 5, "length"), (9, 9, "length"), (10, 10, "stop")]
)
def test_a_limit_below_the_natural_length_is_the_reason_to_end(
    name: str, limit: int, tokens: int, reason: str
) -> None:
    [choice] = reply(user("[[tokens=10]]", **{name: limit}))
    assert (choice.tokens, choice.finish_reason) == (tokens, reason)


def test_reasoning_comes_first_and_counts_against_the_limit() -> None:
    [choice] = reply(user("[[reasoning=6]] [[tokens=4]]", max_tokens=8))
    assert (choice.reasoning_tokens, choice.tokens, choice.finish_reason) == (6, 8, "length")
    ask = read_chat(user("[[reasoning=6]]"), CONTEXT, 32)
    assert usage(ask, 8, 6)["completion_tokens_details"] == {"reasoning_tokens": 6}


def test_a_tool_is_called_when_it_is_offered_and_asked_for() -> None:
    asked = 'what now? [[tool=weather {"city": "Bern"}]]'
    [choice] = reply(user(asked, tools=[TOOL]))
    [call] = choice.message()["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Bern"}'}
    assert (choice.finish_reason, choice.message()["content"]) == ("tool_calls", None)
    assert reply(user(asked))[0].finish_reason == "stop"


def test_a_tool_result_is_answered_with_words_so_that_agents_end() -> None:
    body = user("[[tool=weather]]", tools=[TOOL])
    body["messages"] = [*body["messages"], {"role": "tool", "content": "rain"}]  # type: ignore[misc]
    assert reply(body)[0].finish_reason == "stop"


def test_a_json_answer_is_json_and_costs_no_extra_tokens() -> None:
    [choice] = reply(user("[[tokens=7]]", response_format={"type": "json_object"}))
    assert choice.tokens == 7
    assert set(json.loads(choice.text("content"))) == {"answer"}


def test_a_request_beyond_the_context_is_refused_in_the_words_of_the_openai_api() -> None:
    assert reply(user("hi", max_tokens=92), context=100)
    with pytest.raises(Refusal) as refusal:
        reply(user("hi", max_tokens=93), context=100)
    assert refusal.value.status == 400
    assert refusal.value.body["error"]["code"] == "context_length_exceeded"


def test_without_a_limit_the_answer_ends_at_the_context() -> None:
    [choice] = reply(user("[[tokens=9999]]"), context=100)
    assert (choice.tokens, choice.finish_reason) == (100 - 4 - 3 - 4, "length")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": ["x"]},
        {"messages": [{"content": 5}]},
        user("x", max_tokens=0),
        user("x", n=0),
        user("x", max_tokens="5"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(Refusal):
        reply(body)


def test_a_plain_completion_counts_its_prompt_and_keeps_its_limit() -> None:
    ask = read_completion("abcdefgh [[tokens=9]]", 4, CONTEXT, 32)
    assert ask.prompt_tokens == 3 + 6
    assert answer(ask)[0].tokens == 4
