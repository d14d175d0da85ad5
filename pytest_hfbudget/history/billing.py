"""Asks the Hub what it has booked: for inference sessions, and in a billing period."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import ROUND_HALF_EVEN, Decimal, DecimalException
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

from pytest_hfbudget import __version__
from pytest_hfbudget.endpoints.transport import (
    HttpAnswer,
    NoAnswerError,
    Route,
    Transport,
    Urllib3Transport,
)
from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.locks import SYSTEM_CLOCK
from pytest_hfbudget.reporting.bill import FORBIDDEN, UNAVAILABLE, Booked
from pytest_hfbudget.text import printable, public_url

TRY_S = 10.0
WAITS_S = (0.25, 1.0)  # before a second and a third try
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_NANO_PER_CENT, _NANO_PER_MICRO = 10**7, 10**3
_MOST = 10**18  # of nano-USD: a billion dollars
_MOST_PAGES = 1000
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*\brel="?next"?')


class BillError(HFBudgetError):
    """The bill can't be read from the Hub; ``status`` is `FORBIDDEN` or `UNAVAILABLE`."""

    def __init__(self, message: str, status: str = UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


class BillingPeriod(NamedTuple):
    """What the Hub has booked in a billing period so far; unix seconds, and nano-USD."""

    start: float
    now: float
    inference: int
    requests: int
    endpoints: int


class BillingClient:
    """Reads the bill of the token's owner, or of an organisation.

    Each method raises `BillError`, whose text is one line and never has the token in it.

    Args:
        hub: the base URL of the Hub. The token is sent only there: no redirect is followed, and no
            link to a page at another address.
        org: the name of an organisation; None for the bill of the token's owner.
    """

    def __init__(
        self, hub: str, token: str, org: str | None = None, *, transport: Transport | None = None
    ) -> None:
        self._hub, self._token, self._org = hub.rstrip("/"), token, org
        self._transport = transport or Urllib3Transport(Route.find(self._hub))
        account = f"organizations/{quote(org, safe='')}" if org else "settings"
        self._base = f"{self._hub}/api/{account}/billing"

    def sessions(self, wanted: Collection[str], since: float, now: float) -> dict[str, Booked]:
        """What is booked for some sessions, by their id, from the month of ``since`` on.

        A session that the Hub has not reported yet is missing. The parts of a session that lies in
        several months are added up.
        """
        dates = {"startDate": _iso(_month_of(since)), "endDate": _iso(math.ceil(now))}
        found: dict[str, Booked] = {}
        for page in self._pages("usage-by-inference-session", dates):
            for row in _rows(page, "sessions"):
                name = row.text("id")
                if name in wanted:
                    nano, requests = found.get(name, Booked(0, 0))
                    nano += row.cents("costCents")
                    found[name] = Booked(nano, requests + row.count("requestCount"))
        return found

    def period(self, now: float) -> BillingPeriod:
        """The present billing period; for an organisation, the calendar month."""
        return self._month_of_org(now) if self._org else self._own_period(now)

    def _own_period(self, now: float) -> BillingPeriod:
        answer = Fields(self._ask("usage"), "the usage of the billing period")
        start = answer.inner("period").unix_s("periodStart")
        products = answer.inner("usage").values.values()
        rows = [row for rows in products if isinstance(rows, list) for row in rows]
        endpoints = sum(
            row.micro_usd("totalCostMicroUSD")
            for row in (Fields(row, "a row of the usage") for row in rows)
            if row.text("product").startswith("endpoints/")
        )
        times = {"startDate": str(int(start)), "endDate": str(math.ceil(now))}
        usage = Fields(self._ask("usage-v2", times), "the usage").inner("usage")
        used = usage.inner("inferenceProviders")
        spent, requests = used.count("usedNanoUsd"), used.count("numRequests")
        return BillingPeriod(start, now, spent, requests, endpoints)

    def _month_of_org(self, now: float) -> BillingPeriod:
        start = _month_of(now)
        dates = {"startDate": _iso(start), "endDate": _iso(math.ceil(now))}
        inference = requests = endpoints = 0
        for page in self._pages("usage-by-resource-group", dates):
            for row in _rows(page, "resourceGroups"):
                if used := row.maybe("inference"):
                    inference += used.cents("costCents")
                    requests += used.count("requestCount")
                compute = row.maybe("compute")
                if compute and (used := compute.maybe("endpoints")):
                    endpoints += used.cents("costCents")
        return BillingPeriod(start, now, inference, requests, endpoints)

    def _pages(self, name: str, query: Mapping[str, str]) -> Iterator[Fields]:
        url, seen = f"{self._base}/{name}?{urlencode(query)}", set[str]()
        while url and url not in seen and len(seen) < _MOST_PAGES:
            seen.add(url)
            answer = self._send(url)
            page = Fields(_parsed(answer), "the bill")
            if (currency := page.text("currency")) != "USD":
                raise BillError(f"the bill is in {currency or 'no currency'}, the ledger in USD")
            yield page
            url = self._next(url, answer)

    def _next(self, url: str, answer: HttpAnswer) -> str:
        found = _NEXT.search(answer.headers.get("link", ""))
        following = urljoin(url, found[1]) if found else ""
        if following and _server(following) != _server(self._hub):
            raise BillError(
                f"{public_url(self._hub)} names a next page at {_host(following)}, where the token "
                "is not sent"
            )
        return following

    def _ask(self, name: str, query: Mapping[str, str] | None = None) -> Any:
        return _parsed(
            self._send(f"{self._base}/{name}" + (f"?{urlencode(query)}" if query else ""))
        )

    def _send(self, url: str) -> HttpAnswer:
        for wait in (*WAITS_S, None):
            try:
                answer = self._transport.send("GET", url, self._headers(), None, TRY_S)
            except NoAnswerError as error:
                if wait is None or error.lasting:
                    hub = public_url(self._hub)
                    raise BillError(f"{hub} did not answer ({printable(str(error))})") from None
            else:
                if wait is None or answer.status not in _BUSY:
                    break
            SYSTEM_CLOCK.sleep(wait)
        self._check(answer)
        return answer

    def _check(self, answer: HttpAnswer) -> None:
        status, hub = answer.status, public_url(self._hub)
        if status == HTTPStatus.UNAUTHORIZED:
            raise BillError(
                "the token was refused (HTTP 401); set HF_TOKEN to one that is valid, from "
                "https://huggingface.co/settings/tokens",
                FORBIDDEN,
            )
        if status == HTTPStatus.FORBIDDEN:
            whose = f"that of {self._org}" if self._org else "your own"
            needed = "org.billing.read" if self._org else '"Read billing usage" (billing.read)'
            raise BillError(
                f"the token may not read the bill (HTTP 403); for {whose} it needs the permission "
                f"{needed}",
                FORBIDDEN,
            )
        if status == HTTPStatus.NOT_FOUND and self._org:
            raise BillError(f"{hub} knows no organisation {self._org!r} with a bill (HTTP 404)")
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            where = _host(answer.headers.get("location", "")) or "another address"
            raise BillError(
                f"{hub} redirects to {where} (HTTP {status}), where the token is not sent; let "
                "HF_ENDPOINT name the Hub itself"
            )
        if status != HTTPStatus.OK:
            raise BillError(f"{hub} answered HTTP {status}")

    def _headers(self) -> dict[str, str]:
        return {
            "accept": "application/json",
            "authorization": f"Bearer {self._token}",
            "user-agent": f"pytest-hfbudget/{__version__} (bill)",
        }


@dataclass(frozen=True)
class Fields:
    """A JSON object of the Hub; each method raises `BillError` for a missing or unexpected value.

    Attributes:
        raw: the value.
        what: what messages call it.
    """

    raw: Any
    what: str

    @property
    def values(self) -> Mapping[str, Any]:
        """The object itself."""
        if not isinstance(self.raw, dict):
            raise BillError(f"{self.what} is not an object but {_shown(self.raw)}")
        return self.raw

    def text(self, key: str) -> str:
        """A text."""
        return str(self._of(key, lambda value: value if isinstance(value, str) else None))

    def count(self, key: str) -> int:
        """A whole number, 0 or more."""
        return int(self._of(key, lambda value: value if _is_number(value, int) else None))

    def cents(self, key: str) -> int:
        """An amount in cents, in nano-USD; the Hub has rounded it to whole cents."""
        return int(self._of(key, lambda value: _nano(value, _NANO_PER_CENT)))

    def micro_usd(self, key: str) -> int:
        """An amount in micro-USD, as nano-USD."""
        return int(self._of(key, lambda value: _nano(value, _NANO_PER_MICRO)))

    def unix_s(self, key: str) -> float:
        """A date in ISO 8601, as unix seconds."""
        return float(self._of(key, _unix_s))

    def inner(self, key: str) -> Fields:
        """An object."""
        return Fields(self._of(key, lambda value: value if isinstance(value, dict) else None), key)

    def maybe(self, key: str) -> Fields | None:
        """An object; None if the field is missing or null."""
        return None if self.values.get(key) is None else self.inner(key)

    def each(self, key: str) -> Iterator[Fields]:
        """The items of a list."""
        rows = self._of(key, lambda value: value if isinstance(value, list) else None)
        return (Fields(row, f"an item of {key}") for row in rows)

    def _of(self, key: str, read: Callable[[Any], Any]) -> Any:
        if key not in self.values:
            raise BillError(f"{self.what} has no {key}")
        if (found := read(self.values[key])) is None:
            raise BillError(f"{self.what} has an unexpected {key}: {_shown(self.values[key])}")
        return found


def _rows(page: Fields, name: str) -> Iterator[Fields]:
    return (row for period in page.each("periods") for row in period.each(name))


def _parsed(answer: HttpAnswer) -> Any:
    try:
        return json.loads(answer.body, parse_float=Decimal, parse_constant=lambda word: word)
    except (ValueError, RecursionError, DecimalException):
        kind = printable(answer.headers.get("content-type", ""))[:60] or "no content type"
        raise BillError(f"the answer is not JSON ({kind})") from None


def _nano(value: Any, units: int) -> int | None:
    if not _is_number(value, (int, Decimal)):
        return None
    amount = (Decimal(value) * units).to_integral_value(ROUND_HALF_EVEN)
    return int(amount)


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value <= _MOST


def _unix_s(value: object) -> float | None:
    try:
        at = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def _shown(value: object) -> str:
    return printable(f"{value!r:.40}")


def _month_of(unix_s: float) -> float:
    at = datetime.fromtimestamp(unix_s, timezone.utc)
    return datetime(at.year, at.month, 1, tzinfo=timezone.utc).timestamp()


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _server(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def _host(url: str) -> str:
    try:
        return printable(urlsplit(url).hostname or "")
    except ValueError:
        return ""
