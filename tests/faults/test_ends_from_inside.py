"""Runs that end by what happens in them: tests, plugins, crashes, and code that wrecks its process.

Every test file here does what some test suite has done.
"""

from __future__ import annotations

import json
import signal
import sys

import pytest
from fault_box import NAME, Box, kill

# Of the test alone: on a busy machine the endpoint before it takes longer than a second.
A_SECOND = ("--timeout=1", "-o", "timeout_func_only=true")
ONE = """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_it():
        {body}
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param('reached("test")', 0, id="green"),
        pytest.param("assert False", 1, id="red"),
        pytest.param("sys.exit(3)", 1, id="sys.exit"),
        pytest.param("raise KeyboardInterrupt", 2, id="interrupt"),
        pytest.param("pytest.exit('enough', returncode=9)", 9, id="pytest.exit"),
    ],
)
def test_an_ordinary_end_pauses(box: Box, body: str, code: int) -> None:
    """Rows 1, 19."""
    box.suite(ONE.format(body=body))
    assert box.start().wait() == code
    box.judge(None)


def test_a_run_without_tests_resumes_nothing(box: Box) -> None:
    """Row 1."""
    box.suite()
    assert box.start("-k", "nothing").wait() == 5
    box.judge(None, resumes=0)


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        pytest.param("os._exit(3)", (3,), id="_exit", marks=pytest.mark.quick),
        pytest.param("os.abort()", (-signal.SIGABRT,), id="abort"),
        pytest.param("ctypes.string_at(0)", (-signal.SIGSEGV,), id="segfault"),
    ],
)
def test_a_crash_is_paused(box: Box, body: str, codes: tuple[int, ...]) -> None:
    """Row 13."""
    box.suite(ONE.format(body=f'reached("test"); {body}'))
    run = box.start("-p", "no:faulthandler")
    end = run.reached()
    assert run.wait() in codes
    box.judge(end)


def test_a_test_that_a_timeout_ends_hard_is_paused(box: Box) -> None:
    """Row 14: pytest-timeout's thread method leaves by os._exit."""
    pytest.importorskip("pytest_timeout")
    box.suite(ONE.format(body='stay("test")'))
    run = box.start(*A_SECOND, "--timeout-method=thread")
    run.reached()
    assert run.wait() == 1
    box.judge(box.now())


def test_a_test_that_a_timeout_ends_softly_is_paused(box: Box) -> None:
    """Row 14: its signal method only fails the test."""
    pytest.importorskip("pytest_timeout")
    box.suite(ONE.format(body='stay("test")'))
    run = box.start(*A_SECOND, "--timeout-method=signal")
    assert run.wait() == 1
    box.judge(None)


def test_a_run_that_is_out_of_memory_is_paused(box: Box) -> None:
    """Row 15: the limit stays in force until the end of the run."""
    box.suite("""
        import resource

        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
            reached("test")
            bytearray(2**30)
    """)
    run = box.start()
    run.reached()
    assert run.wait() == 1
    assert "MemoryError" in run.output
    box.judge(None)


def test_a_run_whose_stack_overflows_is_paused(box: Box) -> None:
    """Row 16: a crash where C recursion has no limit of its own, else a failed test."""
    box.suite("""
        class Deep:
            def __repr__(self):
                return repr([self])

        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            sys.setrecursionlimit(10**8)
            reached("test")
            repr(Deep())
    """)
    run = box.start("-p", "no:faulthandler", "--tb=no")
    run.reached()
    assert run.wait() in (-signal.SIGSEGV, 1)
    box.judge(None)


BAD_PLUGIN = """
    class Bad:
        {hooks}

    def pytest_configure(config):
        config.pluginmanager.register(Bad())
"""
BAD_FINISH = """
        @pytest.hookimpl(tryfirst=True)
        def pytest_sessionfinish(self):
            raise RuntimeError("bad finish")
"""
BAD_WRAPPER = """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_sessionfinish(self):
            raise RuntimeError("bad wrapper")
            yield
"""
BAD_UNCONFIGURE = """
        @pytest.hookimpl(tryfirst=True)
        def pytest_unconfigure(self):
            raise RuntimeError("bad unconfigure")
"""


@pytest.mark.parametrize(
    "hooks",
    [BAD_FINISH, BAD_WRAPPER, BAD_UNCONFIGURE, BAD_WRAPPER + BAD_UNCONFIGURE],
    ids=["sessionfinish", "around-sessionfinish", "unconfigure", "both"],
)
def test_a_plugin_that_fails_at_the_end_does_not_stop_the_pause(box: Box, hooks: str) -> None:
    """Row 17."""
    box.conftest(BAD_PLUGIN.format(hooks=hooks))
    box.suite(ONE.format(body='reached("test")'))
    run = box.start()
    run.reached()
    assert run.wait() != 0
    box.judge(box.now())


