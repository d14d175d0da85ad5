"""What an answer tells of its cost: tokens by kind, images, time; and what is held before."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import ROUND_DOWN, Context, localcontext
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from metering_bench import MODEL, Bench, say

from pytest_hfbudget import BudgetExceededError
from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.metering.prompt_size import IMAGE_TOKENS, MEDIA_TOKENS, TEMPLATE_TOKENS
from pytest_hfbudget.metering.request import AskedModel, describe
from pytest_hfbudget.pricing import CALL_SECONDS
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.reporting import Report
from pytest_hfbudget.reporting.json_report import as_json
from pytest_hfbudget.reporting.terminal import summary

SPEECH = "emulator/automatic-speech-recognition"
A_SECOND = {"second": "0.001"}
MILLI = 10**6  # nano-USD of a thousandth of a dollar


def priced(bench: Bench, model: str, provider: str, task: str, row: dict[str, str]) -> Any:
    """A client for a model with a price that both sides know."""
    bench.emulator.client.add_model(
        model, task=task, providers=[{"provider": provider, "price": row}]
    )
    bench.prices(**{model: row})
    return bench.client(model, provider=provider)


def only(bench: Bench) -> Charge:
    bench.runtime.meter.drain()
    (charge,) = bench.ledger.charges()
    return charge


# --- tokens


@pytest.mark.parametrize("style", ["nested", "flat"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_cached_tokens_are_charged_at_their_own_price(
    bench: Bench, style: str, stream: bool
) -> None:
    row = {"input": "1", "output": "2", "cached": "0.1"}
    client = priced(bench, "acme/caches", "novita", "text-generation", row)
    bench.emulator.client.configure(cached_tokens=7, cached_usage=style)
    bench.cap(1)
    answer = client.chat_completion(say(10), max_tokens=50, stream=stream)
    if stream:
        list(answer)
    assert bench.spent == bench.billed > 0
    assert bench.billed % 1000 == 7 * 100, "seven tokens at a tenth of the price"


def test_cached_tokens_are_charged_at_the_rate_of_the_catalogue(bench: Bench) -> None:
    pricing = {"input": "1", "output": "2", "cached": "0.1"}
    providers = [{"provider": "novita", "pricing": pricing, "context_length": 8192}]
    bench.emulator.client.add_model("acme/caches", providers=providers)
    with urlopen(f"{bench.emulator.router}/v1/models") as answer:
        models = json.load(answer)
    bench.know(Catalogue.parse(models, read_at=0.0, origin=bench.emulator.router))
    bench.emulator.client.configure(cached_tokens=7)
    bench.cap(1)
    bench.client("acme/caches", provider="novita").chat_completion(say(10), max_tokens=50)
    assert bench.spent == bench.billed > 0
    assert bench.billed % 1000 == 7 * 100, "seven tokens at a tenth of the price"
    assert only(bench).cached_tokens == 7


def test_cached_tokens_that_are_not_told_are_charged_as_input(bench: Bench) -> None:
    row = {"input": "1", "output": "2", "cached": "0.1"}
    client = priced(bench, "acme/caches", "novita", "text-generation", row)
    bench.emulator.client.configure(cached_tokens=7, cached_usage="null")
    bench.cap(1)
    client.chat_completion(say(10), max_tokens=50)
    assert bench.spent - bench.billed == 7 * 900


@pytest.mark.parametrize("reasoning", ["within", "beside"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_reasoning_is_charged_wherever_usage_counts_it(
    bench: Bench, reasoning: str, stream: bool
) -> None:
    bench.emulator.client.configure(reasoning_usage=reasoning)
    bench.cap(1)
    question = [{"role": "user", "content": "[[reasoning=20]] [[tokens=10]]"}]
    client = bench.client()
    answer = client.chat_completion(question, max_tokens=50, stream=stream)
    if stream:
        list(answer)
    assert only(bench).output_tokens == 30
    assert bench.spent == bench.billed


def test_more_reasoning_than_was_written_is_charged_beside_it(bench: Bench) -> None:
    """Neither the total has it then nor the completion."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    details = {"completion_tokens_details": {"reasoning_tokens": 300}}
    answer = {"choices": [], "usage": {**usage, **details}}
    bench.emulator.client.add_fault("chat", status=200, applied=True, json=answer)
    bench.cap(1)
    bench.client().chat_completion(say(5), max_tokens=1000)
    charge = only(bench)
    assert (charge.output_tokens, charge.estimated) == (305, True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_call_is_charged_like_any_output(bench: Bench, stream: bool) -> None:
    function = {"name": "look", "parameters": {"type": "object"}}
    tool: Any = {"type": "function", "function": function}
    bench.cap(1)
    client = bench.client()
    answer = client.chat_completion(
        [{"role": "user", "content": "[[tool=look]]"}], tools=[tool], max_tokens=50, stream=stream
    )
    if stream:
        list(answer)
    assert bench.spent == bench.billed > 0
    assert not only(bench).estimated


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2},
        {"prompt_tokens": 12},
        {"completion_tokens": "10"},
        {"prompt_tokens": -1, "completion_tokens": -1},
        {"prompt_tokens": True, "completion_tokens": None},
        {"prompt_tokens": 12, "completion_tokens": 2**31, "total_tokens": 2**31 + 12},
        {"prompt_tokens": 10**11, "completion_tokens": 10, "total_tokens": 10**11 + 10},
        [],
    ],
)
def test_a_usage_that_makes_no_sense_is_none(bench: Bench, usage: Any) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "ten bytes."}}
    answer = {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}
    bench.emulator.client.add_fault("chat", status=200, json={**answer, "id": "", "created": 0})
    bench.prices(emulator__chat={"input": 1, "output": 1})
    bench.cap(1)
    with suppress(TypeError, AttributeError):  # what huggingface_hub makes of it
        bench.client().chat_completion(say(10), max_tokens=50)
    charge = only(bench)
    assert charge.estimated
    assert charge.output_tokens >= 10
    assert charge.nano_usd
    assert charge.nano_usd < 10**6


