"""The Hub's billing API, by inference session and by month, made from the invoice.

Shapes and parameters follow the Hub's OpenAPI document (`/.well-known/openapi.json`, 2026-08) and
what independent clients read; how late the service is and how it rounds are switches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from pytest_hfbudget.emulator.clock import MICROSECONDS, parse_rfc3339, rfc3339
from pytest_hfbudget.emulator.endpoint import Endpoint
from pytest_hfbudget.emulator.exchange import Exchange, Handler, Route
from pytest_hfbudget.emulator.invoice import Call, endpoint_bill
from pytest_hfbudget.emulator.price import NANO
from pytest_hfbudget.emulator.refusal import refused

_CENT = NANO // 100
_MICRO = NANO // 10**6
# Unix seconds have ten digits; what has more is answered with 500 by the real service.
_MOST_SECONDS = 10**11
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Reported(NamedTuple):
    """What the API reports of one call so far; ``nano_usd`` is first a placeholder."""

    call: Call
    nano_usd: Fraction


async def by_session(exchange: Exchange) -> Response:
    """Requests and cents by month and inference session, a page of them at a time."""
    start, end = _moment(exchange, "startDate", 0), _moment(exchange, "endDate", None)
    sums: dict[tuple[str, str], list[Fraction]] = {}
    for call, nano in _reported(exchange, start, end):
        if call.session is not None:
            sums.setdefault((_month(call.at), call.session), []).append(nano)
    rows = [
        (month, {"id": session, "requestCount": len(all_), "costCents": _cents(exchange, all_)})
        for (month, session), all_ in sorted(sums.items())
    ]
    size = exchange.world.switches.billing_page_limit or len(rows) or 1
    at = int(exchange.query.get("cursor", 0))
    periods: dict[str, list[dict[str, Any]]] = {}
    for month, row in rows[at : at + size]:
        periods.setdefault(month, []).append(row)
    body = [{"period": month, "sessions": sessions} for month, sessions in periods.items()]
    headers = {}
    if at + size < len(rows):
        query = urlencode({**exchange.query, "cursor": at + size})
        headers["Link"] = f'<{exchange.origin}{exchange.path}?{query}>; rel="next"'
    return JSONResponse({"currency": "USD", "periods": body}, headers=headers)


async def usage_v2(exchange: Exchange) -> Response:
    """Inference between two times, in unix seconds."""
    times = [exchange.query.get(name, "") for name in ("startDate", "endDate")]
    if not all(text.isdecimal() for text in times):
        raise refused(400, "startDate and endDate are unix seconds")
    start, end = map(int, times)
    if max(start, end) > _MOST_SECONDS:
        raise refused(500, "Internal Error - We're working hard to fix this as soon as possible!")
    used = _reported(exchange, start * MICROSECONDS, (end + 1) * MICROSECONDS)
    return JSONResponse({"usage": {"inferenceProviders": _inference(list(used), start, end)}})


async def live(exchange: Exchange) -> Response:
    """The usage of this month as server-sent events; this stream has one of them."""
    start, now = _period(exchange)[0], exchange.world.clock.now()
    used = _inference(list(_reported(exchange, start, now)), start // MICROSECONDS, 0)
    event = f"data: {json.dumps({'inference': used})}\n\n"
    return Response(event, media_type="text/event-stream")


async def usage(exchange: Exchange) -> Response:
    """The billing period that runs now, and each product in it by resource."""
    start, end = _period(exchange)
    period = {
        "_id": "0" * 24,
        "entityId": "0" * 24,
        "entityName": exchange.params.get("org", "emulator"),
        "entityType": "org" if "org" in exchange.params else "user",
        "periodStart": rfc3339(start),
        "periodEnd": rfc3339(end),
    }
    rows = [_endpoint_row(exchange, one) for one in _endpoints(exchange, start)]
    return JSONResponse({"period": period, "usage": {"endpoints": rows}})


async def by_resource_group(exchange: Exchange) -> Response:
    """The bill of an organisation; here all of it belongs to no group."""
    start, end = _moment(exchange, "startDate", 0), _moment(exchange, "endDate", None)
    used = list(_reported(exchange, start, end))
    nano = [amount for _, amount in used]
    bills = [_bill(exchange, one) for one in _endpoints(exchange, start)]
    seconds = sum(bill["minutes"] for bill in bills) * 60
    cost = [Fraction(bill["nano_usd"]) for bill in bills]
    group = {
        "id": None,
        "inference": {"requestCount": len(used), "costCents": _cents(exchange, nano)},
        "compute": {"endpoints": {"uptimeSec": seconds, "costCents": _cents(exchange, cost)}},
    }
    body = [{"period": _month(exchange.world.clock.now()), "resourceGroups": [group]}]
    return JSONResponse({"currency": "USD", "periods": body})


def _reported(exchange: Exchange, start: int, end: int) -> Iterator[Reported]:
    """The billed calls of the account that is asked about, as far as the service knows them."""
    switches, now = exchange.world.switches, exchange.world.clock.now()
    placeholder = Fraction(switches.placeholder_usd) * NANO
    for call in exchange.world.invoice.calls:
        if call.bill_to != exchange.params.get("org") or not start <= call.at <= end:
            continue
        if call.billed in ("none", "uptime"):
            continue
        settled = call.ended is not None
        late = Fraction(str(switches.billing_lag_s)) * MICROSECONDS
        if settled and now - (call.ended or 0) >= late:
            yield Reported(call, Fraction(call.nano_usd or 0))
        elif placeholder:
            yield Reported(call, placeholder)


def _inference(used: list[Reported], start: int, end: int) -> dict[str, Any]:
    return {
        "usedNanoUsd": math.ceil(sum(nano for _, nano in used)),
        "includedNanoUsd": 0,
        "limitNanoUsd": 0,
        "numRequests": len(used),
        "periodStart": start,
        "periodEnd": end,
    }


def _cents(exchange: Exchange, amounts: list[Fraction]) -> float | int:
    exact, rounding = sum(amounts, Fraction(0)) / _CENT, exchange.world.switches.cent_rounding
    if rounding == "none":
        return float(exact)
    return math.ceil(exact) if rounding == "up" else math.floor(exact + Fraction(1, 2))


def _endpoints(exchange: Exchange, start: int) -> Iterator[Endpoint]:
    """The endpoints of the account that have run since a time."""
    world, org = exchange.world, exchange.params.get("org")
    for one in [*world.deleted, *world.endpoints.values()]:
        personal = one.namespace not in world.switches.organizations
        spans = [span for replica in one.replicas for span in replica.spans(lambda _: True)]
        ran = any(span.stop is None or span.stop >= start for span in spans)
        if ran and (personal if org is None else one.namespace == org):
            yield one


def _bill(exchange: Exchange, endpoint: Endpoint) -> dict[str, Any]:
    return endpoint_bill(endpoint, exchange.world.switches, exchange.world.clock.now())


def _endpoint_row(exchange: Exchange, endpoint: Endpoint) -> dict[str, Any]:
    bill, hardware = _bill(exchange, endpoint), endpoint.hardware
    product = f"endpoints/{hardware.vendor}/{hardware.instance_type}/{hardware.instance_size}"
    spans = bill["spans"]
    running = any(span["stop"] is None for span in spans)
    return {
        "active": running,
        "entityId": "0" * 24,
        "label": endpoint.full_name,
        "product": product,
        "productPrettyName": product,
        "quantity": bill["minutes"],
        "totalCostMicroUSD": float(Fraction(bill["nano_usd"], _MICRO)),
        "unitCostMicroUSD": float(hardware.price_per_hour * 10**6 / 60),
        "unitLabel": "minute",
        "startedAt": spans[0]["start"] if spans else None,
        "stoppedAt": None if running or not spans else spans[-1]["stop"],
    }


def _period(exchange: Exchange) -> tuple[int, int]:
    """The billing period that runs now: it begins on the day on which the account renews."""
    now, day = _date(exchange.world.clock.now()), exchange.world.switches.renewal_day
    start = now.replace(day=day, hour=0, minute=0, second=0, microsecond=0)
    if start > now:
        start = (start.replace(day=1) - timedelta(days=1)).replace(day=day)
    end = (start.replace(day=1) + timedelta(days=31)).replace(day=day)
    return _microseconds(start), _microseconds(end)


def _moment(exchange: Exchange, name: str, default: int | None) -> int:
    text = exchange.query.get(name)
    if text is None:
        return exchange.world.clock.now() if default is None else default
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise refused(400, f"{name} is a date in ISO 8601") from None


def _month(at: int) -> str:
    return _date(at).strftime("%Y-%m")


def _date(at: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _routes(path: str, op: str, handler: Handler, *, personal: bool = True) -> Iterator[Route]:
    if personal:
        yield Route("GET", f"/hub/api/settings/billing/{path}", op, handler, "billing")
    yield Route("GET", f"/hub/api/organizations/{{org}}/billing/{path}", op, handler, "billing")


ROUTES = [
    *_routes("usage-by-inference-session", "bill_by_session", by_session),
    *_routes("usage-by-resource-group", "bill_by_group", by_resource_group, personal=False),
    *_routes("usage-v2", "bill_usage_v2", usage_v2),
    *_routes("usage/live", "bill_live", live),
    *_routes("usage", "bill_usage", usage),
]
