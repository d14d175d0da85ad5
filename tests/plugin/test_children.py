"""Child processes: whoever a test starts spends from the test's own ledger, never from a copy."""

from __future__ import annotations

import os
import signal

import pytest
from plugin_suite import Suite

# A call costs $0.000001 at most and exactly here; four children try five of them each.
FITS = 10
CAP = "1"

CHILDREN = """
    import concurrent.futures, multiprocessing, subprocess, sys
    import pytest_hfbudget.join

    def spend(calls=5):
        made = 0
        for _ in range(calls):
            try:
                call()
            except BudgetExceededError:
                continue
            made += 1
        return made

    def forked(work=spend):
        pid = os.fork()
        if pid:
            return pid
        try:
            os._exit(work())
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(99)

    def end_of(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def four_processes(context):
        workers = [context.Process(target=spend) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
"""

WAYS = {
    "os.fork": "assert sum(end_of(pid) for pid in [forked() for _ in range(4)]) == 10",
    "fork": "four_processes(multiprocessing.get_context('fork'))",
    "forkserver": "four_processes(multiprocessing.get_context('forkserver'))",
    "spawn": "four_processes(multiprocessing.get_context('spawn'))",
    "executor": """
        with concurrent.futures.ProcessPoolExecutor(
            4, mp_context=multiprocessing.get_context("fork")
        ) as pool:
            assert sum(pool.map(spend, [5] * 4)) == 10
""",
    "subprocess": """
        apps = [subprocess.Popen([sys.executable, "app.py"]) for _ in range(4)]
        assert sum(app.wait() for app in apps) == 10
""",
    "python -m": """
        command = [sys.executable, "-m", "pytest_hfbudget.join", "knows_nothing.py"]
        apps = [subprocess.Popen(command) for _ in range(4)]
        assert sum(app.wait() for app in apps) == 10
""",
}

APP = """
import sys
from huggingface_hub import InferenceClient

SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

made = 0
for _ in range(5):
    try:
        InferenceClient(model="emulator/chat", provider="groq").chat_completion(SAY, max_tokens=20)
        made += 1
    except Exception as error:
        assert type(error).__name__ == "BudgetExceededError", error
sys.exit(made)
"""


@pytest.fixture
def children(suite: Suite) -> Suite:
    (suite.path / "app.py").write_text("import pytest_hfbudget.join\n" + APP)
    (suite.path / "knows_nothing.py").write_text(APP)
    return suite


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_children_spends_from_one_ledger(children: Suite, way: str) -> None:
    children.test_file(CHILDREN + "\n    def test_it():\n        " + WAYS[way])
    result = children.run(f"--hf-session-budget={CAP}", "--hf-report=report.json")
    report = children.report()
    print(report["session"], children.billed, children.sent)
    assert 0
