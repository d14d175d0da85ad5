"""Options, ini settings and markers."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.settings import SETTINGS, Settings, merge

METAVARS = {
    "session_cap": "USD",
    "test_cap": "USD",
    "on_exhausted": "HOW",
    "daily_cap": "USD",
    "weekly_cap": "USD",
    "monthly_cap": "USD",
    "prices": "FILE",
    "unpriced": "HOW",
    "endpoints": "NAME",
    "namespace": "NAME",
    "report": "FILE",
    "costs": "FILE",
    "plan_gate": "HOW",
    "max_increase": "PERCENT",
    "max_uptime": "MIN",
    "idle_timeout": "MIN",
}

# No values here: as an optional one, an emulator's URL would swallow the path that follows.
CONSTANTS = {"emulator": "start", "plan": "1", "store_costs": "1"}

LOOKS = (
    "collectonly",
    "setupplan",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "cacheshow",
)

# Whose value may be the path of something that exists.
_FILES = ("--hf-prices", "--hf-report", "--hf-costs")

BUDGET = (
    "budget(max_usd=None, *, name=None, warn_at=None, max_calls=None, price=None, "
    'price_per_1k_tokens=None, fallback=None, on_exceed="fail", scope="test"): cap in USD on '
    "what a test may spend on inference"
)
ENDPOINT = (
    "hf_endpoint(*names, keep_running=False): Inference Endpoints (namespace/name) that a test "
    "needs; resumed once per run, paused at its end (unless it was found running, and is kept so)"
)


def add(parser: pytest.Parser) -> None:
    """Add an option and an ini setting for each of our settings that has one."""
    group = parser.getgroup("hfbudget", "budgets for Hugging Face inference")
    for key, setting in SETTINGS.items():
        if setting.option:
            group.addoption(setting.option, dest=_dest(key), help=setting.help, **_kind(key))
        if setting.ini:
            kind: Literal["args", "string"] = "args" if key == "endpoints" else "string"
            parser.addini(setting.ini, setting.help, type=kind, default=None)


def read(config: pytest.Config) -> Settings:
    """The settings of a run.

    Raises:
        ConfigError: one of them makes no sense.
    """
    values = {key: config.getoption(_dest(key), None) for key in SETTINGS}
    return merge(values, os.environ, config.getini)


def only_look(config: pytest.Config, settings: Settings) -> bool:
    """Whether a run shows what it would do, and does nothing."""
    return settings.plan or any(config.getoption(name, None) for name in LOOKS)


def check_rootdir(config: pytest.Config) -> None:
    """Refuse to run with another ini file than was meant, since the caps may be in there.

    pytest looks for it before it knows our options, and takes what follows one of them after a
    space for a path of tests, if there is such a path.

    Raises:
        ConfigError: that has happened.
    """
    words = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.invocation_params.args]
    folder = config.invocation_params.dir
    taken = (
        str(option)
        for option, value in pairwise(words)
        if option in _FILES and (folder / str(value)).exists()
    )
    option = next(taken, None)
    if option and config.inipath != (meant := _ini(config)) and meant is not None:
        raise ConfigError(
            f"pytest took the file after {option} for a path of tests, and so it has not read "
            f"{meant}. Write {option}=FILE, in one word."
        )


def _ini(config: pytest.Config) -> Path | None:
    """The ini file that belongs to the tests alone; that of the run, where nobody can tell."""
    if config.option.inifilename:
        return config.inipath
    try:
        # Its own way to find it, which has had another signature before pytest 8.
        from _pytest.config.findpaths import (
            get_common_ancestor,
            get_dirs_from_args,
            locate_config,
        )

        given = config.args if config.args_source is config.ArgsSource.ARGS else []
        folder = config.invocation_params.dir
        found = locate_config(folder, [get_common_ancestor(folder, get_dirs_from_args(given))])
    except (ImportError, TypeError, AttributeError):
        return config.inipath
    return found[1]


def register_markers(config: pytest.Config) -> None:
    """Make our markers known to ``--markers`` and ``--strict-markers``."""
    for line in (BUDGET, ENDPOINT):
        config.addinivalue_line("markers", line)


def _dest(key: str) -> str:
    return f"hfbudget_{key}"


def _kind(key: str) -> dict[str, Any]:
    if key in CONSTANTS:
        return {"action": "store_const", "const": CONSTANTS[key], "default": None}
    if key == "endpoints":
        return {"action": "append", "default": None, "metavar": METAVARS[key]}
    return {"default": None, "metavar": METAVARS[key]}
