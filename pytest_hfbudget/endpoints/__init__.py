"""Inference Endpoints that a test run needs: resumed once, paused however the run ends.

Here is an endpoint as the control plane describes it: its name, its states and its tags.
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

    @property
    def hardware(self) -> str:
        """What it runs on, for people."""
        parts = self.vendor, self.region, self.instance_type, self.instance_size
        return " ".join(filter(None, parts)) or "hardware that is not known yet"

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
        """One that does not run yet, as the form that creates it says (``EndpointCreate``)."""
        return cls.parse(namespace, {**form, "status": {"state": PAUSED}})

    @property
    def at_rest(self) -> bool:
        """Whether it serves only after a resume."""
        return self.state in ASLEEP | BROKEN

    @property
    def reason(self) -> str:
        """Why it failed, as the server says."""
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
    """The objects of a list; whatever else a server may put there is nothing to go by."""
    return tuple(o for o in items if isinstance(o, Mapping)) if isinstance(items, list) else ()


# Nothing is published about the characters or the length that a tag may have, but that several
# are given as one text with commas between them: so letters, digits and hyphens, not many.
RUN_TAG = "hfbudget-run-"
UNTIL_TAG = "hfbudget-until-"

_ODD_IN_TAG = re.compile(r"[^A-Za-z0-9-]+")
_MOST_IN_TAG = 48


def run_tag(run: str) -> str:
    """The tag that names a run."""
    return RUN_TAG + _ODD_IN_TAG.sub("-", run)[:_MOST_IN_TAG]


def end_tag(until: float) -> str:
    """The tag that says when, in unix seconds, the run is over at the latest."""
    return f"{UNTIL_TAG}{int(until)}"


def with_run_tags(tags: Iterable[str], run: str, until: float) -> list[str]:
    """Other people's tags, and those of one run instead of any other's."""
    return [*without_run_tags(tags), run_tag(run), end_tag(until)]


def without_run_tags(tags: Iterable[str]) -> list[str]:
    """Other people's tags."""
    return [tag for tag in tags if not tag.startswith((RUN_TAG, UNTIL_TAG))]


def tagged_run(tags: Iterable[str]) -> str | None:
    """The run that is named, if one is."""
    return next((tag.removeprefix(RUN_TAG) for tag in tags if tag.startswith(RUN_TAG)), None)


def tagged_until(tags: Iterable[str]) -> float | None:
    """The latest end that is given, in unix seconds; None if there is none that can be read."""
    ends = [tag.removeprefix(UNTIL_TAG) for tag in tags if tag.startswith(UNTIL_TAG)]
    return max((float(end) for end in ends if end.isascii() and end.isdigit()), default=None)


@dataclass
class TaggedEnd:
    """The latest end of a run that an endpoint's tags tell.

    Attributes:
        until: unix seconds; None when there is no such tag.
        renew_at: unix seconds, not to be renewed before; the last try has failed.
    """

    until: float | None = None
    renew_at: float = 0.0
