"""Child processes: what a test starts spends from the test's own ledger, never from a copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_suite import Suite, importing

pytestmark = pytest.mark.slow

# A call costs $0.0000015, and may cost more: not all of twenty calls fit.
CAP = "0.000025"

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
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(99)

    def stream():
        client = InferenceClient(model="emulator/chat", provider="groq")
        chunks = iter(client.chat_completion(SAY, max_tokens=20, stream=True))
        next(chunks)
        return chunks

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
    "os.fork": "assert all(end_of(pid) == 0 for pid in [forked() for _ in range(4)])",
    "fork": "four_processes(multiprocessing.get_context('fork'))",
    "forkserver": "four_processes(multiprocessing.get_context('forkserver'))",
    "spawn": "four_processes(multiprocessing.get_context('spawn'))",
    "executor": """
        with concurrent.futures.ProcessPoolExecutor(
            4, mp_context=multiprocessing.get_context("fork")
        ) as pool:
            assert sum(pool.map(spend, [5] * 4)) < 20
""",
    "subprocess": """
        apps = [subprocess.Popen([sys.executable, "app.py"]) for _ in range(4)]
        assert [app.wait() for app in apps] == [0] * 4
""",
    "python -m": """
        command = [sys.executable, "-m", "pytest_hfbudget.join", "knows_nothing.py"]
        apps = [subprocess.Popen(command) for _ in range(4)]
        assert [app.wait() for app in apps] == [0] * 4
""",
    "pth": """
        code = "import site; site.addsitedir('packages'); exec(open('knows_nothing.py').read())"
        apps = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
        assert [app.wait() for app in apps] == [0] * 4
""",
}
# The line of which the document says that it joins every interpreter.
PTH = next(
    line
    for line in (Path(__file__).parents[2] / "docs/processes.md").read_text().splitlines()
    if line.startswith("import os;")
)

APP = """
from huggingface_hub import InferenceClient

SAY = [{"role": "user", "content": "Say something. [[tokens=10]]"}]

for _ in range(5):
    try:
        InferenceClient(model="emulator/chat", provider="groq").chat_completion(SAY, max_tokens=20)
    except Exception as error:
        assert type(error).__name__ == "BudgetExceededError", error
"""


@pytest.fixture
def children(suite: Suite) -> Suite:
    (suite.path / "app.py").write_text("import pytest_hfbudget.join\n" + APP)
    (suite.path / "knows_nothing.py").write_text(APP)
    (suite.path / "packages").mkdir()
    (suite.path / "packages" / "hfbudget.pth").write_text(PTH + "\n")
    return suite


def nano(usd: str) -> int:
    return round(float(usd) * 10**9)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_children_spends_from_one_ledger(children: Suite, way: str) -> None:
    children.test_file(CHILDREN + "\n    def test_it():\n        " + WAYS[way])
    result = children.run(
        f"--hf-session-budget={CAP}", "--hf-on-exhausted=fail", "--hf-report=report.json"
    )
    # The test passes by itself, so it fails for what the children were refused and have swallowed.
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["refused, though the test passed: session budget: *"])
    report = children.report()
    assert 0 < children.billed == nano(report["session"]["spent_usd"]) <= nano(CAP)
    assert 0 < children.sent == len(report["calls"]) == 20 - report["session"]["refused"]
    assert {call["test"] for call in report["calls"]} == {"test_suite.py::test_it"}


@pytest.mark.parametrize("way", WAYS)
def test_children_of_workers_spend_from_one_ledger(children: Suite, way: str) -> None:
    pytest.importorskip("xdist")
    children.test_file(
        CHILDREN
        + '\n    @pytest.mark.parametrize("n", range(2))\n    def test_it(n):\n        '
        + WAYS[way]
    )
    result = children.run(
        "-n2", f"--hf-session-budget={CAP}", "--hf-on-exhausted=fail", "--hf-report=report.json"
    )
    result.stdout.fnmatch_lines(["refused, though the test passed: session budget: *"])
    report = children.report()
    assert 0 < children.billed == nano(report["session"]["spent_usd"]) <= nano(CAP)
    assert 0 < children.sent == len(report["calls"]) == 40 - report["session"]["refused"]


def test_a_child_waits_for_calls_in_flight_as_long_as_its_run_does(children: Suite) -> None:
    children.test_file(
        CHILDREN
        + """
    def test_it():
        held = stream()
        app = subprocess.run([sys.executable, "app.py"], timeout=30)
        assert app.returncode == 0
        assert list(held)
