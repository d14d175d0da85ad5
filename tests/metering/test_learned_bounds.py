"""What a server has counted bounds the next calls, for as long as it counts alike."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from metering_bench import MODEL, Bench, routed

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.metering.bounds import TokenCounts
from pytest_hfbudget.metering.instrumentation.paid_requests import HttpParameters
from pytest_hfbudget.metering.prompts import Fact
from pytest_hfbudget.metering.request import UNKNOWN_MODEL, describe
from pytest_hfbudget.pricing import Usage

PRICE = {"input": "1", "output": "1"}
# Nano-USD of a token at this price.
TOKEN = 1000
LONG = "The sun rose over a calm sea and all boats left their quiet harbour. "


def ask(bench: Bench, text: str = LONG, provider: str = "groq", **options: Any) -> int:
    """Ask for one token, and return the tokens that were held for the prompt."""
    wanted = {"max_tokens": 1, "model": MODEL, **options}
    messages = wanted.pop("messages", None) or [{"role": "user", "content": text}]
    with watched(bench) as held:
        answer = bench.client(wanted.pop("model"), provider=provider).chat_completion(
            messages, **wanted
        )
        if wanted.get("stream"):
            list(answer)
    return held.tokens


class watched:
    """Sees the largest hold of the calls inside, in tokens of the prompt."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.tokens = bench, 0

    def __enter__(self) -> watched:
        ledger: Any = self.bench.books
        hold = ledger.hold_or_queue

        def seen(keys: Any, least: int, *rest: Any) -> Any:
            self.tokens = max(self.tokens, least // TOKEN - 1)
            return hold(keys, least, *rest)

        ledger.hold_or_queue = seen
        return self

    def __exit__(self, *error: object) -> None:
        del self.bench.books.hold_or_queue  # the instance's own


def counted(bench: Bench) -> int:
    """The prompt tokens of the last call, as its server counted them."""
    return bench.ledger.charges()[-1].input_tokens


@pytest.fixture
def priced(bench: Bench) -> Bench:
    """One price for everybody, so that a hold tells the tokens."""
    for provider in ("groq", "novita", "together"):
        bench.emulator.client.add_model(MODEL, provider=provider, price=PRICE)
        bench.emulator.client.add_model("acme/other", provider=provider, price=PRICE)
    named = {f"{MODEL}:{name}": PRICE for name in ("groq", "novita", "together")}
    bench.prices(**named, **{"acme__other:groq": PRICE})
    bench.cap(1)
    return bench


# --- a prompt that was counted


def test_a_prompt_that_was_counted_alike_twice_is_held_at_its_count(priced: Bench) -> None:
    first, second, third = (ask(priced) for _ in range(3))
    assert first > second > third == counted(priced)


def test_a_prompt_that_was_counted_once_gets_a_margin(priced: Bench) -> None:
    ask(priced)
    assert ask(priced) == counted(priced) + counted(priced) // 4 + 16


def test_one_prompt_that_was_counted_alike_vouches_for_the_others_of_its_provider(
    priced: Bench,
) -> None:
    for text in ("one " * 50, "two " * 50, "one " * 50):
        ask(priced, text)
    assert ask(priced, "two " * 50) == counted(priced)


def test_what_changes_no_token_of_the_prompt_is_no_other_prompt(priced: Bench) -> None:
    ask(priced)
    ask(priced, max_tokens=1, temperature=0.5, seed=4, stop=["end"])
    assert ask(priced, stream=True, top_p=0.1) == counted(priced)


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "system", "content": LONG}]},
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
        {"extra_body": {"n": 2}},
    ],
)
def test_what_may_change_a_token_of_the_prompt_is_another_prompt(
    priced: Bench, other: dict[str, Any]
) -> None:
    for _ in range(3):
        ask(priced)
    exact = counted(priced)
    assert ask(priced, **other) > exact


def test_a_count_holds_for_its_model_alone(priced: Bench) -> None:
    for _ in range(3):
        ask(priced)
    assert ask(priced, model="acme/other") > counted(priced) + 200


def test_a_count_holds_for_one_of_the_models_of_a_server(priced: Bench) -> None:
    """They have one price, by the URL of the server, and a tokenizer each."""
    counts, book = TokenCounts(), priced.book
    body = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1}

    def asked(model: str) -> Any:
        parameters = HttpParameters(
            "http://localhost/v1/chat/completions",
            "conversational",
            "",
            json={**body, "model": model},
        )
        bound = partial(counts.bound, parameters, book)
        return describe(parameters, routers=(), asked=UNKNOWN_MODEL, stream=False, bound=bound)

    for _ in range(2):
        counts.learn(asked("small"), None, Usage(20))
    assert asked("small").input_bound == 20
    assert asked("large").input_bound > len(LONG)


