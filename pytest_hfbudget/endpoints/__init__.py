"""Inference Endpoints that a test run needs: resumed once, paused however the run ends.

This module has an endpoint as the control plane describes it: its name, its states and its tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.text import printable

UPDATE_FAILED = "updateFailed"
RUNNING = "running"
PAUSED = "paused"
FAILED = "failed"
SCALED_TO_ZERO = "scaledToZero"
GONE = "gone"  # our own word, no state of the server: the endpoint was deleted
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
        ConfigError: the name has another form; there is no default namespace here.
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
        scale_to_zero_min: idle minutes after which the server scales to zero; None for never.
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
    """One endpoint, as in one answer of the control plane.

    Any key may be missing from the answer, because an incomplete answer must not prevent a pause.

    Attributes:
        state: one of the states above, or one that this release does not know.
        url: where it serves; empty if it has no URL yet.
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
        """``namespace/name``; the key of an endpoint in this package."""
        return f"{self.namespace}/{self.name}"

    @property
    def hardware(self) -> str:
        """The hardware that it runs on, in words for messages."""
        parts = self.vendor, self.region, self.instance_type, self.instance_size
        return " ".join(filter(None, parts)) or "unknown hardware"

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

    @classmethod
    def to_be(cls, namespace: str, form: Mapping[str, Any]) -> Endpoint:
        """The paused endpoint that the body of a create request (``EndpointCreate``) describes."""
        return cls.parse(namespace, {**form, "status": {"state": PAUSED}})

    @property
    def at_rest(self) -> bool:
        """Whether it needs a resume to serve: it is paused, scaled to zero, or failed."""
        return self.state in ASLEEP | BROKEN

    @property
    def reason(self) -> str:
        """The server's reason for a failure."""
        status = _mapping(self.raw.get("status"))
        told = status.get("errorMessage") or status.get("message") or "no reason given"
        return printable(str(told))

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
    """The JSON objects in a list; other values, and what is no list, are ignored."""
    return tuple(o for o in items if isinstance(o, Mapping)) if isinstance(items, list) else ()


# Hugging Face does not publish which characters a tag may have, or how long it may be. It passes
# several tags as one text with commas. So we use few characters: letters, digits and hyphens.
RUN_TAG = "hfbudget-run-"
UNTIL_TAG = "hfbudget-until-"

_ODD_IN_TAG = re.compile(r"[^A-Za-z0-9-]+")
_MOST_IN_TAG = 48


def run_tag(run: str) -> str:
    """The tag that names a run."""
    return RUN_TAG + _ODD_IN_TAG.sub("-", run)[:_MOST_IN_TAG]


def end_tag(until: float) -> str:
    """The tag with the latest end of a run, in unix seconds."""
    return f"{UNTIL_TAG}{int(until)}"


def with_run_tags(tags: Iterable[str], run: str, until: float) -> list[str]:
    """The tags with those of this run instead of those of other runs."""
    return [*without_run_tags(tags), run_tag(run), end_tag(until)]


def without_run_tags(tags: Iterable[str]) -> list[str]:
    """The tags without those of any run."""
    return [tag for tag in tags if not tag.startswith((RUN_TAG, UNTIL_TAG))]


def tagged_run(tags: Iterable[str]) -> str | None:
    """The run that the tags name; None if they name none."""
    return next((tag.removeprefix(RUN_TAG) for tag in tags if tag.startswith(RUN_TAG)), None)


def tagged_until(tags: Iterable[str]) -> float | None:
    """The latest end of a run in the tags, in unix seconds; None without a readable one."""
    ends = [tag.removeprefix(UNTIL_TAG) for tag in tags if tag.startswith(UNTIL_TAG)]
    return max((float(end) for end in ends if end.isascii() and end.isdigit()), default=None)


@dataclass
class TaggedEnd:
    """The latest end of a run, as the tags of an endpoint have it.

    Attributes:
        until: unix seconds; None without such a tag.
        renew_at: unix seconds before which the tag is not renewed, since the last try failed.
    """

    until: float | None = None
    renew_at: float = 0.0
