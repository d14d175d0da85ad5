"""The report as one HTML page that needs no network and no other file.

Names in a report may contain anything, so Jinja escapes all of them. The content security policy of
the page allows only the one script and the one style sheet in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pytest_hfbudget.money import beside, exact, scale, show
from pytest_hfbudget.reporting import REHEARSAL, REMARKS, Report, counted, total
from pytest_hfbudget.reporting import unmetered as not_metered
from pytest_hfbudget.reporting.bill import drift_text
from pytest_hfbudget.reporting.tables import Cell, Column, Table, shares, tables

if TYPE_CHECKING:
    from pytest_hfbudget.reporting.timeline import Timeline

# The rows of a table that are in the HTML itself; the page's script draws the others from data.
ROWS = 25
# From this many rows on, a table has a search box.
SEARCHED = 12
# The most characters of a cell, by kind of column; a longer text is cut and shown in a tooltip.
LONG = {"text": 400, "name": 120, "word": 80}
# The most runs that the chart shows.
TREND = 60
# Numbers of bars for which the chart has fixed widths. Up to the last one each bar has its value.
SLOTS = (6, 12)
_MINUTE_S = 60
# The least width of a bar in the timeline, in thousandths, so that it can be seen.
_LEAST = 0.6
# From here on, integers in JavaScript are not exact.
_EXACT = 2**53
# The places at which the name of a test may be wrapped.
_BREAKS = re.compile(r"(?<=::)|(?<=/)|(?=\[)")
_HERE = Path(__file__).with_name("templates")


def write(reports: Sequence[Report], path: Path) -> None:
    """Write the page of one or more runs, oldest first.

    Raises:
        OSError: it can't be written.
    """
    # A name may contain a lone surrogate, which can't be encoded.
    path.write_text(page(reports), encoding="utf-8", errors="replace")


def page(reports: Sequence[Report]) -> str:
    """The HTML of one or more runs, oldest first.

    The chart and two tables are about all runs; everything else is about the newest one.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, plain=exact, exact=to_the_last)
    environment.filters["of"] = lambda spent, cap: beside(cap, spent)[0]
    environment.tests["number"] = lambda column: column.is_number
    style, script = (_read(name) for name in ("page.css", "page.js"))
    shown = tuple(tables(reports))
    newest = reports[-1]
    return environment.get_template("page.html.j2").render(
        report=newest,
        rehearsal=REHEARSAL.capitalize(),
        runs=len(reports),
        facts=facts(newest),
        filled=fill((newest.spent, newest.uptime), newest.cap),
        notes=[*newest.notes, *(not_metered(*each) for each in newest.unmetered)],
        tables=[(table, sums(table)) for table in shown],
        trend=trend(reports),
        timeline=drawn(newest.timeline) if newest.timeline is not None else None,
        data={table.key: packed(table) for table in (*shown, shares(newest))},
        rows=ROWS,
        long=LONG,
        searched=SEARCHED,
        style=style,
        script=script,
        drawn_bar=drawn_bar,
        parts=_BREAKS.split,
        policy=f"style-src {_hash(style)}; script-src {_hash(script)}",
    )


def facts(report: Report) -> list[tuple[str, str, str]]:
    """The figures at the top of the page: label, figure, and explanation."""
    found = [("calls", f"{report.calls:,}", "")]
    if report.refused:
        found.append(("refused", f"{report.refused:,}", "not sent, to stay within the budgets"))
    for remark in REMARKS:
        if charges := report.remarked(remark):
            spent = f"{show(total(charges))} " if total(charges) else ""
            found.append((remark.word, f"{len(charges):,}", f"{spent}{remark.meaning}"))
    if report.bill and report.bill.booked:
        ledger, billed = report.bill.sums
        drift = drift_text(report.bill.drift)
        meaning = f"by Hugging Face for calls of {ledger}" + (f", {drift}" if drift else "")
        found.append(("billed", billed, meaning))
    if report.above:
        meaning = "charged for calls without usage, and may not have been spent"
        found.append(("upper bound only", show(report.above), meaning))
    if report.endpoints:
        minutes = sum(endpoint.minutes for endpoint in report.endpoints)
        found.append(("endpoint minutes", f"{minutes:,}", f"{show(report.uptime)} of uptime"))
    return found


class Fill(NamedTuple):
    """The filled parts of a bar in per cent of its length: first for calls, then for uptime."""

    calls: float
    uptime: float


def fill(spent: Sequence[Cell], whole: Cell) -> Fill | None:
    """How far a bar is filled.

    Args:
        spent: the total spent and, if known, the part of it that is uptime of endpoints.
        whole: the amount of a full bar; None for no bar.
    """
    if whole is None or not spent:
        return None
    most, uptime = (int(part or 0) for part in (*spent, 0)[:2])
    filled = percent(most, int(whole))
    calls = round(filled * (most - uptime) / most, 2) if most else 0.0
    return Fill(calls, round(filled - calls, 2))


def drawn_bar(row: Sequence[Cell], number: int, column: Column, whole: int) -> Fill | None:
    """The bar of a cell; None for no bar."""
    if column.filled:
        return fill([row[each] for each in column.filled], row[number])
    return fill([row[number]], whole) if column.bar else None


class Trend(NamedTuple):
    """The cost of the latest runs, oldest first.

    Attributes:
        runs: each run with its bar, relative to the most expensive run, and the text of its cost.
        slots: how many bars the chart has room for.
        marks: the amounts at the top, in the middle and at the bottom of the chart.
        line: the figures in words.
    """

    runs: tuple[tuple[Report, Fill, str], ...]
    slots: int
    marks: tuple[str, str, str]
    line: str


