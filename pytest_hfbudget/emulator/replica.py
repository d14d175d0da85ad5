"""One replica of an endpoint: the stages it went through, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

# Stages that an endpoint's own trouble gives a replica, as the replica API would call them.
_SHOWN_AS = {"updating": "running", "failed": "stopped"}


@dataclass
class Stage:
    """A stretch of a replica's life, in microseconds; `stop` is None while it lasts."""

    name: str
    start: int
    stop: int | None = None

    @property
    def shown(self) -> str:
        """The stage's name in the public API."""
        return _SHOWN_AS.get(self.name, self.name)


@dataclass(frozen=True)
class Span:
    """A stretch that is billed; `stop` is None while it lasts."""

    replica: str
    start: int
    stop: int | None


@dataclass
class Replica:
    """A replica, which keeps the price that it was started at."""

    id: str
    version: str
    price_per_hour: Fraction
    stages: list[Stage] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """The present stage."""
        return self.stages[-1].name

    @property
    def live(self) -> bool:
        """Whether it can answer."""
        return self.stage in ("running", "updating")

    @property
    def gone(self) -> bool:
        """Whether its life is over."""
        return self.stage == "stopped"

    def enter(self, stage: str, now: int) -> None:
        """End the present stage at `now` and begin the next one; nothing follows `stopped`."""
        if self.stages and self.stage in (stage, "stopped"):
            return
        if self.stages:
            self.stages[-1].stop = now
        self.stages.append(Stage(stage, now, now if stage == "stopped" else None))

    def first(self, *names: str) -> int | None:
        """When the first stage of one of these names began."""
        return next((stage.start for stage in self.stages if stage.name in names), None)

    def spans(self, billed: Callable[[str], bool]) -> list[Span]:
        """The stretches in stages that are billed; neighbours are one stretch."""
        spans: list[Span] = []
        for stage in self.stages:
            if not billed(stage.name) or stage.start == stage.stop:
                continue
            if spans and spans[-1].stop == stage.start:
                spans[-1] = Span(self.id, spans[-1].start, stage.stop)
            else:
                spans.append(Span(self.id, stage.start, stage.stop))
        return spans
