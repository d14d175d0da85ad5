"""An image is bounded by the most that any makes, by what is stated, or by others of its size."""

from __future__ import annotations

import json
import random
import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from metering_bench import MODEL, Bench, routed
from test_learned_bounds import PRICE, ask, counted
from test_what_is_sent_again import by_httpx, http_library

from pytest_hfbudget import BudgetExceededError, budget
from pytest_hfbudget.emulator.chat import prompt_tokens
from pytest_hfbudget.metering.bounds import TokenCounts
from pytest_hfbudget.metering.prompt_size import ImageBound, image_rules, image_size
from pytest_hfbudget.metering.prompts import Fact, notes

MOST = 16_384
# A model whose images are bounded by their size, and what is held at most for a small one.
QWEN, SMALL = "Qwen/Qwen3-VL-8B-Instruct", 1200


def png(width: int, height: int, shade: int = 0, *more: bytes) -> str:
    """A PNG of one shade as a ``data:`` URL, with ``more`` chunks before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = zlib.compress(b"".join(b"\0" + bytes([shade]) * width for _ in range(height)))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    others = b"".join(chunk(each[:4], each[4:]) for each in more)
    data = b"\x89PNG\r\n\x1a\n" + head + others + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{b64encode(data).decode()}"


def jpeg(width: int, height: int, *segments: bytes, frame: bytes = b"\xc0") -> str:
    """The beginning of a JPEG as a ``data:`` URL, with segments before its frame."""
    size = struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"
    parts = [b"\xe0JFIF\0\1\1\0\0\1\0\1\0\0", *segments, frame + size]
    data = b"".join(
        b"\xff" + part[:1] + struct.pack(">H", len(part) + 1) + part[1:] for part in parts
    )
    whole = b"\xff\xd8" + data + b"\xff\xda"
    return f"data:image/jpeg;base64,{b64encode(whole).decode()}"


def shows(*urls: str, text: str = "What is this?", **more: str) -> list[Mapping[str, Any]]:
    images = [{"type": "image_url", "image_url": {"url": url, **more}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@pytest.fixture
def priced(bench: Bench) -> Bench:
    """A server that counts images by their size, at one price for everybody."""
    offers = [(model, by) for model in (MODEL, QWEN) for by in ("groq", "novita", "together")]
    for model, provider in offers:
        bench.emulator.client.add_model(model, provider=provider, price=PRICE)
    bench.emulator.client.configure(image_tokens="by_size")
    bench.prices(**{f"{model}:{provider}": PRICE for model, provider in offers})
    bench.cap(1)
    return bench


def stated(bench: Bench, tokens: int) -> TokenCounts:
    counts = TokenCounts(image_tokens=tokens)
    bench.runtime.meter.counts = counts
    return counts


# --- what was counted of images of one size


def test_another_image_of_the_same_size_is_bounded_by_the_first(priced: Bench) -> None:
    assert ask(priced, messages=shows(png(320, 240, 1))) > MOST / 4
    for shade in (2, 3, 4):
        held = ask(priced, messages=shows(png(320, 240, shade)))
        assert counted(priced) <= held < 2 * counted(priced)
    assert priced.spent == priced.billed


@pytest.mark.parametrize("other", [png(240, 320), png(320, 241), png(640, 480)])
def test_an_image_of_another_size_is_not(priced: Bench, other: str) -> None:
    ask(priced, messages=shows(png(320, 240)))
    held = ask(priced, messages=shows(other))
    assert held > MOST / 4
    assert held >= counted(priced)


def test_another_number_of_images_or_detail_is_another_shape(priced: Bench) -> None:
    ask(priced, messages=shows(png(320, 240)))
    assert ask(priced, messages=shows(png(320, 240, 1), png(320, 240, 2))) > MOST / 4
    assert ask(priced, messages=shows(png(320, 240, 3), detail="high")) > MOST / 4


def test_a_bound_by_other_images_keeps_its_margin_however_often_a_provider_counts_alike(
    priced: Bench,
) -> None:
    priced.emulator.client.configure(image_tokens="by_content")
    for _ in range(3):
        ask(priced, messages=shows(png(64, 64)))
    for shade in range(1, 12):
        assert ask(priced, messages=shows(png(64, 64, shade))) >= counted(priced)
    assert {charge.over for charge in priced.ledger.charges()} == {0}
    assert priced.spent == priced.billed


@pytest.mark.parametrize(
    ("url", "size"),
    [
        (png(320, 240), (320, 240)),
        (png(1, 1, 0, b"tEXtSoftware\0Matplotlib"), (1, 1)),
        (jpeg(320, 240), (320, 240)),
        (jpeg(320, 240, b"\xdb" + bytes(65), b"\xc4" + bytes(20), frame=b"\xc2"), (320, 240)),
    ],
)
def test_the_size_is_read_from_a_png_or_a_jpeg(url: str, size: tuple[int, int]) -> None:
    assert image_size(url) == size


@pytest.mark.parametrize(
    "url",
    [
        png(320, 240, 0, b"eXIfMM\0*"),
        png(320, 240, 0, b"acTL" + bytes(8)),
        png(320, 240, 0, b"iTXtXML:com.adobe.xmp\0\1\0\0\0"),
        png(320, 240, 0, b"zTXtRaw profile type exif\0\0"),
        png(0, 240),
        jpeg(320, 240, b"\xe1Exif\0\0MM\0*"),
        jpeg(320, 240, b"\xe1http://ns.adobe.com/xap/1.0/\0"),
        jpeg(320, 240)[:44],
        "data:image/png;base64,AAAA",
        "data:image/png;base64,?",
        "data:image/png;base64,é",
        "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64,",
        png(320, 240).replace("data:image/png", "https://example.org/a"),
    ],
)
def test_no_size_is_read_from_what_may_be_turned_or_moves_or_is_damaged(url: str) -> None:
    assert image_size(url) is None


@pytest.mark.parametrize("url", ["HTTPS://example.org/a.png", "s3://pictures/a.png"])
def test_what_lies_behind_a_url_of_any_kind_may_change(priced: Bench, url: str) -> None:
    assert {ask(priced, messages=shows(url)) > MOST / 4 for _ in range(3)} == {True}


def test_an_address_in_the_text_beside_an_image_is_only_text(priced: Bench) -> None:
    for _ in range(3):
        held = ask(priced, messages=shows(png(64, 64), text="Is it of http://example.org?"))
    assert held == counted(priced)


# --- what is known of a model


@pytest.mark.parametrize(
    "url",
    [
        png(64, 64),
        png(1, 190),
        jpeg(300, 70, b"\xe1Exif\0\0MM\0*"),
        jpeg(300, 70, b"\xe1http://ns.adobe.com/xap/1.0/\0"),
        "\n".join(png(64, 64)[at : at + 76] for at in range(0, 300, 76)),
    ],
    ids=["small", "long", "turned", "XMP", "in lines"],
)
def test_a_first_image_of_a_known_model_holds_what_its_size_can_make(
    priced: Bench, url: str
) -> None:
    priced.emulator.client.configure(image_tokens="qwen3_vl")
    held = ask(priced, model=QWEN, messages=shows(url))
    assert counted(priced) <= held < SMALL
    assert priced.spent == priced.billed


@pytest.mark.parametrize(
    "url",
    [
        png(64, 64, 0, b"acTL" + bytes(8)),
        png(0, 240),
        jpeg(320, 240)[:44],
        png(64, 64).replace("A", "%41", 1),
        png(64, 64).partition(",")[2],
        "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64,",
        "https://example.org/a.png",
    ],
    ids=["frames", "empty", "cut off", "quoted", "no URL", "GIF", "SVG", "nothing", "elsewhere"],
)
def test_an_image_of_a_known_model_whose_size_is_unknown_holds_the_most(
    priced: Bench, url: str
) -> None:
    assert ask(priced, model=QWEN, messages=shows(url)) > MOST


def test_two_images_in_one_part_have_no_size(priced: Bench) -> None:
    (message,) = shows(png(64, 64))
    message["content"][0]["image"] = png(640, 640)
    assert ask(priced, model=QWEN, messages=[message]) > MOST


def test_images_of_a_known_model_are_bounded_each_by_its_own_size(priced: Bench) -> None:
    one = ask(priced, model=QWEN, messages=shows(png(64, 64)))
    two = ask(priced, model=QWEN, messages=shows(png(64, 64), png(140, 280)))
    assert two - one == 512 + 10 * 20 + 4


@pytest.mark.parametrize(("how", "provider"), [("qwen3_vl", "groq"), ("by_tiles", "together")])
def test_no_image_of_any_size_makes_more_than_is_known(how: str, provider: str) -> None:
    draw = random.Random(how)
    bounds = [ImageBound(0, image_rules(QWEN, by)) for by in (provider, None)]
    for _ in range(2000):
        across, down = (int(2 ** draw.uniform(0, 13)) for _ in range(2))
        if max(across, down) > 200 * min(across, down):
            continue  # Qwen's processor takes none that is so long
        head = struct.pack(">8sI4sIIB", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", across, down, 0)
        (message,) = shows(f"data:image/png;base64,{b64encode(head).decode()}", text="")
        made = prompt_tokens({"messages": [message]}, how) - prompt_tokens({"messages": [{}]}, how)
        assert all(made <= bound.most(message["content"][0]) for bound in bounds), (across, down)


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("qwen/qwen2.5-vl-7b-instruct", 512 + 25),
        ("zai-org/GLM-4.5V", 512 + 25),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 320 + 145),
        ("google/gemma-3-27b-it", 1_400),
        ("CohereLabs/command-a-vision-07-2025", 320 + 257),
        ("zai-org/GLM-4.5", MOST),
        ("someone/Qwen3-VL-8B-Instruct", MOST),
        ("http://127.0.0.1/v1", MOST),
    ],
)
def test_what_is_known_goes_by_the_id_of_a_model(model: str, most: int) -> None:
    part = shows(png(64, 64))[0]["content"][0]
    assert TokenCounts().images(model, "groq").most(part) == most


@routed
def test_where_the_router_chooses_the_provider_that_counts_most_bounds_an_image(
    priced: Bench,
) -> None:
    priced.emulator.client.configure(image_tokens="by_tiles", routing="round_robin")
    for provider in ("together", "auto", "auto", "auto"):
        held = ask(priced, model=QWEN, provider=provider, messages=shows(png(64, 64)))
        assert counted(priced) <= held < 1_601 + SMALL
    assert {charge.over for charge in priced.ledger.charges()} == {0}


def test_what_is_stated_counts_before_what_is_known(priced: Bench) -> None:
    stated(priced, 120)
    assert ask(priced, model=QWEN, messages=shows(png(9, 9))) < 120 + 400


def test_a_model_whose_image_makes_more_than_is_known_is_not_held_by_size_again_and_the_run_says_so(
    priced: Bench,
) -> None:
    priced.emulator.client.configure(image_tokens="by_tiles")
    counts = priced.runtime.meter.counts
    ask(priced, model=QWEN, messages=shows(png(64, 64)))
    assert priced.ledger.charges()[-1].over > 0
    assert ask(priced, model=QWEN, messages=shows(png(64, 65))) > MOST
    (note,) = notes(counts.facts)
    assert note.startswith(f"{QWEN} made more tokens of an image than its size allows")
    assert priced.spent == priced.billed
    for known in (counts.facts_about(QWEN), counts.facts):  # in a child process; in a later run
        kept = {QWEN: known}
        priced.runtime.meter.counts = TokenCounts(load=kept.__getitem__)
        assert ask(priced, model=QWEN, messages=shows(png(65, 64))) > MOST


@by_httpx
@pytest.mark.parametrize("larger", [False, True])
def test_what_a_hook_makes_of_an_image_is_held_against_its_size(
    priced: Bench, monkeypatch: pytest.MonkeyPatch, larger: bool
) -> None:
    httpx = http_library()

    def change(request: Any) -> None:
        body = json.loads(request.content)
        url = png(640, 640) if larger else png(32, 32)
        body["messages"][0]["content"][0]["image_url"]["url"] = url
        changed = json.dumps(body).encode()
        request.stream, request._content = httpx.ByteStream(changed), changed
        request.headers["content-length"] = str(len(changed))

    with httpx.Client(event_hooks={"request": [change]}) as session:
        monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
        if larger:
            with pytest.raises(BudgetExceededError, match="has changed the request"):
                ask(priced, model=QWEN, messages=shows(png(64, 64)))
        else:
            assert ask(priced, model=QWEN, messages=shows(png(64, 64))) < SMALL
    assert priced.sent == (not larger)


# --- what is stated


def test_a_first_image_holds_what_is_stated(priced: Bench) -> None:
    stated(priced, 120)
    held = ask(priced, messages=shows(png(320, 240)))
    assert counted(priced) <= held < 120 + 400
    assert priced.spent == priced.billed


def test_more_than_the_usual_most_can_be_stated(priced: Bench) -> None:
    priced.prices(acme__long={"input": "1", "output": "1"})
    stated(priced, 2 * MOST)
    assert ask(priced, messages=shows(png(9, 9)), model="acme/long") > 2 * MOST


def test_two_images_hold_twice_what_is_stated_and_a_new_one_in_a_history_once(
    priced: Bench,
) -> None:
    stated(priced, 120)
    first = shows(png(280, 280))
    two = ask(priced, messages=shows(png(64, 64), png(64, 65)))
    one = ask(priced, messages=first)
    assert two - one == 120 + 4
    more = [*first, {"role": "assistant", "content": "A boat."}, *shows(png(28, 28))]
    before = counted(priced)
    held = ask(priced, messages=more)
    assert counted(priced) <= held < before + before // 4 + 120 + 120


def test_a_number_that_was_stated_too_low_is_not_believed_again_and_the_run_says_so(
    priced: Bench,
) -> None:
    counts = stated(priced, 1)
    ask(priced, messages=shows(png(640, 640)))
    assert priced.ledger.charges()[-1].over > 0
    assert ask(priced, messages=shows(png(650, 640))) > MOST / 4
    (note,) = notes(counts.facts)
    assert "hf_image_tokens" in note
    assert MODEL in note
    assert priced.spent == priced.billed


def test_what_was_stated_too_low_in_an_earlier_run_may_be_stated_anew(priced: Bench) -> None:
    known = [Fact(MODEL, "", "^")]
    counts = TokenCounts(load=lambda model: known, image_tokens=120)
    priced.runtime.meter.counts = counts
    assert ask(priced, messages=shows(png(64, 64))) < 120 + 400


def test_a_child_process_has_what_is_stated(priced: Bench) -> None:
    known = stated(priced, 120).facts_about(MODEL)
    priced.runtime.meter.counts = TokenCounts(load=lambda model: known)
    assert ask(priced, messages=shows(png(64, 64))) < 120 + 400


def test_a_number_that_was_too_low_for_an_image_behind_a_url_is_not_believed_either(
    priced: Bench,
) -> None:
    stated(priced, 1)
    priced.emulator.client.configure(template_tokens=["groq=600"])
    for held in (300, MOST / 4):
        assert ask(priced, messages=shows("https://example.org/a.png")) > held


@by_httpx
@pytest.mark.parametrize("added", ["nothing", "an image", "text instead of the image"])
def test_what_a_hook_makes_of_a_request_is_held_against_what_was_stated(
    priced: Bench, monkeypatch: pytest.MonkeyPatch, added: str
) -> None:
    httpx = http_library()

    def change(request: Any) -> None:
        body = json.loads(request.content)
        content = body["messages"][0]["content"]
        if added == "an image":
            content.append(content[0])
        elif added != "nothing":
            content[0] = {"type": "text", "text": "boat " * 2000}
        changed = json.dumps(body).encode()
        request.stream, request._content = httpx.ByteStream(changed), changed
        request.headers["content-length"] = str(len(changed))

    stated(priced, 120)
    with httpx.Client(event_hooks={"request": [change]}) as session:
        monkeypatch.setattr("huggingface_hub.inference._client.get_session", lambda: session)
        if added == "nothing":
            assert ask(priced, messages=shows("https://example.org/a.png")) < 120 + 400
        else:
            with pytest.raises(BudgetExceededError, match="has changed the request"):
                ask(priced, messages=shows("https://example.org/a.png"))
    assert priced.sent == (added == "nothing")


# --- what a refusal says


def test_a_refusal_says_how_a_first_image_can_be_held(priced: Bench) -> None:
    with budget("0.001", on_exceed="raise"), pytest.raises(BudgetExceededError) as caught:
        ask(priced, messages=shows(png(64, 64)))
    said = caught.value.details
    assert "tokens in (bytes, and the most that an image makes), 1 out, at groq's price; " in said
    assert (
        "if your images make fewer tokens, set hf_image_tokens to the most that one makes" in said
    )
    assert "\n" not in said


def test_a_refusal_says_that_an_image_is_held_by_its_size(priced: Bench) -> None:
    with budget("0.0001", on_exceed="raise"), pytest.raises(BudgetExceededError) as caught:
        ask(priced, model=QWEN, messages=shows(png(64, 64)))
    said = caught.value.details
    assert "(bytes, and the most that its model makes of an image of its size), 1 out" in said
    assert (
        "if your images make fewer tokens, set hf_image_tokens to the most that one makes" in said
    )


def test_a_refusal_of_text_says_nothing_of_images(priced: Bench) -> None:
    with budget("0.000001", on_exceed="raise"), pytest.raises(BudgetExceededError) as caught:
        ask(priced)
    assert "image" not in caught.value.details


@routed
def test_where_the_router_chooses_images_are_bounded_by_each_providers_counts(
    priced: Bench,
) -> None:
    for provider in ("groq", "novita", "together"):
        ask(priced, provider=provider, messages=shows(png(64, 64)))
    priced.emulator.client.configure(routing="round_robin")
    for shade in (1, 2, 3, 4):
        held = ask(priced, provider="auto", messages=shows(png(64, 64, shade)))
        assert counted(priced) <= held < 200