"""
    )
    # One call of the stream is held, and no other fits beside it.
    options = f"--hf-session-budget={CAP}", "--hf-on-exhausted=fail", "-o", "hf_hold_wait=0.1"
    result = children.run(*options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*within 0.1 s (hf_hold_wait)*"])
    assert children.sent == 1


def test_a_child_is_inside_the_blocks_of_the_thread_that_forked_it(children: Suite) -> None:
    children.test_file(
        CHILDREN
        + """
    def test_it():
        ends = []
        with pytest.raises(BudgetExceededError), budget(max_usd=1, max_calls=2) as block:
            thread = threading.Thread(target=lambda: ends.append(end_of(forked())))
            thread.start()
            thread.join()
        assert ends == [0]
        assert block.calls_used == len(block.calls) == 2
        with budget(max_usd=1, max_calls=3, on_exceed="raise") as block:
            assert end_of(forked()) == 0
        assert block.calls_used == 3
"""
    )
    children.run("--hf-report=report.json").assert_outcomes(passed=1)
    assert children.sent == len(children.report()["calls"]) == 5


def test_blocks_of_children_are_their_own_and_inside_of_what_is_around(children: Suite) -> None:
    children.test_file(
        CHILDREN
        + """
    def in_a_block():
        with budget(max_usd=1, on_exceed="raise", max_calls=1) as block:
            assert spend(2) == 1
        assert block.calls_used == 1

    def test_it():
        with budget(max_usd=1) as around:
            assert [end_of(forked(in_a_block)) for _ in range(3)] == [0] * 3
            in_a_block()
        assert around.calls_used == 4
"""
    )
    children.run().assert_outcomes(passed=1)
    assert children.sent == 4


def test_a_child_settles_nothing_that_its_parent_has_open(children: Suite) -> None:
    children.test_file(
        CHILDREN
        + """
    def test_it():
        with budget(max_usd=1) as block:
            chunks = stream()
            held = block.limit - block.remaining
            # One child reads the stream, one drops it, one opens a stream of its own and exits.
            for work in (lambda: list(chunks), lambda: chunks.close(), lambda: stream()):
                end_of(forked(work))
            for _ in range(1000):  # its end is noticed by another thread
                if block.calls_used:
                    break
                threading.Event().wait(0.01)
            assert block.calls_used == 1  # the third child's, which was lost
            lost, = block.calls
            assert (lost.status, lost.nano_usd) == ("lost", int(held * 10**9))
            chunks.close()
            assert block.calls_used == 2
"""
    )
    children.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_a_child_that_ends_in_the_middle_of_a_call_is_charged_what_it_held(
    children: Suite, end: str
) -> None:
    children.test_file(
        CHILDREN
        + f"""
    def ends():
        chunks = stream()
        {end}

    def test_it():
        end_of(forked(ends))
"""
    )
    children.run("--hf-session-budget=1", "--hf-report=report.json").assert_outcomes(passed=1)
    (lost,) = children.report()["calls"]
    assert (lost["status"], lost["estimated"]) == ("lost", True)
    assert nano(lost["usd"]) >= children.billed > 0


OUTLIVES = """
    def test_it():
        alive, until_then = os.pipe()
        if os.fork() == 0:
            os.close(until_then)
            os.read(alive, 1)  # to the end of pytest's process
            try:
                call()
                said = "sent"
            except Exception as error:
                said = type(error).__name__
            with open("said", "w") as file:
                file.write(said)
            os._exit(0)
"""


@pytest.mark.parametrize(
    ("option", "said"),
    [("--hf-session-budget=1", "LedgerUnreachableError"), ("--hf-report=r.json", "sent")],
    ids=["capped", "uncapped"],
)
def test_a_child_that_outlives_the_run_spends_nothing_under_a_cap(
    children: Suite, option: str, said: str
) -> None:
    children.test_file(OUTLIVES)
    os.mkfifo(children.path / "said")
    children.run(option).assert_outcomes(passed=1)
    assert (children.path / "said").read_text() == said
    assert children.sent == (said == "sent")


def test_a_child_that_runs_into_the_end_of_pytest_ends_nothing(children: Suite) -> None:
    children.test_file(
        """
        def test_forks():
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            call()

        @pytest.mark.hf_endpoint("acme/llm")
        def test_afterwards(hf_endpoint):
            assert hf_endpoint.client.chat_completion(SAY, max_tokens=5)
    """
    )
    options = ("--hf-session-budget=1", "--hf-report=report.json", "--hf-endpoint=acme/llm")
    children.run(*options)
    report = children.report()
    assert [row["state"] for row in report["endpoints"]] == ["paused"]
    assert len(report["calls"]) == children.sent
    log = children.emulator.log(kind="request", phase="arrived")
    first_pause = min(entry["seq"] for entry in log if entry["op"] == "pause")
    last_call = max(entry["seq"] for entry in log if entry["op"] == "chat")
    assert last_call < first_pause


ENDPOINT_APP = """
import sys
import pytest_hfbudget.join
from huggingface_hub import InferenceClient

