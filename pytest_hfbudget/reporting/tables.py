"""The tables of a report as data: for the page, `hfbudget report`, and the summary of a CI job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.money import beside, change, show
from pytest_hfbudget.reporting import ESTIMATED, NO_TEST, Report, TestLine, distinct, remarks, total
from pytest_hfbudget.reporting.bill import Bill, by_model, drift_text

Kind = Literal["text", "name", "word", "usd", "more", "count", "seconds"]
Cell = str | int | float | None

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ENDPOINTS = "endpoints"
_WHOLE = "A full bar is all that the run has spent."


class Column(NamedTuple):
    """One column.

    Attributes:
        kind: ``name`` for long texts without spaces, ``word`` for texts with few different values,
            ``usd`` for nano-USD, ``more`` for a difference in nano-USD.
        bar: whether a cell shows a bar for its part of the column's sum.
        filled: for a column of caps, the indices of the columns with the amounts spent: the total
            and, if there is one, the uptime. A cell shows both as one bar.
    """

    label: str
    kind: Kind
    bar: bool = False
    filled: tuple[int, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether its cells are numbers."""
        return self.kind in ("usd", "more", "count", "seconds")

    def text(self, value: Cell) -> str:
        """A cell as text."""
        if value is None or isinstance(value, str):
            return value or ""
        if self.kind in ("usd", "more"):
            return show(int(value))
        return f"{value:,.2f}" if self.kind == "seconds" else f"{value:,}"


CAP = Column("cap", "usd")


