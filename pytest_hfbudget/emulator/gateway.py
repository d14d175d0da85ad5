"""The entry of the emulator: logs each request, applies a fault if one fits, and answers."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pytest_hfbudget.emulator.access import check_access
from pytest_hfbudget.emulator.connection import Connection, bearer
from pytest_hfbudget.emulator.exchange import Exchange, Route, find_route
from pytest_hfbudget.emulator.faults import Action
from pytest_hfbudget.emulator.log import fingerprint
from pytest_hfbudget.emulator.refusal import Refusal, refused
from pytest_hfbudget.emulator.world import World

_SESSION, _BILL_TO = "x-hf-session-id", "x-hf-bill-to"
_GARBAGE = b"<html><body>upstream says hello</body></html>"


async def _nowhere(_: Exchange) -> Response:
    raise refused(404, "Not Found")


class Gateway:
    """The ASGI application; `world` is replaced by a reset."""

    def __init__(self, routes: Sequence[Route], new_world: Callable[[], World]) -> None:
        self._routes = routes
        self._new_world = new_world
        self.world = new_world()
        self._alarm: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Let the world's timers run on the event loop of the caller."""
        self.world.clock.on_change = self._set_alarm
        self._set_alarm()

    def reset(self) -> World:
        """Begin a new world and return it; requests that hang in the old one are dropped."""
        old, self.world = self.world, self._new_world()
        old.clock.on_change = lambda: None
        old.log.close()
        for task in old.tasks - {asyncio.current_task(), None}:
            task.cancel()  # type: ignore[union-attr]
        self.open()
        return self.world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.world.clock.run_due()
        connection = Connection(receive, send)
        exchange = await self._admit(scope, connection)
        task: asyncio.Task[Any] | None = asyncio.current_task()
        exchange.world.tasks.add(task)
        try:
            if exchange.route.access == "backstage":
                await _deliver(exchange, await _answer(exchange))
            else:
                await self._log_and_serve(exchange)
        except asyncio.CancelledError:
            connection.close()  # A reset or the shutdown dropped this request.
        except Exception:
            exchange.world.log.add("bug", path=exchange.path, traceback=traceback.format_exc())
            raise
        finally:
            exchange.world.tasks.discard(task)
            connection.stop_watching()

    async def _admit(self, scope: Scope, connection: Connection) -> Exchange:
        path, method = scope["path"], scope["method"]
        try:
            found = find_route(self._routes, method, path)
        except Refusal as refusal:
            found = Route(method, "/", "wrong_method", _raising(refusal), "public"), {}
        route, params = found or (Route(method, "/", "unknown", _nowhere, "public"), {})
        headers = Headers(scope=scope)
        return Exchange(
            world=self.world,
            route=route,
            method=method,
            path=path,
            query=QueryParams(scope["query_string"]),
            headers=headers,
            params=params,
            body=await connection.read_body(),
            connection=connection,
            token=bearer(scope),
            origin=f"{scope['scheme']}://{headers.get('host', 'localhost')}",
        )

    async def _log_and_serve(self, exchange: Exchange) -> None:
        log, connection = exchange.world.log, exchange.connection
        facts = _facts(exchange)
        at = exchange.world.clock.now
        arrival = log.add("request", phase="arrived", at=at(), **facts)["seq"]
        action = exchange.world.faults.take(exchange.route.op, exchange.path, exchange.endpoint)
        exchange.action = action or Action()
        if exchange.route.task is not None:
            _open_call(exchange, facts["model"])
        applied = False
        # Only a client that has hung up leaves a part of its request, which then has no effect.
        arrived = len(exchange.body) >= int(exchange.headers.get("content-length", 0))
        try:
            applied = arrived and await self._serve(exchange)
        finally:
            status = connection.status
            if exchange.call is not None:
                exchange.call.settle(status, applied, exchange.broken_off, at())
            told = {"fault": action.told()} if action else {}
            if connection.gone.is_set() and not connection.complete:
                how = {"chunks": exchange.chunks, "billed": exchange.call and exchange.call.billed}
                log.add("disconnect", request=arrival, **facts, **how)
            outcome = {"request": arrival, "status": status, **told}
            log.add("request", phase="answered", at=at(), **outcome, **facts)

    async def _serve(self, exchange: Exchange) -> bool:
        """Answer a request under a fault; returns whether the request took effect."""
        action, connection = exchange.action, exchange.connection
        await asyncio.sleep(action.delay)
        if action.hang is not None:
            await asyncio.sleep(action.hang)
            if action.then == "close":
                connection.close()
                return False
        if action.reset == "before":
            connection.reset()
            return False
        if action.slow_head is not None:
            await connection.drip(action.slow_head)
            return False
        connection.seconds_per_byte = action.slow_body
        applied = action.applies
        answer = await _answer(exchange) if applied else Response()
        if action.reset == "after":
            # Carried out to its end, and billed, but the client is not to know.
            connection.muted = True
            await _deliver(exchange, answer)
            connection.reset()
        elif action.replaces_answer:
            await _deliver(exchange, _replacement(action))
        else:
            await _deliver(exchange, answer)
        return applied

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        seconds = self.world.clock.seconds_to_next()
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(seconds, self.world.clock.run_due)


async def _answer(exchange: Exchange) -> Response | ASGIApp:
    try:
        check_access(exchange)
        return await exchange.route.handler(exchange)
    except Refusal as refusal:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)
    except ValueError as error:
        if exchange.route.access != "backstage":
            raise  # A bug of ours; only a test's own words may be at fault.
        return JSONResponse({"error": str(error)}, 400)


async def _deliver(exchange: Exchange, answer: Response | ASGIApp) -> None:
    connection = exchange.connection
    await answer({"type": "http"}, connection.receive, connection.send)


def _replacement(action: Action) -> Response:
    if action.garbage:
        return Response(_GARBAGE, 200, dict(action.headers), "text/html")
    body = {"error": "scripted fault"} if action.json is None else action.json
    return JSONResponse(body, action.status or 500, dict(action.headers))


def _raising(refusal: Refusal) -> Callable[[Exchange], Any]:
    async def handler(_: Exchange) -> Response:
        raise refusal

    return handler


def _facts(exchange: Exchange) -> dict[str, Any]:
    return {
        "op": exchange.route.op,
        "method": exchange.method,
        "path": exchange.path,
        "endpoint": exchange.endpoint,
        "model": exchange.params.get("model") or _said_model(exchange),
        "token": fingerprint(exchange.token),
        "agent": exchange.headers.get("user-agent"),
        "bill_to": exchange.headers.get(_BILL_TO),
        "session": exchange.headers.get(_SESSION),
    }


def _said_model(exchange: Exchange) -> str | None:
    said = (exchange.form or {}).get("model")
    return said if isinstance(said, str) else None


def _open_call(exchange: Exchange, model: str | None) -> None:
    stream = bool((exchange.form or {}).get("stream"))
    task = exchange.route.task or ""
    call = exchange.world.invoice.open(model, task, stream, exchange.endpoint)
    call.session, call.bill_to = (exchange.headers.get(name) for name in (_SESSION, _BILL_TO))
    call.at = exchange.world.clock.now()
    exchange.call = call
