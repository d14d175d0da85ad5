"""Subtests, late skips, shared fixtures, several workers for one test: the verdict stays right."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_suite import Suite

pytestmark = pytest.mark.slow

REPORT = "--hf-report=report.json"
has_subtests = pytest.mark.skipif(
    not hasattr(pytest, "Subtests"), reason="this pytest has no subtests"
)

SHARED = """
    @pytest.fixture(scope="session")
    def shared():
        yield
        call(limit=50)

    def test_one(shared):
        call()

    def test_two(shared):
        call()
"""


@has_subtests
@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_test_whose_subtest_was_refused_was_not_run(
    suite: Suite, workers: tuple[str, ...]
) -> None:
    suite.test_file("""
        def test_it(subtests):
            with subtests.test("one"):
                call(limit=200000)
            with subtests.test("two"):
                pass
    """)
    result = suite.run("--hf-session-budget=0.0001", REPORT, *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (test,) = suite.report()["tests"]
    assert test["outcome"] == "not run"


@has_subtests
def test_a_test_with_subtests_takes_as_long_as_it_takes(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(subtests):
            for number in range(3):
                with subtests.test(number=number):
                    threading.Event().wait(0.5)
    """)
    suite.run("--hf-store-costs")
    (cost,) = json.loads((suite.path / "hf-costs.json").read_text())["tests"].values()
    assert cost["endpoint_s"] == 2


def test_a_test_that_was_refused_and_skips_late_was_not_run(suite: Suite) -> None:
    suite.test_file("""
        @pytest.fixture
        def late():
            yield
            pytest.skip("late")

        def test_it(late):
            call(limit=200000)
    """)
    result = suite.run("--hf-session-budget=0.0001", REPORT)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [test["outcome"] for test in suite.report()["tests"]] == ["not run"]


