"""Calls before the first test and after the report: none escapes a cap or a rehearsal."""

from __future__ import annotations

import pytest
from plugin_suite import CLIENTS, PREAMBLE, Suite

PRICES = """
[tool.hfbudget.prices."emulator/chat"]
input = 0.1
output = 0.1
"""
CAPPED = "--hf-session-budget=0.000000001"  # too little for any call
A_TEST = """
    def test_it():
        pass
"""
# Each is a plugin that makes one call and swallows what comes of it.
TRY = """
def attempt():
    print("TRIED")
    try:
        call()
    except Exception as error:
        print("MET", type(error).__name__)
"""
EARLY = (
    # the import of a conftest file
    "attempt()",
    """
@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main():
    attempt()
""",
    """
@pytest.hookimpl(tryfirst=True)
def pytest_configure():
    attempt()
""",
)
LATE = (
    """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish():
    yield
    attempt()
""",
    """
@pytest.hookimpl(trylast=True)
def pytest_terminal_summary():
    attempt()
""",
    """
@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    attempt()
""",
    """
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.add_cleanup(attempt)
""",
)
# A client that no one has imported before the run is over.
FIRST_IMPORT = """
@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    from huggingface_hub import InferenceClient
    print("TRIED")
    client = InferenceClient(model="emulator/chat", provider="groq")
    try:
        client.chat_completion([{"role": "user", "content": "late"}], max_tokens=20)
    except Exception as error:
        print("MET", type(error).__name__)
"""
AFTER_PYTEST = (
    """
import atexit
atexit.register(attempt)
""",
    """
def when_pytest_is_over():
    threading.main_thread().join()
    attempt()

def pytest_unconfigure():
    threading.Thread(target=when_pytest_is_over).start()
""",
)


def conftest(code: str) -> str:
    """A conftest file; where its code imports a client by itself, that is the first import."""
    return PREAMBLE + ("" if "InferenceClient" in code else CLIENTS) + TRY + code


def write(suite: Suite, *codes: str) -> None:
    """A suite whose conftest file is the first of these, and has the others as plugins."""
    others = {f"way_{number}": code for number, code in enumerate(codes[1:])}
    for name, code in others.items():
        (suite.path / f"{name}.py").write_text(conftest(code))
    (suite.path / "conftest.py").write_text(
        f"{conftest(codes[0])}\npytest_plugins = {list(others)}\n"
    )
    (suite.path / "pyproject.toml").write_text(PRICES)
    suite.test_file(A_TEST)


def met(result: pytest.RunResult) -> int:
    """How many calls were refused because the run is over."""
    return sum("MET RunOverError" in line for line in result.outlines)


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["serial", "workers"])
def test_a_call_before_the_first_test_is_held_by_the_cap(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    write(suite, *EARLY)
    assert suite.run(CAPPED, *workers).ret == 1
    assert suite.sent == 0


def test_a_call_before_the_first_test_is_in_the_report(suite: Suite) -> None:
    write(suite, *EARLY)
    assert suite.run("--hf-session-budget=1", "--hf-report=report.json").ret == 0
    assert suite.sent == len(EARLY)
    assert len(suite.report()["calls"]) == len(EARLY)


@pytest.mark.slow
def test_the_calls_of_each_process_before_the_first_test_are_in_the_report(suite: Suite) -> None:
    write(suite, "attempt()")
    assert suite.run("--hf-session-budget=1", "--hf-report=report.json", "-n2").ret == 0
    assert suite.sent == 3
    assert len(suite.report()["calls"]) == 3


@pytest.mark.parametrize("codes", [LATE, (FIRST_IMPORT,)], ids=["late calls", "first import"])
def test_a_call_after_the_report_is_refused_under_a_cap_and_fails_the_run(
    suite: Suite, codes: tuple[str, ...]
) -> None:
    write(suite, *codes)
    result = suite.run("--hf-session-budget=1", "-s")
    assert suite.sent == 0
    assert result.ret == 1
    assert met(result) == len(codes)
    result.stdout.fnmatch_lines(
        ["*refused after the report: *", "hfbudget: the run fails for this (exit code 1)"]
    )


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (LATE, "4 calls came after the report, so they are missing there"),
        ((FIRST_IMPORT,), "1 call came after the report, so it is missing there"),
    ],
    ids=["late calls", "first import"],
)
def test_a_call_after_the_report_is_counted_on_the_last_line(
    real: Suite, codes: tuple[str, ...], said: str
) -> None:
    write(real, *codes)
    result = real.run()
    assert real.sent == len(codes)
    assert result.ret == 0
    assert result.outlines[-1] == f"hfbudget: {said}"