def test_an_internal_error_while_collecting_resumes_nothing(box: Box) -> None:
    """Row 18: nothing is resumed before the first test runs."""
    box.conftest("""
        def pytest_collection_modifyitems():
            raise RuntimeError("bad plugin")
    """)
    box.suite()
    assert box.start("--hf-endpoint=acme/llm").wait() == 3
    box.judge(None, resumes=0)


@pytest.mark.parametrize("hook", ["pytest_runtest_logreport(report)", "pytest_runtest_logfinish()"])
def test_an_internal_error_after_the_resume_is_paused(box: Box, hook: str) -> None:
    """Row 18."""
    box.conftest(f"""
        def {hook}:
            raise RuntimeError("bad plugin")
    """)
    box.suite(ONE.format(body='reached("test")'))
    run = box.start("--hf-endpoint=acme/llm")
    assert run.wait() == 3
    box.judge(None)


LEAVES = {
    "exit-in-fixture": ("@pytest.fixture\ndef end(): pytest.exit('enough', 7)", "", 7),
    "exit-in-hook": ("", "def pytest_runtest_teardown(item): pytest.exit('enough', 7)", 7),
    "usage-error-in-hook": (
        "",
        "def pytest_runtest_teardown(item): raise pytest.UsageError('no')",
        None,
    ),
    "error-in-teardown": ("@pytest.fixture\ndef end():\n    yield\n    1 / 0", "", 1),
    "error-in-setup": ("@pytest.fixture\ndef end(): 1 / 0", "", 1),
}


@pytest.mark.parametrize("leave", LEAVES)
def test_leaving_from_anywhere_pauses(box: Box, leave: str) -> None:
    """Row 19."""
    fixture, hook, code = LEAVES[leave]
    box.conftest(hook)
    used = "end" if fixture else ""
    text = f'{fixture}\n\n@pytest.mark.hf_endpoint("acme/llm")\ndef test_it({used}): pass\n'
    box.suite(text)
    found = box.start().wait()
    assert found == code if code is not None else found != 0
    box.judge(None)


@pytest.mark.parametrize("option", ["-x", "--maxfail=2"])
def test_stopping_at_a_failure_pauses(box: Box, option: str) -> None:
    """Row 19."""
    box.suite("""
        @pytest.mark.parametrize("n", range(9))
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(n):
            assert not n
    """)
    assert box.start(option).wait() == 1
    box.judge(None)


WRECKS = {
    "directory": "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    "descriptors": "os.closerange(3, 256)",
    "stdout": "sys.stdout.close(); sys.stderr.close()",
    "environment": "os.environ.clear()",
    "token": "os.environ.pop('HF_TOKEN')",
    "offline": "os.environ.update(HF_HUB_OFFLINE='1', HTTP_PROXY='http://127.0.0.1:9')",
    "temporary-files": "import tempfile; tempfile.tempdir = '/nonexistent'",
    "modules": "import json, socket; sys.modules.clear()",
    "sleep": "time.sleep = None",
    "sockets": "import socket; socket.socket = None; socket.create_connection = None",
    "processes": "import subprocess; os.fork = subprocess.Popen = None",
    "frozen-clock": "time.time = time.monotonic = time.perf_counter = lambda: 1e9",
    "clock-an-hour-ahead": "now = time.time; time.time = lambda: now() + 3600",
    "clock-an-hour-back": "now = time.time; time.time = lambda: now() - 3600",
    "poll": "import select; select.poll = select.select = None",
    "threads": "threading.Thread.start = None",
    "json": "import json; json.dumps = json.loads = None",
    "blocked-network": """
    import socket
    class Guarded(socket.socket):
        def __new__(cls, *args, **kwargs):
            raise RuntimeError("the network is blocked")
    socket.socket = Guarded""",
}


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_test_that_wrecks_its_process_is_paused_when_it_is_killed(box: Box, wreck: str) -> None:
    """Rows 21, 22, 40."""
    box.suite(_wrecked(WRECKS[wreck], "os.kill(os.getpid(), 9)"))
    run = box.start()
    end = run.reached()
    assert run.wait() == -signal.SIGKILL
    box.judge(end)


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_test_that_wrecks_its_process_is_paused_at_the_end(box: Box, wreck: str) -> None:
    """Rows 21, 22, 40: whatever pytest itself makes of it."""
    box.suite(_wrecked(WRECKS[wreck], "pass"))
    run = box.start()
    run.reached()
    run.wait()
    box.judge(box.now())
    assert box.hub.invoice()["endpoints"][0]["minutes"] == 1


def _wrecked(wreck: str, end: str) -> str:
    return f"""
import os, sys

@pytest.mark.hf_endpoint("acme/llm")
def test_it():
    kill = os.kill
    reached("test")
    {wreck}
    {end}
"""


