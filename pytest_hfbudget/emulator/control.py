"""The control plane of Inference Endpoints: the v2 API (Inference Endpoints OpenAPI v2.0.0)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response

from pytest_hfbudget.emulator.endpoint import Endpoint
from pytest_hfbudget.emulator.endpoint_json import (
    apply_form,
    endpoint_object,
    hardware_named,
    replica_object,
    replica_series,
)
from pytest_hfbudget.emulator.exchange import Exchange, Route
from pytest_hfbudget.emulator.hardware import Hardware
from pytest_hfbudget.emulator.refusal import number, refused

_FILTERABLE = ("updating", "running", "paused", "failed", "scaledToZero")
_MAX_ACCELERATORS = 16
_SORT_KEYS: dict[str, Callable[[Endpoint], Any]] = {
    "createdAt": lambda endpoint: endpoint.created,
    "updatedAt": lambda endpoint: endpoint.updated,
    "name": lambda endpoint: endpoint.name,
}


async def get(exchange: Exchange) -> Response:
    """One endpoint."""
    return _shown(exchange, _endpoint(exchange))


async def create(exchange: Exchange) -> Response:
    """A new endpoint, which starts at once."""
    form = {**exchange.json(), "namespace": exchange.params["namespace"], "state": "paused"}
    endpoint = exchange.world.add_endpoint(form)
    endpoint.resume()
    return _shown(exchange, endpoint)


async def update(exchange: Exchange) -> Response:
    """Change the fields that the request names."""
    endpoint, form = _endpoint(exchange), exchange.json()
    moved_to = hardware_named(exchange.world.hardware, form, endpoint.hardware)
    apply_form(endpoint, form)
    endpoint.apply_update(moved_to)
    return _shown(exchange, endpoint)


async def delete(exchange: Exchange) -> Response:
    """Delete an endpoint and its replicas."""
    exchange.world.delete_endpoint(_endpoint(exchange))
    return JSONResponse({})


async def pause(exchange: Exchange) -> Response:
    """Scale down to no replicas."""
    endpoint, action = _endpoint(exchange), exchange.action
    if not action.lie:
        endpoint.pause()
    if action.flip_back_s is not None:
        endpoint.flip_back(action.flip_back_s)
    return _shown(exchange, endpoint)


async def resume(exchange: Exchange) -> Response:
    """Start a paused endpoint."""
    endpoint = _endpoint(exchange)
    if not exchange.action.lie:
        endpoint.resume()
    return _shown(exchange, endpoint)


async def scale_to_zero(exchange: Exchange) -> Response:
    """Put it to sleep until the next request."""
    endpoint = _endpoint(exchange)
    if not exchange.action.lie:
        endpoint.scale_to_zero()
    return _shown(exchange, endpoint)


async def replicas(exchange: Exchange) -> Response:
    """All replicas that the endpoint has had, with their times."""
    listed = [replica_object(replica) for replica in _endpoint(exchange).replicas]
    return JSONResponse({"items": listed})


async def replica_status(exchange: Exchange) -> Response:
    """The timeline of the replicas in a window of time."""
    endpoint, now = _endpoint(exchange), exchange.world.clock.now()
    return JSONResponse(replica_series(endpoint.replicas, exchange.json(), now))


async def list_endpoints(exchange: Exchange) -> Response:
    """A page of the namespace's endpoints."""
    query, namespace = exchange.query, exchange.params["namespace"]
    if query.get("state", "running") not in _FILTERABLE:
        raise refused(400, f"state is one of {', '.join(_FILTERABLE)}")
    all_here = [one for one in exchange.world.endpoints.values() if one.namespace == namespace]
    found = [endpoint for endpoint in all_here if _wanted(exchange, endpoint)]
    sort = query.get("sortBy", "createdAt")
    if sort not in _SORT_KEYS:
        raise refused(400, f"sortBy is one of {', '.join(_SORT_KEYS)}")
    found.sort(key=_SORT_KEYS[sort], reverse=query.get("direction") == "desc")
    start = _read_cursor(query.get("cursor"))
    limit = int(number(query.get("limit", exchange.world.switches.page_limit), "limit"))
    page: dict[str, Any] = {
        "items": [_object(exchange, endpoint) for endpoint in found[start : start + limit]],
        "totalItems": len(found),
    }
    if start + limit < len(found):
        page["nextCursor"] = _cursor(start + limit)
    if start > 0:
        page["prevCursor"] = _cursor(max(0, start - limit))
    return JSONResponse(page)


