"""The report as one HTML page that needs nothing else: no network, no other file.

What is in a report was named by others, so the page is escaped by Jinja throughout, and its own
content security policy allows exactly the one script and the one style that are in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pytest_hfbudget.money import brief, show
from pytest_hfbudget.reporting.saved import SavedReport
from pytest_hfbudget.reporting.tables import Cell, Column, Table, remarks, tables, uptime

# So many rows are in the page itself; the others are data that its script draws when asked to.
ROWS = 25
# A search box for a table of three rows is one control too many.
SEARCHED = 12
# A longer text is cut in its cell, and shown whole by pointing at it.
LONG = {"text": 400, "name": 80, "word": 24}
TREND = 60
# Above this a number in JavaScript is not exact any more.
_EXACT = 2**53
# Where the name of a test may be broken before it is broken anywhere.
_BREAKS = re.compile(r"(?<=::)")
_HERE = Path(__file__).with_name("templates")


def write(reports: Sequence[SavedReport], path: Path) -> None:
    """Write the page of one or more runs, oldest first.

    Raises:
        OSError: it can't be written.
    """
    # A name may hold half a surrogate pair, which no encoding has.
    path.write_text(page(reports), encoding="utf-8", errors="replace")


def page(reports: Sequence[SavedReport]) -> str:
    """The page of one or more runs, oldest first; what is not over runs is of the newest."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(brief=brief, exact=exact, figure=figure)
    environment.tests["number"] = lambda column: column.kind in ("usd", "count", "seconds")
    style, script = (_read(name) for name in ("page.css", "page.js"))
    shown = tuple(tables(reports))
    newest = reports[-1]
    return environment.get_template("page.html.j2").render(
        report=newest,
        runs=len(reports),
        facts=facts(newest),
        share=used(newest),
        tables=[(table, greatest(table)) for table in shown],
        trend=trend(reports),
        data={table.key: packed(table) for table in shown},
        rows=ROWS,
        long=LONG,
        searched=SEARCHED,
        style=style,
        script=script,
        percent=percent,
        parts=_BREAKS.split,
        policy=f"style-src {_hash(style)}; script-src {_hash(script)}",
    )


def facts(report: SavedReport) -> list[tuple[str, str, str]]:
    """What is to be known at one look: a label, a figure, and what it means."""
    found = [("calls", f"{report.sent:,}", "")]
    if report.refused:
        found.append(("refused", f"{report.refused:,}", "not sent: a cap would not have held"))
    for remark, meaning in (
        ("estimated", "no usage came back; {} is an upper bound"),
        ("no price", "not in the sum: nobody knew what they cost"),
        ("replayed", "a recording answered; nothing was paid"),
    ):
        of = [call for call in report.calls if remark in remarks(call)]
        if of:
            spent = brief(sum(call.usd or 0 for call in of))
            found.append((remark, f"{len(of):,}", meaning.format(spent)))
    if report.endpoints:
        minutes = sum(endpoint.minutes for endpoint in report.endpoints)
        found.append(("endpoint minutes", f"{minutes:,}", f"{brief(uptime(report))} of uptime"))
    return found


def used(report: SavedReport) -> float | None:
    """Per cent of the cap, at most 100; None without a cap."""
    if report.cap is None:
        return None
    return percent(report.spent, report.cap) if report.cap else 100.0


def trend(reports: Sequence[SavedReport]) -> list[tuple[SavedReport, float, float]]:
    """The latest runs with the per cent of the greatest that each spent, and its uptime of it."""
    latest = reports[-TREND:]
    most = max(one.spent for one in latest)
    return [(one, percent(one.spent, most), percent(uptime(one), most)) for one in latest]


def greatest(table: Table) -> list[int]:
    """What is a full bar, per column."""
    return [
        max((int(row[number] or 0) for row in table.rows), default=0) if column.bar else 0
        for number, column in enumerate(table.columns)
    ]


def percent(part: Cell, whole: int) -> float:
    """How long a bar is: never invisible for what is more than nothing."""
    if not isinstance(part, (int, float)) or not part or whole <= 0:
        return 0.0
    return round(min(max(100 * part / whole, 0.5), 100), 2)


def exact(amount: Cell) -> str:
    """An amount to the nano-dollar."""
    return f"{show(amount)} = {amount:,} nano-USD" if isinstance(amount, int) else ""


def figure(value: Cell, column: Column) -> str:
    """A cell as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if column.kind == "usd":
        return brief(int(value))
    return f"{value:,.2f}" if column.kind == "seconds" else f"{value:,}"


def packed(table: Table) -> dict[str, Any]:
    """A table as data for the page: every text once, and numbers that point to it."""
    texts: dict[str, int] = {}

    def pack(value: Cell) -> Cell:
        if isinstance(value, str):
            return texts.setdefault(value, len(texts))
        if isinstance(value, float):
            return round(value, 3)
        return value if value is None or value < _EXACT else str(value)

    rows = [[pack(value) for value in row] for row in table.rows]
    kinds = [column.kind for column in table.columns]
    return {"kinds": kinds, "most": greatest(table), "texts": list(texts), "rows": rows}


def _read(asset: str) -> str:
    # Not as a template: nothing in it is to be filled in, and its hash is that of these bytes.
    return (_HERE / asset).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