def test_a_batch_is_bounded_by_all_of_its_texts(bench: Bench) -> None:
    row = {"input": "1"}
    client = priced(bench, "acme/reads", "hf-inference", "feature-extraction", row)
    bench.cap("0.001")
    with pytest.raises(BudgetExceededError, match="may cost up to"):
        client.feature_extraction(["x" * 400] * 3)
    with suppress(ImportError):  # numpy
        client.feature_extraction(["x" * 100] * 3)
    assert bench.spent == bench.billed > 0


def test_a_batch_whose_answer_tells_nothing_is_charged_by_its_bytes(bench: Bench) -> None:
    client = priced(bench, "acme/reads", "hf-inference", "feature-extraction", {"input": "1"})
    bench.emulator.client.configure(compute_tokens_header=False)
    bench.cap(1)
    with suppress(ImportError):
        client.feature_extraction(["some text"] * 3)
    assert only(bench).estimated
    assert bench.spent >= bench.billed > 0


def test_every_answer_that_text_generation_chooses_from_is_held(bench: Bench) -> None:
    row = {"input": "1", "output": "1"}
    client = priced(bench, "acme/writes", "hf-inference", "text-generation", row)
    bench.cap("0.002")
    with pytest.raises(BudgetExceededError, match="may cost up to"):
        client.text_generation("once", max_new_tokens=500, best_of=4)
    assert bench.emulator.client.invoice()["calls"] == []


