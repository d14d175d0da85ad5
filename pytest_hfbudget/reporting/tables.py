"""The tables of a report as data, for the page, the terminal and the summary of a CI job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from pytest_hfbudget.ledger import Charge
from pytest_hfbudget.money import beside, show
from pytest_hfbudget.reporting.bill import Bill, by_model, drift, drift_text
from pytest_hfbudget.reporting.model import (
    ESTIMATED,
    NO_TEST,
    REHEARSAL,
    REMARKS,
    Report,
    TestLine,
    counted,
    distinct,
    remarks,
    total,
)

Kind = Literal["text", "name", "word", "usd", "more", "count", "seconds"]
Cell = str | int | float | None

_DAY = re.compile(r"\d{4}-\d\d-\d\d")


class Column(NamedTuple):
    """One column.

    Attributes:
        kind: ``name`` for long texts without spaces, ``word`` for texts of few values, ``usd``
            for nano-USD, ``more`` for a difference of nano-USD.
        bar: whether a cell shows its part of the column's greatest value.
    """

    label: str
    kind: Kind
    bar: bool = False

    @property
    def is_number(self) -> bool:
        """Whether its cells are numbers."""
        return self.kind in ("usd", "more", "count", "seconds")

    def text(self, value: Cell) -> str:
        """A cell as text."""
        if value is None or isinstance(value, str):
            return value or ""
        if self.kind in ("usd", "more"):
            return f"{'+' if self.kind == 'more' and value > 0 else ''}{show(int(value))}"
        return f"{value:,.2f}" if self.kind == "seconds" else f"{value:,}"


CAP = Column("cap", "usd")
ONE_SIDED = "A test that makes no call and uses no endpoint is in no report."


class Table(NamedTuple):
    """One table; its rows are sorted, the most important first."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def texts(self, row: tuple[Cell, ...]) -> Iterator[str]:
        """The cells of a row as text; amounts side by side are told apart, a cap is exact."""
        cells = zip(self.columns, row, strict=True)
        for kind, group in itertools.groupby(cells, key=lambda cell: cell[0].kind):
            side_by_side = dict(group)
            known = {one: nano for one, nano in side_by_side.items() if isinstance(nano, int)}
            amounts = known if kind == "usd" else {}
            shown = dict(zip(amounts, beside(amounts.get(CAP), *amounts.values()), strict=False))
            for column, value in side_by_side.items():
                yield shown.get(column) or column.text(value)


def tables(reports: Sequence[Report]) -> Iterator[Table]:
    """Every table that has rows, of the newest run, which is the last; and one over all runs."""
    newest = reports[-1]
    made = (
        refusals(newest),
        endpoints(newest),
        shares(newest),
        tests(newest),
        shared(newest),
        models(newest),
        providers(newest),
        prices(newest),
        drifts(reports),
        runs(reports),
        calls(newest),
    )
    return (table for table in made if table.rows)


def tests(report: Report) -> Table:
    """By test, the most expensive first; calls of no test are a row too."""
    columns = (
        Column("test", "name"),
        Column("spent", "usd", bar=True),
        CAP,
        Column("calls", "count"),
        Column("refused", "count"),
        Column("outcome", "word"),
    )
    rows: list[TestLine] = [*report.tests]
    if outside := report.outside:
        rows.append(TestLine(NO_TEST, "", total(outside), None, len(outside), 0))
    cells = ((one.id, one.spent, one.cap, one.calls, one.refused, one.outcome) for one in rows)
    return Table("tests", "By test", columns, _by_amount(cells, 1))


def shared(report: Report) -> Table:
    """The budgets that several tests share, in the order of their first test."""
    columns = (
        Column("budget", "name"),
        Column("of a", "word"),
        Column("spent", "usd", bar=True),
        CAP,
        Column("calls", "count"),
        Column("refused", "count"),
    )
    rows = tuple(
        (one.name, one.level, one.spent, one.cap, one.calls, one.refused) for one in report.shared
    )
    return Table("shared", "Shared budgets", columns, rows)


def models(report: Report) -> Table:
    """By model."""
    return _grouped("models", "By model", "model", report.charges, lambda charge: charge.model)


def providers(report: Report) -> Table:
    """By the provider that answered."""
    return _grouped(
        "providers", "By provider", "provider", report.charges, lambda charge: charge.provider or ""
    )


def prices(report: Report) -> Table:
    """The sources of prices, each with the day of its prices."""
    columns = (
        Column("source", "name"),
        Column("of", "word"),
        Column("spent", "usd", bar=True),
        Column("calls", "count"),
    )
    groups = _groups(report.charges, lambda charge: charge.price_source.partition(": ")[0])
    rows = (
        (source or "(no price)", day[0] if (day := _DAY.findall(source)) else "", *_sum(group))
        for source, group in groups
    )
    return Table("prices", "Where prices came from", columns, _by_amount(rows, 2))


def endpoints(report: Report) -> Table:
    """The endpoints of the run, and how each was left."""
    columns = (
        Column("endpoint", "name"),
        Column("left", "text"),
        Column("minutes", "count"),
        Column("cost", "usd", bar=True),
        Column("idle", "usd"),
    )
    rows = ((e.name, e.verdict, e.minutes, e.nano_usd, e.idle) for e in report.endpoints)
    note = "Minutes are started minutes of all replicas. Idle is what no test used."
    return Table("endpoints", "Endpoints", columns, _by_amount(rows, 3), note)


def shares(report: Report) -> Table:
    """The share of each test in the uptime of an endpoint."""
    columns = (
        Column("test", "name"),
        Column("endpoint", "name"),
        Column("share", "usd", bar=True),
    )
    rows = ((test, e.name, share) for e in report.endpoints for test, share in e.shares)
    return Table("shares", "Uptime by test", columns, _by_amount(rows, 2))