class Table(NamedTuple):
    """One table; its rows are sorted, the most important first."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def texts(self, row: tuple[Cell, ...]) -> Iterator[str]:
        """The cells of a row as text.

        Amounts side by side get as many digits as they need to differ. A cap is exact. A difference
        is that of the two rounded texts before it.
        """
        cells = zip(self.columns, row, strict=True)
        compares = any(column.kind == "more" for column in self.columns)
        differs = ""
        for kind, group in itertools.groupby(cells, key=lambda cell: cell[0].kind):
            side_by_side = dict(group)
            known = {one: nano for one, nano in side_by_side.items() if isinstance(nano, int)}
            amounts = known if kind == "usd" else {}
            cap = next((nano for one, nano in amounts.items() if one.label == CAP.label), None)
            shown = dict(zip(amounts, beside(cap, *amounts.values()), strict=False))
            if compares and kind == "usd":
                *texts, differs = change(*amounts.values())
                shown = dict(zip(amounts, texts, strict=True))
            elif kind == "more":
                shown = dict.fromkeys(known, differs)
            for column, value in side_by_side.items():
                yield shown.get(column) or column.text(value)


def tables(reports: Sequence[Report]) -> Iterator[Table]:
    """The tables that have rows: of the newest run (the last report), and of all runs."""
    newest = reports[-1]
    made = (
        refusals(newest),
        endpoints(newest),
        tests(newest),
        scope_budgets(newest),
        models(newest),
        providers(newest),
        prices(newest),
        drifts(reports),
        runs(reports),
        calls(newest),
    )
    return (table for table in made if table.rows)


def tests(report: Report) -> Table:
    """Costs by test, the most expensive first; the calls outside of tests are one row."""
    uptime = any(one.uptime for one in report.tests)
    columns = (
        Column("test", "name"),
        Column("spent", "usd"),
        CAP._replace(filled=(1, 3) if uptime else (1,)),
        *((Column("of which uptime", "usd"),) if uptime else ()),
        Column("calls", "count"),
        Column("refused", "count"),
        Column("outcome", "word"),
    )
    lines: list[TestLine] = [*report.tests]
    if outside := report.outside:
        lines.append(TestLine(NO_TEST, "", total(outside), None, len(outside), 0))
    rows = (
        (
            *(one.id, one.charged, one.cap, *((one.uptime or None,) if uptime else ())),
            *(one.calls, one.refused, one.outcome),
        )
        for one in lines
    )
    note = "A bar is what a test has spent of its cap: on calls, and on the uptime of endpoints."
    return Table("tests", "By test", columns, by_amount(rows, 1), note)


def scope_budgets(report: Report) -> Table:
    """The budgets that several tests share, in the order of their first test."""
    columns = (
        Column("budget", "name"),
        Column("level", "word"),
        Column("spent", "usd"),
        CAP._replace(filled=(2,)),
        Column("calls", "count"),
        Column("refused", "count"),
    )
    rows = tuple(
        (one.name, one.level, one.spent, one.cap, one.calls, one.refused)
        for one in report.scope_budgets
    )
    return Table("shared", "Shared budgets", columns, rows)


def models(report: Report) -> Table:
    """Costs by model; an endpoint is a row with its uptime."""
    uptime = {endpoint.name: endpoint.nano_usd for endpoint in report.endpoints}
    made = _grouped("models", "By model", "model", report.charges, _model, uptime)
    return made._replace(note=f"{made.note} An endpoint costs its uptime." if uptime else made.note)


def providers(report: Report) -> Table:
    """Costs by the provider that answered; all endpoints together are one row."""
    uptime = {_ENDPOINTS: report.uptime} if report.endpoints else {}
    return _grouped("providers", "By provider", "provider", report.charges, _provider, uptime)


def prices(report: Report) -> Table:
    """The sources of prices, each with the day of its prices."""
    columns = (
        Column("source", "name"),
        Column("of", "word"),
        Column("spent", "usd", bar=True),
        Column("calls", "count"),
    )
    # The price source of calls to an endpoint; the calls themselves cost nothing.
    uptime = {f"uptime of {one.name}": one.nano_usd for one in report.endpoints}
    rows = (
        (
            *(source or "(no price)", day[0] if (day := _DAY.findall(source)) else ""),
            *(total(group) + uptime.get(source, 0), len(group)),
        )
        for source, group in _groups(report.charges, _price_source, uptime)
    )
    return Table("prices", "Where prices came from", columns, by_amount(rows, 2), _WHOLE)


def endpoints(report: Report) -> Table:
    """The endpoints of the run, and what happened to each at the end."""
    columns = (
        Column("endpoint", "name"),
        Column("state", "text"),
        Column("minutes", "count"),
        Column("cost", "usd"),
        Column("idle", "usd"),
    )
    rows = ((e.name, e.verdict, e.minutes, e.nano_usd, e.idle) for e in report.endpoints)
    note = "Minutes are started minutes of all replicas. Idle is what no test used."
    return Table("endpoints", "Endpoints", columns, by_amount(rows, 3), note)


def shares(report: Report) -> Table:
    """The share of each test in the uptime of an endpoint."""
    columns = (
        Column("test", "name"),
        Column("endpoint", "name"),
        Column("share", "usd", bar=True),
    )
    rows = ((test, e.name, share) for e in report.endpoints for test, share in e.shares)
    return Table("shares", "Uptime by test", columns, by_amount(rows, 2))


def refusals(report: Report) -> Table:
    """The refused calls; equal refusals of one test are one row."""
    columns = (
        Column("test", "name"),
        Column("model", "name"),
        Column("times", "count"),
        Column("why", "text"),
    )
    rows = tuple(
        (one.test or NO_TEST, one.model, times, one.message)
        for one, times in distinct(report.refusals)
    )
    return Table("refusals", "Refused calls", columns, rows)


def runs(reports: Sequence[Report]) -> Table:
    """All runs, the newest first; no rows for a single run."""
    columns: tuple[Column, ...] = (
        Column("date (UTC)", "word"),
        Column("run", "word"),
        Column("spent", "usd"),
        CAP._replace(filled=(2, 6)),
        Column("calls", "count"),
        Column("refused", "count"),
        Column("of which uptime", "usd"),
    )
    billed = any(one.bill is not None for one in reports)
    if billed:
        columns += (Column("ledger", "usd"), Column("billed", "usd"), Column("drift", "word"))
    rows = tuple(
        (
            *(one.day, one.run, one.spent, one.cap, one.calls, one.refused, one.uptime),
            *(_billed(one.bill) if billed else ()),
        )
        for one in reversed(reports)
        if len(reports) > 1
    )
    return Table("runs", "All runs", columns, rows)


def _billed(bill: Bill | None) -> tuple[Cell, Cell, Cell]:
    if bill is None or bill.booked is None:
        return None, None, ""
    return bill.ledger, bill.booked.nano_usd, drift_text(bill.drift)


def drifts(reports: Sequence[Report]) -> Table:
    """Ledger and bill by model, from runs that used only one model."""
    columns = (
        Column("model", "name"),
        Column("runs", "count"),
        Column("ledger", "usd"),
        Column("billed", "usd"),
        Column("drift", "word"),
    )
    found = by_model(one.bill for one in reports if one.bill is not None)
    rows = tuple((*one, drift_text(one.drift)) for one in found)
    note = "Runs that used one model, as far as hfbudget bill has read their bills."
    return Table("drift", "Against the bill", columns, rows, note)


def calls(report: Report) -> Table:
    """Each call, in the order of settlement; one to an endpoint has the endpoint's name."""
    remarked = any(map(remarks, report.charges))
    columns = (
        Column("#", "count"),
        Column("test", "name"),
        Column("cost", "usd"),
        *((Column("remarks", "word"),) if remarked else ()),
        Column("model", "name"),
        Column("provider", "word"),
        Column("status", "word"),
        Column("in", "count"),
        Column("out", "count"),
        Column("seconds", "seconds"),
        Column("task", "word"),
        Column("price", "word"),
    )
    rows = tuple(
        (
            *(number, each.test or each.where or NO_TEST, each.nano_usd),
            *((remarks(each),) if remarked else ()),
            *(_model(each), _provider(each), each.status),
            *(each.input_tokens, each.output_tokens, each.seconds, each.task),
            _price_source(each),
        )
        for number, each in enumerate(report.charges, 1)
    )
    return Table("calls", "Calls", columns, rows)