def test_a_clock_that_jumps_in_a_test_is_not_billed(box: Box) -> None:
    """Row 40: minutes are counted on a clock that does not jump."""
    box.suite(ONE.format(body="now = time.time; time.time = lambda: now() + 3600"))
    run = box.start("--hf-report=report.json", "--hf-session-budget=0.01")
    assert run.wait() == 0
    box.judge(None)
    (endpoint,) = json.loads((box.path / "report.json").read_text())["endpoints"]
    assert endpoint["minutes"] == 1


@pytest.mark.quick
def test_a_forked_child_that_outlives_the_run_delays_nothing(box: Box) -> None:
    """Row 23: it holds every descriptor of its parent."""
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it():
            if not os.fork():
                stay("child")
                os._exit(0)
            stay("test")
    """)
    run = box.start()
    run.reached("child")
    run.reached()
    box.complete()
    ours = (run.pid, *box.reapers(), *box.seconds(), *box.reserves())
    (child,) = (pid for pid in box.processes() if pid not in ours)
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end, but=(child,))
    kill(child)


@pytest.mark.parametrize(
    "option",
    [
        "--collect-only",
        "--fixtures",
        "--markers",
        "--help",
        "-h",
        "--setup-plan",
        "--version",
    ],
)
def test_looking_resumes_nothing(box: Box, option: str) -> None:
    """Row 41."""
    box.suite()
    assert box.start(option, "--hf-endpoint=acme/llm").wait() == 0
    box.judge(None, resumes=0)
    assert box.states() == []
    assert not list(box.state.glob("leases/*"))


def test_two_runs_in_one_process_have_a_reaper_each(box: Box) -> None:
    """Row 42: pytest.main() twice; the second resumes anew, since the first has paused."""
    box.suite(ONE.format(body='reached("test")'))
    (box.path / "main.py").write_text(
        "import pytest, sys\n"
        "sys.exit(sum(pytest.main(['-p', 'no:cacheprovider']) for _ in range(2)))\n"
    )
    run = box.start(command=[sys.executable, "main.py"])
    assert run.wait() == 0
    box.judge(None, resumes=2)
    assert [entry["state"] for entry in box.states()].count("paused") == 2


def test_a_run_that_is_killed_in_a_bigger_process_is_paused(box: Box) -> None:
    """Row 42."""
    box.suite()
    (box.path / "main.py").write_text("import pytest\npytest.main(['-p', 'no:cacheprovider'])\n")
    run = box.start(command=[sys.executable, "main.py"])
    run.reached()
    end = run.send(signal.SIGKILL)
    run.wait()
    box.judge(end)


NESTED = """
    pytest_plugins = ["pytester"]

    @pytest.mark.hf_endpoint("acme/llm")
    def test_it(pytester):
        pytester.makepyfile('''
            import pytest

            @pytest.mark.hf_endpoint("{name}")
            def test_inner():
                pass
        ''')
        assert pytester.runpytest_inprocess().ret == 0
        stay("after")
"""


def test_a_run_inside_a_test_pauses_its_own_endpoint_only(box: Box) -> None:
    """Row 42."""
    box.hub.add_endpoint("acme/inner")
    box.suite(NESTED.format(name="acme/inner"))
    run = box.start()
    run.reached("after")
    assert (box.state_of("acme/inner"), box.state_of()) == ("paused", "running")
    box.open_gate("after")
    assert run.wait() == 0
    box.judge(None)
    box.judge(None, name="acme/inner")


def test_a_run_inside_a_test_does_not_pause_what_the_outer_one_needs(box: Box) -> None:
    """Rows 42, 38: both have a lease on it."""
    box.suite(NESTED.format(name=NAME))
    run = box.start()
    run.reached("after")
    assert box.state_of() == "running"
    box.open_gate("after")
    assert run.wait() == 0
    box.judge(None)


def test_a_thread_in_a_paid_call_does_not_hold_up_the_end(box: Box) -> None:
    """Row 43: the call would take 60 s, and its thread is a daemon."""
    box.hub.add_fault("chat", hang=60, then="close")
    box.suite("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            say = [{"role": "user", "content": "hello"}]
            call = lambda: hf_endpoint.client.chat_completion(say, max_tokens=5)
            threading.Thread(target=call, daemon=True).start()
            stay("test")
            sys.exit(3)
    """)
    run = box.start()
    run.sees(op="chat")
    run.reached()
    end = box.now()
    box.open_gate("test")
    assert run.wait(10) == 1
    box.judge(end)


def test_nothing_of_a_run_is_left_in_the_folder_of_temporary_files(box: Box) -> None:
    """Row 1: sockets, lists and locks."""
    folder = box.path / "tmp"
    folder.mkdir()
    box.suite(ONE.format(body='reached("test")'))
    run = box.start(env={"TMPDIR": str(folder)})
    assert run.wait() == 0
    box.judge(None)
    assert [path for path in folder.iterdir() if "hfbudget" in path.name] == []