def refusals(report: Report) -> Table:
    """The calls that were not sent; equal refusals to one test are one row."""
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
    """All runs, the newest first; no rows where there is only one."""
    columns: tuple[Column, ...] = (
        Column("date (UTC)", "word"),
        Column("run", "word"),
        Column("spent", "usd", bar=True),
        CAP,
        Column("calls", "count"),
        Column("refused", "count"),
        Column("endpoints", "usd"),
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
    """Ledger and bill by model, of the runs that used one model."""
    columns = (
        Column("model", "name"),
        Column("runs", "count"),
        Column("ledger", "usd", bar=True),
        Column("billed", "usd", bar=True),
        Column("drift", "word"),
    )
    found = by_model(one.bill for one in reports if one.bill is not None)
    rows = tuple((*one, drift_text(one.drift)) for one in found)
    note = "Runs that used one model, as far as hfbudget bill has read their bills."
    return Table("drift", "Against the bill", columns, rows, note)


def calls(report: Report) -> Table:
    """Each call, in the order of settlement."""
    columns = (
        Column("#", "count"),
        Column("test", "name"),
        Column("cost", "usd"),
        Column("remarks", "word"),
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
            *(number, each.test or each.where or NO_TEST, each.nano_usd, remarks(each)),
            *(each.model, each.provider or "", each.status),
            *(each.input_tokens, each.output_tokens, each.seconds, each.task, each.price_source),
        )
        for number, each in enumerate(report.charges, 1)
    )
    return Table("calls", "Calls", columns, rows)


def comparison(before: Report, after: Report) -> Iterator[Table]:
    """What two runs cost and by how much that differs: in all, and by test."""
    amounts = (Column("before", "usd"), Column("after", "usd"))
    differ = (Column("difference", "more"), Column("change", "word"))
    totals = ((one.spent, one.spent - one.uptime, one.uptime) for one in (before, after))
    in_all = (
        (name, *_change(old, new))
        for name, old, new in zip(("in all", "calls", "endpoints"), *totals, strict=True)
    )
    yield Table("totals", "", (Column("cost", "word"), *amounts, *differ), tuple(in_all))
    was, now = ({test.id: test.whole for test in one.tests} for one in (before, after))
    changed = ((test, *_change(was[test], now[test])) for test in was if test in now)
    rows = sorted((row for row in changed if row[3]), key=lambda row: -abs(row[3]))
    test = Column("test", "name")
    yield Table("changed", "Changed most", (test, *amounts, *differ), tuple(rows))
    for title, column, of, others in (("New", "after", now, was), ("Gone", "before", was, now)):
        only = ((name, nano) for name, nano in of.items() if name not in others)
        columns = (test, Column(column, "usd"))
        yield Table(title.lower(), title, columns, _by_amount(only, 1), ONE_SIDED)


def compared(before: Report, after: Report) -> Iterator[str]:
    """What two runs cost, in sentences; the first one is the sum, the others what to know of it."""
    old, new, more, change = _change(before.spent, after.spent)
    old_text, new_text = beside(None, old, new)
    differ = f"{'+' if more > 0 else ''}{show(more)}{f' ({change})' if change else ''}"
    yield f"{new_text}, before {old_text}: {differ}" if more else f"{new_text}, as before"
    yield f"{after.counts}; before {before.counts}"
    if before.rehearsal and after.rehearsal:
        yield f"Both are rehearsals: {REHEARSAL.partition(': ')[2]}."
    elif before.rehearsal or after.rehearsal:
        yield "One of the two is a rehearsal, with the prices of the emulator: they do not compare."
    counts = {
        "not run, so their costs are missing": [one.not_run for one in (before, after)],
        **{one.meaning: [len(run.remarked(one)) for run in (before, after)] for one in REMARKS},
    }
    for meaning, (earlier, later) in counts.items():
        if earlier or later:
            what = "test" if meaning.startswith("not run") else "call"
            yield f"{counted(later, what)} {meaning}; before {earlier:,}"
    if same := len(_costs(before) & _costs(after)):
        yield f"{counted(same, 'test')} {'costs' if same == 1 else 'cost'} the same"


def _change(before: int, after: int) -> tuple[int, int, int, str]:
    return before, after, after - before, drift_text(drift(before, after))


def _costs(report: Report) -> set[tuple[str, int]]:
    return {(test.id, test.whole) for test in report.tests}


def _grouped(
    key: str, title: str, label: str, charges: Iterable[Charge], by: Callable[[Charge], str]
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
            *(name or "(unknown)", *_sum(group)),
            sum(charge.input_tokens for charge in group),
            sum(charge.output_tokens for charge in group),
            sum(map(ESTIMATED.applies, group)),
        )
        for name, group in _groups(charges, by)
    )
    return Table(key, title, columns, _by_amount(rows, 1))


def _groups(
    charges: Iterable[Charge], by: Callable[[Charge], str]
) -> Iterable[tuple[str, list[Charge]]]:
    found: dict[str, list[Charge]] = {}
    for charge in charges:
        found.setdefault(by(charge), []).append(charge)
    return found.items()


def _sum(group: list[Charge]) -> tuple[int, int]:
    return total(group), len(group)


def _by_amount(rows: Iterable[tuple[Cell, ...]], column: int) -> tuple[tuple[Cell, ...], ...]:
    """Sorted by an amount, the greatest first; among equals as they came."""

    def amount(row: tuple[Cell, ...]) -> float:
        value = row[column]
        return -value if isinstance(value, (int, float)) else 0

    return tuple(sorted(rows, key=amount))
