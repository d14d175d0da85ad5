"""How tests ended: the worst of what pytest reported of each, in any of its phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from pytest_hfbudget.plugin.exhaustion import NOT_RUN, marked

INTERRUPTED = "interrupted"
FROM_BEST_TO_WORST = ("rerun", "passed", "skipped", NOT_RUN, "failed")


class Outcomes(Mapping[str, str]):
    """By node id; of one that several workers run (``--dist each``) the worst of all.

    A test begins anew with its set-up, and is interrupted until the end of its call is told.
    """

    def __init__(self, *, each: bool) -> None:
        self._each = each
        self._worst: dict[str, dict[str, str]] = {}

    def note(self, report: pytest.TestReport) -> None:
        """Take in what is told of one phase, or of a part of one."""
        worker = getattr(report, "worker_id", "") if self._each else ""
        of_test = self._worst.get(report.nodeid, {})
        outcome = NOT_RUN if marked(report) else str(report.outcome)
        if report.when == "setup":
            of_test[worker] = INTERRUPTED if outcome == "passed" else outcome
        elif outcome != "passed" or (report.when == "call" and not is_part(report)):
            of_test[worker] = _worse(of_test.get(worker, INTERRUPTED), outcome)
        if of_test:
            self._worst[report.nodeid] = of_test

    def __getitem__(self, test: str) -> str:
        outcomes = list(self._worst[test].values())
        worst = outcomes[0]
        for outcome in outcomes[1:]:
            worst = INTERRUPTED if INTERRUPTED in (worst, outcome) else _worse(worst, outcome)
        return worst

    def __iter__(self) -> Iterator[str]:
        return iter(self._worst)

    def __len__(self) -> int:
        return len(self._worst)


def is_part(report: pytest.TestReport) -> bool:
    """Whether a report is of a subtest: the test itself goes on."""
    return hasattr(report, "context")


def _worse(one: str, other: str) -> str:
    return max(one, other, key=lambda outcome: _RANKS.get(outcome, -1))


_RANKS = {outcome: rank for rank, outcome in enumerate(FROM_BEST_TO_WORST)}
