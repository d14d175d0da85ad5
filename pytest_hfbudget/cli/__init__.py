"""The `hfbudget` command, and what its subcommands share.

They share the settings as pytest reads them, the control plane, the token, and the namespace.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pytest_hfbudget import __version__
from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.settings import SETTINGS, Settings, merge

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints.api import ControlPlane
    from pytest_hfbudget.shared import SharedConnection

# Each subcommand is ``command`` in the module of its name, which is imported when it is needed. An
# exception is in `OTHER_MODULES`.
COMMANDS = (
    "bill",
    "demo",
    "forecast",
    "log",
    "pause",
    "prices",
    "report",
    "run",
    "status",
    "sweep",
)
OTHER_MODULES = {"sweep": "pause:sweep_command"}


class Commands(click.Group):
    """Imports a subcommand only when it runs, so that it needs no imports of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = OTHER_MODULES.get(cmd_name, f"{cmd_name}:command").partition(":")
        found: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hfbudget")
def main() -> None:
    """Show what tests spend on Hugging Face inference, and pause Inference Endpoints.

    `pytest --help` lists the options of the pytest plugin, in the group "budgets for Hugging Face
    inference".
    """


# --- what subcommands share

_NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]*")
_PLACES = ("emulator", "endpoints_api", "namespace", "shared", "shared_run", "shared_expiry")
HUB = "https://huggingface.co"
_NO_TOKEN = "there is no token: set HF_TOKEN, or run: hf auth login"  # noqa: S105


@functools.cache
def configuration() -> Configuration:
    """The configuration of pytest in this folder.

    Raises:
        click.UsageError: pytest would not start here.
    """
    with _usage_errors():
        return Configuration.of(Path.cwd(), os.environ)


@functools.cache
def settings() -> Settings:
    """The settings of a pytest run in this folder.

    Raises:
        click.UsageError: a value can't be used, or a variable is mistyped.
    """
    from pytest_hfbudget.plugin.options import check_ini_keys, check_variables

    given = configuration()
    with _usage_errors():
        check_variables(os.environ)
        found = given.settings()
    try:
        check_ini_keys(given.ini)
    except ConfigError as error:
        _warn_once(str(error))  # only a warning: another plugin may own the key
    return found


def services() -> Settings:
    """The settings, with the addresses of the emulator if the environment names one.

    Raises:
        click.UsageError: as `settings`; or the environment asks for a new emulator in each run.
    """
    return _with_emulator(settings())


def pause_settings() -> Settings:
    """The settings that a pause needs: addresses, namespace and shared server.

    An error in any other setting is only printed as a warning, since it must not prevent a pause.

    Raises:
        click.UsageError: one of the needed settings can't be used.
    """
    try:
        return services()
    except click.UsageError as error:
        with _usage_errors():
            found = _with_emulator(_only_places())
        _warn_once(error.message)
        return found


def _only_places() -> Settings:
    try:
        given = configuration()
    except click.UsageError:  # no ini file of pytest can be read
        return merge({}, os.environ, lambda name: None, only=_PLACES)
    return given.settings(_PLACES)


def _with_emulator(given: Settings) -> Settings:
    if given.emulator is None:
        return given
    if given.emulator == "start":
        raise click.UsageError(
            "HFBUDGET_EMULATOR=1 has each pytest run start an emulator of its own. Give a command "
            "the URL of one that runs (python -m pytest_hfbudget.emulator), or unset it."
        )
    from pytest_hfbudget.plugin.rehearsal import settings_for_emulator

    return settings_for_emulator(given.emulator, given)


