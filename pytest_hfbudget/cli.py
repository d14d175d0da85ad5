"""`hfbudget`: the command beside the plugin."""

from __future__ import annotations

import os
import sys

import click

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.version import __version__

PAUSE_S = 120.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hfbudget")
def main() -> None:
    """Budgets for tests against Hugging Face inference, and endpoints that end up paused.

    The pytest options are shown by: pytest --help (group "budgets for Hugging Face inference").
    """


@main.command()
def demo() -> None:
    """Show all of it in a few seconds, against a local emulator, at $0."""
    from rich.console import Console

    try:
        from pytest_hfbudget.demo import Demo
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    if not Demo.run(Console()):
        sys.exit(1)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAMESPACE/NAME…")
def pause(names: tuple[str, ...]) -> None:
    """Pause endpoints and read the pause back.

    The token comes from HF_TOKEN, or from `hf auth login`. Exit code 1 if a pause could not be
    verified.
    """
    from pytest_hfbudget.endpoints import ControlPlane, Pauser, Timings, Watch, split_name

    plane, unverified = ControlPlane(_api(), _token()), 0
    for name in names:
        try:
            split_name(name)
        except HFBudgetError as error:
            raise click.UsageError(str(error)) from None
    for name in names:
        receipt = Pauser(plane, Watch(name), Timings(deadline_s=PAUSE_S), settled=True).run(_ignore)
        if receipt.verified:
            click.echo(f"{name}: {receipt.state}, verified")
        else:
            unverified += 1
            click.echo(receipt.error, err=True)
    sys.exit(1 if unverified else 0)


@main.command()
@click.argument("namespace")
def status(namespace: str) -> None:
    """List every endpoint of a namespace with its state."""
    from rich.console import Console
    from rich.table import Table

    from pytest_hfbudget.endpoints import ControlPlane

    try:
        endpoints = ControlPlane(_api(), _token()).list(namespace)
    except HFBudgetError as error:
        raise click.ClickException(str(error)) from None
    table = Table("endpoint", "state", "replicas", "instance")
    for endpoint in endpoints:
        instance = f"{endpoint.vendor} {endpoint.region} {endpoint.instance_type}"
        ready = f"{endpoint.ready_replica}/{endpoint.target_replica}"
        table.add_row(endpoint.full_name, endpoint.state, ready, instance)
    Console().print(table)


def _ignore(receipt: object) -> None:
    """A pause by hand belongs to no run's journal."""


def _api() -> str:
    from pytest_hfbudget.settings import ENDPOINTS_API

    return os.environ.get("HFBUDGET_ENDPOINTS_API", ENDPOINTS_API)


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise click.ClickException("there is no token: set HF_TOKEN, or run: hf auth login")
    return token
