"""One call of each task method, and what each can be billed by; found methods have to be here."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from huggingface_hub import AsyncInferenceClient, InferenceClient
from metering_bench import Bench, say

TABLE = {"a": ["1", "2"]}
SOUND, PICTURE = b"a sound", b"a picture"
# What neither sends a task anywhere nor costs anything.
# Those that nothing is paid for; the last two are gone since 0.35.
OTHERS = {
    *("chat", "close", "get_endpoint_info", "health_check"),
    *("get_model_status", "list_deployed_models"),
}
# Tasks that the lowest release which is supported does not have yet.
ADDED_LATER = {"image_to_video"}

EVERYTHING = ("call", "second")
TOKENS = ("tokens", *EVERYTHING)
READ = ("input", *EVERYTHING)
IMAGES = ("image", *EVERYTHING)


class Task(NamedTuple):
    """A method's task, the kinds of price that say enough about it, and a call of it.

    ``provider`` is one that serves it; of those that only ``call`` can be tested with, the answer
    does not tell how long it took.
    """

    task: str
    kinds: tuple[str, ...]
    call: Callable[[Any], Any]
    provider: str | None = "hf-inference"


TASKS: dict[str, Task] = {
    "audio_classification": Task(
        "audio-classification", EVERYTHING, lambda c: c.audio_classification(SOUND)
    ),
    "audio_to_audio": Task("audio-to-audio", EVERYTHING, lambda c: c.audio_to_audio(SOUND)),
    "automatic_speech_recognition": Task(
        "automatic-speech-recognition",
        EVERYTHING,
        lambda c: c.automatic_speech_recognition(SOUND),
    ),
    "chat_completion": Task(
        "conversational", TOKENS, lambda c: c.chat_completion(say(10), max_tokens=50)
    ),
    "document_question_answering": Task(
        "document-question-answering",
        EVERYTHING,
        lambda c: c.document_question_answering(PICTURE, "how many?"),
    ),
    "feature_extraction": Task(
        "feature-extraction", READ, lambda c: c.feature_extraction("some text")
    ),
    "fill_mask": Task("fill-mask", EVERYTHING, lambda c: c.fill_mask("the <mask>")),
    "image_classification": Task(
        "image-classification", EVERYTHING, lambda c: c.image_classification(PICTURE)
    ),
    "image_segmentation": Task(
        "image-segmentation", EVERYTHING, lambda c: c.image_segmentation(PICTURE)
    ),
    "image_to_image": Task("image-to-image", IMAGES, lambda c: c.image_to_image(PICTURE)),
    "image_to_text": Task("image-to-text", EVERYTHING, lambda c: c.image_to_text(PICTURE)),
    "image_to_video": Task(
        "image-to-video", EVERYTHING, lambda c: c.image_to_video(PICTURE), "fal-ai"
    ),
    "object_detection": Task("object-detection", EVERYTHING, lambda c: c.object_detection(PICTURE)),
    "question_answering": Task(
        "question-answering",
        EVERYTHING,
        lambda c: c.question_answering(question="who?", context="Anna went"),
    ),
    "sentence_similarity": Task(
        "sentence-similarity",
        READ,
        lambda c: c.sentence_similarity("one", other_sentences=["two"]),
    ),
    "summarization": Task("summarization", EVERYTHING, lambda c: c.summarization("a long story")),
    "table_question_answering": Task(
        "table-question-answering",
        EVERYTHING,
        lambda c: c.table_question_answering(TABLE, "how many?"),
    ),
    "tabular_classification": Task(
        "tabular-classification", EVERYTHING, lambda c: c.tabular_classification(TABLE)
    ),
    "tabular_regression": Task(
        "tabular-regression", EVERYTHING, lambda c: c.tabular_regression(TABLE), None
    ),
    "text_classification": Task(
        "text-classification", READ, lambda c: c.text_classification("fine")
    ),
    "text_generation": Task(
        "text-generation",
        TOKENS,
        lambda c: c.text_generation("once [[tokens=10]]", max_new_tokens=50),
    ),
    "text_to_image": Task("text-to-image", IMAGES, lambda c: c.text_to_image("a boat")),
    "text_to_speech": Task("text-to-speech", EVERYTHING, lambda c: c.text_to_speech("hello")),
    "text_to_video": Task(
        "text-to-video", EVERYTHING, lambda c: c.text_to_video("a boat"), "fal-ai"
    ),
    "token_classification": Task(
        "token-classification", EVERYTHING, lambda c: c.token_classification("Anna went")
    ),
    "translation": Task("translation", EVERYTHING, lambda c: c.translation("hello")),
    "visual_question_answering": Task(
        "visual-question-answering",
        EVERYTHING,
        lambda c: c.visual_question_answering(PICTURE, "how many?"),
    ),
    "zero_shot_classification": Task(
        "zero-shot-classification",
        EVERYTHING,
        lambda c: c.zero_shot_classification("text", ["a", "b"]),
    ),
    "zero_shot_image_classification": Task(
        "zero-shot-image-classification",
        EVERYTHING,
        lambda c: c.zero_shot_image_classification(PICTURE, ["a", "b"]),
    ),
}

# Rows of a price table, which the emulator bills by as well.
ROWS = {
    "call": {"call": "0.002"},
    "second": {"second": "0.00012"},
    "image": {"image": "0.003"},
    "input": {"input": "0.07"},
    "tokens": {"input": "0.0375", "output": "0.15"},
}


def public_methods(client: type) -> set[str]:
    """Everything that a client of the installed huggingface_hub offers."""
    return {name for name, _ in inspect.getmembers(client) if not name.startswith("_")}


def model_of(task: Task) -> str:
    """A model for one task at one provider: huggingface_hub remembers who serves a model."""
    return f"acme/{task.task}-{task.provider}"


def offer(bench: Bench, task: Task, row: dict[str, str]) -> None:
    """Have a model for a task, at a price that both the plugin and the emulator know."""
    bench.emulator.client.add_model(
        model_of(task), task=hub_task(task), providers=[{"provider": task.provider, "price": row}]
    )
    bench.prices(**{model_of(task): row})


def hub_task(task: Task) -> str:
    """What the Hub calls it: a chat model is one for text."""
    return "text-generation" if task.task == "conversational" else task.task


def perform(bench: Bench, task: Task, client: type, **options: Any) -> None:
    """Make the call, sync or async.

    Without numpy and PIL some answers can't be given back; they have been paid for by then.
    """
    with suppress(ImportError):
        if client is InferenceClient:
            task.call(bench.client(model_of(task), provider=task.provider, **options))
        else:
            asyncio.run(_await(bench, task, options))


async def _await(bench: Bench, task: Task, options: dict[str, Any]) -> None:
    async with bench.async_client(model_of(task), provider=task.provider, **options) as client:
        assert isinstance(client, AsyncInferenceClient)
        await task.call(client)
