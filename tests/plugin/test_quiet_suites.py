"""A suite without Hugging Face does not notice the plugin."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

HEAVY = ("huggingface_hub", "sqlite3", "click", "rich", "urllib3", "starlette")


@pytest.fixture
def quiet(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.delenv("HFBUDGET_EMULATOR")
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # coverage imports sqlite3
    suite.lean = False
    return suite


def test_nothing_heavy_is_imported(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text(
        f"import sys\ndef test_it():\n    assert [m for m in {HEAVY!r} if m in sys.modules] == []\n"
        "    assert not [m for m in sys.modules if m.startswith('pytest_hfbudget.pricing')]\n"
    )
    quiet.run("-p", "no:hypothesispytest", "-p", "no:anyio").assert_outcomes(passed=1)


def test_a_cap_alone_opens_no_database(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text("import huggingface_hub\ndef test_it(): pass\n")
    (quiet.path / "conftest.py").write_text(
        "import sys\nDATABASE = 'pytest_hfbudget.history.database'\n"
        "def pytest_unconfigure():\n    print('database:', DATABASE in sys.modules)\n"
    )
    result = quiet.run("-p", "no:hypothesispytest", "--hf-test-budget=1")
    result.stdout.fnmatch_lines(["database: False"])


def test_nothing_is_shown(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text("def test_it(): pass\n")
    result = quiet.run()
    result.stdout.no_fnmatch_line("*hf budget*")
    result.stdout.no_fnmatch_line("hfbudget:*")


@pytest.mark.slow
def test_warnings_as_errors_and_strict_markers_are_fine(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text(
        "import pytest\n@pytest.mark.budget(max_usd=1)\ndef test_it(): pass\n"
    )
    quiet.run("-W", "error", "--strict-markers", "--strict-config").assert_outcomes(passed=1)


def test_the_options_are_explained_by_pytest_help(quiet: Suite) -> None:
    quiet.run("--help").stdout.fnmatch_lines(["*--hf-session-budget=USD*", "*hf_session_budget*"])


def test_the_markers_are_explained(quiet: Suite) -> None:
    quiet.run("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.budget(max_usd=None*", "@pytest.mark.hf_endpoint(*"]
    )


LOADED = """
import sys

def pytest_unconfigure():
    ours = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "pytest_hfbudget"}
    compiled = [n for n, m in ours.items() if "Rewriting" in type(m.__loader__).__name__]
    print("compiled by pytest:", *sorted(compiled))
    print("loaded:", *sorted(n.removeprefix("pytest_hfbudget.") for n in ours))
"""


def test_pytest_compiles_two_small_modules_of_ours_at_most(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text("import huggingface_hub\ndef test_it(): pass\n")
    (quiet.path / "conftest.py").write_text(LOADED)
    said = "compiled by pytest: pytest_hfbudget pytest_hfbudget.plugin"
    quiet.run("-p", "no:hypothesispytest").stdout.fnmatch_lines([said])


def test_what_only_calls_and_failures_need_is_not_loaded(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text("def test_it(): pass\n")
    (quiet.path / "conftest.py").write_text(LOADED)
    result = quiet.run("-p", "no:hypothesispytest", "-p", "no:anyio")
    (loaded,) = [line for line in result.outlines if line.startswith("loaded: ")]
    rooms = ("ledger", "pricing", "reporting", "endpoints", "history", "files", "text")
    assert not [name for name in loaded.split()[1:] if name.startswith(rooms)]
    assert len(loaded.split()) <= 20


def test_a_suite_that_imports_a_client_and_does_not_call_loads_no_ledger(quiet: Suite) -> None:
    (quiet.path / "test_quiet.py").write_text("import huggingface_hub\ndef test_it(): pass\n")
    (quiet.path / "conftest.py").write_text(LOADED)
    result = quiet.run("-p", "no:hypothesispytest", "-p", "no:anyio")
    (loaded,) = [line for line in result.outlines if line.startswith("loaded: ")]
    assert "metering.instrumentation.hub" in loaded.split()
    assert not [name for name in loaded.split() if name.startswith(("ledger", "pricing"))]


@pytest.mark.parametrize(
    ("name", "autoload"), [("pytest_hfbudget", ""), ("pytest_hfbudget.plugin", "1")]
)
def test_our_package_may_be_imported_before_pytest_starts(
    quiet: Suite, monkeypatch: pytest.MonkeyPatch, name: str, autoload: str
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", autoload)
    monkeypatch.setenv("PYTEST_PLUGINS", name)
    (quiet.path / "test_quiet.py").write_text("def test_it(): pass\n")
    (quiet.path / "start.py").write_text(
        f"import {name}, pytest, sys\nsys.exit(pytest.main(['-W', 'error']))\n"
    )
    result = quiet.pytester.runpython(quiet.path / "start.py")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*Warning*")


# --- huggingface_hub is there, and no test calls


MANY = """
import huggingface_hub
import pytest

@pytest.mark.parametrize("number", range(20))
def test_it(number): pass
"""


def test_a_run_without_calls_makes_no_report(quiet: Suite) -> None:
    (quiet.path / "test_many.py").write_text(MANY)
    (quiet.path / "conftest.py").write_text(
        "import sys\ndef pytest_unconfigure():\n"
        "    print('report:', 'pytest_hfbudget.reporting' in sys.modules)\n"
    )
    quiet.run().stdout.fnmatch_lines(["report: False"])


@pytest.mark.slow
def test_a_test_that_does_not_call_is_not_asked_where_it_is(quiet: Suite) -> None:
    (quiet.path / "test_many.py").write_text(MANY)
    (quiet.path / "conftest.py").write_text("""
import pytest

class Function(pytest.Function):
    asked = 0

    def reportinfo(self):
        Function.asked += 1
        return super().reportinfo()

def pytest_pycollect_makeitem(collector, name, obj):
    if name == "test_counted":
        return Function.from_parent(collector, name=name, callobj=obj)

def pytest_unconfigure():
    print("asked:", Function.asked)
""")
    (quiet.path / "test_counted.py").write_text("def test_counted(): pass\n")
    said = {
        line
        for options in ((), ("-p", "no:hfbudget"))
        for line in quiet.run(*options).outlines
        if line.startswith("asked: ")
    }
    assert len(said) == 1


@pytest.mark.slow
def test_a_worker_whose_tests_do_not_call_asks_its_controller_nothing(quiet: Suite) -> None:
    pytest.importorskip("xdist")
    (quiet.path / "test_many.py").write_text(MANY)
    (quiet.path / "conftest.py").write_text("""
import socket, sys, pathlib

asked = []

def hook(event, arguments):
    if event == "socket.connect" and arguments[0].family == socket.AF_UNIX:
        asked.append(str(arguments[1]))

sys.addaudithook(hook)

def pytest_unconfigure(config):
    if hasattr(config, "workerinput"):
        pathlib.Path(__file__).with_name(config.workerinput["workerid"]).write_text(repr(asked))
""")
    quiet.run("-n2").assert_outcomes(passed=20)
    assert [(quiet.path / worker).read_text() for worker in ("gw0", "gw1")] == ["[]", "[]"]
