"""The openai SDK, which sends by httpx or httpx2: held, sent and charged as hub's own calls are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from metering_bench import Bench, say

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.settings import ROUTER

openai = pytest.importorskip("openai")

MODEL = "emulator/chat:groq"
PRICED = {"input": 1, "output": 2}


def client(**options: Any) -> Any:
    """A client for the public router, as anyone makes one."""
    return openai.OpenAI(base_url=f"{ROUTER}/v1", api_key="hf_of_the_tests", **options)


def async_client(**options: Any) -> Any:
    return openai.AsyncOpenAI(base_url=f"{ROUTER}/v1", api_key="hf_of_the_tests", **options)


def ask(tokens: int = 10, **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": say(tokens), **options}


def test_a_call_is_charged_what_the_invoice_says(bench: Bench) -> None:
    bench.cap(1)
    with client() as one:
        answer = one.chat.completions.create(**ask(max_tokens=50))
    assert answer.usage.completion_tokens == 10
    assert bench.spent == bench.billed > 0
    assert bench.held == 0


def test_an_async_call_is_charged_what_the_invoice_says(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> None:
        async with async_client() as one:
            await asyncio.gather(*(one.chat.completions.create(**ask(n)) for n in range(1, 6)))

    asyncio.run(main())
    assert len(bench.ledger.charges()) == 5
    assert bench.spent == bench.billed > 0


def test_without_a_cap_calls_are_watched(bench: Bench) -> None:
    with client() as one:
        one.chat.completions.create(**ask())
    (charge,) = bench.ledger.charges()
    assert (charge.model, charge.provider) == ("emulator/chat", "groq")
    assert bench.spent == bench.billed > 0


def test_without_a_cap_nothing_of_a_request_is_changed(bench: Bench) -> None:
    with client() as one:
        for _ in one.chat.completions.create(**ask(3, stream=True)):
            pass
    (charge,) = bench.ledger.charges()
    assert charge.estimated, "the usage is exact, although the caller did not ask for it"


def test_a_stream_settles_as_it_passes_and_shows_no_chunk_that_was_not_asked_for(
    bench: Bench,
) -> None:
    bench.cap(1)
    with client() as one:
        chunks = list(one.chat.completions.create(**ask(max_tokens=50, stream=True)))
    assert all(chunk.choices for chunk in chunks)
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == 10
    assert bench.spent == bench.billed > 0
    assert not bench.ledger.charges()[0].estimated


def test_usage_that_the_caller_asks_for_is_shown(bench: Bench) -> None:
    bench.cap(1)
    options = {"include_usage": True}
    with client() as one:
        *_, last = one.chat.completions.create(**ask(stream=True, stream_options=options))
    assert last.usage.completion_tokens == 10
    assert bench.spent == bench.billed > 0


def test_an_async_stream_settles_as_it_passes(bench: Bench) -> None:
    bench.cap(1)

    async def main() -> int:
        async with async_client() as one:
            stream = await one.chat.completions.create(**ask(max_tokens=50, stream=True))
            return len([chunk async for chunk in stream if chunk.choices[0].delta.content])

    assert asyncio.run(main()) == 10
    assert bench.spent == bench.billed > 0


def test_a_stream_that_is_left_early_is_charged_what_was_held(bench: Bench) -> None:
    bench.cap(1)
    with client() as one:
        stream = one.chat.completions.create(**ask(5000, max_tokens=5000, stream=True))
        next(iter(stream))
        stream.close()
    (charge,) = bench.ledger.charges()
    assert (charge.status, charge.estimated) == ("closed", True)
    assert bench.spent >= bench.billed
    assert bench.held == 0


@pytest.mark.parametrize("wrapper", ["with_raw_response", "with_streaming_response"])
def test_raw_answers_are_charged(bench: Bench, wrapper: str) -> None:
    bench.cap(1)
    with client() as one:
        create = getattr(one.chat.completions, wrapper).create
        if wrapper == "with_raw_response":
            assert create(**ask()).parse().usage.completion_tokens == 10
        else:
            with create(**ask()) as answer:
                assert answer.parse().usage.completion_tokens == 10
    assert bench.spent == bench.billed > 0


def test_parsed_answers_are_charged(bench: Bench) -> None:
    pydantic = pytest.importorskip("pydantic")
    answers = pydantic.create_model("Answer", answer=(str, ...))
    bench.cap(1)
    with client() as one:
        completions = getattr(one, "beta", one).chat.completions
        if not hasattr(completions, "parse"):
            completions = one.chat.completions
        answer = completions.parse(**ask(), response_format=answers)
    assert answer.choices[0].message.parsed.answer
    assert bench.spent == bench.billed > 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_api_is_charged(bench: Bench, stream: bool) -> None:
    bench.cap(1)
    question = say(10)[0]["content"]
    with client() as one:
        answer = one.responses.create(model=MODEL, input=question, stream=stream)
        if stream:
            *_, last = answer
            answer = last.response
        assert answer.usage.output_tokens == 10
    assert bench.spent == bench.billed > 0
    assert not bench.ledger.charges()[0].estimated


def test_the_responses_api_gets_the_limit_that_a_cap_sets(bench: Bench) -> None:
    bench.cap("0.0001")
    question = say(5000)[0]["content"]
    with client() as one, pytest.raises(openai.APIStatusError, match="was stopped after"):
        one.responses.create(model=MODEL, input=question)
    assert bench.spent == bench.billed > 0


def test_a_response_that_goes_on_from_another_one_can_not_be_held(bench: Bench) -> None:
    bench.cap(1)
    with client() as one, pytest.raises(openai.APIStatusError, match="previous_response_id"):
        one.responses.create(model=MODEL, input="And now?", previous_response_id="resp_1")
    assert bench.sent == 0


def test_embeddings_are_charged(bench: Bench) -> None:
    bench.cap(1)
    with client() as one:
        answer = one.embeddings.create(model=MODEL, input=["the sun", "a calm sea"])
    assert len(answer.data) == 2
    assert bench.spent == bench.billed > 0


def test_images_are_charged(bench: Bench) -> None:
    bench.emulator.client.add_model(
        "acme/painter", providers=[{"provider": "nscale", "task": "text-to-image"}]
    )
    bench.cap(1)
    bench.prices(acme__painter={"image": 0.003})
    with client() as one:
        assert len(one.images.generate(model="acme/painter:nscale", prompt="sea", n=2).data) == 2
    assert bench.spent == 6_000_000


def test_another_post_to_a_paid_host_needs_a_price(bench: Bench) -> None:
    bench.cap(1)
    with client(max_retries=0) as one, pytest.raises(openai.APIStatusError) as told:
        one.post("/rerank", body={"query": "sea"}, cast_to=object)
    assert "has no known price for a POST call" in str(told.value)
    assert f'["{ROUTER}/v1/rerank"]' in str(told.value)
    assert "call = 0.00" in str(told.value)
    assert bench.emulator.client.log(kind="request", phase="arrived", method="POST") == []


# --- refusals


@pytest.mark.parametrize("retries", [0, 2])
def test_a_refusal_ends_the_call_at_once_and_can_be_read(bench: Bench, retries: int) -> None:
    bench.running("0.00001")
    with client(max_retries=retries) as one:
        before = time.perf_counter()
        with pytest.raises(openai.APIStatusError) as told:
            one.chat.completions.create(**ask(max_tokens=5000))
        took = time.perf_counter() - before
    assert "test_it: emulator/chat may cost up to $" in str(told.value)
    assert "The call was not sent." in str(told.value)
    assert took < 0.1
    assert (bench.sent, bench.spent) == (0, 0)
    assert len(bench.budgets.test.refusals) == 1  # type: ignore[union-attr]


def test_an_async_refusal_ends_the_call_at_once(bench: Bench) -> None:
    bench.running("0.00001")

    async def main() -> float:
        async with async_client() as one:
            before = time.perf_counter()
            with pytest.raises(openai.APIStatusError, match="may cost up to"):
                await one.chat.completions.create(**ask(max_tokens=5000))
            return time.perf_counter() - before

    assert asyncio.run(main()) < 0.1
    assert (bench.sent, len(bench.budgets.test.refusals)) == (0, 1)  # type: ignore[union-attr]


def test_a_block_is_not_left_with_a_refusal_that_its_caller_has_seen(bench: Bench) -> None:
    test = bench.running()
    with client() as one, pytest.raises(openai.APIStatusError):
        with budget("0.00001"):
            one.chat.completions.create(**ask(max_tokens=5000))
    assert test.refusals == []


def test_a_block_tells_of_a_refusal_that_was_swallowed(bench: Bench) -> None:
    with client() as one, pytest.raises(BudgetExceededError, match="may cost up to"):
        with budget("0.00001"):
            with contextlib.suppress(openai.APIStatusError):
                one.chat.completions.create(**ask(max_tokens=5000))


# --- output limits


def test_a_call_without_a_limit_gets_the_one_that_a_cap_pays_for(bench: Bench) -> None:
    bench.cap("0.0001")
    with client() as one:
        one.chat.completions.create(**ask(20))
        with pytest.raises(openai.APIStatusError, match="was stopped after"):
            one.chat.completions.create(**ask(5000))
    assert bench.spent == bench.billed <= 100_000


def test_a_stream_that_meets_the_limit_of_a_cap_raises_there(bench: Bench) -> None:
    bench.cap("0.0001")
    seen = []
    with client() as one, pytest.raises(BudgetExceededError, match="was stopped after"):
        for chunk in one.chat.completions.create(**ask(5000, stream=True)):
            seen.append(chunk)
    assert len(seen) > 10
    assert bench.spent == bench.billed <= 100_000


@pytest.mark.parametrize("names", ["max_completion_tokens", "none"])
def test_a_server_that_knows_the_limit_by_another_name_is_asked_again(
    bench: Bench, names: str
) -> None:
    bench.emulator.client.configure(limit_names=names)
    bench.cap(1)
    with client() as one:
        one.chat.completions.create(**ask(20))
    assert bench.spent == bench.billed > 0


def test_a_server_that_refuses_stream_options_is_asked_without(bench: Bench) -> None:
    bench.emulator.client.configure(stream_usage="rejects_options")
    bench.cap(1)
    with client() as one:
        chunks = list(one.chat.completions.create(**ask(max_tokens=20, stream=True)))
    assert len(chunks) > 10
    assert bench.spent >= bench.billed > 0


# --- errors and retries


def test_each_attempt_is_a_call_and_one_that_the_service_refuses_costs_nothing(
    bench: Bench,
) -> None:
    bench.cap(1)
    headers = {"retry-after-ms": "1"}
    bench.emulator.client.add_fault(op="chat", times=2, status=503, headers=headers)
    with client(max_retries=2) as one:
        one.chat.completions.create(**ask())
    assert [charge.status for charge in bench.ledger.charges()] == ["503", "503", "200"]
    assert bench.spent == bench.billed > 0


def test_an_attempt_whose_answer_got_lost_is_charged_what_was_held(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault(op="chat", reset="after")
    with client(max_retries=1) as one:
        one.chat.completions.create(**ask(max_tokens=50))
    lost, answered = bench.ledger.charges()
    assert (lost.estimated, answered.estimated) == (True, False)
    assert bench.spent >= bench.billed > answered.nano_usd  # type: ignore[operator]
    assert bench.sent == 2


def test_a_stream_that_breaks_off_is_charged_what_was_held(bench: Bench) -> None:
    bench.cap(1)
    bench.emulator.client.add_fault(op="chat", cut_stream_after=3)
    with client(max_retries=0) as one, pytest.raises(Exception, match=r"."):
        list(one.chat.completions.create(**ask(max_tokens=50, stream=True)))
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_an_unread_stream_is_charged(bench: Bench) -> None:
    bench.cap(1)
    with client() as one:
        one.chat.completions.create(**ask(max_tokens=50, stream=True))
    bench.runtime.meter.settle_all()
    assert bench.spent >= bench.billed > 0
    assert bench.held == 0


def test_the_error_of_the_service_reaches_the_caller_unchanged(bench: Bench) -> None:
    bench.cap(1)
    with (
        client(max_retries=0) as one,
        pytest.raises(openai.BadRequestError, match="n must be a positive"),
    ):
        one.chat.completions.create(**ask(max_tokens=5), n=0)
    assert bench.spent == bench.billed == 0


# --- who pays


def test_max_calls_counts_each_attempt(bench: Bench) -> None:
    with client() as one, budget(max_calls=1, on_exceed="raise"):
        one.chat.completions.create(**ask())
        with pytest.raises(openai.APIStatusError, match="would be call 2"):
            one.chat.completions.create(**ask())
    assert bench.sent == 1


def test_a_price_that_a_block_states_counts(bench: Bench) -> None:
    with client() as one, budget(1, price=PRICED) as block:
        one.chat.completions.create(**ask(10))
    (charge,) = block.calls
    assert charge.nano_usd == charge.input_tokens * 1000 + 10 * 2000


def test_a_call_of_hub_s_client_is_counted_once(bench: Bench) -> None:
    bench.cap(1)
    bench.client().chat_completion(say(10), max_tokens=50)
    assert len(bench.ledger.charges()) == 1
    assert bench.spent == bench.billed > 0


def test_the_sdk_s_client_by_aiohttp_is_the_same(bench: Bench) -> None:
    pytest.importorskip("httpx_aiohttp")
    bench.cap("0.0001")

    async def main() -> None:
        async with async_client(http_client=openai.DefaultAioHttpClient()) as one:
            await one.chat.completions.create(**ask())
            async for _ in await one.chat.completions.create(**ask(stream=True)):
                pass
            with pytest.raises(openai.APIStatusError, match="was stopped after"):
                await one.chat.completions.create(**ask(5000))

    asyncio.run(main())
    assert len(bench.ledger.charges()) == 3
    assert bench.spent == bench.billed <= 100_000


def test_eight_threads_break_no_cap(bench: Bench) -> None:
    bench.cap("0.00005")

    def work(stream: bool) -> None:
        with client(max_retries=0) as one:
            for _ in range(6):
                with contextlib.suppress(openai.APIStatusError):
                    answer = one.chat.completions.create(**ask(max_tokens=20, stream=stream))
                    if stream:
                        list(answer)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [True, False] * 4))
    assert 20_000 < bench.billed <= 50_000
    assert bench.spent == bench.billed
    assert bench.held == 0