# --- what a message shows


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": "https://acme.example/boat.png"}}, 1),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**5}}, 1),
        ({"type": "video_url", "video_url": {"url": "https://acme.example/boat.mp4"}}, 8),
        ({"type": "input_audio", "input_audio": {"data": "A" * 100, "format": "wav"}}, 8),
    ],
    ids=["image", "data-url", "film", "sound"],
)
def test_what_a_message_shows_is_bound_by_its_kind_and_not_by_its_url(
    part: dict[str, Any], tokens: int
) -> None:
    shown = SimpleNamespace(
        url="http://a/v1/chat/completions",
        task="conversational",
        model="m",
        json={"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]},
        data=None,
    )
    request = describe(shown, routers=(), asked=AskedModel("m"), stream=False)
    allowance = IMAGE_TOKENS if tokens == 1 else MEDIA_TOKENS
    assert allowance == tokens * IMAGE_TOKENS
    assert allowance < request.input_bound < allowance + 2 * TEMPLATE_TOKENS


def test_an_image_is_cut_down_to_the_context(bench: Bench) -> None:
    """Of 8192 tokens none costs more than $0.1 a million, so $0.0008192 hold any image."""
    content = [
        {"type": "image_url", "image_url": {"url": "https://acme.example/boat.png"}},
        {"type": "text", "text": "[[tokens=10]]"},
    ]
    bench.cap("0.0008192")
    bench.client(MODEL).chat_completion([{"role": "user", "content": content}])
    assert bench.spent == bench.billed > 0


# --- images


@pytest.mark.parametrize(
    ("provider", "word"),
    [
        ("fal-ai", "num_images"),
        ("nscale", "n"),
        ("together", "n"),
        ("replicate", "num_outputs"),
        ("hf-inference", "num_images_per_prompt"),
    ],
)
def test_every_image_is_held_and_charged(bench: Bench, provider: str, word: str) -> None:
    model = f"acme/draws-{provider}"
    client = priced(bench, model, provider, "text-to-image", {"image": "0.003"})
    bench.cap("0.012")
    with suppress(ImportError):
        client.text_to_image("a boat", extra_body={word: 3})
    assert bench.spent == bench.billed == 9 * MILLI
    with pytest.raises(BudgetExceededError, match=r"may cost up to \$0.006"):
        client.text_to_image("a boat", extra_body={word: 2})


def test_images_are_charged_beside_the_tokens_that_an_answer_tells(bench: Bench) -> None:
    client = priced(bench, "acme/draws-nscale", "nscale", "text-to-image", {"image": "0.003"})
    tells = {"data": [{"b64_json": ""}], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    bench.emulator.client.add_fault("images", status=200, json=tells)
    bench.cap(1)
    with suppress(ImportError):
        client.text_to_image("a boat")
    assert bench.spent == 3 * MILLI


def test_a_count_of_thousands_of_digits_is_none(bench: Bench) -> None:
    """Python refuses to read such a number."""
    client = priced(bench, "emulator/embed", "hf-inference", "feature-extraction", {"input": "1"})
    told = {"x-compute-tokens": "9" * 5000}
    bench.emulator.client.add_fault("task", status=200, json=[[0.5]], headers=told)
    bench.cap(1)
    with suppress(ImportError):  # numpy
        client.feature_extraction("a text")
    assert only(bench).estimated


# --- time


def test_time_that_an_answer_tells_is_charged_exactly(bench: Bench) -> None:
    client = priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.cap(1)
    client.automatic_speech_recognition(b"sound")
    assert not only(bench).estimated
    assert bench.spent == bench.billed == MILLI // 2


def test_time_is_charged_exactly_whatever_a_test_does_to_decimals(bench: Bench) -> None:
    client = priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.emulator.client.configure(compute_seconds="0.123456")
    bench.cap(1)
    with localcontext(Context(prec=2, rounding=ROUND_DOWN)):
        client.automatic_speech_recognition(b"sound")
    assert bench.spent == bench.billed == 123_456


@pytest.mark.parametrize("told", ["NaN", "-1", "1e9", "9e999999", "soon", ""])
def test_time_that_makes_no_sense_is_not_believed(bench: Bench, told: str) -> None:
    client = priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.emulator.client.add_fault(
        "task", status=200, json={"text": "sea"}, headers={"x-compute-time": told}
    )
    bench.cap(1)
    client.automatic_speech_recognition(b"sound")
    assert only(bench).estimated
    assert 0 < bench.spent < MILLI


def test_time_is_measured_where_no_answer_tells_it(bench: Bench) -> None:
    client = priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.emulator.client.configure(compute_time_header=False, answer_delay_s=0.1)
    bench.cap(1)
    client.automatic_speech_recognition(b"sound")
    charge = only(bench)
    assert charge.estimated
    assert charge.nano_usd == pytest.approx(charge.seconds * MILLI, abs=1000)
    assert bench.spent >= MILLI // 10


@pytest.mark.parametrize(("timeout", "most"), [(20, "0.02"), (None, "0.3")])
def test_the_time_that_a_client_waits_is_what_is_held(
    bench: Bench, timeout: float | None, most: str
) -> None:
    assert CALL_SECONDS == 300
    priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    client = bench.client(SPEECH, provider="hf-inference", timeout=timeout)
    bench.cap("0.01")
    with pytest.raises(BudgetExceededError, match=rf"may cost up to \${most}"):
        client.automatic_speech_recognition(b"sound")
    assert bench.sent == 0


def test_the_longest_time_in_a_price_is_what_is_held(bench: Bench) -> None:
    client = priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.prices(**{SPEECH: {**A_SECOND, "max_seconds": 5}})
    bench.cap("0.005")
    client.automatic_speech_recognition(b"sound")
    assert bench.spent == bench.billed


def test_a_call_that_takes_longer_than_its_hold_is_charged_in_full_and_told_of(
    bench: Bench,
) -> None:
    client = priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.prices(**{SPEECH: {**A_SECOND, "max_seconds": "0.2"}})
    bench.cap(1)
    client.automatic_speech_recognition(b"sound")
    assert only(bench).over == bench.spent - MILLI // 5 > 0
    assert bench.spent == bench.billed
    report = Report.of(bench.ledger, None, {})
    assert as_json(report)["calls"][0]["over_hold_usd"] == "0.0003"
    assert any("1 call cost $0.0003 more than was held" in line.text for line in summary(report))


def test_a_timed_out_call_by_the_second_is_charged_at_its_time_out(bench: Bench) -> None:
    priced(bench, SPEECH, "hf-inference", "automatic-speech-recognition", A_SECOND)
    bench.emulator.client.configure(answer_delay_s=5)
    bench.cap(1)
    client = bench.client(SPEECH, provider="hf-inference", timeout=0.2)
    with pytest.raises(Exception, match=r"(?i)time"):
        client.automatic_speech_recognition(b"sound")
    assert only(bench).status == "timeout"
    assert bench.spent == MILLI // 5


def test_a_queue_is_paid_once_however_often_it_is_asked(bench: Bench) -> None:
    client = priced(bench, "acme/films", "fal-ai", "text-to-video", {"call": "0.4"})
    bench.emulator.client.configure(polls=1)
    bench.cap(1)
    client.text_to_video("a boat")
    assert bench.spent == bench.billed == 400 * MILLI
    asked = bench.emulator.client.log(op="result", phase="arrived")
    assert len(asked) == 2, "once whether it is done, once for the result"


def test_a_queue_by_the_second_is_charged_at_its_hold(bench: Bench) -> None:
    client = priced(bench, "acme/films", "fal-ai", "text-to-video", {"second": "0.001"})
    bench.prices(**{"acme/films": {**A_SECOND, "max_seconds": 40}})
    bench.emulator.client.configure(polls=1)
    bench.cap(1)
    client.text_to_video("a boat")
    assert only(bench).estimated
    assert bench.spent == 40 * MILLI
