"""The short form in which a test describes an endpoint: flat, and checked for unknown names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pytest_hfbudget.emulator.behaviour import Behaviour

_SHORT = {
    "vendor": ("provider", "vendor"),
    "region": ("provider", "region"),
    "instance_type": ("compute", "instanceType"),
    "instance_size": ("compute", "instanceSize"),
    "min_replica": ("compute", "scaling", "minReplica"),
    "max_replica": ("compute", "scaling", "maxReplica"),
    "scale_to_zero_timeout": ("compute", "scaling", "scaleToZeroTimeout"),
    "repository": ("model", "repository"),
}
_OF_THE_API = {"name", "type", "tags", "provider", "compute", "model"}
_OF_THE_EMULATOR = {"namespace", "state", "replicas", *(each.name for each in fields(Behaviour))}
_KNOWN = {*_SHORT, *_OF_THE_API, *_OF_THE_EMULATOR}


def short_form(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with its short names put where the API has them.

    Raises ValueError for an unknown name, so that a typing error can't make a test pass.
    """
    if unknown := set(raw) - _KNOWN:
        raise ValueError(f"an endpoint has no {sorted(unknown)}; it has {sorted(_KNOWN)}")
    form: dict[str, Any] = {}
    for name, value in raw.items():
        *outer, last = _SHORT.get(name, (name,))
        place = form
        for key in outer:
            place[key] = place = dict(place.get(key) or {})
        place[last] = {**form.get(name, {}), **value} if isinstance(value, dict) else value
    return form
