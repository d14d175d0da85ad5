"""What the plugin costs a suite that never touches Hugging Face.

Whole runs of pytest, with and without the plugin in turns, so that both meet the same machine;
and the import alone, in a process that has pytest already.

    python benchmarks/quiet_suite.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT = """
import time, pytest, _pytest.config, _pytest.python, _pytest.terminal, _pytest.junitxml
start = time.perf_counter()
import pytest_hfbudget.plugin
print(time.perf_counter() - start)
"""


def whole_run(directory: Path, *options: str) -> float:
    """Milliseconds of one run of a suite with one empty test."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def import_alone() -> float:
    """Milliseconds that importing the plugin takes when pytest is there."""
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True)
    return float(done.stdout) * 1000


def main() -> None:
    """Print the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "test_empty.py").write_text("def test_nothing(): pass\n")
        whole_run(directory)  # compiles what is not compiled yet
        pairs = [
            (whole_run(directory, "-p", "no:hfbudget"), whole_run(directory)) for _ in range(rounds)
        ]
    without, with_it = (statistics.median(column) for column in zip(*pairs, strict=True))
    alone = statistics.median(import_alone() for _ in range(rounds))
    print(f"a run without the plugin  {without:7.1f} ms")
    print(f"a run with the plugin     {with_it:7.1f} ms  ({with_it / without:.3f} x)")
    print(f"the import alone          {alone:7.1f} ms")


if __name__ == "__main__":
    main()
