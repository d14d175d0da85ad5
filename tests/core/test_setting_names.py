"""Each name of a setting is known wherever it is written, and a mistyped one is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.plugin.options import check_ini_keys, check_variables
from pytest_hfbudget.settings import INI_KEYS, SETTINGS, VARIABLES

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = (
    *ROOT.glob("pytest_hfbudget/**/*.py"),
    *ROOT.glob("docs/**/*.*ml"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("examples/**/*.*"),
    ROOT / "README.md",
)
NAME = re.compile(r"\bHFBUDGET_[A-Z_]+\b")


def test_every_variable_that_the_code_and_the_documents_name_is_known() -> None:
    texts = [
        path.read_text("utf-8") for path in WRITTEN if path.is_file() and path.suffix != ".pyc"
    ]
    assert {name for text in texts for name in NAME.findall(text)} == VARIABLES


@pytest.mark.parametrize("key", SETTINGS)
def test_the_page_of_the_configuration_has_each_name_of_each_setting(key: str) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    setting = SETTINGS[key]
    for name in filter(None, (setting.option, setting.variable, setting.ini)):
        assert f"`{name}" in page


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_a_known_variable_passes(name: str) -> None:
    check_variables([name, "PATH", "HF_TOKEN", "HUGGINGFACE_INPUT_TOKEN_COST"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("HFBUDGET_SESION", "HFBUDGET_SESSION"),
        ("HFBUDGET_SESSION_BUDGET", "HFBUDGET_SESSION"),
        ("HFBUDGET_DAYLY", "HFBUDGET_DAILY"),
        ("hfbudget_session", "HFBUDGET_SESSION"),
        ("HFBUDGET_", "HFBUDGET_TEST"),
    ],
)
def test_a_mistyped_variable_is_an_error_with_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_variables(["HFBUDGET_TEST", typed])
    assert str(caught.value) == (
        f"unknown environment variable {typed}: did you mean {meant}? Correct it, or remove it."
    )


@pytest.mark.parametrize("key", sorted(INI_KEYS))
def test_a_known_ini_key_passes(key: str) -> None:
    check_ini_keys([key, "testpaths", "addopts"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hf_sesion_budget", "hf_session_budget"),
        ("hf-session-budget", "hf_session_budget"),
        ("HF_SESSION_BUDGET", "hf_session_budget"),
        ("hfbudget_session", "hf_session_budget"),
    ],
)
def test_a_mistyped_ini_key_is_an_error_with_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ini_keys(["hf_test_budget", typed])
    assert f"unknown ini setting {typed}: did you mean {meant}?" in str(caught.value)


def test_every_mistyped_name_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_variables(["HFBUDGET_SESION", "HFBUDGET_TST"])
    assert "HFBUDGET_SESION" in str(caught.value)
    assert "HFBUDGET_TST" in str(caught.value)
