"""How long after a SIGKILL of pytest the request to pause its endpoint is on the wire.

Each round is a whole run: pytest brings an endpoint of the emulator up, its test makes a call and
hangs, and the process is killed. The emulator is a process of its own and writes down when the
request has arrived, on the clock that the kill is timed by.

    python benchmarks/kill_to_pause.py [ROUNDS]

Exit code 1 if the median or the worst is above its goal.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_hfbudget.emulator import EmulatorClient

ENDPOINT = "acme/llm"
SUITE = f"""
import threading
import pytest

@pytest.mark.hf_endpoint("{ENDPOINT}")
def test_that_hangs(hf_endpoint):
    hf_endpoint.client.chat_completion([{{"role": "user", "content": "Are you up?"}}], max_tokens=5)
    threading.Event().wait()
"""
ROUNDS = 40
MEDIAN_MS, WORST_MS = 50.0, 250.0
START_S, PAUSE_S = 60.0, 10.0


def emulator() -> tuple[subprocess.Popen[str], EmulatorClient]:
    """An emulator that ends with this process, with one endpoint that starts in no time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_hfbudget.emulator", "--exit-with", str(os.getpid())],
        stdout=subprocess.PIPE,
        text=True,
    )
    url = process.stdout.readline() if process.stdout else ""
    client = EmulatorClient(url.strip())
    client.add_endpoint(ENDPOINT)
    return process, client


def environment(directory: Path, url: str) -> dict[str, str]:
    """The user's own, but for what would lead a run elsewhere."""
    mine = ("HFBUDGET_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    state = str(directory / "state")
    ours = {"HFBUDGET_STATE_DIR": state, "HFBUDGET_CACHE_DIR": state, "HFBUDGET_EMULATOR": url}
    return {**kept, **ours}


def one_round(directory: Path, client: EmulatorClient) -> float:
    """Milliseconds from the kill to the arrival of the pause."""
    after = client.last()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=directory,
        env=environment(directory, client.url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client.wait_for(after=after, op="chat", phase="answered", timeout=START_S)
    killed_at = time.monotonic()
    process.kill()
    asked = client.wait_for(after=after, op="pause", timeout=PAUSE_S)
    process.wait()
    client.wait_for(after=after, kind="state", state="paused", timeout=PAUSE_S)
    return (float(asked["mono"]) - killed_at) * 1000


def main() -> int:
    """Print the median and the worst."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    process, client = emulator()
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "test_killed.py").write_text(SUITE)
            times = [one_round(directory, client) for _ in range(rounds)]
    finally:
        process.kill()
        process.communicate()
    median, worst = statistics.median(times), max(times)
    print(f"SIGKILL to the pause on the wire, {rounds} runs on {os.cpu_count()} cores")
    print(f"  median {median:6.1f} ms  (goal: below {MEDIAN_MS:g})")
    print(f"  worst  {worst:6.1f} ms  (goal: below {WORST_MS:g})")
    return int(median >= MEDIAN_MS or worst >= WORST_MS)


if __name__ == "__main__":
    sys.exit(main())
