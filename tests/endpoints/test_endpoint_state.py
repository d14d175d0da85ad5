"""Reading what the control plane says about an endpoint."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pytest_hfbudget.endpoints import Endpoint, Scaling, billed, split_name
from pytest_hfbudget.errors import ConfigError

RAW: dict[str, Any] = {
    "name": "ci-llm",
    "tags": ["ci"],
    "provider": {"vendor": "aws", "region": "us-east-1"},
    "healthRoute": "/ready",
    "compute": {
        "instanceType": "nvidia-l4",
        "instanceSize": "x1",
        "scaling": {
            "minReplica": 0,
            "maxReplica": 2,
            "scaleToZeroTimeout": 15,
            "measure": {"a": 1},
        },
    },
    "status": {
        "state": "running",
        "url": "https://x.endpoints.huggingface.cloud",
        "readyReplica": 1,
        "targetReplica": 2,
        "updatedAt": "2026-11-01T10:00:00Z",
    },
}


def test_a_whole_answer_is_read() -> None:
    endpoint = Endpoint.parse("acme", RAW)
    assert endpoint.full_name == "acme/ci-llm"
    assert (endpoint.state, endpoint.health_route) == ("running", "/ready")
    assert (endpoint.vendor, endpoint.region) == ("aws", "us-east-1")
    assert (endpoint.instance_type, endpoint.instance_size) == ("nvidia-l4", "x1")
    assert endpoint.scaling == Scaling(0, 2, 15)
    assert (endpoint.ready_replica, endpoint.target_replica) == (1, 2)
    assert endpoint.tags == ("ci",)
    assert endpoint.raw_scaling["measure"] == {"a": 1}


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"status": None, "compute": None, "tags": None, "provider": "aws"},
        {"status": {"state": 7, "readyReplica": "2"}, "compute": {"scaling": []}},
    ],
)
def test_missing_and_misshapen_keys_get_defaults(raw: dict[str, Any]) -> None:
    endpoint = Endpoint.parse("acme", raw)
    assert endpoint.state == ""
    assert endpoint.scaling == Scaling(0, 1, None)
    assert endpoint.ready_replica == 0
    assert endpoint.health_route == "/health"
    assert endpoint.raw_scaling == {}


def test_all_states_but_paused_and_scaled_to_zero_may_cost() -> None:
    free = {"paused", "scaledToZero", "gone"}
    states = {"pending", "initializing", "updating", "updateFailed", "running", "failed", "new?"}
    assert not any(billed(state) for state in free)
    assert all(billed(state) for state in states)


@pytest.mark.parametrize("name", ["llm", "a/b/c", "/llm", "acme/", "acme/l m", "../x", "acme/.."])
def test_a_name_without_a_namespace_is_a_configuration_error(name: str) -> None:
    with pytest.raises(ConfigError, match="namespace/name"):
        split_name(name)


def test_importing_the_room_loads_no_http_client() -> None:
    code = "import sys, pytest_hfbudget.endpoints; print('urllib3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
