"""How long endpoints run beyond what cannot be avoided, and how long the run takes.

Whole runs of pytest against the emulator, which is a process of its own; its log tells when each
endpoint was resumed and when it was paused. Unavoidable is, for each endpoint, its cold start and
then its tests, on all workers: ``cold + max(longest, sum / workers)``. Seconds are weighted by the
price. Each suite runs in the order of its collection first (`hf_order=collected`), as a run
without this plugin's order would, and its endpoints then run until the end of the run; that is
computed from the same log. The next run learns how long everything takes, the last one counts.

    python benchmarks/endpoint_minutes.py [NAME ...]

A name selects suites: serial, n2, n4, random, two, reruns, ten. Exit code 1 if blocks take more
than 1.05 times the unavoidable, or more started minutes than the least, or an endpoint of the
random order was paused later than a second after its last test.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_hfbudget.emulator import EmulatorClient

GOAL, PAUSE_S = 1.05, 1.0
COLD_S, TEST_S, FREE_S = 4.0, 0.75, 0.25
MINUTE_S = 3.0
PRICES = {"x1": 0.033, "x4": 0.134}

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
PREAMBLE = "import time\nimport pytest\n"
TEST = """
{marks}
def test_{number}_{name}({fixture}):
    {flaky}time.sleep({seconds})
"""
RERUN = "global tried_{number}; tried_{number} = globals().get('tried_{number}', 0) + 1\n    "
SHUFFLED = """
import random
def pytest_collection_modifyitems(items):
    random.Random(7).shuffle(items)
"""


@dataclass(frozen=True)
class Planned:
    """One test of a suite."""

    needs: tuple[str, ...]
    seconds: float
    flaky: bool = False


@dataclass(frozen=True)
class Suite:
    """One suite, and how it is run."""

    name: str
    tests: tuple[Planned, ...]
    workers: int = 1
    shuffled: bool = False

    @property
    def endpoints(self) -> dict[str, str]:
        """Their sizes, by name: every third is four times as expensive."""
        names = dict.fromkeys(name for test in self.tests for name in test.needs)
        return {name: ("x1", "x1", "x4")[at % 3] for at, name in enumerate(names)}

    def write(self, folder: Path) -> None:
        """The suite's files; tests of all endpoints stand side by side, as they do in a project."""
        code = [PREAMBLE]
        for number, test in enumerate(self.tests):
            marks = f"@pytest.mark.hf_endpoint({', '.join(map(repr, test.needs))})"
            flaky = RERUN.format(number=number) if test.flaky else ""
            check = f"\n    assert tried_{number} > 1" if test.flaky else ""
            body = TEST.format(
                marks=marks if test.needs else "",
                number=f"{number:03}",
                name="_".join(name.rpartition("/")[2] for name in test.needs) or "free",
                fixture="",
                flaky=flaky,
                seconds=test.seconds,
            )
            code.append(body.rstrip() + check + "\n")
        (folder / "test_minutes.py").write_text("".join(code))
        if self.shuffled:
            (folder / "conftest.py").write_text(SHUFFLED)

    def least(self, name: str) -> float:
        """Seconds that cannot be avoided."""
        times = [test.seconds * (1 + test.flaky) for test in self.tests if name in test.needs]
        return COLD_S + max(*times, sum(times) / self.workers)


def mixed(endpoints: int, each: int, *, both: int = 0, flaky: int = 0) -> tuple[Planned, ...]:
    """Tests of several endpoints and free ones, one of each in turn."""
    names = [f"acme/e{number}" for number in range(endpoints)]
    tests = [Planned((name,), TEST_S) for _ in range(each) for name in names]
    tests += [Planned((names[0], names[1]), TEST_S)] * both
    for number in range(flaky):
        tests[number * 3] = Planned(tests[number * 3].needs, TEST_S, flaky=True)
    mix = random.Random(3)  # noqa: S311  # the same suite each time
    mix.shuffle(tests)
    free = [Planned((), FREE_S) for _ in range(int(COLD_S / FREE_S) + 12)]
    together = tests + free
    mix.shuffle(together)
    return tuple(together)


SUITES = (
    Suite("serial", mixed(3, 8)),
    Suite("n2", mixed(3, 16), workers=2),
    Suite("n4", mixed(3, 32), workers=4),
    Suite("random", mixed(3, 8), shuffled=True),
    Suite("two", mixed(3, 8, both=4)),
    Suite("reruns", mixed(3, 8, flaky=2)),
    Suite("ten", mixed(10, 4)),
)


@dataclass(frozen=True)
class Outcome:
    """What the log says of one run.

    Attributes:
        spans: seconds from the resume to the pause, by endpoint.
        until_end: from the resume to the last pause of all.
        minutes: started ones, on the invoice.
        late: the longest time from the end of an endpoint's last test to its pause.
    """

    wall: float
    spans: dict[str, float]
    until_end: dict[str, float]
    minutes: dict[str, int]
    late: float


