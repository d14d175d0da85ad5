"""A suite without Hugging Face does not notice the plugin."""

from __future__ import annotations

import pytest
from plugin_suite import Suite

HEAVY = ("huggingface_hub", "sqlite3", "click", "rich", "urllib3", "starlette")


@pytest.fixture
def quiet(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.delenv("HFBUDGET_EMULATOR")
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
