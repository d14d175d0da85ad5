"""How far a capped call walks through the package: as `benchmarks/call_path.py` measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "call_path.py"
MOST = {"files": 12, "moves": 30, "calls": 60}


def test_a_capped_call_crosses_few_files_in_few_moves_and_calls() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json"], capture_output=True, check=True, text=True
    )
    capped = json.loads(done.stdout)["capped"]
    assert {name: count for name, count in capped.items() if count > MOST[name]} == {}
