"""The bills of the runs in the usage log: read from the log, asked of the Hub, kept in the log."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.history.billing import BillError, BillingClient, BillingPeriod
from pytest_hfbudget.history.database import connect, explained
from pytest_hfbudget.history.usage_log import FILE
from pytest_hfbudget.history.usage_schema import SCHEMA
from pytest_hfbudget.money import ATTO_PER_NANO
from pytest_hfbudget.pricing import CallRequest, Price
from pytest_hfbudget.pricing.book import PriceBook
from pytest_hfbudget.reporting.bill import PENDING, REPORTED, UNAVAILABLE, Bill, Booked

RATES = ("input", "output", "cached", "call", "image", "second")
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
    WHERE {{only}} GROUP BY run.run HAVING count(*) FILTER (WHERE {_ROUTED}) > 0
"""  # noqa: S608 - constants
_SUMS = f"""
    SELECT coalesce(sum(nano_usd) FILTER (WHERE {_ROUTED}), 0),
        count(*) FILTER (WHERE {_ROUTED} AND {_BILLABLE}),
        coalesce(sum(nano_usd) FILTER (WHERE kind = 'endpoint'), 0)
    FROM entry WHERE at BETWEEN ? AND ?
"""  # noqa: S608 - constants
_TOKENS = f"""
    SELECT run.run, sum(input_tokens), sum(output_tokens), sum(cached_tokens)
    FROM run JOIN entry ON entry.run = run.run WHERE {_OWN} AND {_BILLABLE} GROUP BY run.run
"""  # noqa: S608 - constants
# Older releases of SQLite take 999 values in one statement.
_MOST_NAMES = 900
_NO_SESSION = (
    "this run sent no session id: hf_session_header was off, or the run used an older "
    "pytest-hfbudget, which sends none"
)


class BillBook:
    """The runs of a usage log, with the bills that are kept in it.

    Each method raises `HistoryError` if the log can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def runs(self, only: Collection[str] | None = None) -> list[Bill]:
        """Every run that called the router, oldest first, with the last report of its bill.

        Args:
            only: the ids of the runs to read; None for all runs.
        """
        if not self._path.exists():
            return []
        names = list(only or ()) if only is not None and len(only) <= _MOST_NAMES else None
        marks = "1" if names is None else f"run.run IN ({', '.join('?' * len(names))})"
        sql = f"{_RUNS.format(only=marks)} ORDER BY run.ended, run.run"
        with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
            return [_bill(*row) for row in connection.execute(sql, names or ())]

    def evidence(self) -> list[BilledRun]:
        """The runs whose bill shows what one model costs: with a complete bill, and no estimate."""
        if not self._path.exists():
            return []
        with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
            tokens = {run: used for run, *used in connection.execute(_TOKENS)}
        return [
            BilledRun(bill, *tokens[bill.run])
            for bill in self.runs()
            if bill.model and bill.complete and not bill.estimated and bill.run in tokens
        ]

    def keep(self, bills: Collection[Bill], now: float) -> None:
        """Keep the bills that the Hub reported at ``now``, in place of earlier ones."""
        rows = [
            (bill.run, bill.booked.nano_usd, bill.booked.requests, now)
            for bill in bills
            if bill.booked is not None
        ]
        if rows:
            with explained(self._path, SCHEMA), closing(connect(self._path, SCHEMA)) as connection:
                connection.executemany("INSERT OR REPLACE INTO bill VALUES (?, ?, ?, ?)", rows)

    def month(self, period: BillingPeriod) -> MonthBill:
        """A billing period on the bill, with the sums of the log for the same time."""
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
        inference, endpoints: the sums in the log.
        requests: the requests in the log that may be billed.
        more: what the runs that have a bill were billed beyond their ledger.
        booked_requests: the requests on the bills of these runs.
    """

    period: BillingPeriod
    inference: int
    requests: int
    endpoints: int
    more: int
    booked_requests: int

    @property
    def parts(self) -> dict[str, tuple[int, int, int, int]]:
        """For each part: billed, in the log, the drift of runs with a bill, and the unexplained."""
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


def read_again(bills: Collection[Bill], hub: BillingClient, now: float) -> list[Bill]:
    """The same runs with what the Hub reports of them now; one question asks for all of them."""
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


# --- prices that would have been right


class BilledRun(NamedTuple):
    """A run with one model, the tokens that it used, and what it was billed."""

    bill: Bill
    input_tokens: int
    output_tokens: int
    cached_tokens: int

    @property
    def most(self) -> int:
        """What it was billed, in atto-USD; its calls can't have cost more."""
        return (self.bill.booked.nano_usd if self.bill.booked else 0) * ATTO_PER_NANO

    @property
    def least(self) -> int:
        """Its calls have cost more than this, in atto-USD: each was rounded up to a nano-USD."""
        return self.most - self.bill.requests * ATTO_PER_NANO

    def atto(self, price: Price) -> Fraction:
        """What it costs at a price, in atto-USD, before any call is rounded up."""
        if not price.by_token and price.call is None:
            # By the image or the second: only what was charged is known.
            return Fraction((self.bill.ledger or 0) * ATTO_PER_NANO)
        cached = self.cached_tokens if price.cached is not None else 0
        return Fraction(
            (self.input_tokens - cached) * (price.input or 0)
            + cached * (price.cached or 0)
            + self.output_tokens * (price.output or 0)
            + self.bill.requests * (price.call or 0)
        )

    def fits(self, price: Price) -> bool:
        """Whether this price can have led to this bill."""
        return self.least < self.atto(price) <= self.most


