"""`hfbudget demo`."""

from __future__ import annotations

import sys

import click


@click.command("demo")
def command() -> None:
    """Show all of it in a few seconds, against a local emulator, at $0."""
    from rich.console import Console

    try:
        from pytest_hfbudget.demo import Demo
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    if not Demo.run(Console()):
        sys.exit(1)
