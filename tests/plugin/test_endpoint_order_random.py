"""Random suites with endpoints, in the plugin's order and in their own; the emulator is the judge.

Whatever needs, times, failures, crashes and ``-x`` there are: every test runs once, no fixture is
set up more often, every endpoint is resumed once at most and ends paused, and the endpoints do not
run for longer than in the order of the collection.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

ENDPOINTS = ("acme/a", "acme/b", "acme/c")
COLD_S = 0.4
# How much later than planned a busy machine may be.
SLACK_S = 2.5
HEAD = """
import os, time
import pytest

def note(what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(what + chr(10))

@pytest.fixture(scope="module")
def module_thing(request):
    note("set up " + request.node.name)

@pytest.fixture(scope="class")
def class_thing(request):
    note("set up " + request.node.nodeid)
"""


def write(suite: Suite, seed: int, *, crash: bool) -> None:
    """Some modules of some tests."""
    dice = random.Random(seed)
    places = [(module, number) for module in range(4) for number in range(dice.randint(2, 6))]
    doomed = dice.choice(places) if crash else None
    for module in range(4):
        code = [HEAD]
        for place in (place for place in places if place[0] == module):
            needs = dice.sample(ENDPOINTS, dice.choice([0, 0, 1, 1, 1, 2]))
            marks = f"@pytest.mark.hf_endpoint({', '.join(map(repr, needs))})" if needs else ""
            fixture = dice.choice(["", "", "module_thing"])
            ending = dice.choice(["pass", "pass", "pass", "pass", "assert False", "pytest.skip()"])
            if place == doomed:
                ending = "os._exit(3)"
            name = f"test_{place[1]}"
            code.append(
                f"{marks}\ndef {name}({fixture}):\n    note('ran {module}::{name}')\n"
                f"    time.sleep({dice.uniform(0, 0.2):.3f})\n    {ending}\n"
            )
        (suite.path / f"test_random_{module}.py").write_text("\n".join(code))


@dataclass
class Ran:
    """One run: its notes, and for how long endpoints ran."""

    tests: Counter[str]
    setups: Counter[str]
    seconds: float
    until_end: float


def run(suite: Suite, monkeypatch: pytest.MonkeyPatch, *options: str) -> Ran:
    suite.emulator.reset()
    for name in ENDPOINTS:
        suite.emulator.add_endpoint(name, initializing_s=COLD_S)
    notes = suite.path / "notes"
    notes.unlink(missing_ok=True)
    monkeypatch.setenv("NOTES", str(notes))
    result = suite.run("--tb=no", *options)
    assert result.ret in (0, 1, 2), result.stdout.str()
    resumed = [(e["endpoint"], e["mono"]) for e in suite.requests("resume")]
    assert len(resumed) == len(dict(resumed)), "an endpoint was resumed twice"
    states = {each["name"]: each["state"] for each in suite.emulator.state()["endpoints"]}
    assert set(states.values()) == {"paused"}
    log = suite.emulator.log(kind="state", state="paused")
    paused = {e["endpoint"]: e["mono"] for e in log}
    end = max(paused.values(), default=0.0)
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Ran(
        Counter(line for line in lines if line.startswith("ran")),
        Counter(line for line in lines if line.startswith("set up")),
        sum(paused[name] - at for name, at in resumed),
        sum(end - at for _, at in resumed),
    )


@pytest.mark.parametrize("seed", range(1, 5))
def test_one_process(suite: Suite, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    write(suite, seed, crash=False)
    before = run(suite, monkeypatch, "--hf-order=collected")
    after = run(suite, monkeypatch)
    assert after.tests == before.tests
    assert set(after.tests.values()) == {1}
    assert after.setups <= before.setups
    assert after.seconds <= before.until_end + SLACK_S


@pytest.mark.parametrize("seed", range(5, 9))
def test_one_process_that_stops_at_the_first_failure(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    write(suite, seed, crash=False)
    after = run(suite, monkeypatch, "-x")
    assert set(after.tests.values()) <= {1}


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("seed", range(9, 12))
@pytest.mark.parametrize("workers", [2, 3])
def test_workers(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, seed: int, workers: int, crash: bool
) -> None:
    write(suite, seed, crash=crash)
    before = run(suite, monkeypatch, f"-n{workers}", "--hf-order=collected")
    after = run(suite, monkeypatch, f"-n{workers}")
    assert after.tests == before.tests
    assert set(after.tests.values()) == {1}
    assert after.seconds <= before.until_end + SLACK_S
    if not crash:
        assert sum(after.setups.values()) <= sum(before.setups.values())


@pytest.mark.parametrize("seed", range(12, 14))
def test_workers_that_stop_at_the_first_failure(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    write(suite, seed, crash=False)
    after = run(suite, monkeypatch, "-n2", "-x")
    assert set(after.tests.values()) <= {1}