client = InferenceClient(base_url=sys.argv[1], token="hf_any")
client.chat_completion([{"role": "user", "content": "Hello"}], max_tokens=5)
"""


def test_a_call_of_a_child_to_an_endpoint_of_the_run_is_paid_by_its_uptime(suite: Suite) -> None:
    (suite.path / "asks.py").write_text(ENDPOINT_APP)
    suite.test_file(
        """
        import subprocess, sys

        @pytest.mark.budget(max_usd=1, price={"call": 0.1})
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            subprocess.run([sys.executable, "asks.py", hf_endpoint.url], check=True)
    """
    )
    suite.run("--hf-session-budget=1", "--hf-report=report.json").assert_outcomes(passed=1)
    (call,) = suite.report()["calls"]
    assert (call["price_source"], call["usd"]) == ("uptime of acme/llm", "0")


def test_no_thread_of_ours_is_there_in_a_fork(children: Suite) -> None:
    (children.path / "conftest.py").write_text(
        "import os, threading\n"
        "at_forks = []\n"
        "def ours(): return sum('hfbudget' in t.name for t in threading.enumerate())\n"
        "os.register_at_fork(before=lambda: at_forks.append(ours()))\n"
    )
    children.test_file(
        CHILDREN
        + """
    from conftest import at_forks, ours

    def test_it():
        assert ours() == 1, threading.enumerate()
        assert [end_of(forked()) for _ in range(3)] == [0] * 3
        assert at_forks == [0] * 3
        assert ours() >= 1
"""
    )
    children.run("--hf-session-budget=1").assert_outcomes(passed=1)
    assert children.sent == 15


def test_the_address_is_exported_where_there_is_a_cap_and_only_there(children: Suite) -> None:
    (children.path / "conftest.py").write_text(
        "import os\n"
        "def pytest_unconfigure():\n"
        "    assert os.environ.get('HFBUDGET_LEDGER') == before\n"
        "before = os.environ.get('HFBUDGET_LEDGER')\n"
    )
    (children.path / "test_suite.py").write_text(
        "import os, stat\n"
        "def test_it():\n"
        "    directory = os.stat(os.path.dirname(os.environ['HFBUDGET_LEDGER']))\n"
        "    assert (stat.S_IMODE(directory.st_mode), directory.st_uid) == (0o700, os.getuid())\n"
    )
    children.run("--hf-test-budget=1").assert_outcomes(passed=1)
    result = children.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*KeyError: 'HFBUDGET_LEDGER'"])


def test_a_program_joins_no_run_that_is_over(children: Suite, tmp_path: Path) -> None:
    children.test_file("def test_it(): pass")
    app = [sys.executable, str(children.path / "app.py")]
    ended = subprocess.run(
        app,
        env={**os.environ, "HFBUDGET_LEDGER": str(tmp_path / "gone")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "LedgerUnreachableError: the process that keeps the budget" in ended.stderr
    assert children.sent == 0


def test_a_script_with_a_budget_has_children_too(children: Suite) -> None:
    script = children.path / "script.py"
    script.write_text(
        importing(
            """
with budget(max_usd=1, price={"input": 1, "output": 1}, max_calls=3, on_exceed="raise") as block:
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            for _ in range(2):
                try:
                    call()
                except BudgetExceededError:
                    pass
            os._exit(0)
        os.waitpid(pid, 0)
assert block.calls_used == 3, block
"""
        )
    )
    url = children.emulator.url
    environ = {**os.environ, "HFBUDGET_ROUTER": f"{url}/router", "HF_ENDPOINT": f"{url}/hub"}
    subprocess.run([sys.executable, str(script)], env=environ, check=True)
    assert children.sent == 3