def test_of_a_test_that_each_worker_runs_the_worst_counts(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.test_file("""
        def test_it(worker_id):
            call()
            assert worker_id == "gw0"
    """)
    suite.run("--dist=each", "--tx=2*popen", REPORT, "--hf-store-costs")
    assert [test["outcome"] for test in suite.report()["tests"]] == ["failed"]
    assert json.loads((suite.path / "hf-costs.json").read_text())["tests"] == {}


def test_a_swallowed_refusal_fails_also_a_test_that_is_expected_to_fail(suite: Suite) -> None:
    suite.test_file("""
        @pytest.mark.xfail(reason="known")
        @pytest.mark.budget(max_usd=0)
        def test_it():
            try:
                call()
            except BudgetExceededError:
                pass
    """)
    suite.run("--junitxml=junit.xml").assert_outcomes(failed=1)
    assert 'failures="1" skipped="0"' in (suite.path / "junit.xml").read_text()


def test_what_a_shared_fixture_calls_at_its_end_belongs_to_no_test(suite: Suite) -> None:
    suite.test_file(SHARED)
    suite.run(REPORT, "--hf-store-costs").assert_outcomes(passed=2)
    assert [test["calls"] for test in suite.report()["tests"]] == [1, 1]
    assert suite.report()["session"]["calls"] == 3
    where = [call["where"] for call in suite.report()["calls"] if call["test"] is None]
    assert where == ["session fixture shared"]
    alone = suite.run("test_suite.py::test_one", "--hf-max-increase=20%")
    alone.assert_outcomes(passed=1)


def test_a_test_that_was_not_run_is_there_for_the_next_time(suite: Suite) -> None:
    suite.test_file("""
        def test_fails():
            call()
            assert 0

        def test_passes():
            call()
    """)
    cached = ("-p", "cacheprovider")
    suite.run(*cached)
    suite.run("--hf-session-budget=0", "--lf", *cached).assert_outcomes(skipped=1)
    suite.run("--lf", *cached).assert_outcomes(failed=1)


def test_a_module_that_is_skipped_keeps_its_recorded_costs(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.test_file("def test_it():\n    call()\n", "test_other.py")
    suite.test_file("""
        if os.environ.get("WITHOUT"):
            pytest.skip("nothing here", allow_module_level=True)

        def test_it():
            call()
    """)
    suite.run("--hf-store-costs").assert_outcomes(passed=2)
    monkeypatch.setenv("WITHOUT", "1")
    suite.run("--hf-store-costs").assert_outcomes(passed=1, skipped=1)
    assert len(json.loads((suite.path / "hf-costs.json").read_text())["tests"]) == 2


@pytest.mark.parametrize(
    "look", ["--collect-only", "--fixtures", "--fixtures-per-test", "--markers", "--cache-show"]
)
def test_a_look_needs_no_token_and_leaves_the_last_report(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    suite.test_file("""
        @pytest.mark.hf_endpoint("acme/llm")
        def test_it(hf_endpoint):
            pass
    """)
    (suite.path / "report.json").write_text("{}")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.setenv("HF_TOKEN_PATH", str(suite.path / "none"))
    assert suite.run(look, REPORT, "-p", "cacheprovider").ret == pytest.ExitCode.OK
    assert (suite.path / "report.json").read_text() == "{}"


def test_a_file_that_pytest_takes_for_a_path_of_tests_is_refused(suite: Suite) -> None:
    folder = suite.path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nhf_session_budget = 0.05\n")
    (folder / "test_it.py").write_text("def test_it(): pass\n")
    elsewhere = suite.path / "report.json"
    os.chdir(folder)
    assert suite.run("--hf-report", str(elsewhere)).ret == pytest.ExitCode.OK
    elsewhere.write_text("{}")
    result = suite.run("--hf-report", str(elsewhere))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *has not read *pytest.ini. Write --hf-report=FILE*"])
    suite.run(f"--hf-report={elsewhere}").assert_outcomes(passed=1)


def test_a_folder_that_depends_on_where_a_test_is_is_refused(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFBUDGET_STATE_DIR", "state")
    suite.test_file("def test_it(): pass\n")
    result = suite.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: HFBUDGET_STATE_DIR=state: write an absolute path*"])


def test_a_report_goes_into_a_pipe_and_through_a_link(suite: Suite) -> None:
    suite.test_file("def test_it():\n    call()\n")
    target = suite.path / "target.json"
    target.write_text("")
    (suite.path / "report.json").symlink_to(target)
    suite.run(REPORT)
    assert (suite.path / "report.json").is_symlink()
    assert json.loads(target.read_text())["session"]["calls"] == 1
    result = suite.run("--hf-report=/dev/null")
    assert result.ret == pytest.ExitCode.OK
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_properties_that_are_not_strings_do_no_harm(suite: Suite) -> None:
    suite.test_file("""
        def test_it(request):
            call()
            request.node.user_properties.append((1, "x"))
    """)
    suite.run("-v", REPORT).assert_outcomes(passed=1)


def test_a_marker_that_only_states_a_price_takes_nothing_else_away(suite: Suite) -> None:
    suite.test_file("""
        pytestmark = pytest.mark.budget(max_usd=0, on_exceed="raise")

        @pytest.mark.budget(price={"call": 1})
        def test_it():
            with pytest.raises(BudgetExceededError):
                call()
    """)
    suite.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("ini", ["tox.ini", "pyproject.toml"])
def test_a_file_that_pytest_does_not_read_its_settings_from_is_ignored(
    suite: Suite, ini: str
) -> None:
    text = {
        "tox.ini": "[testenv]\ndeps = hypothesis[pytest]\n",
        "pyproject.toml": "[tool.pytest_env]\n",
    }
    (suite.path / ini).write_text(text[ini])
    suite.test_file("def test_it(): pass\n")
    for _ in range(2):
        assert suite.run("--hf-report", "report.json").ret == pytest.ExitCode.OK


def test_the_same_words_in_the_environment_are_refused_too(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = suite.path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nhf_session_budget = 0.05\n")
    (folder / "test_it.py").write_text("def test_it(): pass\n")
    (suite.path / "prices.toml").write_text("")
    os.chdir(folder)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--hf-prices ../prices.toml")
    result = suite.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *has not read *pytest.ini. Write --hf-prices=FILE*"])


PRICE_HOOK = """
    import time
    import pytest

    def pytest_hfbudget_price(request):
        {does}
"""


def test_a_price_hook_that_fails_a_test_ends_no_run(suite: Suite) -> None:
    suite.pytester.makeconftest(PRICE_HOOK.format(does='pytest.fail("no price")'))
    suite.test_file("""
        def test_it():
            call()

        def test_other():
            pass
    """)
    result = suite.run(REPORT)
    result.assert_outcomes(passed=2)
    assert suite.report()["session"]["calls"] == 1
    assert suite.report()["calls"][0]["usd"] is None


def test_a_timeout_in_a_price_hook_is_the_tests(suite: Suite) -> None:
    pytest.importorskip("pytest_timeout")
    suite.pytester.makeconftest(PRICE_HOOK.format(does="time.sleep(3)"))
    suite.test_file("""
        def test_it():
            with budget():
                call()
    """)
    result = suite.run("--timeout=1", "--timeout-method=signal", REPORT)
    result.stdout.fnmatch_lines(["*Timeout*>1*"])
    # A price is asked for before its call is sent.
    assert suite.report()["session"]["calls"] == suite.sent == 0


def test_a_report_takes_nothing_away_from_the_file_that_it_shares(suite: Suite) -> None:
    log = suite.path / "log.txt"
    suite.test_file("def test_it():\n    call()\n")
    shell = f"{sys.executable} -m pytest -p no:cacheprovider --hf-report=/dev/stdout > {log}"
    assert subprocess.run(shell, shell=True, cwd=suite.path, check=False).returncode == 0
    assert "1 passed" in log.read_text()
    assert '"over_hold_usd"' in log.read_text()


def test_a_report_in_a_folder_of_devices_is_a_file_like_any_other(suite: Suite) -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("there is no such folder")
    file = folder / f"hfbudget-report-{os.getpid()}.json"
    suite.test_file("def test_it():\n    call()\n")
    try:
        for _ in range(2):
            suite.run(f"--hf-report={file}")
        assert json.loads(file.read_text())["session"]["calls"] == 1
    finally:
        file.unlink(missing_ok=True)
