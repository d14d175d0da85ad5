"""What pytest is configured with in a folder: root directory, ini file, options of ours."""

from __future__ import annotations

import argparse
import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.plugin.options import option_kind
from pytest_hfbudget.settings import SETTINGS, Settings, merge

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Configuration:
    """What pytest would read if it were started in a folder.

    Attributes:
        root: the root directory.
        options: of ours in ``addopts`` and ``PYTEST_ADDOPTS``, by setting.
        ini: every key of the ini file and of ``-o``.
    """

    root: Path
    options: Mapping[str, Any]
    ini: Mapping[str, Any]
    environ: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, environ: Mapping[str, str]) -> Configuration:
        """The configuration of a folder, found by pytest's own code.

        Raises:
            ConfigError: pytest would not start here.
        """
        words = _words(environ.get("PYTEST_ADDOPTS", ""))
        early = _parsed(words)
        root, ini = _determined(folder, early.config_file, early.rootdir)
        given = _parsed([*_words(ini.get("addopts", "")), *words])
        for pair in given.override_ini:
            key, _, value = pair.partition("=")
            ini[key] = value
        return cls(root, {key: getattr(given, key, None) for key in SETTINGS}, ini, environ)

    def settings(self, only: Sequence[str] = tuple(SETTINGS)) -> Settings:
        """The settings that a run has.

        Raises:
            ConfigError: one of them makes no sense.
        """
        return merge(self.options, self.environ, self.ini.get, only=only)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"addopts or PYTEST_ADDOPTS: {message}")


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config-file", dest="config_file")
    parser.add_argument("--rootdir")
    parser.add_argument("-o", "--override-ini", dest="override_ini", action="append", default=[])
    for key, setting in SETTINGS.items():
        if setting.option:
            parser.add_argument(setting.option, dest=key, **option_kind(key))
    return parser.parse_known_args(words)[0]


def _words(given: str | Sequence[str]) -> list[str]:
    try:
        return shlex.split(given) if isinstance(given, str) else list(given)
    except ValueError as error:
        raise ConfigError(f"addopts or PYTEST_ADDOPTS: {error}") from None


def _determined(
    folder: Path, config_file: str | None, rootdir: str | None
) -> tuple[Path, dict[str, Any]]:
    import pytest
    from _pytest.config.findpaths import determine_setup

    asked: dict[str, Any] = {
        "inifile": config_file,
        "args": [],
        "rootdir_cmd_arg": rootdir,
        "invocation_dir": folder,
        "override_ini": None,
    }
    known = inspect.signature(determine_setup).parameters  # pytest 8.0 has no override_ini
    try:
        root, _, ini, *_ = determine_setup(**{key: asked[key] for key in asked if key in known})
    except (OSError, pytest.UsageError, pytest.fail.Exception) as error:
        raise ConfigError(str(error)) from None
    return root, {key: getattr(value, "value", value) for key, value in ini.items()}