async def hardware(exchange: Exchange) -> Response:
    """The list of hardware with prices; for a namespace, also what it uses."""
    vendors: dict[str, dict[str, list[Hardware]]] = {}
    for one in exchange.world.hardware:
        vendors.setdefault(one.vendor, {}).setdefault(one.region, []).append(one)
    shown = [
        {
            "name": vendor,
            "status": "available",
            "regions": [_region(exchange, name, computes) for name, computes in regions.items()],
        }
        for vendor, regions in vendors.items()
    ]
    return JSONResponse({"vendors": shown})


def _region(exchange: Exchange, name: str, computes: list[Hardware]) -> dict[str, Any]:
    shown = [one.public(_in_use(exchange, one), _MAX_ACCELERATORS) for one in computes]
    return {"name": name, "label": name, "status": "available", "computes": shown}


def _in_use(exchange: Exchange, one: Hardware) -> int:
    """Accelerators that the namespace uses; one scaled to zero counts, a paused one does not."""
    namespace = exchange.params.get("namespace")
    return sum(
        one.units * max(1, endpoint.target)
        for endpoint in exchange.world.endpoints.values()
        if endpoint.namespace == namespace
        and endpoint.hardware == one
        and endpoint.state != "paused"
    )


def _endpoint(exchange: Exchange) -> Endpoint:
    return exchange.world.endpoint(exchange.params["namespace"], exchange.params["name"])


def _object(exchange: Exchange, endpoint: Endpoint) -> dict[str, Any]:
    return endpoint_object(endpoint, exchange.endpoint_url(endpoint.full_name))


def _shown(exchange: Exchange, endpoint: Endpoint) -> Response:
    return JSONResponse(_object(exchange, endpoint))


def _wanted(exchange: Exchange, endpoint: Endpoint) -> bool:
    query = exchange.query
    tags = {tag for given in query.getlist("tags") for tag in given.split(",") if tag}
    return (
        query.get("state") in (None, endpoint.state)
        and tags <= set(endpoint.tags)
        and query.get("search", "") in endpoint.name
        and query.get("type") in (None, endpoint.type)
        and query.get("task") in (None, endpoint.model.get("task"))
    )


def _cursor(start: int) -> str:
    return base64.urlsafe_b64encode(f"at:{start}".encode()).decode()


def _read_cursor(cursor: str | None) -> int:
    if not cursor:
        return 0
    try:
        return int(base64.urlsafe_b64decode(cursor).decode().removeprefix("at:"))
    except (ValueError, binascii.Error) as error:
        raise refused(400, "invalid cursor") from error


_ALL, _ONE = "/v2/endpoint/{namespace}", "/v2/endpoint/{namespace}/{name}"

ROUTES = [
    Route("GET", "/v2/provider", "provider", hardware, "public"),
    Route("GET", "/v2/provider/{namespace}", "provider", hardware),
    Route("GET", _ALL, "list", list_endpoints, "manage"),
    Route("POST", _ALL, "create", create, "manage"),
    Route("GET", _ONE, "get", get, "manage"),
    Route("PUT", _ONE, "update", update, "manage"),
    Route("DELETE", _ONE, "delete", delete, "manage"),
    Route("POST", _ONE + "/pause", "pause", pause, "manage"),
    Route("POST", _ONE + "/resume", "resume", resume, "manage"),
    Route("POST", _ONE + "/scale-to-zero", "scale_to_zero", scale_to_zero, "manage"),
    Route("GET", _ONE + "/replica", "replicas", replicas, "manage"),
    Route("POST", _ONE + "/metrics/replica-status", "replica_status", replica_status, "manage"),
]
