"""`hfbudget report`: shows what runs have cost, in the terminal, as HTML or as Markdown."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.errors import HFBudgetError, HistoryError
from pytest_hfbudget.money import beside
from pytest_hfbudget.reporting import REHEARSAL, Report
from pytest_hfbudget.reporting.bill import drift_text
from pytest_hfbudget.reporting.ci import compared, comparison, merged
from pytest_hfbudget.reporting.json_report import SCHEMA_FILE, ReportFileError, parse, read
from pytest_hfbudget.reporting.tables import Table, tables
from pytest_hfbudget.reporting.terminal import bar
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from rich.console import Console

TOP = 10
_FILE = click.Path(path_type=Path)


@click.command("report")
@click.argument("files", nargs=-1, metavar="[FILE]…", type=_FILE)
@click.option("--html", "page", metavar="OUT", type=_FILE, help="Write one HTML page instead.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=TOP,
    metavar="N",
    help=f"Rows of each table in the terminal; 0 is all of them.  [default: {TOP}]",
)
@click.option(
    "--shared",
    "run",
    metavar="RUN",
    help="The jobs of a run that share their budgets (HFBUDGET_SHARED), as one report.",
)
@click.option(
    "--compare", "base", metavar="BASE", type=_FILE, help="Compare with an earlier report."
)
@click.option("--markdown", is_flag=True, help="Print Markdown, for a summary or a comment.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the files.")
def command(
    files: tuple[Path, ...],
    page: Path | None,
    top: int,
    run: str | None,
    base: Path | None,
    markdown: bool,
    schema: bool,
) -> None:
    """Show what `pytest --hf-report FILE` has written.

    Several FILEs are several runs: the command shows the newest in full, and all of them in a
    table. Without a FILE it reads that of --hf-report in pytest's configuration. --compare shows
    how much more or less the newest run costs than BASE, in all and by test.

    Exit codes: 0 shown; 1 a file is not a report, or the page could not be written; 2 wrong usage.
    """
    if schema:
        click.echo(SCHEMA_FILE.read_text(encoding="utf-8").rstrip())
        return
    if page is not None and (base is not None or markdown):
        raise click.UsageError("--html is a page of its own: leave out --compare and --markdown.")
    reports = _read(files) if run is None else [_of_run(run)]
    if page is not None:
        _write(reports, page)
    elif base is not None:
        _compare(_file(base), reports[-1], top, markdown)
    elif markdown:
        from pytest_hfbudget.reporting.ci import step_summary

        click.echo(step_summary(reports[-1]), nl=False)
    else:
        _print(reports, top)


def _read(files: tuple[Path, ...]) -> list[Report]:
    if not files and (configured := cli.settings().report):
        files = (configured,)
    if not files:
        raise click.UsageError("name the FILE that `pytest --hf-report FILE` has written.")
    return _with_bills(sorted(map(_file, files), key=lambda one: one.date))


def _file(path: Path) -> Report:
    try:
        return read(path)
    except ReportFileError as error:
        raise click.ClickException(str(error)) from None


def _of_run(run: str) -> Report:
    """One report of all jobs of a run that have ended so far."""
    from pytest_hfbudget.shared import SharedServer, reports_of

    place = cli.shared("")
    try:
        texts = reports_of(SharedServer(place.address), run) if place else ()
        found = [parse(json.loads(text), written=datetime.now(timezone.utc)) for text in texts]
    except HFBudgetError as error:
        raise click.ClickException(str(error)) from None
    if not found:
        raise click.ClickException(f"no job of the run {run} has shared a report.")
    return merged(found, run)


def _with_bills(reports: list[Report]) -> list[Report]:
    """The reports with their bills from the usage log, where `hfbudget bill` has read them."""
    from pytest_hfbudget.history.bills import log_bills

    try:
        known = log_bills().runs([one.run for one in reports])
    except HistoryError as error:
        click.echo(f"Warning: no bills are shown: {error}", err=True)
        return reports
    bills = {bill.run: bill for bill in known if bill.booked is not None}
    return [replace(one, bill=bills.get(one.run)) for one in reports]


def _write(reports: list[Report], path: Path) -> None:
    try:
        from pytest_hfbudget.reporting import html
    except ImportError:
        raise click.ClickException('the page needs: pip install "pytest-hfbudget[html]"') from None
    try:
        html.write(reports, path)
    except OSError as error:
        raise click.ClickException(f"{path} could not be written: {error.strerror}") from None
    click.echo(f"{path}: {len(reports)} run{'s' if len(reports) > 1 else ''}")


def _print(reports: list[Report], top: int) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log in ASCII still gets the figures
    console, newest = output.console(), reports[-1]
    console.print(_headline(newest), markup=False)
    for table in tables(reports):
        if table.key != "calls" or not top:
            _print_table(console, table, top)


def _compare(before: Report, after: Report, top: int, markdown: bool) -> None:
    if markdown:
        from pytest_hfbudget.reporting.ci import comparison_comment

        click.echo(comparison_comment(before, after), nl=False)
        return
    for sentence in compared(before, after):
        output.say(sentence)
    for table in comparison(before, after):
        if table.rows:
            _print_table(output.console(), table, top)


def _headline(report: Report) -> str:
    run = f"run {printable(report.run)}, " if report.run else ""
    rehearsal = f" ({REHEARSAL})" if report.rehearsal else ""
    amount, *of_cap = beside(report.cap, report.spent)
    if report.cap is None:
        cap = "without a session budget"
    else:
        cap = f"of {of_cap[0]} {bar(report.spent, report.cap)}"
    spent = f"spent {amount} {cap} ({report.counts})"
    billed = ""
    if report.bill and report.bill.booked:
        drift = drift_text(report.bill.drift) or "the ledger lacks a price"
        billed = f"\nbilled {report.bill.sums[1]} by Hugging Face ({drift})"
    return f"{run}{report.day} UTC{rehearsal}\n{spent}{billed}"


def _print_table(console: Console, table: Table, top: int) -> None:
    from rich.text import Text

    rows = table.rows[:top] if top else table.rows
    console.print()
    if table.title:
        console.print(Text(table.title, style="bold"))
    console.print(
        output.table(
            *(column.label for column in table.columns),
            rows=(tuple(table.texts(row)) for row in rows),
            styles=("red" if "failed" in row else "" for row in rows),
            right=(column.label for column in table.columns if column.is_number),
        )
    )
    if left := len(table.rows) - len(rows):
        console.print(f"… and {left:,} more", style="dim")
