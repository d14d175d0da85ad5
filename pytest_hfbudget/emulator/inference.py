"""The URL of a dedicated endpoint, and its proxy, which wakes an endpoint scaled to zero."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from pytest_hfbudget.emulator.endpoint import Endpoint
from pytest_hfbudget.emulator.endpoint_json import DEFAULT_TASK
from pytest_hfbudget.emulator.exchange import Exchange, Handler, Route
from pytest_hfbudget.emulator.refusal import number, refused
from pytest_hfbudget.emulator.serving import Server, serve_chat, serve_completion
from pytest_hfbudget.emulator.tasks import serve_task

ASKED_TASK = "x-emulator-task"


async def chat(exchange: Exchange) -> ASGIApp:
    """Chat in the form of the OpenAI API."""
    return await serve_chat(exchange, await _server(exchange))


async def completion(exchange: Exchange) -> ASGIApp:
    """Plain completion in the form of the OpenAI API."""
    return await serve_completion(exchange, await _server(exchange))


async def task(exchange: Exchange) -> ASGIApp:
    """The task that the endpoint was made for.

    One that was made for none in particular plays the task that the caller's client names, since
    the request does not show it: a summary is asked for in the same words as a translation.
    """
    server = await _server(exchange)
    made_for = _endpoint(exchange).model.get("task") or DEFAULT_TASK
    asked = exchange.headers.get(ASKED_TASK)
    return await serve_task(
        exchange, server, asked if asked and made_for == DEFAULT_TASK else made_for
    )


async def health(exchange: Exchange) -> Response:
    """200 when the model answers. Like any request it wakes an endpoint that is scaled to zero."""
    await _pass(exchange, _endpoint(exchange))
    return JSONResponse({"status": "ok"})


async def info(exchange: Exchange) -> Response:
    """What runs there, as TGI and TEI tell it."""
    endpoint = _endpoint(exchange)
    await _pass(exchange, endpoint)
    model = {name: endpoint.model.get(name) for name in ("repository", "revision", "task")}
    told = {"model_id": model["repository"], "model_sha": model["revision"]}
    return JSONResponse({**told, "model_pipeline_tag": model["task"], "version": "emulator"})


def _endpoint(exchange: Exchange) -> Endpoint:
    return exchange.world.endpoint(exchange.params["namespace"], exchange.params["name"])


async def _server(exchange: Exchange) -> Server:
    endpoint = _endpoint(exchange)
    await _pass(exchange, endpoint)
    return Server(str(endpoint.model.get("repository")))


async def _pass(exchange: Exchange, endpoint: Endpoint) -> None:
    """Go through the proxy. Raises Refusal while the endpoint cannot answer.

    `X-Scale-Up-Timeout` makes the proxy hold a request for so many seconds instead of answering
    503 (Inference Endpoints docs, guides/autoscaling).
    """
    endpoint.use()
    endpoint.wake()
    patience = number(exchange.headers.get("x-scale-up-timeout", 0), "X-Scale-Up-Timeout")
    if patience and not endpoint.ready and endpoint.state in ("pending", "initializing"):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_until_settled(endpoint), patience)
    if endpoint.ready:
        return
    if endpoint.state == "paused" or endpoint.deleting:
        raise refused(400, "Bad Request: Invalid state")
    if endpoint.state in ("failed", "updateFailed"):
        raise refused(exchange.world.switches.failed_inference_status, "Endpoint failed")
    raise refused(503, "Loading model" if endpoint.state == "running" else "Service Unavailable")


async def _until_settled(endpoint: Endpoint) -> None:
    while endpoint.state in ("pending", "initializing"):
        await endpoint.changed.wait()


_HERE = "/endpoint/{namespace}/{name}"


def _metered(path: str, op: str, handler: Handler, kind: str) -> Route:
    return Route("POST", _HERE + path, op, handler, "infer", kind)


ROUTES = [
    Route("GET", _HERE + "/health", "health", health, "infer"),
    Route("GET", _HERE + "/info", "info", info, "infer"),
    Route("GET", _HERE, "health", health, "infer"),
    Route("GET", _HERE + "/", "health", health, "infer"),
    _metered("/v1/chat/completions", "chat", chat, "conversational"),
    _metered("/v1/completions", "completions", completion, "text-generation"),
    _metered("/generate", "task", task, "text-generation"),
    _metered("/", "task", task, "unknown"),
    _metered("", "task", task, "unknown"),
]
