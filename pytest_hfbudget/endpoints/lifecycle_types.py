"""What the rest of the plugin tells the lifecycle of endpoints, and what it is told back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pytest_hfbudget.endpoints import tags
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.lease_store import lease_store_dir
from pytest_hfbudget.endpoints.reaper_messages import Timings
from pytest_hfbudget.endpoints.retry import RetryPolicy
from pytest_hfbudget.endpoints.types import Endpoint
from pytest_hfbudget.endpoints.uptime import NO_TIME, UsageWindow

DEFAULT_API = "https://api.endpoints.huggingface.cloud/v2"


# Name, state and seconds since the wait began; called each time that the state was read.
Progress: TypeAlias = Callable[[str, str, float], None]


# The endpoint and nano-USD for a minute of it (None: no known price); raises to refuse.
Afford: TypeAlias = Callable[[Endpoint, "int | None"], None]


# The endpoint, how many replicas may run beside those that are paid for, nano-USD for a minute of
# these, and whether it was not resumed yet: then it raises to refuse.
Grow: TypeAlias = Callable[[Endpoint, int, int, bool], None]


@dataclass(frozen=True)
class EndpointSettings:
    """How endpoints of one run are kept.

    Attributes:
        api: base URL of the control plane, with its version.
        run: names this run in the journal and in the endpoint's tags.
        state_dir: where journals of leases live.
        capped: a cap has to pay for the endpoints, so they may not scale beyond what it pays for.
        idle_timeout_min: minutes without a request after which the server is to scale the
            endpoint to zero, should everything on this machine be gone.
        max_run_s: how long a run takes at most. After that a sweep from any machine may pause
            what it has tagged; a run that goes on renews its tags in time.
        wait_timeout_s: how long an endpoint may take from its resume until it serves.
        poll_s: seconds between two looks while waiting for that.
        billing_minute_s: length of a billing minute; other than 60 for tests only.
        verify_deadline_s: how long `Lifecycle.finish` waits for verified pauses. The reaper
            goes on after that.
        reaper_deadline_s: after how long the reaper gives up on an endpoint.
        arm_timeout_s: how long the reaper may take to be ready; nothing is resumed without it.
        try_s: seconds for one try of one request.
        retry_s: seconds for one operation of the control plane with all its tries.
        settle_s: seconds for which a resume whose answer was lost may still take effect.
        verify_poll_s: seconds between two looks while verifying a pause.
        resend_s: an accepted pause that has not happened by then is sent again.
        doubt_s: how long a server must answer 404, or that the token is refused, and nothing
            else, before that is believed.
        looks_s: seconds after a verified pause at which the reaper looks again, and pauses what
            runs again.
    """

    api: str
    token: str | None = field(repr=False)
    run: str
    state_dir: Path = field(default_factory=default_state_dir)
    capped: bool = False
    idle_timeout_min: int = 15
    max_run_s: float = 6 * 3600.0
    wait_timeout_s: float = 900.0
    poll_s: float = 2.0
    billing_minute_s: float = 60.0
    verify_deadline_s: float = 120.0
    reaper_deadline_s: float = 600.0
    arm_timeout_s: float = 15.0
    try_s: float = 10.0
    retry_s: float = 60.0
    settle_s: float = 20.0
    verify_poll_s: float = 0.5
    resend_s: float = 5.0
    doubt_s: float = 15.0
    looks_s: tuple[float, ...] = (30.0, 120.0)

    @property
    def pace(self) -> RetryPolicy:
        """For the owner's own requests."""
        return RetryPolicy(try_s=self.try_s, total_s=self.retry_s)

    @property
    def timings(self) -> Timings:
        """For the reaper."""
        return Timings(
            try_s=self.try_s,
            poll_s=self.verify_poll_s,
            resend_s=self.resend_s,
            settle_s=self.settle_s,
            deadline_s=self.reaper_deadline_s,
            doubt_s=self.doubt_s,
            looks_s=self.looks_s,
        )

    @property
    def tag(self) -> str:
        """The tag that names this run on its endpoints."""
        return tags.of_run(self.run)

    @property
    def claims(self) -> Path:
        """The folder of what runs of this machine have in use."""
        return lease_store_dir(self.state_dir)


@dataclass(frozen=True)
class EndpointReceipt:
    """What became of one endpoint of this run.

    Attributes:
        state: the last one that was seen.
        resumed: this run has resumed it, or may have: an answer that was lost counts.
        resumed_at, paused_at: unix seconds; the latter is when the pause was read back.
        verified: the pause was read back.
        minutes: started billing minutes of all replicas.
        nano_usd: what they cost; 0 if ``price_nano_per_hour`` is None.
        price_nano_per_hour: of one replica; None when the hardware list has no price.
        error: why the pause is not verified, and what to do.
        found_running: it was up before this run, and is paused at the end all the same.
        kept: it was up before this run and was asked to stay so; nothing is charged.
        estimated: ``minutes`` is an upper bound.
        warnings: what went wrong without harm to the pause.
        reason: why it was paused: "asked", "deadline" (see `Lifecycle.pause_after`), "owner
            gone" or "reaper lost"; empty before.
        joined: the run that had brought it up, and was using it too.
        left_to: the run that went on using it, and pauses it.
        revived: how often it was resumed again after someone else had paused it.
        window: the time that is paid for, by this machine's steady clock.
    """

    name: str
    state: str
    resumed: bool
    resumed_at: float | None
    paused_at: float | None
    verified: bool
    minutes: int
    nano_usd: int
    price_nano_per_hour: int | None
    error: str | None
    found_running: bool
    kept: bool = False
    estimated: bool = False
    warnings: tuple[str, ...] = ()
    reason: str = ""
    joined: str | None = None
    left_to: str | None = None
    revived: int = 0
    window: UsageWindow = NO_TIME

    @property
    def in_order(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.verified or self.kept or self.left_to is not None
