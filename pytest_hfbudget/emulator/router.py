"""The router of Inference Providers: the price catalogue, and models by way of a provider.

Paths are those that `huggingface_hub` builds for each provider.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from fractions import Fraction

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from pytest_hfbudget.emulator import chat
from pytest_hfbudget.emulator.exchange import Exchange, Handler, Route
from pytest_hfbudget.emulator.media import TINY_PNG, TINY_WAV, WAV_TYPE
from pytest_hfbudget.emulator.price import Consumed
from pytest_hfbudget.emulator.refusal import number, refused, refused_by_model
from pytest_hfbudget.emulator.responses import serve_response
from pytest_hfbudget.emulator.routing import choose_offer, named_offer, split_model
from pytest_hfbudget.emulator.serving import Server, serve_chat, serve_completion
from pytest_hfbudget.emulator.tasks import VECTOR, serve_task

# Where a provider's OpenAI-like API begins below its name, when it is not at "v1".
_BASES = {
    "groq": "openai/v1",
    "novita": "v3/openai",
    "fireworks-ai": "inference/v1",
    "deepinfra": "v1/openai",
    "cohere": "compatibility/v1",
    "zai-org": "api/paas/v4",
}


async def list_models(exchange: Exchange) -> Response:
    """The catalogue; public, chat models only."""
    listed = [model.public() for model in exchange.world.models.values() if model.listed]
    return JSONResponse({"object": "list", "data": listed})


async def show_model(exchange: Exchange) -> Response:
    """One model of the catalogue."""
    model = exchange.world.models.get(exchange.params["model"])
    if model is None or not model.listed:
        raise refused(404, "Model not found")
    shown = model.public()
    return JSONResponse({"data": shown} if exchange.world.switches.wraps_single_model else shown)


async def auto_chat(exchange: Exchange) -> ASGIApp:
    """Chat with the provider that the model's suffix, or the routing switch, says."""
    return await serve_chat(exchange, _auto_server(exchange))


async def auto_completion(exchange: Exchange) -> ASGIApp:
    """Like `auto_chat` for plain completions."""
    return await serve_completion(exchange, _auto_server(exchange))


async def provider_chat(exchange: Exchange) -> ASGIApp:
    """Chat with a named provider."""
    return await serve_chat(exchange, _provider_server(exchange))


async def provider_completion(exchange: Exchange) -> ASGIApp:
    """Plain completion by a named provider."""
    return await serve_completion(exchange, _provider_server(exchange))


async def auto_response(exchange: Exchange) -> ASGIApp:
    """Like `auto_chat` for the responses API."""
    return await serve_response(exchange, _auto_server(exchange))


async def provider_response(exchange: Exchange) -> ASGIApp:
    """The responses API of a named provider."""
    return await serve_response(exchange, _provider_server(exchange))


async def auto_embeddings(exchange: Exchange) -> Response:
    """Embeddings by the provider that the router takes."""
    return _embeddings(exchange, _auto_server(exchange))


async def provider_embeddings(exchange: Exchange) -> Response:
    """Embeddings in the form of the OpenAI API."""
    return _embeddings(exchange, _provider_server(exchange))


async def auto_images(exchange: Exchange) -> Response:
    """Pictures by the provider that the router takes."""
    return _images(exchange, _auto_server(exchange))


async def provider_images(exchange: Exchange) -> Response:
    """Pictures in the form of the OpenAI API, `n` of them."""
    return _images(exchange, _provider_server(exchange))


def _embeddings(exchange: Exchange, server: Server) -> Response:
    given = exchange.json().get("input", "")
    texts = given if isinstance(given, list) else [given]
    tokens = sum(chat.text_tokens(str(text)) for text in texts)
    server.book(exchange, Consumed(tokens))
    data = [{"object": "embedding", "index": at, "embedding": VECTOR} for at in range(len(texts))]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": server.model, "usage": usage}
    return JSONResponse(answer, headers=server.headers(exchange))


def _images(exchange: Exchange, server: Server) -> Response:
    count = int(number(exchange.json().get("n") or 1, "n"))
    server.book(exchange, Consumed(images=count))
    picture = {"b64_json": base64.b64encode(TINY_PNG).decode()}
    return JSONResponse({"data": [picture] * count}, headers=server.headers(exchange))