@functools.cache
def _warn_once(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def hub() -> str:
    """Base URL of the Hub: of the emulator, else HF_ENDPOINT, else the public one.

    Raises:
        click.UsageError: HF_ENDPOINT is no URL.
    """
    from pytest_hfbudget.text import public_value
    from pytest_hfbudget.values import url

    given = services().hub or os.environ.get("HF_ENDPOINT", "").strip() or HUB
    try:
        return url(given)
    except ValueError as error:
        raise click.UsageError(f"HF_ENDPOINT={public_value(given)}: {error}") from None


def api() -> str:
    """Base URL of the control plane."""
    return pause_settings().endpoints_api


def token() -> str:
    """The token from HF_TOKEN or `hf auth login`; in a rehearsal the emulator's token.

    Raises:
        click.ClickException: there is none.
    """
    if pause_settings().emulator:
        from pytest_hfbudget.plugin.rehearsal import TOKEN

        return TOKEN
    from huggingface_hub import get_token

    found = get_token()
    if found is None:
        raise click.ClickException(_NO_TOKEN)
    return found


def plane() -> ControlPlane:
    """A client of the control plane."""
    from pytest_hfbudget.endpoints.api import ControlPlane

    return ControlPlane(api(), token(), agent="command")


def namespace(given: str | None) -> str:
    """The namespace that was given, or the default one.

    Raises:
        click.UsageError: there is neither, or it is invalid.
    """
    name = given or pause_settings().namespace
    if not name:
        raise click.UsageError("which namespace? Name it, or set HFBUDGET_NAMESPACE.")
    if not _NAMESPACE.fullmatch(name):
        raise click.UsageError(f"{name!r} is not a namespace: write a user or an organisation.")
    return name


def shared_option(help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option ``--shared [URL]``; pass its value to `shared`."""
    return click.option(
        "--shared", is_flag=False, flag_value="", default=None, metavar="[URL]", help=help
    )


def shared(given: str | None) -> SharedConnection | None:
    """The Redis server to use; None if there is none.

    Args:
        given: the value of ``--shared``: a URL; "" for the configured server, which must exist;
            None for the configured server, if there is one.

    Raises:
        click.UsageError: the server can't be used, or "" was given and none is configured.
    """
    from pytest_hfbudget import values
    from pytest_hfbudget.shared import SharedAddress, SharedConnection

    found = pause_settings()
    try:
        url = values.shared_server(given) if given else found.shared
        if given:
            values.refuse_password(given)
        if url is None:
            if given is None:
                return None
            raise click.UsageError("--shared: which server? Name its URL, or set HFBUDGET_SHARED.")
        address = SharedAddress.of(url)
    except ValueError as error:
        raise click.UsageError(f"--shared: {error}") from None
    return SharedConnection(url, address.password, found.shared_run or "", found.shared_expiry)


def endpoint_name(given: str) -> str:
    """The full name ``namespace/name``; a name without a namespace gets the default one.

    Raises:
        click.UsageError: the name is invalid.
    """
    from pytest_hfbudget.endpoints import split_name

    default = pause_settings().namespace
    name = f"{default}/{given}" if default and "/" not in given else given
    try:
        split_name(name)
    except HFBudgetError as error:
        raise click.UsageError(str(error)) from None
    return name


@dataclass(frozen=True)
class Configuration:
    """The configuration that pytest would read if it were started in a folder.

    Attributes:
        root: pytest's root directory.
        options: our options in ``addopts`` and ``PYTEST_ADDOPTS``, by setting.
        ini: every key of the ini file and of ``-o``.
        environ: the environment variables.
    """

    root: Path
    options: Mapping[str, Any]
    ini: Mapping[str, Any]
    environ: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, environ: Mapping[str, str]) -> Configuration:
        """The configuration for a folder, found by pytest's own code.

        Raises:
            ConfigError: pytest would not start in this folder.
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
        """The settings of a run with this configuration.

        Args:
            only: the settings to read; the others get their defaults.

        Raises:
            ConfigError: a setting is invalid.
        """
        return merge(self.options, self.environ, self.ini.get, only=only)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"addopts or PYTEST_ADDOPTS: {message}")


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    from pytest_hfbudget.plugin.options import option_kind

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