def test_a_call_after_pytest_itself_is_refused_under_a_cap(real: Suite) -> None:
    write(real, *AFTER_PYTEST)
    result = real.run("--hf-session-budget=1", "-s")
    assert real.sent == 0
    assert met(result) == len(AFTER_PYTEST)
    result.stderr.fnmatch_lines(["refused after the report: *"])


def test_a_call_after_pytest_itself_is_counted_on_the_last_line(real: Suite) -> None:
    write(real, *AFTER_PYTEST)
    result = real.run()
    assert real.sent == len(AFTER_PYTEST)
    result.stderr.fnmatch_lines(["hfbudget: 2 calls came after the report, *"])


@pytest.mark.parametrize(
    "codes", [(*EARLY, *LATE, *AFTER_PYTEST), (FIRST_IMPORT,)], ids=["all times", "first import"]
)
def test_a_rehearsal_lets_no_call_out_at_any_time(real: Suite, codes: tuple[str, ...]) -> None:
    write(real, *codes)
    result = real.run("--hf-emulator", "-s")
    assert sum("TRIED" in line for line in result.outlines) == len(codes)
    assert real.sent == 0


@pytest.mark.slow
def test_a_rehearsal_of_workers_lets_no_call_out_before_the_first_test(real: Suite) -> None:
    write(real, "attempt()")
    real.run("--hf-emulator", "-n1")
    assert real.sent == 0


@pytest.mark.slow
def test_a_worker_that_is_told_of_no_ledger_yet_sends_nothing(
    real: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on another machine, where the controller's environment does not come."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    write(
        real,
        """
@pytest.hookimpl(optionalhook=True, trylast=True)
def pytest_xdist_setupnodes():
    os.environ.pop("HFBUDGET_WORKERS")

if "PYTEST_XDIST_WORKER" in os.environ:
    attempt()
""",
    )
    result = real.run("--hf-session-budget=1", "-n1")
    assert real.sent == 0
    assert result.ret == 1
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["refused outside of every test: *has not configured this worker*"])


def test_a_bad_price_file_is_one_line_though_a_conftest_file_imports_a_client(
    suite: Suite,
) -> None:
    write(suite, "attempt()")
    (suite.path / "prices.toml").write_text("nonsense")
    result = suite.run("--hf-session-budget=1", "--hf-prices=prices.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert suite.sent == 0
    result.stderr.fnmatch_lines(["ERROR: *prices.toml*"])


@pytest.mark.slow
def test_a_program_goes_on_calling_after_a_run_inside_of_it(real: Suite) -> None:
    write(real, "")
    program = real.path / "program.py"
    program.write_text(
        PREAMBLE
        + CLIENTS
        + """
assert pytest.main(["--hf-session-budget=1", "test_suite.py"]) == 0
client = InferenceClient(base_url=os.environ["HFBUDGET_ROUTER"] + "/v1")
client.chat_completion(SAY, model="emulator/chat", max_tokens=5)
"""
    )
    assert real.pytester.runpython(program).ret == 0
    assert real.sent == 1


def test_help_is_shown_though_a_conftest_file_calls(suite: Suite) -> None:
    write(suite, "attempt()")
    assert suite.run("--help", CAPPED).ret == 0
    assert suite.sent == 0
