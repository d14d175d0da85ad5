"""Options, ini settings and markers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.settings import INI_KEYS, SETTINGS, VARIABLES, Settings, merge

# Options of pytest with which it shows something and runs no test.
LOOK_ONLY_OPTIONS = (
    "help",
    "version",
    "collectonly",
    "setupplan",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "cacheshow",
)

BUDGET = (
    "budget(max_usd=None, *, name=None, warn_at=None, max_calls=None, price=None, "
    'price_per_1k_tokens=None, fallback=None, on_exceed="fail", scope="test"): cap in USD on '
    "what a test may spend on inference"
)
ENDPOINT = (
    "hf_endpoint(*names, keep_running=False): Inference Endpoints (namespace/name) that a test "
    "needs; resumed for the run, paused at its end (keep_running=True: not if it ran before)"
)


def add(parser: pytest.Parser) -> None:
    """Add an option and an ini setting for each of our settings that has one."""
    group = parser.getgroup("hfbudget", "budgets for Hugging Face inference")
    for key, setting in SETTINGS.items():
        if setting.option:
            group.addoption(setting.option, dest=_dest(key), **option_kind(key))
        if setting.ini:
            kind: Literal["args", "string"] = "args" if setting.repeatable else "string"
            parser.addini(setting.ini, setting.help, type=kind, default=None)


def read(config: pytest.Config) -> Settings:
    """The settings of a run.

    Raises:
        ConfigError: a setting is invalid, or a name is mistyped.
    """
    check_variables(os.environ)
    check_ini_keys(_ini_keys(config), lambda key: _is_read(config, key))
    values = {key: config.getoption(_dest(key), None) for key in SETTINGS}
    return merge(values, os.environ, config.getini)


def read_early(config: pytest.Config) -> Settings:
    """The settings before conftest files are imported.

    Ini keys are not checked yet, because conftest files may still register some.

    Raises:
        ConfigError: a setting is invalid, or the name of a variable is mistyped.
    """
    check_variables(os.environ)
    given = vars(config.known_args_namespace)
    return merge({key: given.get(_dest(key)) for key in SETTINGS}, os.environ, config.getini)


def check_variables(environ: Iterable[str]) -> None:
    """Refuse environment variables that begin with our prefix and that nothing reads.

    Raises:
        ConfigError: there is one. A mistyped name would silently drop a cap.
    """
    ours = (name for name in environ if name.upper().startswith("HFBUDGET_"))
    _refuse_unknown("environment variable", ours, VARIABLES, str.upper)


def check_ini_keys(
    keys: Iterable[str], is_read: Callable[[str], bool] = INI_KEYS.__contains__
) -> None:
    """Refuse ini keys that begin with our prefix and that nothing reads.

    Raises:
        ConfigError: there is one, as in `check_variables`.
    """
    ours = (key for key in keys if _ini_form(key).startswith(("hf_", "hfbudget_")))
    _refuse_unknown("ini setting", (k for k in ours if not is_read(k)), INI_KEYS, _ini_form)


def _ini_form(key: str) -> str:
    return key.lower().replace("-", "_")


def _refuse_unknown(
    kind: str, names: Iterable[str], known: Collection[str], usual: Callable[[str], str]
) -> None:
    unknown = sorted(name for name in names if name not in known)
    if not unknown:
        return
    from difflib import SequenceMatcher  # here, since the import takes a millisecond

    money = (each for each in SETTINGS.values() if each.guards_money)
    guards = {name for each in money for name in (each.variable, each.ini)}
    said = []
    for name in unknown:
        # Of two names that are equally similar, suggest the one that is a cap.
        near = [(SequenceMatcher(None, k, usual(name)).ratio(), k in guards, k) for k in known]
        nearest = max(near)[2]
        said.append(f"unknown {kind} {name}: did you mean {nearest}?")
    raise ConfigError(" ".join((*said, "Correct it, or remove it.")))


def _ini_keys(config: pytest.Config) -> set[str]:
    """Every key of pytest's ini file and of the option ``-o``."""
    given = {word.partition("=")[0] for word in config.getoption("override_ini", None) or ()}
    try:
        from _pytest.config.findpaths import load_config_dict_from_file
    except ImportError:
        return given  # another pytest has moved the function; it warns of unknown keys itself
    return given | set((config.inipath and load_config_dict_from_file(config.inipath)) or ())


def _is_read(config: pytest.Config, key: str) -> bool:
    """Whether a plugin or a conftest file has registered an ini key."""
    try:
        config.getini(key)
    except (KeyError, ValueError):
        return key in INI_KEYS
    except TypeError:
        return True  # its value has the wrong type; pytest says so when the key is read
    return True


def only_look(config: pytest.Config, settings: Settings) -> bool:
    """Whether a run only shows something, and runs no test (as ``--collect-only``)."""
    return settings.plan or any(config.getoption(name, None) for name in LOOK_ONLY_OPTIONS)


def check_rootdir(config: pytest.Config) -> None:
    """Refuse to run if pytest has found the wrong ini file: the caps may be in the right one.

    pytest looks for its ini file before it knows our options. It takes the FILE of
    ``--option FILE`` for a path of tests if that file exists, and may find another ini file there.

    Raises:
        ConfigError: pytest has found the wrong ini file.
    """
    words = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.invocation_params.args]
    folder = config.invocation_params.dir
    files = {each.option for each in SETTINGS.values() if each.is_file}
    taken = (
        str(option)
        for option, value in pairwise(words)
        if option in files and (folder / str(value)).exists()
    )
    option = next(taken, None)
    if option and config.inipath != (meant := _ini(config)) and meant is not None:
        raise ConfigError(
            f"pytest took the file after {option} for a path of tests, and so it has not read "
            f"{meant}. Write {option}=FILE, in one word."
        )


def _ini(config: pytest.Config) -> Path | None:
    """The ini file that pytest finds from the paths of tests only; if unknown, the one in use."""
    if config.option.inifilename:
        return config.inipath
    try:
        # pytest's own search; its signature was different before pytest 8.
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


def option_kind(key: str) -> dict[str, Any]:
    """The keyword arguments with which argparse, and pytest's parser, add an option."""
    setting = SETTINGS[key]
    if not setting.metavar:
        # Without a value: an optional one would swallow the path that follows.
        return {"action": "store_const", "const": "1", "default": None, "help": setting.help}
    action = "append" if setting.repeatable else "store"
    return {"action": action, "default": None, "metavar": setting.metavar, "help": setting.help}
