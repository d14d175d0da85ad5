"""The tags by which a run is known on the server, from any machine.

Nothing is published about the characters or the length that a tag may have, but that several
are given as one text with commas between them: so letters, digits and hyphens, not many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RUN = "hfbudget-run-"
UNTIL = "hfbudget-until-"

_ODD = re.compile(r"[^A-Za-z0-9-]+")
_MOST = 48


def of_run(run: str) -> str:
    """The tag that names a run."""
    return RUN + _ODD.sub("-", run)[:_MOST]


def of_end(until: float) -> str:
    """The tag that says when, in unix seconds, the run is over at the latest."""
    return f"{UNTIL}{int(until)}"


def with_lease(tags: Iterable[str], run: str, until: float) -> list[str]:
    """Other people's tags, and those of one run instead of any other's."""
    return [*without_lease(tags), of_run(run), of_end(until)]


def without_lease(tags: Iterable[str]) -> list[str]:
    """Other people's tags."""
    return [tag for tag in tags if not tag.startswith((RUN, UNTIL))]


def run_of(tags: Iterable[str]) -> str | None:
    """The run that is named, if one is."""
    return next((tag.removeprefix(RUN) for tag in tags if tag.startswith(RUN)), None)


def until(tags: Iterable[str]) -> float | None:
    """The latest end that is given, in unix seconds; None if there is none that can be read."""
    ends = [tag.removeprefix(UNTIL) for tag in tags if tag.startswith(UNTIL)]
    return max((float(end) for end in ends if end.isascii() and end.isdigit()), default=None)
