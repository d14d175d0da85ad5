"""`hfbudget log`: shows the calls of past runs, and what they cost."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from pytest_hfbudget import cli
from pytest_hfbudget.cli import output
from pytest_hfbudget.errors import HistoryError
from pytest_hfbudget.money import parse_usd, show, usd_text
from pytest_hfbudget.reporting import UNPRICED
from pytest_hfbudget.reporting.bill import as_number, by_model, drift_text
from pytest_hfbudget.text import printable

if TYPE_CHECKING:
    from pytest_hfbudget.history.usage_log import Entry, Total, UsageQuery

LIMIT = 50
TEXTS = ("test", "model", "provider", "endpoint", "status", "kind", "run", "project")
GROUPS = ("model", "provider", "test", "endpoint", "run", "day", "project")
# A spreadsheet treats a cell that begins with one of these as a formula.
FORMULAS = ("=", "+", "-", "@")
_SPANS = {"h": "hours", "d": "days", "w": "weeks"}


def _texts(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(TEXTS):
        command = click.option(f"--{name}", metavar="TEXT", help=f"Only entries with this {name}.")(
            command
        )
    return command


@click.command("log")
@_texts
@click.option("--since", metavar="WHEN", help="Entries since then: 2026-11-21 (UTC), 36h, 7d, 2w.")
@click.option("--until", metavar="WHEN", help="Entries up to then; a day counts as a whole.")
@click.option("--by", "group", type=click.Choice(GROUPS), help="Show sums instead of entries.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Only the latest N entries; 0 for all. {LIMIT} in a table, all in JSON and CSV.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with a line of names first.")
def command(
    since: str | None,
    until: str | None,
    group: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
    **texts: str | None,
) -> None:
    """Show what past runs have called, and sums of it.

    The log has the calls, refusals and endpoints of this user's runs on this machine. An entry is
    shown if it matches every option. A TEXT matches anywhere in its field. With * or ? in it, it
    is a pattern for the whole field.

    Exit codes: 0 shown, also when there is nothing; 1 the log can't be read; 2 wrong usage.
    """
    from pytest_hfbudget.history.usage_log import UsageQuery

    if as_json and as_csv:
        raise click.UsageError("Choose one of --json and --csv.")
    kept = cli.settings().log_days
    question = UsageQuery(
        tuple((key, text) for key, text in texts.items() if text is not None),
        since=moment("--since", since),
        until=moment("--until", until, whole_day=True),
    )
    if limit is None:
        limit = 0 if as_json or as_csv else LIMIT
    try:
        names, rows, total = _ask(question, group, limit)
        if as_json:
            _print_json("totals" if group else "entries", rows, total)
        elif as_csv:
            _print_csv(names, rows)
        elif group:
            _print_totals(group, list(rows), total)
        elif not (shown := list(rows)) and not kept:
            click.echo("no usage log is kept: HFBUDGET_LOG_DAYS or hf_log_days is 0")
        else:
            _print_entries(shown, total)
    except HistoryError as error:
        raise click.ClickException(str(error)) from None


def _ask(
    question: UsageQuery, group: str | None, limit: int
) -> tuple[tuple[str, ...], Iterator[dict[str, Any]], Total]:
    """The names of the columns, the rows as dicts, and the sums of all matching entries."""
    from pytest_hfbudget.endpoints.journal import default_state_dir
    from pytest_hfbudget.history.usage_log import COLUMNS, FILE, LogReader

    answers = LogReader(default_state_dir() / FILE)
    total = answers.total(question)
    if group is None:
        names = tuple("usd" if name == "nano_usd" else name for name in COLUMNS)
        return names, map(_entry_as_dict, answers.each(question, limit)), total
    totals = answers.totals(question, group)
    more, billed = _billed(group)
    unknown = dict.fromkeys(more)
    rows = (
        {group: one.name, **_total_as_dict(one), **billed.get(one.name, unknown)} for one in totals
    )
    return (group, *_total_as_dict(total), *more), rows, total


def _billed(group: str) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Further columns with what is known of the bill: their names, and values by run or model."""
    from pytest_hfbudget.history.bills import log_bills

    if group == "run":
        known = [bill for bill in log_bills().runs() if bill.booked is not None]
        names = ("ledger_usd", "billed_usd", "drift")
        return names, {bill.run: {name: bill.json()[name] for name in names} for bill in known}
    if group == "model":
        found = by_model(log_bills().runs())
        return ("drift", "drift_runs"), {
            one.model: {"drift": as_number(one.drift), "drift_runs": one.runs} for one in found
        }
    return (), {}


