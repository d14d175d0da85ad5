"""The model that a call asks for, or a cheaper one from a part of its budget on.

huggingface_hub itself builds the request for the other model: it knows the provider's own name of
it, the URL, and whether the provider serves it for this task at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_hfbudget.metering.meter import Meter
from pytest_hfbudget.metering.request import AskedModel, Parameters, describe, shown
from pytest_hfbudget.pricing import split_model
from pytest_hfbudget.pricing.table import is_below

Prepare = Callable[..., Parameters]


class UnfitError(ValueError):
    """The call can't be sent with that model."""


def prepared(
    meter: Meter, prepare: Prepare, provider: str | None, arguments: Mapping[str, Any]
) -> tuple[Parameters, AskedModel]:
    """What is to be posted: with the model that was asked for, or with the one that is due.

    Args:
        prepare: huggingface_hub's ``prepare_request`` for this provider and task.
        arguments: what it is called with.
    """
    name = _asked_name(arguments)
    due = meter.watcher.due(meter.budgets.active().thresholds, meter.ledger)
    if due and split_model(name)[0] != split_model(due.model)[0]:
        try:
            return _swapped(meter, prepare, provider, arguments, due.model)
        except Exception as error:  # whatever is wrong with it, the call itself is fine
            meter.watcher.warn(
                due.scope,
                "fallback",
                f"{due.scope.name}: a call to {shown(name)} could not be sent with {due.model} "
                f"instead, so it was sent as it is: {error}",
            )
    return prepare(**arguments), AskedModel(arguments.get("model"), provider)


def _swapped(
    meter: Meter, prepare: Prepare, provider: str | None, arguments: Mapping[str, Any], model: str
) -> tuple[Parameters, AskedModel]:
    other = _arguments(meter, provider, arguments, model)
    parameters = prepare(**other)
    asked = AskedModel(other.get("model"), provider, instead_of=shown(_asked_name(arguments)))
    request = describe(
        parameters,
        routers=meter.routers,
        asked=asked,
        stream=False,
    )
    if meter.book.quote(request, meter.budgets.active().explicit) is None:
        raise UnfitError(f"{request.model} has no known price")
    return parameters, asked


def _arguments(
    meter: Meter, provider: str | None, arguments: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """The same call with another model."""
    url = arguments.get("model") or ""
    parameters = dict(arguments.get("parameters") or {})
    if url.startswith(("http://", "https://")):
        if not any(is_below(url, router) for router in meter.routers):
            raise UnfitError(f"the server at {shown(url)} chooses the model itself")
        # The router's own URL was given as base_url: the payload alone names the model.
        return {**arguments, "parameters": {**parameters, "model": model}}
    if provider != "auto":
        model, pinned = split_model(model)
        if pinned not in (None, provider):
            raise UnfitError(f"the call goes to {provider}, not to {pinned}")
    if "model" in parameters:
        parameters["model"] = model
    return {**arguments, "model": model, "parameters": parameters}


def _asked_name(arguments: Mapping[str, Any]) -> str:
    """The model as the caller named it."""
    parameters = arguments.get("parameters") or {}
    return str(parameters.get("model") or arguments.get("model") or "")
