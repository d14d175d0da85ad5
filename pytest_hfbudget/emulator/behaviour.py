"""The settings of one endpoint in a test: how it changes its state, and how far it scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Behaviour:
    """How this endpoint changes its state; seconds are on the emulator's clock."""

    pending_s: float = 0.0
    initializing_s: float = 0.0
    updating_s: float = 0.0  # 0: an update of a running endpoint does not show
    pause_lag_s: float = 0.0  # between the acknowledged pause and the state `paused`
    view_lag_s: float = 0.0  # by which the state that the API tells is behind
    health_delay_s: float = 0.0  # running, while /health still says 503
    resume_to: Literal["running", "failed", "updateFailed", "stuck"] = "running"
    update_to: Literal["running", "updateFailed"] = "running"
    failure: Literal["runtime", "config"] = "runtime"  # of the state `failed`
    quota_ok: bool = True  # checked by each resume
    load: int = 0  # replicas that its requests are worth; maxReplica allows them or not
    load_check_s: float = 60.0  # between two looks at the load (docs, guides/autoscaling)


@dataclass(frozen=True)
class Scaling:
    """How many replicas there may be; `idle_minutes` is the scale-to-zero timeout."""

    minimum: int = 0
    maximum: int = 1
    idle_minutes: int | None = None
    measure: dict[str, Any] | None = None