def test_a_count_holds_for_its_provider_alone(priced: Bench) -> None:
    priced.emulator.client.configure(template_tokens=["novita=40"])
    for _ in range(3):
        ask(priced)
    exact = counted(priced)
    assert ask(priced, provider="novita") > exact + 40 == counted(priced)
    assert priced.spent == priced.billed


@routed
def test_where_the_router_chooses_each_provider_is_bounded_by_its_own_counts(
    priced: Bench,
) -> None:
    priced.emulator.client.configure(template_tokens=["novita=40"])
    for provider in ("groq", "novita", "together"):
        for _ in range(3):
            ask(priced, provider=provider)
    exact = counted(priced)
    priced.emulator.client.configure(routing="round_robin")
    held = {ask(priced, provider="auto") for _ in range(6)}
    assert held == {exact + 40}
    assert {charge.over for charge in priced.ledger.charges()} == {0}


@routed
@pytest.mark.parametrize("policy", ["cheapest", "fastest"])
def test_a_policy_of_the_router_is_a_choice_of_the_router(priced: Bench, policy: str) -> None:
    for _ in range(3):
        ask(priced, provider="groq")
    assert ask(priced, provider="auto", model=f"{MODEL}:{policy}") > counted(priced) + 200


def test_a_replay_teaches_nothing(priced: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    client = priced.client(provider="groq")
    session: Any = __import__("huggingface_hub").inference._client
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(
                session.InferenceClient,
                "_inner_post",
                _answering(session.InferenceClient, json.dumps(answer).encode()),
            )
            with suppress(Exception):
                client.chat_completion([{"role": "user", "content": LONG}], max_tokens=1)
    assert ask(priced) > counted(priced)


def _answering(kind: Any, body: bytes) -> Callable[..., Any]:
    def _inner_post(self: Any, parameters: Any, *, stream: bool = False) -> Any:
        return body

    return _inner_post


@pytest.mark.parametrize("url", ["https://example.org/picture.png", "file:///picture.png"])
def test_a_picture_behind_a_url_may_change_and_is_not_counted_once_and_for_all(
    priced: Bench, url: str
) -> None:
    def shows(url: str) -> list[Mapping[str, Any]]:
        text = {"type": "text", "text": "What is this?"}
        shown = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [text, shown]}]

    for _ in range(3):
        far = ask(priced, messages=shows(url))
        near = ask(priced, messages=shows("data:image/png;base64,AAAA"))
    assert near == counted(priced)
    assert far > 4000


def test_another_question_about_a_picture_is_bounded_by_the_first(priced: Bench) -> None:
    def shows(picture: str, text: str) -> list[Mapping[str, Any]]:
        url = {"url": f"data:image/png;base64,{picture}"}
        shown = {"type": "image_url", "image_url": url}
        return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]

    assert ask(priced, messages=shows("AAAA", "What is this?")) > 4000
    assert ask(priced, messages=shows("AAAA", "Who has drawn it?")) < 300
    assert ask(priced, messages=shows("BBBB", "Who has drawn it?")) > 4000


# --- what is new in a prompt


def test_an_agents_history_is_bounded_by_what_was_counted_of_it(priced: Bench) -> None:
    history = [{"role": "user", "content": LONG * 8}]
    ask(priced, messages=history)
    before = counted(priced)
    more = [{"role": "assistant", "content": "Aye."}, {"role": "user", "content": "And then?"}]
    held = ask(priced, messages=[*history, *more])
    assert counted(priced) <= held < before + before // 4 + 80


def test_the_template_of_a_shape_is_bounded_by_its_first_answer(priced: Bench) -> None:
    ask(priced, "Hi")
    held = ask(priced, "Good morning")
    assert counted(priced) <= held < 60


def test_a_shape_with_another_role_has_another_template(priced: Bench) -> None:
    ask(priced, "Hi")
    assert ask(priced, messages=[{"role": "system", "content": "Hi"}]) > 200


def test_a_shape_with_other_tools_has_another_template(priced: Bench) -> None:
    def tool(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": {}}}

    ask(priced, "Hi", tools=[tool("look")])
    assert ask(priced, "Ho", tools=[tool("listen")]) > 700
    assert ask(priced, "Ha", tools=[tool("look")]) < 120


# --- doubt


def test_a_provider_that_counts_one_prompt_differently_is_believed_no_more(priced: Bench) -> None:
    priced.emulator.client.configure(recount="more")
    strict, *later = (ask(priced) for _ in range(5))
    assert later[1:] == [strict] * 3
    assert priced.spent == priced.billed
    assert {charge.over for charge in priced.ledger.charges()} == {0}


def test_a_bound_that_was_too_low_is_reported_and_believed_no_more(priced: Bench) -> None:
    strict, *_ = (ask(priced) for _ in range(3))
    priced.emulator.client.configure(template_tokens=["groq=50"])
    assert ask(priced) + 50 == counted(priced)
    assert priced.ledger.charges()[-1].over == 50 * TOKEN
    assert [ask(priced) for _ in range(3)] == [strict] * 3
    assert priced.spent == priced.billed


def test_threads_that_learn_at_the_same_time_learn_the_same(priced: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask_in_thread(priced), range(40)))
    assert ask(priced) == counted(priced)
    assert priced.spent == priced.billed


