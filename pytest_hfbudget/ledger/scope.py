"""What has a cap, and where it stands."""

from __future__ import annotations

from typing import NamedTuple

from pytest_hfbudget.money import beside


class Scope(NamedTuple):
    """One budget. Two scopes of one key are the same budget: reruns of a test share its cap.

    Attributes:
        key: unique in a run, over all of its workers.
        name: how a message calls it.
        cap: nano-USD, inclusive; None where nothing is capped and all is counted.
        max_calls: the most calls that may be sent; None for any number.
    """

    key: str
    name: str
    cap: int | None = None
    max_calls: int | None = None


SESSION = "session"


class Totals(NamedTuple):
    """Where one scope stands, in nano-USD and calls."""

    spent: int = 0
    held: int = 0
    calls: int = 0
    refused: int = 0


class RunsBudget(NamedTuple):
    """A budget over many runs, or over many jobs, as it stands.

    Attributes:
        left: nano-USD that no run and no job has spent or holds.
        jobs: how many jobs share it; None where it is not shared over a server.
    """

    label: str
    cap: int
    left: int
    jobs: int | None = None

    @property
    def line(self) -> str:
        """For people."""
        share = "1 job shares" if self.jobs == 1 else f"{self.jobs} jobs share"
        shared = "" if self.jobs is None else f", {share} it"
        left, cap = beside(self.cap, self.left)
        return f"{self.label} {cap} ({left} left{shared})"