async def provider_speech(exchange: Exchange) -> Response:
    """Speech in the form of the OpenAI API."""
    server = _provider_server(exchange)
    server.book(exchange, Consumed(chat.text_tokens(str(exchange.json().get("input", "")))))
    return Response(TINY_WAV, headers=server.headers(exchange), media_type=WAV_TYPE)


async def provider_transcription(exchange: Exchange) -> Response:
    """Speech recognition in the form of the OpenAI API; the form data is not looked at."""
    server = _server(exchange, "unknown", exchange.params["provider"])
    server.book(exchange, Consumed())
    return JSONResponse({"text": "the emulated sea"}, headers=server.headers(exchange))


async def hf_inference_chat(exchange: Exchange) -> ASGIApp:
    """Chat on Hugging Face's own CPUs and GPUs, billed by compute time."""
    return await serve_chat(exchange, _hf_server(exchange))


async def hf_inference_task(exchange: Exchange) -> ASGIApp:
    """Any other task there; the path may name it, else it is the model's."""
    model = exchange.params["model"]
    task = exchange.params.get("pipeline") or exchange.world.task_of(model)
    return await serve_task(exchange, _hf_server(exchange), task)


def _auto_server(exchange: Exchange) -> Server:
    name, suffix = split_model(_said_model(exchange))
    offer = choose_offer(exchange.world, name, suffix)
    return _server(exchange, name, offer.provider)


def _provider_server(exchange: Exchange) -> Server:
    provider, base = exchange.params["provider"], exchange.params["base"]
    if base != _BASES.get(provider, "v1"):
        raise refused(404, f"{provider} has no such path")
    name = exchange.world.hub_id(provider, _said_model(exchange))
    return _server(exchange, name, provider)


def _hf_server(exchange: Exchange) -> Server:
    server = _server(exchange, exchange.params["model"], "hf-inference")
    return replace(server, seconds=Fraction(exchange.world.switches.compute_seconds))


def _server(exchange: Exchange, name: str, provider: str) -> Server:
    world = exchange.world
    offer = named_offer(world, name, provider)
    return Server(
        model=name,
        provider=provider,
        price=world.price_of(name, provider),
        context=offer.context_length,
        stream_usage=offer.stream_usage,
    )


def _said_model(exchange: Exchange) -> str:
    said = exchange.json().get("model")
    if not isinstance(said, str) or not said:
        raise refused_by_model(400, "model is required", "model_required")
    return said


def _model(path: str, op: str, handler: Handler, task: str) -> Route:
    return Route("POST", f"/router/{path}", op, handler, task=task)


ROUTES = [
    Route("GET", "/router/v1/models", "models", list_models, "public"),
    Route("GET", "/router/v1/models/{model:path}", "model", show_model, "public"),
    _model("v1/chat/completions", "chat", auto_chat, "conversational"),
    _model("v1/completions", "completions", auto_completion, "text-generation"),
    _model("v1/responses", "responses", auto_response, "conversational"),
    _model("v1/embeddings", "embeddings", auto_embeddings, "feature-extraction"),
    _model("v1/images/generations", "images", auto_images, "text-to-image"),
    _model(
        "hf-inference/models/{model:path}/v1/chat/completions",
        "chat",
        hf_inference_chat,
        "conversational",
    ),
    _model(
        "hf-inference/models/{model:path}/pipeline/{pipeline}", "task", hf_inference_task, "unknown"
    ),
    _model("hf-inference/models/{model:path}", "task", hf_inference_task, "unknown"),
    _model("{provider}/{base:path}/chat/completions", "chat", provider_chat, "conversational"),
    _model(
        "{provider}/{base:path}/completions", "completions", provider_completion, "text-generation"
    ),
    _model(
        "{provider}/{base:path}/embeddings", "embeddings", provider_embeddings, "feature-extraction"
    ),
    _model("{provider}/{base:path}/responses", "responses", provider_response, "conversational"),
    _model("{provider}/{base:path}/audio/speech", "speech", provider_speech, "text-to-speech"),
    _model(
        "{provider}/{base:path}/audio/transcriptions",
        "transcription",
        provider_transcription,
        "automatic-speech-recognition",
    ),
]