def moment(option: str, text: str | None, *, whole_day: bool = False) -> float | None:
    """The unix seconds of a day, a time, or a span before now; None for None.

    Args:
        option: the name of the option, for the error.
        whole_day: whether a day means its end.

    Raises:
        click.UsageError: the text is none of these.
    """
    if text is None:
        return None
    try:
        if text[:-1].isdecimal() and text[-1] in _SPANS:
            span = timedelta(**{_SPANS[text[-1]]: int(text[:-1])})
            return (datetime.now(timezone.utc) - span).timestamp()
        then = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if whole_day and len(text) == len("2026-11-21"):
            then += timedelta(days=1)
        return (then if then.tzinfo else then.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"{option} {text}: write a day (2026-11-21), a time (2026-11-21T14:00), or how long "
            "ago (36h, 7d, 2w)."
        ) from None


def _entry_as_dict(entry: Entry) -> dict[str, Any]:
    fields = dict(vars(entry))
    nano_usd = fields.pop("nano_usd")
    usd = None if nano_usd is None else usd_text(nano_usd)
    at = datetime.fromtimestamp(entry.at, timezone.utc).isoformat(timespec="milliseconds")
    return {**fields, "at": at, "usd": usd}


def _total_as_dict(total: Total) -> dict[str, Any]:
    fields = total._asdict()
    del fields["name"]
    usd = usd_text(fields.pop("nano_usd"))
    return {**fields, "usd": usd}


def _print_json(key: str, rows: Iterator[dict[str, Any]], total: Total) -> None:
    """Print one JSON object on one line, row by row, since the log may not fit into memory."""
    sys.stdout.write(f'{{"schema": {output.SCHEMA}, "{key}": [')
    for number, row in enumerate(rows):
        sys.stdout.write((", " if number else "") + output.dumped(row))
    sys.stdout.write(f'], "total": {output.dumped(_total_as_dict(total))}}}\n')


def _print_csv(names: tuple[str, ...], rows: Iterator[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)


def _csv_cell(value: object) -> object:
    """A cell without control characters, and not a formula for a spreadsheet."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULAS) else text


def _print_entries(rows: list[dict[str, Any]], total: Total) -> None:
    if not rows:
        click.echo("the usage log has nothing of that kind")
        return
    output.console().print(
        output.table(
            *("when (UTC)", "run", "test", "what", "tokens", "cost", "status"),
            rows=map(_entry_cells, rows),
            styles=("yellow" if row["kind"] == "refusal" else "" for row in rows),
        )
    )
    output.say(_sum(total))


def _entry_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    via = f" via {row['provider']}" if row["provider"] else ""
    what = row["model"] + via if row["kind"] != "endpoint" else row["endpoint"]
    tokens = f"{row['input_tokens']} + {row['output_tokens']}" if row["kind"] == "call" else ""
    not_sent = "not sent: " if row["kind"] == "refusal" else ""
    when = row["at"][:19].replace("T", " ")
    test = row["test"] or row["place"]
    return when, row["run"], test, what, tokens, _cost(row), not_sent + row["status"]


def _cost(row: Mapping[str, Any]) -> str:
    if row["kind"] == "endpoint":
        return f"{_dollars(row['usd'])} ({row['minutes']} min)"
    if row["kind"] == "refusal":
        return ""
    return (
        "?" if row["usd"] is None else f"{'≤ ' if row['estimated'] else ''}{_dollars(row['usd'])}"
    )


def _print_totals(group: str, rows: list[dict[str, Any]], total: Total) -> None:
    columns = ("calls", "refused", "input_tokens", "output_tokens", "minutes")
    bill = ("ledger_usd", "billed_usd", "drift")
    billed = [name for name in bill if any(row.get(name) is not None for row in rows)]
    output.console().print(
        output.table(
            *(group, *(name.replace("_", " ") for name in columns), "cost"),
            *(name.removesuffix("_usd") for name in billed),
            rows=(
                (
                    row[group] or "-",
                    *(str(row[name]) for name in columns),
                    _dollars(row["usd"]) + (f" + {row['unpriced']} ?" if row["unpriced"] else ""),
                    *(_billed_cell(name, row[name]) for name in billed),
                )
                for row in rows
            ),
            styles=("" for _ in rows),
        )
    )
    output.say(_sum(total))


def _billed_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return drift_text(value) if name == "drift" else _dollars(value)


def _sum(total: Total) -> str:
    """The line with the sums of all matching entries, those beyond the limit included."""
    parts = [f"{total.calls} calls", show(total.nano_usd)]
    if total.minutes:
        parts.append(f"{total.minutes} min of endpoints")
    if total.refused:
        parts.append(f"{total.refused} refused")
    if total.unpriced:
        parts.append(f"{total.unpriced} {UNPRICED.meaning}")
    if total.estimated:
        parts.append(f"{total.estimated} at an upper bound (≤)")
    return f"in all: {', '.join(parts)}"


def _dollars(usd: str) -> str:
    return show(parse_usd(usd))
