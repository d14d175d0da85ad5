"""Whole suites in real workers, some of which die in the midst of their calls."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest
from chaos_judge import rows
from chaos_suite import LATE, SuitePlan, suite_of

from pytest_hfbudget.emulator import Emulator

SUITES = range(20)
FAULTS = [
    {"match": {"path": "/chat/completions$"}, "skip": 3, "action": {"status": 503}},
    {"match": {"path": "/chat/completions$"}, "skip": 5, "action": {"reset": "after"}},
    {"match": {"path": "/chat/completions$"}, "skip": 7, "action": {"cut_stream_after": 2}},
]


@pytest.mark.slow
@pytest.mark.parametrize("number", SUITES)
def test_workers_that_live_and_die_break_no_cap_and_lose_no_charge(
    one_emulator: Emulator,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    pytest.importorskip("xdist")
    plan = suite_of(number)
    one_emulator.client.reset(faults=FAULTS)
    monkeypatch.setenv("HFBUDGET_EMULATOR", one_emulator.url)
    # Streams are kept to the end of their tests, so that who waits for them waits for nothing.
    monkeypatch.setenv("HFBUDGET_HOLD_WAIT", "0.2")
    (pytester.path / "test_suite.py").write_text(plan.code)
    (pytester.path / "late_calls.py").write_text(LATE)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    cap = f"--hf-session-budget={plan.cap / 10**9:.9f}"
    pytester.runpytest_subprocess(
        *(
            "-p",
            "no:cacheprovider",
            "-p",
            "late_calls",
            f"-n{plan.workers}",
            "--max-worker-restart=9",
        ),
        *(cap, "--hf-on-exhausted=fail", "--hf-report=report.json"),
    )
    judge(plan, one_emulator, json.loads((pytester.path / "report.json").read_text()))


def judge(plan: SuitePlan, emulator: Emulator, report: dict[str, object]) -> None:
    """What the emulator has sent a bill for, against the report and the caps."""
    billed: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for row in rows(emulator.client):
        billed[row.token] += row.nano_usd
        sent[row.token] += 1
    calls = list(report["calls"])  # type: ignore[call-overload]
    charged = Counter[str]()
    for call in calls:
        charged[call["test"].rpartition("_")[2]] += _nano(call["usd"])
    for test in plan.tests:
        own = [_fingerprint(f"hf_chaos_{test.number}_{at}") for at in range(len(test.steps))]
        total = sum(billed[token] for token in own)
        assert total <= charged[str(test.number)], test
        assert test.cap is None or charged[str(test.number)] <= test.cap, test
        assert all(sent[token] <= 1 for token in own), test
    assert sum(billed.values()) <= sum(charged.values()) <= plan.cap
    assert len(calls) == sum(sent.values())
    if not any(call["estimated"] for call in calls):
        assert sum(billed.values()) == sum(charged.values())


def _nano(usd: object) -> int:
    return round(float(str(usd)) * 10**9)


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:8]