def _model(charge: Charge) -> str:
    """The model of a call, or the name of the endpoint that it went to."""
    return charge.endpoint or charge.model


def _provider(charge: Charge) -> str:
    return charge.provider or (_ENDPOINTS if charge.endpoint else "")


def _price_source(charge: Charge) -> str:
    """The price source of a call, without the model that a catalogue's source names."""
    return charge.price_source.partition(": ")[0]


def _grouped(
    key: str,
    title: str,
    label: str,
    charges: Iterable[Charge],
    by: Callable[[Charge], str],
    uptime: Mapping[str, int],
) -> Table:
    columns = (
        Column(label, "name"),
        Column("spent", "usd", bar=True),
        Column("calls", "count"),
        Column("in", "count"),
        Column("out", "count"),
        Column(ESTIMATED.word, "count"),
    )
    rows = (
        (
            *(name or "(unknown)", total(group) + uptime.get(name, 0), len(group)),
            sum(charge.input_tokens for charge in group),
            sum(charge.output_tokens for charge in group),
            sum(map(ESTIMATED.applies, group)),
        )
        for name, group in _groups(charges, by, uptime)
    )
    return Table(key, title, columns, by_amount(rows, 1), f"In and out are tokens. {_WHOLE}")


def _groups(
    charges: Iterable[Charge], by: Callable[[Charge], str], names: Iterable[str]
) -> Iterable[tuple[str, list[Charge]]]:
    """The charges grouped by ``by``; each of ``names`` is a group, even without charges."""
    found: dict[str, list[Charge]] = {name: [] for name in names}
    for charge in charges:
        found.setdefault(by(charge), []).append(charge)
    return found.items()


def by_amount(rows: Iterable[tuple[Cell, ...]], column: int) -> tuple[tuple[Cell, ...], ...]:
    """The rows sorted by the amount in a column, the largest first; the sort is stable."""

    def amount(row: tuple[Cell, ...]) -> float:
        value = row[column]
        return -value if isinstance(value, (int, float)) else 0

    return tuple(sorted(rows, key=amount))