def trend(reports: Sequence[Report]) -> Trend:
    """The chart of the latest runs."""
    latest = reports[-TREND:]
    usd = scale(*(one.spent for one in latest))
    most, least = (pick(latest, key=lambda one: one.spent) for pick in (max, min))
    middle = sorted(one.spent for one in latest)[len(latest) // 2]
    line = (
        f"Newest {usd(latest[-1].spent)}, median {usd(middle)}, "
        f"least {usd(least.spent)} ({least.day}), most {usd(most.spent)} ({most.day})."
    )
    return Trend(
        tuple(
            (one, fill((one.spent, one.uptime), most.spent) or Fill(0, 0), usd(one.spent))
            for one in latest
        ),
        next((slots for slots in SLOTS if slots >= len(latest)), len(latest)),
        (usd(most.spent), usd(most.spent // 2), usd(0)),
        line,
    )


class DrawnBar(NamedTuple):
    """A part of a row of the timeline, in thousandths of the run's time.

    Attributes:
        kind: the CSS class of the state or of the test.
        x, width: in thousandths of the run's time.
        said: the tooltip.
    """

    kind: str
    x: float
    width: float
    said: str


class DrawnLane(NamedTuple):
    """An endpoint, or the tests of one worker; ``said`` sums it up."""

    label: str
    said: str
    bars: tuple[DrawnBar, ...]


class DrawnTimeline(NamedTuple):
    """The timeline: its rows, and the times below them with their places in per cent."""

    line: str
    rows: tuple[DrawnLane, ...]
    ticks: tuple[tuple[float, str], ...]


def drawn(timeline: Timeline) -> DrawnTimeline:
    """The timeline of a run as rows of bars."""
    whole = timeline.seconds or 1.0

    def bar(kind: str, start: float, stop: float, said: str) -> DrawnBar:
        width = max(1000 * (stop - start) / whole, _LEAST)
        times = f"{duration(start)} to {duration(stop)}, {duration(stop - start)}"
        return DrawnBar(kind, round(1000 * start / whole, 2), round(width, 2), f"{said}: {times}")

    rows = []
    for lane in timeline.lanes:
        # Leave out moments between two tests: they are too short to be seen.
        shown = [each for each in lane.stretches if each.stop - each.start > whole / 1000]
        bars = (
            bar(each.state.replace(" ", "-"), each.start, each.stop, each.state) for each in shown
        )
        sums: dict[str, float] = {}
        for each in lane.stretches:
            sums[each.state] = sums.get(each.state, 0.0) + each.stop - each.start
        said = ", ".join(f"{state} {duration(seconds)}" for state, seconds in sums.items())
        rows.append(DrawnLane(lane.endpoint, said, tuple(bars)))
    for worker in dict.fromkeys(test.worker for test in timeline.tests):
        tests = [test for test in timeline.tests if test.worker == worker]
        bars = (
            bar(
                "test" if test.endpoints else "free",
                test.start,
                test.stop,
                f"{test.test} ({', '.join(test.endpoints) or 'no endpoint'})",
            )
            for test in tests
        )
        label = f"tests on {worker}" if worker else "tests"
        rows.append(DrawnLane(label, counted(len(tests), "test"), tuple(bars)))
    ticks = tuple((25.0 * part, duration(whole * part / 4)) for part in range(5))
    return DrawnTimeline(timeline.line.capitalize(), tuple(rows), ticks)


def duration(seconds: float) -> str:
    """A time for people: 4.2 s, 3 min 05 s."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    return f"{minutes:,} min {rest:02} s"


def sums(table: Table) -> list[int]:
    """The value of a full bar for each column; 0 for a column without bars."""
    return [
        sum(int(row[number] or 0) for row in table.rows) if column.bar else 0
        for number, column in enumerate(table.columns)
    ]


def percent(part: Cell, whole: int) -> float:
    """The length of a bar in per cent; at least 2 for a part above zero, so that it is visible."""
    if not isinstance(part, (int, float)) or not part or whole <= 0:
        return 0.0
    return round(min(max(100 * part / whole, 2), 100), 2)


def to_the_last(amount: Cell) -> str:
    """An amount to the nano-dollar."""
    return f"{exact(amount)} = {amount:,} nano-USD" if isinstance(amount, int) else ""


def packed(table: Table) -> dict[str, Any]:
    """A table as data for the page's script. Each text is stored once; cells have its index."""
    texts: dict[str, int] = {}

    def pack(value: Cell) -> Cell:
        if isinstance(value, str):
            return texts.setdefault(value, len(texts))
        if isinstance(value, float):
            return round(value, 3)
        return value if value is None or value < _EXACT else str(value)

    rows = [[pack(value) for value in row] for row in table.rows]
    amounts = [number for number, column in enumerate(table.columns) if column.kind == "usd"]
    return {
        "shown": dict(_apart(table, amounts)) if len(amounts) > 1 else {},
        "labels": [column.label for column in table.columns],
        "kinds": [column.kind for column in table.columns],
        "wholes": [str(whole) for whole in sums(table)],
        "filled": [column.filled for column in table.columns],
        "texts": list(texts),
        "rows": rows,
    }


def _apart(table: Table, amounts: Sequence[int]) -> Iterator[tuple[int, dict[int, str]]]:
    """The amounts of each row that need more digits, to differ from other amounts beside them."""
    for number, row in enumerate(table.rows):
        texts = list(table.texts(row))
        alone = ((at, table.columns[at].text(row[at])) for at in amounts)
        if differ := {at: texts[at] for at, text in alone if texts[at] != text}:
            yield number, differ


def _read(asset: str) -> str:
    # Not rendered as a template: the policy has the hash of exactly these bytes.
    return (_HERE / asset).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
