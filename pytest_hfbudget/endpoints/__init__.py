"""Inference Endpoints that a test run needs: resumed once, paused however the run ends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints.claims import Claim, claims_dir, read_claims
    from pytest_hfbudget.endpoints.control import ControlPlane
    from pytest_hfbudget.endpoints.errand import Outcome, run_errand
    from pytest_hfbudget.endpoints.journal import (
        Journal,
        Lease,
        Record,
        default_state_dir,
        leases,
        leases_dir,
        unfinished,
    )
    from pytest_hfbudget.endpoints.lifecycle import Lifecycle
    from pytest_hfbudget.endpoints.overview import Holder, Standing
    from pytest_hfbudget.endpoints.pace import Pace
    from pytest_hfbudget.endpoints.pausing import Pauser
    from pytest_hfbudget.endpoints.process import alive, start_time
    from pytest_hfbudget.endpoints.protocol import Receipt, Timings, Watch
    from pytest_hfbudget.endpoints.refusal import ControlPlaneError
    from pytest_hfbudget.endpoints.sharing import Shares, Stretch, Use, Window, share_out
    from pytest_hfbudget.endpoints.state import Endpoint, Scaling, billed, split_name
    from pytest_hfbudget.endpoints.sweep import Stray, Swept, find_local, find_tagged
    from pytest_hfbudget.endpoints.terms import (
        DEFAULT_API,
        Afford,
        EndpointReceipt,
        EndpointSettings,
        Grow,
        Progress,
    )

__all__ = [
    "DEFAULT_API",
    "Afford",
    "Claim",
    "ControlPlane",
    "ControlPlaneError",
    "Endpoint",
    "EndpointReceipt",
    "EndpointSettings",
    "Grow",
    "Holder",
    "Journal",
    "Lease",
    "Lifecycle",
    "Outcome",
    "Pace",
    "Pauser",
    "Progress",
    "Receipt",
    "Record",
    "Scaling",
    "Shares",
    "Standing",
    "Stray",
    "Stretch",
    "Swept",
    "Timings",
    "Use",
    "Watch",
    "Window",
    "alive",
    "billed",
    "claims_dir",
    "default_state_dir",
    "find_local",
    "find_tagged",
    "leases",
    "leases_dir",
    "read_claims",
    "run_errand",
    "share_out",
    "split_name",
    "start_time",
    "unfinished",
]

_HOMES = {
    "claims": ("Claim", "claims_dir", "read_claims"),
    "control": ("ControlPlane",),
    "errand": ("Outcome", "run_errand"),
    "journal": (
        "Journal",
        "Lease",
        "Record",
        "default_state_dir",
        "leases",
        "leases_dir",
        "unfinished",
    ),
    "lifecycle": ("Lifecycle",),
    "overview": ("Holder", "Standing"),
    "pace": ("Pace",),
    "pausing": ("Pauser",),
    "process": ("alive", "start_time"),
    "protocol": ("Receipt", "Timings", "Watch"),
    "refusal": ("ControlPlaneError",),
    "sharing": ("Shares", "Stretch", "Use", "Window", "share_out"),
    "state": ("Endpoint", "Scaling", "billed", "split_name"),
    "sweep": ("Stray", "Swept", "find_local", "find_tagged"),
    "terms": ("DEFAULT_API", "Afford", "EndpointReceipt", "EndpointSettings", "Grow", "Progress"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Most test runs need no endpoint, and none of this until the first one that does.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
