"""`hfbudget`: the command beside the plugin."""

from __future__ import annotations

from importlib import import_module

import click

from pytest_hfbudget import __version__

# Each is ``command`` in the module of its name, which is imported when it is asked for; but for
# the one whose place is given below.
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
ELSEWHERE = {"sweep": "pause:sweep_command"}


class Commands(click.Group):
    """Imports a command when it is asked for: none waits for what only another one needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = ELSEWHERE.get(cmd_name, f"{cmd_name}:command").partition(":")
        found: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hfbudget")
def main() -> None:
    """Budgets for tests against Hugging Face inference, and endpoints that end up paused.

    The pytest options are shown by: pytest --help (group "budgets for Hugging Face inference").
    """
