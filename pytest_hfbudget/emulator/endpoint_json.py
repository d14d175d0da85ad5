"""An endpoint as JSON: the object that the API shows, and the forms that create and change one.

Keys are those of `EndpointWithStatus` and `EndpointUpdate` (Inference Endpoints OpenAPI v2.0.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from pytest_hfbudget.emulator.behaviour import Behaviour, Scaling
from pytest_hfbudget.emulator.clock import parse_rfc3339, rfc3339
from pytest_hfbudget.emulator.endpoint import Endpoint
from pytest_hfbudget.emulator.hardware import Hardware
from pytest_hfbudget.emulator.refusal import refused
from pytest_hfbudget.emulator.replica import Replica

_USER = {"id": "emulator", "name": "emulator"}
_MESSAGES = {
    "running": "Endpoint is ready",
    "paused": "Endpoint is paused",
    "scaledToZero": "Endpoint is scaled to zero",
    "failed": "Endpoint failed to start",
    "updateFailed": "Endpoint failed to update",
}
DEFAULT_TASK = "text-generation"
DEFAULT_MODEL: dict[str, Any] = {
    "repository": "emulator/chat",
    "revision": "main",
    "task": DEFAULT_TASK,
    "framework": "pytorch",
    "image": {"huggingface": {}},
    "env": {},
    "secrets": {},
    "args": None,
    "command": None,
    "fromCatalog": False,
}


def endpoint_object(endpoint: Endpoint, url: str) -> dict[str, Any]:
    """The whole object; `url` is the address under which the endpoint infers."""
    hardware = endpoint.hardware
    return {
        "name": endpoint.name,
        "type": endpoint.type,
        "tags": list(endpoint.tags),
        "provider": {"vendor": hardware.vendor, "region": hardware.region},
        "healthRoute": "/health",
        "compute": {
            "id": hardware.id,
            "accelerator": hardware.accelerator,
            "instanceType": hardware.instance_type,
            "instanceSize": hardware.instance_size,
            "scaling": {
                "minReplica": endpoint.scaling.minimum,
                "maxReplica": endpoint.scaling.maximum,
                "scaleToZeroTimeout": endpoint.scaling.idle_minutes,
                "measure": endpoint.scaling.measure,
            },
        },
        "model": dict(endpoint.model),
        "notifications": {"email": True, "push": True},
        "experimentalFeatures": {"cacheHttpResponses": False},
        "status": _status(endpoint, url),
    }


def _status(endpoint: Endpoint, url: str) -> dict[str, Any]:
    state = endpoint.shown_state
    failed = state in ("failed", "updateFailed")
    return {
        "state": state,
        "message": _MESSAGES.get(state, "Endpoint is starting"),
        "errorMessage": _MESSAGES[state] if failed else None,
        "agentMessage": None,
        "url": url,
        "readyReplica": sum(replica.live for replica in endpoint.replicas),
        "targetReplica": endpoint.target,
        "lastUsedAt": rfc3339(endpoint.last_used),
        "private": None,
        "createdAt": rfc3339(endpoint.created),
        "createdBy": _USER,
        "updatedAt": rfc3339(endpoint.updated),
        "updatedBy": _USER,
    }


def replica_object(replica: Replica) -> dict[str, Any]:
    """One item of the replica list; it starts when it leaves `pending`."""
    status: dict[str, Any] = {
        "stage": replica.stages[-1].shown,
        "live": replica.live,
        "updating": replica.stage == "updating",
    }
    started = replica.first("initializing", "running", "updating")
    stopped = replica.first("stopped")
    if started is not None:
        status["startedAt"] = rfc3339(started)
    if stopped is not None:
        status |= {"stoppedAt": rfc3339(stopped), "exitCode": 0}
    return {"id": replica.id, "versionId": replica.version, "status": status}


def replica_series(replicas: Iterable[Replica], form: Mapping[str, Any], now: int) -> list[Any]:
    """The replica timeline between `start` and `stop` of `form`, one series per stage.

    Raises Refusal (400) when the form has no such window.
    """
    try:
        start, stop = parse_rfc3339(str(form["start"])), parse_rfc3339(str(form["stop"]))
    except (KeyError, ValueError) as error:
        raise refused(400, f"start and stop are RFC 3339 timestamps: {error}") from error
    series: dict[str, list[dict[str, str]]] = {}
    for replica in replicas:
        if form.get("replicaId") not in (None, replica.id):
            continue
        for stage in replica.stages:
            x, x2 = max(start, stage.start), min(stop, now if stage.stop is None else stage.stop)
            if x < x2 and stage.name != "stopped":
                point = {"x": rfc3339(x), "x2": rfc3339(x2), "y": replica.id}
                series.setdefault(stage.shown, []).append(point)
    return [{"stage": stage, "data": data} for stage, data in series.items()]


def hardware_named(
    hardware: Iterable[Hardware], form: Mapping[str, Any], default: Hardware
) -> Hardware:
    """The hardware that a create or update form asks for; what it leaves out is as in `default`.

    Raises Refusal (400) when there is no such hardware.
    """
    provider, compute = form.get("provider") or {}, form.get("compute") or {}
    wanted = (
        provider.get("vendor", default.vendor),
        provider.get("region", default.region),
        compute.get("instanceType", default.instance_type),
        compute.get("instanceSize", default.instance_size),
    )
    for one in hardware:
        if (one.vendor, one.region, one.instance_type, one.instance_size) == wanted:
            return one
    raise refused(400, f"no such compute: {' '.join(map(str, wanted))}")


def apply_form(endpoint: Endpoint, form: Mapping[str, Any]) -> None:
    """Take over what a create or update form says about scaling, model, tags and type.

    Raises Refusal (400), with nothing changed, when the replicas do not make sense.
    """
    scaling, old = (form.get("compute") or {}).get("scaling") or {}, endpoint.scaling
    new = Scaling(
        scaling.get("minReplica", old.minimum),
        scaling.get("maxReplica", old.maximum),
        scaling.get("scaleToZeroTimeout", old.idle_minutes),
        scaling.get("measure", old.measure),
    )
    if not 0 <= new.minimum <= new.maximum:
        raise refused(400, "minReplica is between 0 and maxReplica")
    endpoint.scaling = new
    endpoint.model |= form.get("model") or {}
    endpoint.tags = list(form.get("tags", endpoint.tags))
    endpoint.type = form.get("type", endpoint.type)


def behaviour_from(form: Mapping[str, Any], old: Behaviour) -> Behaviour:
    """`old` with the behaviour fields that `form` has."""
    known = {field.name for field in fields(Behaviour)}
    return replace(old, **{name: value for name, value in form.items() if name in known})
