"""Providers of images, sounds and videos, each with its own way to return a file.

What a client downloads is always the same tiny file. Jobs are done at once, so that no
client polls, unless the switch `polls` has a queue say so many times that it is not done.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from pytest_hfbudget.emulator import router
from pytest_hfbudget.emulator.exchange import Exchange, Handler, Route
from pytest_hfbudget.emulator.media import FILES
from pytest_hfbudget.emulator.price import Consumed
from pytest_hfbudget.emulator.refusal import number, refused
from pytest_hfbudget.emulator.serving import Server


async def fal(exchange: Exchange) -> Response:
    """fal-ai: an answer with everything in it, or a place in the queue."""
    _book(exchange, "fal-ai")
    if exchange.query.get("_subdomain") != "queue":
        return JSONResponse(_everything(exchange), headers=_headers(exchange))
    ticket = f"request-{next(exchange.world.ids)}"
    # The client takes the path of this address and asks the same host for it.
    where = f"{exchange.origin}/router/fal-ai/{exchange.params['model']}/requests/{ticket}"
    exchange.world.polls = exchange.world.switches.polls
    status = "IN_QUEUE" if exchange.world.polls else "COMPLETED"
    answer = {"request_id": ticket, "status": status, "response_url": where}
    return JSONResponse(answer, headers=_headers(exchange))


async def fal_result(exchange: Exchange) -> Response:
    """What the queue made, or its status."""
    if exchange.path.endswith("/status"):
        exchange.world.polls -= 1
        return JSONResponse({"status": "IN_PROGRESS" if exchange.world.polls > 0 else "COMPLETED"})
    return JSONResponse(_everything(exchange))


async def replicate(exchange: Exchange) -> Response:
    """replicate: a prediction that has succeeded already."""
    _book(exchange, "replicate")
    given = exchange.json().get("input") or {}
    output: Any = _file(exchange, "tiny.wav" if "text" in given else "tiny.png")
    if "num_outputs" in given:
        output = [output] * int(given["num_outputs"])
    return JSONResponse({"status": "succeeded", "output": output}, headers=_headers(exchange))


async def wavespeed(exchange: Exchange) -> Response:
    """wavespeed: the address of a result."""
    _book(exchange, "wavespeed")
    ticket = f"prediction-{next(exchange.world.ids)}"
    where = f"{exchange.origin}/router/wavespeed/api/v3/predictions/{ticket}/result"
    return JSONResponse({"data": {"urls": {"get": where}}}, headers=_headers(exchange))


async def wavespeed_result(exchange: Exchange) -> Response:
    """A finished result."""
    outputs = [_file(exchange, "tiny.png")]
    return JSONResponse({"data": {"status": "completed", "outputs": outputs}})


async def together_video(exchange: Exchange) -> Response:
    """together: a film that is ready."""
    _book(exchange, "together")
    outputs = {"video_url": _file(exchange, "tiny.mp4")}
    answer = {"id": "video-1", "status": "completed", "outputs": outputs}
    return JSONResponse(answer, headers=_headers(exchange))


async def novita_video(exchange: Exchange) -> Response:
    """novita: a film that is ready."""
    _book(exchange, "novita")
    answer = {"video": {"video_url": _file(exchange, "tiny.mp4")}}
    return JSONResponse(answer, headers=_headers(exchange))


async def zai_image(exchange: Exchange) -> Response:
    """zai-org: a picture that is ready."""
    _book(exchange, "zai-org")
    picture = {"url": _file(exchange, "tiny.png")}
    answer = {"id": "task-1", "task_status": "SUCCESS", "image_result": [picture]}
    return JSONResponse(answer, headers=_headers(exchange))


async def file(exchange: Exchange) -> Response:
    """One of the tiny files."""
    found = FILES.get(exchange.params["file"])
    if found is None:
        raise refused(404, "no such file")
    content, media_type = found
    return Response(content, media_type=media_type)


def _book(exchange: Exchange, provider: str) -> None:
    said = exchange.params.get("model") or str(exchange.json().get("model", "unknown"))
    name = exchange.world.hub_id(provider, said)
    call = exchange.the_call
    call.task = exchange.world.task_of(name)
    server = Server(name, provider, exchange.world.price_of(name, provider))
    server.book(exchange, Consumed(images=_pictures(exchange, call.task)))


def _pictures(exchange: Exchange, task: str) -> int:
    """How many images a request asks for, in its provider's own word."""
    body = exchange.json()
    said = body.get("num_images") or (body.get("input") or {}).get("num_outputs") or 1
    return int(number(said, "number of images")) if task.endswith("-to-image") else 0


def _headers(exchange: Exchange) -> dict[str, str]:
    call = exchange.the_call
    return Server(call.model or "", call.provider).headers(exchange)


def _file(exchange: Exchange, name: str) -> str:
    return f"{exchange.origin}/router/files/{name}"


def _everything(exchange: Exchange) -> dict[str, Any]:
    return {
        "images": [{"url": _file(exchange, "tiny.png")}] * _pictures(exchange, "-to-image"),
        "image": {"url": _file(exchange, "tiny.png")},
        "audio": {"url": _file(exchange, "tiny.wav")},
        "video": {"url": _file(exchange, "tiny.mp4")},
        "text": "the emulated sea",
    }


def _studio(path: str, handler: Handler, task: str = "unknown") -> Route:
    return Route("POST", f"/router/{path}", "task", handler, task=task)


ROUTES = [
    Route("GET", "/router/files/{file}", "file", file, "public"),
    _studio("zai-org/api/paas/v4/async/images/generations", zai_image, "text-to-image"),
    Route(
        "POST",
        "/router/{provider}/{base:path}/images/generations",
        "images",
        router.provider_images,
        task="text-to-image",
    ),
    _studio("together/v2/videos", together_video, "text-to-video"),
    _studio("novita/v3/hf/{model:path}", novita_video, "text-to-video"),
    _studio("replicate/v1/models/{model:path}/predictions", replicate),
    _studio("wavespeed/api/v3/{model:path}", wavespeed),
    Route("GET", "/router/wavespeed/api/v3/predictions/{id}/result", "result", wavespeed_result),
    Route("GET", "/router/fal-ai/{model:path}/requests/{id:path}", "result", fal_result),
    _studio("fal-ai/{model:path}", fal),
]
