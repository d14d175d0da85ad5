"""Checks whether the token of a request has the permission for it."""

from __future__ import annotations

from pytest_hfbudget.emulator.exchange import Exchange
from pytest_hfbudget.emulator.refusal import refused


def check_access(exchange: Exchange) -> None:
    """Raise Refusal: 401 without a valid token, 403 if the token lacks the permission."""
    access, switches = exchange.route.access, exchange.world.switches
    if access in ("public", "backstage") or _to_public_endpoint(exchange):
        return
    token = exchange.token
    if token is None or not token.startswith("hf_") or token in switches.bad_tokens:
        raise refused(401, "Invalid username or password.")
    if access == "manage" and token in switches.limited_tokens:
        raise refused(403, "missing permissions: inference.endpoints.write")
    if access == "infer" and token in switches.no_infer_tokens:
        raise refused(403, "missing permissions: inference.endpoints.infer.write")
    if access == "billing" and token in switches.no_billing_tokens:
        missing = "org.billing.read" if "org" in exchange.params else "billing.read"
        raise refused(403, f"missing permissions: {missing}")


def _to_public_endpoint(exchange: Exchange) -> bool:
    endpoint = exchange.world.endpoints.get(exchange.endpoint or "")
    return exchange.route.access == "infer" and endpoint is not None and endpoint.type == "public"
