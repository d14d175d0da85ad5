"""What has a cap, and where it stands."""

from __future__ import annotations

from typing import NamedTuple


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
