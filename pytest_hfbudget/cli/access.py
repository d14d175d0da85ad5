"""Which control plane, whose token, which namespace."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget.errors import ConfigError, HFBudgetError
from pytest_hfbudget.settings import Settings, merge

if TYPE_CHECKING:
    from pytest_hfbudget.endpoints import ControlPlane

_NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]*")
_NO_TOKEN = "there is no token: set HF_TOKEN, or run: hf auth login"  # noqa: S105


@functools.cache
def settings() -> Settings:
    """Environment over the pytest options of the pyproject.toml at or above this folder.

    Raises:
        click.UsageError: one of them can't be used.
    """
    ini = dict(_pytest_options())
    try:
        return merge({}, os.environ, ini.get)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def api() -> str:
    """Base URL of the control plane."""
    return settings().endpoints_api


def token() -> str:
    """The token of the environment or of `hf auth login`.

    Raises:
        click.ClickException: there is none.
    """
    from huggingface_hub import get_token

    found = get_token()
    if found is None:
        raise click.ClickException(_NO_TOKEN)
    return found


def plane() -> ControlPlane:
    """A client of the control plane."""
    from pytest_hfbudget.endpoints import ControlPlane

    return ControlPlane(api(), token(), agent="command")


def namespace(given: str | None) -> str:
    """The namespace that was given, or the default one.

    Raises:
        click.UsageError: there is neither, or it is no namespace.
    """
    name = given or settings().namespace
    if not name:
        raise click.UsageError("which namespace? Name it, or set HFBUDGET_NAMESPACE.")
    if not _NAMESPACE.fullmatch(name):
        raise click.UsageError(f"{name!r} is no namespace: write a user or an organisation.")
    return name


def endpoint_name(given: str) -> str:
    """``namespace/name``, of the default namespace if there is none.

    Raises:
        click.UsageError: it does not name an endpoint.
    """
    from pytest_hfbudget.endpoints import split_name

    default = settings().namespace
    name = f"{default}/{given}" if default and "/" not in given else given
    try:
        split_name(name)
    except HFBudgetError as error:
        raise click.UsageError(str(error)) from None
    return name


def pyproject() -> Path | None:
    """The pyproject.toml at or above this folder, if there is one."""
    here = Path.cwd()
    return next((p for d in (here, *here.parents) if (p := d / "pyproject.toml").is_file()), None)


def _pytest_options() -> Iterator[tuple[str, Any]]:
    """What pytest would read from pyproject.toml; its other ini files are not looked for."""
    path = pyproject()
    if path is None:
        return
    try:
        table = _load(path)["tool"]["pytest"]
        yield from table.items()
        yield from table.get("ini_options", {}).items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return  # none, or one that is broken, of which its owner will hear elsewhere


def _load(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return content
