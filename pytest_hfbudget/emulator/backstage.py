"""The controls for tests, under `/_emulator`. The real services have nothing like them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from pytest_hfbudget.emulator.endpoint import Endpoint
from pytest_hfbudget.emulator.endpoint_form import short_form
from pytest_hfbudget.emulator.endpoint_json import (
    apply_form,
    behaviour_from,
    endpoint_object,
    replica_object,
)
from pytest_hfbudget.emulator.exchange import Exchange, Route
from pytest_hfbudget.emulator.log import Entry
from pytest_hfbudget.emulator.world import PARTS, World

_NOT_FILTERS = ("after", "wait")
_LONGEST_WAIT = 300.0


class Backstage:
    """The handlers of the controls; `reset` replaces the world by a new one."""

    def __init__(self, reset: Callable[[], World]) -> None:
        self._reset = reset

    def routes(self) -> list[Route]:
        """All controls."""
        places = [
            ("POST", "reset", self.start_over),
            ("POST", "config", self.configure),
            ("POST", "models", self.add_models),
            ("POST", "faults", self.script_faults),
            ("DELETE", "faults", self.forget_faults),
            ("POST", "endpoints", self.add_endpoint),
            ("POST", "endpoints/{namespace}/{name}", self.change_endpoint),
            ("POST", "clock", self.advance),
            ("GET", "log", self.log),
            ("GET", "invoice", self.invoice),
            ("GET", "state", self.state),
        ]
        return [
            Route(method, f"/_emulator/{path}", path, handler, "backstage")
            for method, path, handler in places
        ]

    async def start_over(self, exchange: Exchange) -> Response:
        """Forget everything; the body may have a configuration for the new beginning."""
        _configure(self._reset(), exchange.json())
        return JSONResponse({"ok": True})

    async def configure(self, exchange: Exchange) -> Response:
        """Apply a configuration; plain switches may stand at its top."""
        _configure(exchange.world, exchange.json())
        return JSONResponse({"ok": True})

    async def add_models(self, exchange: Exchange) -> Response:
        """Add models or prices: one model, `models`, or `prices` of whole providers."""
        form = exchange.json()
        for raw in form.get("models", [form] if "id" in form else []):
            exchange.world.add_model(raw)
        exchange.world.price_providers(form.get("prices", {}))
        return JSONResponse({"ok": True})

    async def script_faults(self, exchange: Exchange) -> Response:
        """Append faults to the script."""
        form = exchange.json()
        exchange.world.faults.extend(form.get("faults", [form] if "action" in form else []))
        return JSONResponse({"ok": True})

    async def forget_faults(self, exchange: Exchange) -> Response:
        """Forget the script."""
        exchange.world.faults.script.clear()
        return JSONResponse({"ok": True})

    async def add_endpoint(self, exchange: Exchange) -> Response:
        """Add a dedicated endpoint in any state."""
        return _shown(exchange, exchange.world.add_endpoint(short_form(exchange.json())))

    async def change_endpoint(self, exchange: Exchange) -> Response:
        """Set `replicas`, `state`, scaling, tags or behaviour of an endpoint."""
        endpoint = exchange.world.endpoint(exchange.params["namespace"], exchange.params["name"])
        form = short_form(exchange.json())
        endpoint.behaviour = behaviour_from(form, endpoint.behaviour)
        apply_form(endpoint, form)
        if "state" in form:
            endpoint.force(form["state"])
        if "replicas" in form:
            endpoint.scale(int(form["replicas"]))
        endpoint.follow_load()
        return _shown(exchange, endpoint)

    async def advance(self, exchange: Exchange) -> Response:
        """Move the clock forward by `advance` seconds."""
        clock = exchange.world.clock
        clock.advance(float(exchange.json().get("advance", 0)))
        return JSONResponse({"now": clock.now()})

    async def log(self, exchange: Exchange) -> Response:
        """Entries after `after` whose fields equal the other parameters; `wait` for one."""
        query, log = exchange.query, exchange.world.log
        after, wait = int(query.get("after", 0)), float(query.get("wait", 0))
        wanted = {name: value for name, value in query.items() if name not in _NOT_FILTERS}
        found: list[Entry] = await log.wait(after, wanted, min(wait, _LONGEST_WAIT))
        return JSONResponse({"entries": found, "last": len(log.entries)})

    async def invoice(self, exchange: Exchange) -> Response:
        """The bill up to now."""
        return JSONResponse(exchange.world.bill())

    async def state(self, exchange: Exchange) -> Response:
        """A summary of endpoints, models, switches and the clock."""
        world = exchange.world
        endpoints = [_glance(exchange, endpoint) for endpoint in world.endpoints.values()]
        switches: dict[str, Any] = dict(vars(world.switches))
        # Tokens are secrets even here.
        for name in ("bad_tokens", "limited_tokens", "no_infer_tokens", "no_billing_tokens"):
            switches[name] = len(switches[name])
        return JSONResponse(
            {
                "now": world.clock.now(),
                "endpoints": endpoints,
                "models": sorted(world.models),
                "switches": switches,
                "faults": len(world.faults.script),
                "log": len(world.log.entries),
            }
        )


def _configure(world: World, config: Mapping[str, Any]) -> None:
    world.change_switches({name: config[name] for name in config if name not in PARTS})
    world.configure({name: config[name] for name in PARTS if name in config})


def _glance(exchange: Exchange, endpoint: Endpoint) -> dict[str, Any]:
    return {
        "name": endpoint.full_name,
        "state": endpoint.state,
        "url": exchange.endpoint_url(endpoint.full_name),
        "replicas": [replica_object(replica) for replica in endpoint.replicas],
    }


def _shown(exchange: Exchange, endpoint: Endpoint) -> Response:
    return JSONResponse(endpoint_object(endpoint, exchange.endpoint_url(endpoint.full_name)))