@dataclass(frozen=True)
class Suggestion:
    """The price of a model that its bills suggest.

    Attributes:
        name: the name of its row in a price table.
        uses: the runs with this model.
        listed: today's price; None if there is none, or several.
        source: where today's price is written.
        price: the price that would have been right, maybe today's; None if none is known.
        exact: whether ``price`` leads to each of the bills; if not, only to their sum.
    """

    name: str
    uses: tuple[BilledRun, ...]
    listed: Price | None
    source: str = ""
    price: Price | None = None
    exact: bool = False

    @property
    def right(self) -> bool:
        """Whether today's price is right."""
        return self.price is not None and self.price == self.listed

    def json(self) -> dict[str, Any]:
        """The suggestion as JSON."""
        return {
            "name": self.name,
            "listed": self.listed and self.listed.as_row(),
            "source": self.source,
            "price": self.price and self.price.as_row(),
            "right": self.right,
            "exact": self.exact,
            "runs": [use.bill.json() for use in self.uses],
        }


def suggestions(uses: Collection[BilledRun], book: PriceBook) -> list[Suggestion]:
    """For each model and provider, the price that would have been right."""
    groups: dict[tuple[str, str], list[BilledRun]] = {}
    for use in uses:
        groups.setdefault((use.bill.model, use.bill.provider), []).append(use)
    return [_suggestion(*key, tuple(group), book) for key, group in sorted(groups.items())]


def _suggestion(
    model: str, provider: str, uses: tuple[BilledRun, ...], book: PriceBook
) -> Suggestion:
    name = f"{model}:{provider}" if provider else model
    quote = book.quote(CallRequest("conversational", model, provider or None))
    if quote is None or not quote.certain or quote.free:
        return Suggestion(name, uses, None)
    listed, source = quote.options[0]
    if all(use.fits(listed) for use in uses):
        return Suggestion(name, uses, listed, source, listed, exact=True)
    for found in (_other_cached(uses, listed), _scaled(uses, listed), _solved(uses, listed)):
        if found is not None and all(use.fits(found) for use in uses):
            return Suggestion(name, uses, listed, source, found, exact=True)
    whole = sum(use.atto(listed) for use in uses)
    if not whole:
        return Suggestion(name, uses, None)
    least, most = sum(use.least for use in uses), sum(use.most for use in uses)
    return Suggestion(name, uses, listed, source, _times(listed, least / whole, most / whole))


def _scaled(uses: Collection[BilledRun], listed: Price) -> Price | None:
    """The listed price with all rates times one factor, if one explains all bills; else None."""
    costs = [(use, use.atto(listed)) for use in uses]
    if not all(cost for _, cost in costs):
        return None
    low = max(use.least / cost for use, cost in costs)
    high = min(use.most / cost for use, cost in costs)
    return _times(listed, low, high) if low < high else None


def _times(price: Price, low: Fraction, high: Fraction) -> Price:
    low = max(low, Fraction(0))
    rates: dict[str, Any] = {key: getattr(price, key) for key in RATES}
    for key, rate in rates.items():
        rates[key] = None if rate is None else _plainest(rate, low, high)
    return replace(price, **rates)


def _plainest(rate: int, low: Fraction, high: Fraction) -> int:
    """The rate with the fewest digits above ``rate * low``, up to ``rate * high``."""
    for step in (10**digits for digits in range(18, -1, -1)):
        found: int = math.floor(rate * high / step) * step
        if found > rate * low:
            return found
    return math.floor(rate * high)


def _other_cached(uses: Collection[BilledRun], listed: Price) -> Price | None:
    """The listed price with another rate for cached input that fits the runs which have some."""
    told = [use for use in uses if use.cached_tokens]
    if not told or not listed.by_token:
        return None
    free = replace(listed, cached=0)
    low = max(Fraction(use.least - use.atto(free), use.cached_tokens) for use in told)
    high = min(Fraction(use.most - use.atto(free), use.cached_tokens) for use in told)
    rate = _plainest(1, low, high) if high > 0 and low < high else 0
    return replace(listed, cached=rate) if rate else None


def _solved(uses: Collection[BilledRun], listed: Price) -> Price | None:
    """Other rates of input and output, if some explain all bills; else None."""
    if not listed.by_token or listed.cached is not None or listed.call is not None:
        return None
    pairs = [(use.input_tokens, use.output_tokens, use.most) for use in uses]
    aa, ab, bb = (sum(p[i] * p[j] for p in pairs) for i, j in ((0, 0), (0, 1), (1, 1)))
    ac, bc = (sum(p[i] * p[2] for p in pairs) for i in (0, 1))
    if not (determinant := aa * bb - ab * ab):
        return None
    best = Fraction(ac * bb - bc * ab, determinant), Fraction(bc * aa - ac * ab, determinant)
    for step in (10**digits for digits in range(18, 5, -1)):
        rates = [max(round(rate / step), 0) * step for rate in best]
        found = replace(listed, input=rates[0], output=rates[1])
        if all(use.fits(found) for use in uses):
            return found
    return None