def emulator() -> Iterator[EmulatorClient]:
    """An emulator that ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_hfbudget.emulator", "--exit-with", str(os.getpid())],
        stdout=subprocess.PIPE,
        text=True,
    )
    url = process.stdout.readline() if process.stdout else ""
    yield EmulatorClient(url.strip())
    process.kill()
    process.communicate()


def environment(state: Path, url: str) -> dict[str, str]:
    """The user's own, but for what would lead a run elsewhere; the emulator passes for real."""
    mine = ("HFBUDGET_", "PYTEST_", "HF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    return {
        **kept,
        "HFBUDGET_STATE_DIR": str(state),
        "HFBUDGET_CACHE_DIR": str(state),
        "HFBUDGET_ROUTER": f"{url}/router",
        "HFBUDGET_ENDPOINTS_API": f"{url}/v2",
        "HFBUDGET_BILLING_MINUTE": str(MINUTE_S),
        "HFBUDGET_ENDPOINT_LOOKS": "0",
        "HF_ENDPOINT": f"{url}/hub",
        "HF_TOKEN": "hf_any",
    }


def run(suite: Suite, folder: Path, client: EmulatorClient, *options: str) -> Outcome:
    """One run of pytest, and what the emulator has seen of it."""
    client.reset(billing_minute_s=MINUTE_S)
    for name, size in suite.endpoints.items():
        client.add_endpoint(name, initializing_s=COLD_S, instance_size=size)
    workers = ("-n", str(suite.workers)) if suite.workers > 1 else ()
    reruns = ("--reruns", "1") if any(test.flaky for test in suite.tests) else ()
    report = folder / "report.json"
    began = time.monotonic()
    done = subprocess.run(
        [*PYTEST, *workers, *reruns, *options, f"--hf-report={report}"],
        check=False,
        cwd=folder,
        env=environment(folder / "state", client.url),
        capture_output=True,
        text=True,
    )
    wall = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{suite.name}: pytest ended with {done.returncode}\n{done.stdout}")
    resumed = {e["endpoint"]: e for e in reversed(client.log(op="resume", phase="arrived"))}
    paused = {e["endpoint"]: e["mono"] for e in client.log(kind="state", state="paused")}
    bill = {e["name"]: e["minutes"] for e in client.invoice()["endpoints"]}
    end = max(paused.values())
    return Outcome(
        wall,
        {name: paused[name] - each["mono"] for name, each in resumed.items()},
        {name: end - each["mono"] for name, each in resumed.items()},
        bill,
        latest(json.loads(report.read_text())),
    )


def latest(report: dict[str, Any]) -> float:
    """Seconds between the end of the last test on an endpoint and its verified pause, at most."""
    last: dict[str, float] = {}
    for test in report["timeline"]["tests"]:
        for name in test["endpoints"]:
            last[name] = max(last.get(name, 0.0), test["stop"])
    lanes = {lane["name"]: lane["stretches"] for lane in report["timeline"]["endpoints"]}
    pauses = {name: [s for s in lane if s["state"] != "paused"][-1] for name, lane in lanes.items()}
    return max(pauses[name]["stop"] - last[name] for name in last)


def weighted(suite: Suite, seconds: dict[str, float]) -> float:
    """USD, but for a constant factor."""
    return sum(PRICES[size] * seconds[name] for name, size in suite.endpoints.items())


def judge(suite: Suite, client: EmulatorClient) -> bool:
    """Run one suite three times and print a line; returns whether it reaches its goals."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite.write(folder)
        before = run(suite, folder, client, "--hf-order=collected")
        run(suite, folder, client)
        after = run(suite, folder, client)
    least = {name: suite.least(name) for name in suite.endpoints}
    needed = sum(math.ceil(seconds / MINUTE_S) for seconds in least.values())
    bound = weighted(suite, least)
    ratio = weighted(suite, after.spans) / bound
    paid = sum(after.minutes.values())
    print(
        f"{suite.name:8} {weighted(suite, before.until_end) / bound:9.2f}"
        f" {weighted(suite, before.spans) / bound:9.2f} {ratio:9.3f}"
        f" {paid:6} of {needed:3} {before.wall:8.1f} {after.wall:8.1f} {after.late:8.2f}",
        flush=True,
    )
    if suite.shuffled:
        return after.late <= PAUSE_S
    if suite.name in ("serial", "n2"):
        return ratio <= GOAL and paid <= needed
    return True


def main() -> int:
    """Print a table."""
    chosen = [suite for suite in SUITES if not sys.argv[1:] or suite.name in sys.argv[1:]]
    print("paid / unavoidable, by price          started    seconds of the run    pause after")
    print("         until end  paused     blocks  minutes    collected  blocks     last test")
    good = [judge(suite, client) for client in emulator() for suite in chosen]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
