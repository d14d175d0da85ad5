"""Answers for the tasks that are not chat, in the shapes that `huggingface_hub` parses.

A request is either JSON with `inputs` and `parameters`, or the raw bytes of a picture or a sound
(hub-docs inference-providers/tasks).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from pytest_hfbudget.emulator import chat
from pytest_hfbudget.emulator.chat import Choice
from pytest_hfbudget.emulator.exchange import Exchange
from pytest_hfbudget.emulator.media import PNG_TYPE, TINY_PNG, TINY_WAV, WAV_TYPE
from pytest_hfbudget.emulator.price import Consumed
from pytest_hfbudget.emulator.refusal import refused
from pytest_hfbudget.emulator.serving import Server
from pytest_hfbudget.emulator.stream import Event, EventStream
from pytest_hfbudget.emulator.switches import Switches

VECTOR = [0.1, 0.2, 0.3, 0.4]
# What text-embeddings-inference serves. It tells its compute time in milliseconds, and its tokens.
_READS = ("feature-extraction", "sentence-similarity", "text-classification")
_ENCODED_PNG = base64.b64encode(TINY_PNG).decode()
_ENCODED_WAV = base64.b64encode(TINY_WAV).decode()


@dataclass(frozen=True)
class Job:
    """The inputs and parameters of one request."""

    inputs: Any
    parameters: Mapping[str, Any]
    switches: Switches = field(default_factory=Switches)
    client: str = ""  # as its User-Agent says

    @property
    def text(self) -> str:
        """All input text, for counting tokens."""
        return self.inputs if isinstance(self.inputs, str) else json.dumps(self.inputs)

    @property
    def labels(self) -> list[str]:
        """The labels to choose from."""
        return list(self.parameters.get("candidate_labels") or ["POSITIVE", "NEGATIVE"])


def read_job(exchange: Exchange) -> Job:
    """The request as a job; a body that is no JSON is a picture or a sound, and has no text."""
    switches, client = exchange.world.switches, exchange.headers.get("user-agent", "")
    if not exchange.body.lstrip().startswith(b"{"):
        return Job("", {}, switches, client)
    body = exchange.json()
    parameters = body.get("parameters") or {}
    rest = {name: value for name, value in body.items() if name not in ("inputs", "parameters")}
    return Job(body.get("inputs", ""), {**rest, **parameters}, switches, client)


async def serve_task(exchange: Exchange, server: Server, task: str) -> ASGIApp:
    """Answer a task request. Raises Refusal: 400 for a task that is not emulated."""
    exchange.the_call.task = task
    job = read_job(exchange)
    await exchange.connection.sleep(exchange.world.switches.answer_delay_s)
    if task == "text-generation":
        return _generate(exchange, server, job)
    answer = _ANSWERS.get(task)
    if answer is None:
        raise refused(400, f"task {task} is not emulated")
    used = Consumed(chat.text_tokens(job.text), seconds=server.seconds)
    pictures = task in ("text-to-image", "image-to-image")
    count = int(job.parameters.get("num_images_per_prompt", 1)) if pictures else 0
    server.book(exchange, replace(used, images=count))
    made = answer(job)
    headers = server.headers(exchange)
    if task in _READS and exchange.world.switches.compute_tokens_header:
        headers["x-compute-tokens"] = str(used.prompt_tokens)
        headers["x-compute-time"] = str(float(server.seconds * 1000))
    if isinstance(made, tuple):
        content, media_type = made
        return Response(content, headers=headers, media_type=media_type)
    return JSONResponse(made, headers=headers)


def _generate(exchange: Exchange, server: Server, job: Job) -> ASGIApp:
    """Text generation as TGI answers it: `details` on demand, a stream of tokens on demand."""
    limit, natural = job.parameters.get("max_new_tokens"), exchange.world.switches.natural_tokens
    ask = chat.read_completion(job.text, limit, server.context, natural)
    choice = chat.answer(ask)[0]
    server.book(exchange, Consumed(ask.prompt_tokens, choice.tokens, seconds=server.seconds))
    headers = server.headers(exchange)
    if job.parameters.get("stream"):
        return EventStream(exchange, _token_events(choice, ask.prompt_tokens), headers)
    if exchange.world.switches.usage == "always":
        headers["x-prompt-tokens"] = str(ask.prompt_tokens)
        headers["x-generated-tokens"] = str(choice.tokens)
    answer: dict[str, Any] = {"generated_text": choice.text("content")}
    if job.parameters.get("details"):
        tokens = [_token(at, piece.delta["content"]) for at, piece in enumerate(choice.pieces)]
        answer["details"] = {**_ending(choice), "prefill": [], "tokens": tokens}
    return JSONResponse([answer], headers=headers)


def _token(at: int, text: str) -> dict[str, Any]:
    return {"id": at, "text": text, "logprob": -0.5, "special": False}


def _ending(choice: Choice) -> dict[str, Any]:
    reason = "length" if choice.finish_reason == "length" else "eos_token"
    return {"finish_reason": reason, "generated_tokens": choice.tokens, "seed": None}


def _token_events(choice: Choice, prompt_tokens: int) -> list[Event]:
    events = []
    for at, piece in enumerate(choice.pieces):
        last = at == len(choice.pieces) - 1
        data = {
            "index": at + 1,
            "token": _token(at, piece.delta["content"]),
            "generated_text": choice.text("content") if last else None,
            "details": {**_ending(choice), "input_length": prompt_tokens} if last else None,
        }
        events.append(Event(data, piece.tokens))
    return events


# -- one answer per task: JSON, or bytes with their media type

Answer = Callable[[Job], Any]


def _scored(job: Job) -> list[dict[str, Any]]:
    labels = job.labels
    return [{"label": each, "score": round(1 / (at + 2), 4)} for at, each in enumerate(labels)]


def _zero_shot(job: Job) -> Any:
    scored, form = _scored(job), job.switches.zero_shot
    if form == "list" or (form == "by_client" and "hf_hub/0." not in job.client):
        return scored
    columns = {"labels": "label", "scores": "score"}
    return {many: [each[one] for each in scored] for many, one in columns.items()}


def _sentences(job: Job) -> list[float]:
    inputs = job.inputs if isinstance(job.inputs, dict) else {}
    return [0.5 for _ in inputs.get("sentences", [])]


def _vectors(job: Job) -> list[Any]:
    return [VECTOR for _ in job.inputs] if isinstance(job.inputs, list) else VECTOR


def _rows(job: Job) -> int:
    inputs = job.inputs if isinstance(job.inputs, dict) else {}
    table = job.parameters.get("table") or inputs.get("table") or inputs.get("data") or {}
    return max((len(column) for column in table.values()), default=0)


def _found(job: Job) -> dict[str, Any]:
    return {"answer": "emulated", "score": 0.9, "start": 0, "end": 8}


def _boxed(_: Job) -> list[dict[str, Any]]:
    return [{"label": "boat", "score": 0.9, "box": {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}}]


def _entities(job: Job) -> list[dict[str, Any]]:
    word = job.text.split(" ")[0]
    return [{"entity_group": "MISC", "score": 0.9, "word": word, "start": 0, "end": len(word)}]


def _filled(job: Job) -> list[dict[str, Any]]:
    return [{"score": 0.9, "token": 1, "token_str": "sea", "sequence": job.text}]


def _cells(_: Job) -> dict[str, Any]:
    return {"answer": "emulated", "coordinates": [[0, 0]], "cells": ["1"], "aggregator": "NONE"}


def _sound_parts(_: Job) -> list[dict[str, Any]]:
    return [{"blob": _ENCODED_WAV, "content-type": WAV_TYPE, "label": "label_0"}]


_ANSWERS: dict[str, Answer] = {
    "audio-classification": _scored,
    "audio-to-audio": _sound_parts,
    "automatic-speech-recognition": lambda _: {"text": "the emulated sea"},
    "document-question-answering": lambda job: [_found(job)],
    "feature-extraction": _vectors,
    "fill-mask": _filled,
    "image-classification": _scored,
    "image-segmentation": lambda _: [{"label": "sea", "score": 0.9, "mask": _ENCODED_PNG}],
    "image-to-image": lambda _: (TINY_PNG, PNG_TYPE),
    "image-to-text": lambda _: [{"generated_text": "a calm sea"}],
    "object-detection": _boxed,
    "question-answering": _found,
    "sentence-similarity": _sentences,
    "summarization": lambda job: [{"summary_text": job.text[:40]}],
    "table-question-answering": _cells,
    "tabular-classification": lambda job: ["1"] * _rows(job),
    "tabular-regression": lambda job: [1.0] * _rows(job),
    # A list in a list: one list of labels per input text.
    "text-classification": lambda job: [_scored(job)],
    "text-to-image": lambda _: (TINY_PNG, PNG_TYPE),
    "text-to-speech": lambda _: (TINY_WAV, WAV_TYPE),
    "token-classification": _entities,
    "translation": lambda job: [{"translation_text": job.text}],
    "visual-question-answering": lambda _: [{"answer": "yes", "score": 0.9}],
    "zero-shot-classification": _zero_shot,
    "zero-shot-image-classification": _scored,
}
