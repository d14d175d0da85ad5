"""The report as a JSON file, schema 1: money as decimal strings in USD."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.money import usd_text
from pytest_hfbudget.reporting.files import write_whole
from pytest_hfbudget.reporting.report import EndpointLine, Report, SharedLine, TestLine

SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data; `SCHEMA_FILE` is its JSON Schema."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "date": report.date,
        "rehearsal": report.rehearsal,
        "session": _session(report),
        "tests": [_test(test) for test in report.tests],
        "shared": [_shared(budget) for budget in report.shared],
        "calls": [_call(charge) for charge in report.charges],
        "refusals": [refusal._asdict() for refusal in report.refusals],
        "endpoints": [_endpoint(endpoint) for endpoint in report.endpoints],
    }


def write(report: Report, path: Path) -> None:
    """Write the file whole or not at all: a run that is killed while writing leaves the old one.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, json.dumps(as_json(report), indent=1) + "\n")


def _session(report: Report) -> dict[str, Any]:
    return {
        "spent_usd": usd_text(report.spent),
        "cap_usd": _usd(report.cap),
        "calls": report.calls,
        "refused": report.refused,
        "replayed": report.replayed,
        "unmetered": dict(report.unmetered),
    }


def _test(test: TestLine) -> dict[str, Any]:
    return {
        "id": test.id,
        "outcome": test.outcome,
        "spent_usd": usd_text(test.spent),
        "cap_usd": _usd(test.cap),
        "calls": test.calls,
        "refused": test.refused,
        "replayed": test.replayed,
        "uptime_usd": usd_text(test.uptime),
    }


def _shared(budget: SharedLine) -> dict[str, Any]:
    return {
        "name": budget.name,
        "level": budget.level,
        "spent_usd": usd_text(budget.spent),
        "cap_usd": _usd(budget.cap),
        "max_calls": budget.max_calls,
        "calls": budget.calls,
        "refused": budget.refused,
    }


def _call(charge: Charge) -> dict[str, Any]:
    """One call; ``usd`` is null where nobody knew a price."""
    return {
        "test": charge.test,
        "task": charge.task,
        "model": charge.model,
        "provider": charge.provider,
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "usd": _usd(charge.nano_usd),
        "price_source": charge.price_source,
        "status": charge.status,
        "estimated": charge.estimated,
        "replayed": charge.replayed,
        "seconds": charge.seconds,
        "over_hold_usd": usd_text(charge.over),
        "where": charge.where,
        "instead_of": charge.instead_of or None,
    }


def _endpoint(endpoint: EndpointLine) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "state": endpoint.state,
        "usd": usd_text(endpoint.nano_usd),
        "minutes": endpoint.minutes,
        "resumed": endpoint.resumed,
        "paused": endpoint.paused,
        "verified": endpoint.verified,
        "resumed_at": _moment(endpoint.resumed_at),
        "paused_at": _moment(endpoint.paused_at),
        "kept": endpoint.kept,
        "left_to": endpoint.left_to,
        "shares": {test: usd_text(nano) for test, nano in endpoint.shares},
        "idle_usd": usd_text(endpoint.idle),
        "cold_start_usd": usd_text(endpoint.cold_start),
    }


def _moment(unix_s: float | None) -> str | None:
    """RFC 3339, in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def _usd(amount: int | None) -> str | None:
    return None if amount is None else usd_text(amount)
