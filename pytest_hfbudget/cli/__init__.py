"""`hfbudget`: the command beside the plugin."""

from __future__ import annotations

import click

from pytest_hfbudget.cli import demo, forecast, log, pause, prices, report, run, status, sweep
from pytest_hfbudget.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hfbudget")
def main() -> None:
    """Budgets for tests against Hugging Face inference, and endpoints that end up paused.

    The pytest options are shown by: pytest --help (group "budgets for Hugging Face inference").
    """


for _each in (
    demo.demo,
    forecast.command,
    log.log,
    pause.pause,
    prices.prices,
    report.report,
    run.run,
    status.status,
    sweep.sweep,
):
    main.add_command(_each)
