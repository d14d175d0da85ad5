"""The runs of the usage log beside their bills: read from the log, asked for, and kept in it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.history.billing import BillError, BillingPeriod, HubBill
from pytest_hfbudget.history.database import connect, explained
from pytest_hfbudget.history.usage_log import FILE
from pytest_hfbudget.history.usage_schema import SCHEMA
from pytest_hfbudget.reporting.bill import PENDING, REPORTED, UNAVAILABLE, Bill, Booked

# Calls to the router that were not replayed; `OWN` are those under the session id of their run.
_ROUTED = (
    "entry.kind = 'call' AND endpoint IS NULL AND price_source <> 'replayed' "
    "AND model NOT LIKE 'http%://%'"
)
_OWN = f"{_ROUTED} AND entry.session_id <> '' AND entry.session_id = run.session_id"
# What failed is not billed (only 2xx and 3xx are), and what was never connected was not sent.
_BILLABLE = "status <> 'refused' AND status NOT GLOB '[45][0-9][0-9]'"
_RUNS = f"""
    SELECT run.run, run.session_id, started,
        coalesce(sum(nano_usd) FILTER (WHERE {_OWN}), 0),
        count(*) FILTER (WHERE {_OWN} AND nano_usd IS NULL),
        count(*) FILTER (WHERE {_OWN} AND {_BILLABLE}),
        coalesce(sum(nano_usd) FILTER (WHERE {_OWN} AND estimated), 0),
        count(DISTINCT model) FILTER (WHERE {_OWN} AND {_BILLABLE}),
        min(model) FILTER (WHERE {_OWN} AND {_BILLABLE}),
        count(DISTINCT coalesce(provider, '')) FILTER (WHERE {_OWN} AND {_BILLABLE}),
        min(provider) FILTER (WHERE {_OWN} AND {_BILLABLE}),
        count(*) FILTER (WHERE {_ROUTED} AND entry.session_id NOT IN ('', run.session_id)),
        billed_nano_usd, bill.requests
    FROM run JOIN entry ON entry.run = run.run LEFT JOIN bill ON bill.run = run.run
    GROUP BY run.run HAVING count(*) FILTER (WHERE {_ROUTED}) > 0
"""  # noqa: S608 - constants
_SUMS = f"""
    SELECT coalesce(sum(nano_usd) FILTER (WHERE {_ROUTED}), 0),
        count(*) FILTER (WHERE {_ROUTED} AND {_BILLABLE}),
        coalesce(sum(nano_usd) FILTER (WHERE kind = 'endpoint'), 0)
    FROM entry WHERE at BETWEEN ? AND ?
"""  # noqa: S608 - constants
_NO_SESSION = (
    "this run has sent no session id: hf_session_header was off, or its release had none yet"
)


class BillBook:
    """The runs of a usage log with what is kept of their bills.

    Each method raises `HistoryError` when the log can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def runs(self) -> list[Bill]:
        """Every run that called the router, oldest first, with what was last reported of it."""
        if not self._path.exists():
            return []
        with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
            rows = connection.execute(f"{_RUNS} ORDER BY run.ended, run.run").fetchall()
        return [_bill(*row) for row in rows]

    def keep(self, bills: Collection[Bill], now: float) -> None:
        """Keep what was reported now, in place of what was before."""
        rows = [
            (bill.run, bill.booked.nano_usd, bill.booked.requests, now)
            for bill in bills
            if bill.booked is not None
        ]
        if rows:
            with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
                connection.executemany("INSERT OR REPLACE INTO bill VALUES (?, ?, ?, ?)", rows)

    def month(self, period: BillingPeriod) -> MonthBill:
        """A billing period, with what the log knows of it."""
        times, found = (period.start, period.now), (0, 0, 0)
        if self._path.exists():
            with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
                found = connection.execute(_SUMS, times).fetchone()
        booked = [
            (bill.booked.nano_usd - bill.ledger, bill.booked.requests)
            for bill in self.runs()
            if bill.booked is not None and bill.ledger is not None and bill.started >= period.start
        ]
        more, requests = map(sum, zip(*booked, strict=True)) if booked else (0, 0)
        return MonthBill(period, found[0], found[1], found[2], more, requests)


def log_bills() -> BillBook:
    """The bills in the usage log of this user."""
    return BillBook(default_state_dir() / FILE)


class MonthBill(NamedTuple):
    """A billing period on the bill and in the log. Money is nano-USD.

    Attributes:
        inference, endpoints: what the log has of both.
        requests: those of the log that may be billed.
        more: what the runs of the log are known to be billed beyond their ledger.
        booked_requests: the requests of these runs that are on the bill.
    """

    period: BillingPeriod
    inference: int
    requests: int
    endpoints: int
    more: int
    booked_requests: int

    @property
    def parts(self) -> dict[str, tuple[int, int, int, int]]:
        """For each part: billed, in the log, the drift of runs with a bill, and what is left."""
        period = self.period
        inference = period.inference, self.inference, self.more
        endpoints = period.endpoints, self.endpoints, 0
        return {
            "inference": (*inference, inference[0] - inference[1] - inference[2]),
            "endpoints": (*endpoints, endpoints[0] - endpoints[1]),
        }


def _bill(run: str, session_id: str, started: float, *found: Any) -> Bill:
    ledger, unpriced, requests, estimated, models, model, providers, provider, others = found[:9]
    nano, booked = found[9:]
    return Bill(
        run,
        session_id,
        started,
        None if unpriced else ledger,
        requests,
        estimated=estimated,
        model=model if models == 1 else "",
        provider=(provider or "") if providers == 1 else "",
        others=others,
        booked=None if nano is None else Booked(nano, booked),
        status=UNAVAILABLE if not session_id else PENDING if nano is None else REPORTED,
        why="" if session_id else _NO_SESSION,
    )


def read_again(bills: Collection[Bill], hub: HubBill, now: float) -> list[Bill]:
    """The same runs with what the Hub reports of them now; one answer for all of them."""
    asked = [bill for bill in bills if bill.session_id]
    status, why, booked = PENDING, "", dict[str, Booked]()
    try:
        if asked:
            since = min(bill.started for bill in asked)
            booked = hub.sessions({bill.session_id for bill in asked}, since, now)
    except BillError as error:
        status, why = error.status, str(error)
    return [
        replace(
            bill,
            booked=(found := booked.get(bill.session_id)),
            status=status if found is None else REPORTED,
            why=why,
        )
        if bill.session_id
        else bill
        for bill in bills
    ]