def ask_in_thread(bench: Bench) -> None:
    message = [{"role": "user", "content": LONG}]
    bench.client(provider="groq").chat_completion(message, max_tokens=1)


def test_eight_threads_fit_together_into_a_cap_of_what_their_calls_cost(priced: Bench) -> None:
    for _ in range(2):
        ask(priced)
    each = counted(priced) + 1
    with budget(f"{80 * each * TOKEN / 10**9:.9f}", on_exceed="raise") as block:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: ask_in_thread(priced), range(80)))
        assert block.remaining == 0
        with pytest.raises(BudgetExceededError):
            ask_in_thread(priced)


# --- other runs and processes


def facts(bench: Bench) -> list[Fact]:
    return list(bench.runtime.meter.counts.facts)


def knowing(bench: Bench, known: list[Fact]) -> None:
    """Have this run know what other runs have learned."""
    bench.runtime.meter.counts = TokenCounts(load=lambda model: known)


def test_a_run_knows_from_its_first_call_what_an_earlier_one_has_learned(priced: Bench) -> None:
    ask(priced)
    knowing(priced, facts(priced))
    assert ask(priced) == counted(priced) + counted(priced) // 4 + 16
    assert ask(priced) == counted(priced)


def test_where_a_provider_counts_otherwise_than_in_an_earlier_run_that_is_forgotten(
    priced: Bench,
) -> None:
    for text in ("one " * 50, "two " * 50):
        ask(priced, text)
    strict = ask(priced, "three " * 40)
    knowing(priced, facts(priced))
    priced.emulator.client.configure(template_tokens=["groq=20"])
    ask(priced, "one " * 50)
    ask(priced, "one " * 50)
    assert ask(priced, "one " * 50) == counted(priced)
    assert ask(priced, "two " * 50) > counted(priced)
    assert strict


def test_a_provider_that_has_changed_since_an_earlier_run_is_learned_anew(priced: Bench) -> None:
    ask(priced)
    ask(priced, "two " * 50)
    knowing(priced, facts(priced))
    priced.emulator.client.configure(template_tokens=["groq=500"])
    ask(priced)
    assert priced.ledger.charges()[-1].over > 0
    assert ask(priced, "two " * 50) > 272
    ask(priced)
    assert ask(priced) == counted(priced)
    assert sum(charge.over > 0 for charge in priced.ledger.charges()) <= 2


def test_a_doubt_of_an_earlier_run_is_kept(priced: Bench) -> None:
    priced.emulator.client.configure(recount="more")
    strict, *_ = (ask(priced) for _ in range(3))
    knowing(priced, facts(priced))
    priced.emulator.client.configure(recount="alike")
    assert [ask(priced) for _ in range(3)] == [strict] * 3


def test_what_is_kept_has_no_text(priced: Bench) -> None:
    ask(priced, "a very secret question")
    assert "secret" not in json.dumps(facts(priced))
    assert facts(priced)


def test_processes_learn_from_each_other(priced: Bench) -> None:
    ask(priced)
    leader, other = TokenCounts(), priced.runtime.meter.counts
    other.share = lambda told, heard: leader.shared_by("other", told, heard)
    other.exchange()
    assert leader.facts_about(MODEL) == other.facts_about(MODEL)
    priced.runtime.meter.counts = leader
    ask(priced)
    ask(priced)
    assert ask(priced) == counted(priced)


def test_two_processes_that_count_alike_vouch_for_their_provider(priced: Bench) -> None:
    ask(priced)
    told = facts(priced)
    knowing(priced, [])
    ask(priced)
    priced.runtime.meter.counts.shared_by("other", told, 0)
    assert ask(priced) == counted(priced)


def test_what_a_forked_process_has_from_its_parent_is_no_second_count(priced: Bench) -> None:
    ask(priced)
    parent = priced.runtime.meter.counts
    child = copy.deepcopy(parent)
    child.disown()
    child.share = lambda told, heard: parent.shared_by("child", told, heard)
    priced.runtime.meter.counts = child
    ask(priced, "Something else. " * 20)
    child.exchange()
    assert ask(priced) == counted(priced) + counted(priced) // 4 + 16
    priced.runtime.meter.counts = parent
    assert ask(priced) == counted(priced) + counted(priced) // 4 + 16
