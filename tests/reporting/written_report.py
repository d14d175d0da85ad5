"""A small report as a run has written it, with one of everything."""

from __future__ import annotations

import copy
from datetime import datetime, timezone
from typing import Any

from pytest_hfbudget.reporting import Report
from pytest_hfbudget.reporting.json_report import parse

LEAST: dict[str, Any] = {
    "schema": 1,
    "session": {"spent_usd": "0", "cap_usd": None, "calls": 0, "refused": 0},
    "tests": [],
    "calls": [],
    "refusals": [],
    "endpoints": [],
}

_CALL: dict[str, Any] = {
    "test": "test_a.py::test_a",
    "task": "conversational",
    "model": "org/model",
    "provider": "groq",
    "input_tokens": 17,
    "output_tokens": 32,
    "usd": "0.0000049",
    "price_source": "router catalogue of 2026-11-21: org/model:groq",
    "status": "200",
    "estimated": False,
    "seconds": 0.005,
    "where": "",
}


def full() -> dict[str, Any]:
    """One of everything."""
    return copy.deepcopy(
        {
            "schema": 1,
            "run": "5f0c2d9e71ab",
            "date": "2026-11-22T03:10:00+00:00",
            "session": {"spent_usd": "0.0005549", "cap_usd": "0.05", "calls": 3, "refused": 1},
            "tests": [
                {
                    "id": "test_a.py::test_a",
                    "outcome": "failed",
                    "spent_usd": "0.0000049",
                    "cap_usd": "0.01",
                    "calls": 1,
                    "refused": 1,
                    "uptime_usd": "0.0003",
                }
            ],
            "calls": [
                _CALL,
                {**_CALL, "estimated": True, "test": None, "where": "import of conftest"},
                {**_CALL, "usd": None, "price_source": ""},
            ],
            "refusals": [
                {
                    "test": "test_a.py::test_a",
                    "scope": "test_a.py::test_a",
                    "model": "org/model",
                    "message": "org/model may cost up to 100%,\nbut only $0.01 is left",
                }
            ],
            "endpoints": [
                {
                    "name": "acme/llm",
                    "state": "running",
                    "usd": "0.00055",
                    "minutes": 1,
                    "resumed": True,
                    "paused": False,
                    "verified": False,
                    "shares": {"test_a.py::test_a": "0.0003"},
                    "idle_usd": "0.00025",
                }
            ],
        }
    )


def saved(content: dict[str, Any]) -> Report:
    """What is read from it."""
    return parse(content, written=datetime(2026, 1, 1, tzinfo=timezone.utc))
