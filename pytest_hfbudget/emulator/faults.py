"""Scripted faults: which requests go wrong, how often, and how.

`gateway` carries most of them out, `stream` those in a stream, `control` the lies about a pause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Action:
    """What happens to a request that a fault caught. Times are in real seconds.

    `applied` says whether the request takes effect although its answer is replaced; left out, a
    `status` fault does not apply it and a `garbage` fault does.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    delay: float = 0.0
    hang: float | None = None  # accept, wait, then do what `then` says
    then: Literal["proceed", "close"] = "proceed"
    reset: Literal["before", "after"] | None = None  # TCP reset; "after" the request took effect
    lie: bool = False  # pause or resume says yes and does nothing
    flip_back_s: float | None = None  # a pause that holds for so long only
    slow_body: float = 0.0  # seconds per byte of the answer's body
    slow_head: float | None = None  # seconds per byte of headers that never end
    cut_stream_after: int | None = None  # chunks, then a TCP reset
    error_in_stream_after: int | None = None  # chunks, then an error event
    garbage: bool = False  # 200 and a body that is no JSON
    applied: bool | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Action:
        """From JSON. Raises ValueError for an action that there is not."""
        known = {each.name for each in fields(cls)}
        if not raw or set(raw) - known:
            raise ValueError(f"an action has some of {', '.join(sorted(known))}; not {dict(raw)}")
        return cls(**raw)

    @property
    def replaces_answer(self) -> bool:
        """Whether the client gets an answer that the service did not give."""
        return self.status is not None or self.garbage

    @property
    def applies(self) -> bool:
        """Whether the request takes effect."""
        if self.reset == "before" or self.slow_head is not None:
            return False
        if self.applied is not None:
            return self.applied
        return self.status is None

    def told(self) -> dict[str, Any]:
        """For the log: what differs from no fault at all."""
        plain = asdict(Action())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


@dataclass
class Fault:
    """An action and the requests it is for: the next `times` that match, after `skip` of them."""

    action: Action
    op: str | None = None
    path: re.Pattern[str] | None = None
    endpoint: str | None = None
    times: int | None = 1
    skip: int = 0

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Fault:
        """From JSON. Raises ValueError for a field that there is not."""
        match = raw.get("match") or {}
        if set(raw) - {"match", "times", "skip", "action"} or set(match) - {
            "op",
            "path",
            "endpoint",
        }:
            raise ValueError(
                "a fault is {match: {op, path, endpoint}, times, skip, action}; "
                f"times null means for ever; not {dict(raw)}"
            )
        path = match.get("path")
        return cls(
            action=Action.parse(raw.get("action") or {}),
            op=match.get("op"),
            path=re.compile(path) if path else None,
            endpoint=match.get("endpoint"),
            times=raw.get("times", 1),
            skip=int(raw.get("skip", 0)),
        )

    def catches(self, op: str, path: str, endpoint: str | None) -> bool:
        """Whether it is for such a request."""
        return (
            self.op in (None, op)
            and self.endpoint in (None, endpoint)
            and (self.path is None or self.path.search(path) is not None)
        )


class Faults:
    """The script; the first fault that is not used up gets the request."""

    def __init__(self) -> None:
        self.script: list[Fault] = []

    def extend(self, raw: Iterable[Mapping[str, Any]]) -> None:
        """Append faults given as JSON. Raises ValueError when one is malformed."""
        self.script += [Fault.parse(each) for each in raw]

    def take(self, op: str, path: str, endpoint: str | None) -> Action | None:
        """The action for a request that has just come in, counting it."""
        for fault in self.script:
            if fault.times == 0 or not fault.catches(op, path, endpoint):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
            return fault.action
        return None
