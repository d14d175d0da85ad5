"""Plain types: an endpoint as the control plane describes it, the settings, and the receipts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pytest_hfbudget.endpoints import tags
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.lease_store import claims_dir
from pytest_hfbudget.endpoints.reaper_messages import Timings
from pytest_hfbudget.endpoints.retry import Pace
from pytest_hfbudget.endpoints.uptime import NO_TIME, Window
from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.text import printable

UPDATE_FAILED = "updateFailed"


RUNNING = "running"


PAUSED = "paused"


FAILED = "failed"


SCALED_TO_ZERO = "scaledToZero"


GONE = "gone"  # ours, not the server's: the endpoint was deleted


ASLEEP = frozenset({PAUSED, SCALED_TO_ZERO})


BROKEN = frozenset({FAILED, UPDATE_FAILED})


_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def billed(state: str) -> bool:
    """Whether time in this state may cost money.

    Hugging Face names *initializing* and *running* as charged and *paused* and *scaledToZero*
    as free; about the others nothing is published, so they count as charged.
    """
    return state not in ASLEEP and state != GONE


def split_name(name: str) -> tuple[str, str]:
    """``"namespace/name"`` as its two halves.

    Raises:
        ConfigError: anything else; there is no default namespace at this level.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f'{name!r} does not name an endpoint; write "namespace/name", '
            "as in the address bar of https://endpoints.huggingface.co"
        )
    namespace, _, short = name.partition("/")
    return namespace, short


@dataclass(frozen=True)
class Scaling:
    """How many replicas an endpoint may have.

    Attributes:
        scale_to_zero_min: idle minutes after which the server scales to zero; None is never.
    """

    min_replica: int = 0
    max_replica: int = 1
    scale_to_zero_min: int | None = None

    @classmethod
    def parse(cls, raw: object) -> Scaling:
        """Read ``compute.scaling``; a missing key gets the default."""
        data = _mapping(raw)
        idle = data.get("scaleToZeroTimeout")
        return cls(
            min_replica=_count(data.get("minReplica"), 0),
            max_replica=_count(data.get("maxReplica"), 1),
            scale_to_zero_min=idle if _is_int(idle) else None,
        )


@dataclass(frozen=True)
class Endpoint:
    """One endpoint as of one answer of the control plane.

    Every key may be missing from the answer: reading it must never be what stops a pause.

    Attributes:
        state: one of the states above, or one that is newer than this file.
        url: where it serves, empty when it has none.
        raw: the whole answer.
    """

    namespace: str
    name: str
    state: str
    url: str = ""
    health_route: str = "/health"
    vendor: str = ""
    region: str = ""
    instance_type: str = ""
    instance_size: str = ""
    scaling: Scaling = field(default_factory=Scaling)
    ready_replica: int = 0
    target_replica: int = 0
    updated_at: str = ""
    tags: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def full_name(self) -> str:
        """``namespace/name``: how people write it, and how this package keys it."""
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, namespace: str, raw: Mapping[str, Any]) -> Endpoint:
        """Read an ``EndpointWithStatus`` object; what is missing or misshapen gets a default."""
        status, provider = _mapping(raw.get("status")), _mapping(raw.get("provider"))
        compute = _mapping(raw.get("compute"))
        tags = raw.get("tags")
        return cls(
            namespace=namespace,
            name=_text(raw.get("name")),
            state=_text(status.get("state")),
            url=_text(status.get("url")),
            health_route=_text(raw.get("healthRoute")) or "/health",
            vendor=_text(provider.get("vendor")),
            region=_text(provider.get("region")),
            instance_type=_text(compute.get("instanceType")),
            instance_size=_text(compute.get("instanceSize")),
            scaling=Scaling.parse(compute.get("scaling")),
            ready_replica=_count(status.get("readyReplica"), 0),
            target_replica=_count(status.get("targetReplica"), 0),
            updated_at=_text(status.get("updatedAt")),
            tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
            raw=raw,
        )

    @property
    def first_replicas(self) -> int:
        """How many replicas there are, or will be after a resume."""
        return max(self.scaling.min_replica, self.target_replica, 1)

    @property
    def most_replicas(self) -> int:
        """How many replicas the server may start without being asked."""
        return max(self.scaling.max_replica, self.ready_replica, self.first_replicas)

    @property
    def raw_scaling(self) -> dict[str, Any]:
        """``compute.scaling`` word for word, with keys that this package does not know."""
        return dict(_mapping(_mapping(self.raw.get("compute")).get("scaling")))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return printable(value) if isinstance(value, str) else ""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) and _is_int(value) and value >= 0 else default


def objects(items: object) -> tuple[Mapping[str, Any], ...]:
    """The objects of a list; whatever else a server may put there is nothing to go by."""
    return tuple(o for o in items if isinstance(o, Mapping)) if isinstance(items, list) else ()


DEFAULT_API = "https://api.endpoints.huggingface.cloud/v2"


# Name, state and seconds since the wait began; called each time that the state was read.
Progress: TypeAlias = Callable[[str, str, float], None]


# The endpoint and nano-USD for a minute of it (None: nobody knows its price); raises to refuse.
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
        verify_deadline_s: how long `Lifecycle.finish` waits for verified pauses. The keeper
            goes on after that.
        keeper_deadline_s: after how long the keeper gives up on an endpoint.
        arm_timeout_s: how long the keeper may take to be ready; nothing is resumed without it.
        try_s: seconds for one try of one request.
        retry_s: seconds for one operation of the control plane with all its tries.
        settle_s: seconds for which a resume whose answer was lost may still take effect.
        verify_poll_s: seconds between two looks while verifying a pause.
        resend_s: an accepted pause that has not happened by then is sent again.
        doubt_s: how long a server must answer 404, or that the token is refused, and nothing
            else, before that is believed.
        looks_s: seconds after a verified pause at which the keeper looks again, and pauses what
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
    keeper_deadline_s: float = 600.0
    arm_timeout_s: float = 15.0
    try_s: float = 10.0
    retry_s: float = 60.0
    settle_s: float = 20.0
    verify_poll_s: float = 0.5
    resend_s: float = 5.0
    doubt_s: float = 15.0
    looks_s: tuple[float, ...] = (30.0, 120.0)

    @property
    def pace(self) -> Pace:
        """For the owner's own requests."""
        return Pace(try_s=self.try_s, total_s=self.retry_s)

    @property
    def timings(self) -> Timings:
        """For the keeper."""
        return Timings(
            try_s=self.try_s,
            poll_s=self.verify_poll_s,
            resend_s=self.resend_s,
            settle_s=self.settle_s,
            deadline_s=self.keeper_deadline_s,
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
        return claims_dir(self.state_dir)


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
            gone" or "keeper lost"; empty before.
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
    window: Window = NO_TIME

    @property
    def in_order(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.verified or self.kept or self.left_to is not None
